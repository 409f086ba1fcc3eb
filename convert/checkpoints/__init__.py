"""Whole checkpoints: found, converted, bundled, exported."""
