"""Tora2 in JAX: video diffusion with a word, reference images and a trajectory per entity."""


def __getattr__(name: str):
    """Import the pipeline only when it is asked for, so that `import tora2_jax` stays instant."""
    if name == "Tora2Pipeline":
        from tora2_jax.sampling.pipeline import Tora2Pipeline

        return Tora2Pipeline
    raise AttributeError(f"module 'tora2_jax' has no attribute {name!r}")
