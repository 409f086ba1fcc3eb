"""What devices can do, and what programs ask of them."""
