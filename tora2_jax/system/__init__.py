"""What every program needs of its machine: files, limits, progress, stops."""
