"""The chain of the bold toy world: one config per stage."""
