"""Weights on disk: files, folders, bundles, and whether they fit a model."""
