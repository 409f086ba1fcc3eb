"""Tora2 in JAX: videos whose entities look like their references and follow drawn paths."""

from tora2_jax import moved

moved.accept()


def __getattr__(name: str):
    """Import the pipeline only when it is asked for, so that `import tora2_jax` stays instant."""
    if name == "Tora2Pipeline":
        from tora2_jax.sampling.pipeline import Tora2Pipeline

        return Tora2Pipeline
    raise AttributeError(f"module 'tora2_jax' has no attribute {name!r}")
