"""In which floating-point type the arrays of frozen networks rest in memory.

A network says itself in which type it computes. An array need not rest in a wider type than it is
computed in, nor in a wider one than it came with: the cast at its use gives the same number.
"""

import re
from typing import Any

import jax.numpy as jnp

# Computed in float32 in a network that otherwise computes in half precision.
_FLOAT32 = re.compile(
    r".*(time_embedding|ofs_embedding|modulation)\..*|.*positions"
    r"|(.*\.)?(appearance|binder)\..*|.*\.(mean|var)|log_scale"
    r"|.*norm[^.]*\.(scale|bias)"  # small, and some norms compute in float32
)


def resting_dtype(path: str, stored: Any, computed: Any) -> jnp.dtype:
    """The type that an array is restored to.

    Args:
        path: of the array in its component.
        stored: type on disk.
        computed: type in which the network computes.
    """
    stored, computed = jnp.dtype(stored), jnp.dtype(computed)
    if not jnp.issubdtype(stored, jnp.floating):
        return stored
    if _FLOAT32.fullmatch(path):
        computed = jnp.dtype(jnp.float32)
    return stored if stored.itemsize < computed.itemsize else computed
