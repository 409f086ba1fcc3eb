"""Networks that are never trained here: text, images, faces, objects."""
