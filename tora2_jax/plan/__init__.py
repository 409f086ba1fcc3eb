"""Will it fit, and how fast: `python -m tora2_jax.plan`."""
