"""Pictures and videos of what a model was asked for and what it made."""
