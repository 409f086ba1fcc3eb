"""How weights go from one form to the other, whatever the model."""
