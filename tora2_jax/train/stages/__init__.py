"""What is trained: one module per stage."""
