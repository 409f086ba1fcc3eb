"""The toy world: endless, seeded clips with ground truth."""
