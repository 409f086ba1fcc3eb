"""LoRA folders merged into a checkpoint, and taken out of one again."""
