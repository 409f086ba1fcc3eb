"""Tora2 in JAX: videos whose entities look like their references and follow drawn paths."""

import os

from tora2_jax import moved

# Only tokenizers of transformers are used, and it would say at each start that PyTorch is missing.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
moved.accept()


def __getattr__(name: str):
    """Import the pipeline only when it is asked for, so that `import tora2_jax` stays instant."""
    if name == "Tora2Pipeline":
        from tora2_jax.sampling.pipeline import Tora2Pipeline

        return Tora2Pipeline
    raise AttributeError(f"module 'tora2_jax' has no attribute {name!r}")
