"""Paths: points, files, splats, flow pictures."""
