"""Training: `python -m tora2_jax.train`, or `train.train(config, workdir)`."""


def __getattr__(name: str):
    """The loop's public names, read when they are asked for."""
    if name in ("train", "run", "main", "Stopped"):
        from tora2_jax.train import loop

        return getattr(loop, name)
    raise AttributeError(f"module 'tora2_jax.train' has no attribute {name!r}")
