"""Tora2 in JAX: videos whose entities look like their references and follow drawn paths."""

import importlib
import os

from tora2_jax import moved

# Only tokenizers of transformers are used, and it would say at each start that PyTorch is missing.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
moved.accept()


# What `tora2_jax.NAME` is, and the module that has it.
_PUBLIC = {
    "Tora2Pipeline": "tora2_jax.sampling.pipeline",
    "SampleSettings": "tora2_jax.sampling.settings",
    "SamplingStopped": "tora2_jax.sampling.result",
    "Entity": "tora2_jax.request.build",
    "make_request": "tora2_jax.request.build",
    "load_request": "tora2_jax.request.load",
    "RequestError": "tora2_jax.request.reader",
}


def __getattr__(name: str):
    """Imports what is asked for only then, so that `import tora2_jax` stays instant."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'tora2_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
