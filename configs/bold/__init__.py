"""The chain of the bold toy world: one config per stage, in the order of `scripts/toy_checkpoint.py`."""
