"""Reference images: cut, faces found, features from files."""
