"""Training: `python -m tora2_jax.train`."""
