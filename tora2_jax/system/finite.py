"""Where numbers stop being finite: said in words, in the place of a black video."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

_TOLD = 5  # weights


class NotFiniteError(ValueError):
    """A number is not finite; says where that began, and why if that is known."""


def finite_rows(array: jax.Array | np.ndarray) -> Bool[jax.Array, " b"]:
    """Whether all that an array `[b, ...]` holds of each sample is finite."""
    return jnp.isfinite(array).all(tuple(range(1, array.ndim)))


def not_finite(arrays: Mapping[str, Any]) -> list[str]:
    """Names of those arrays, or trees of arrays, that are not finite; None is no array."""
    leaves = {
        name: [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        for name, tree in arrays.items()
    }
    # One wait for the device, however many arrays there are.
    finite = jax.device_get({name: list(map(_finite, own)) for name, own in leaves.items()})
    return [name for name in arrays if not all(finite[name])]


@jax.jit
def _finite(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()


def reason(weights: Mapping[str, Any]) -> str:
    """Why numbers that weights make are not finite: which weights are not, or what else to do."""
    return damage(weights) or (
        "all weights are finite, so numbers grow too large on the way: compute in float32, or "
        "lower the guidance"
    )


def damage(weights: Mapping[str, Any]) -> str | None:
    """Which weights, by path, are not finite; None if all are finite."""
    faulty = not_finite(weights)
    if not faulty:
        return None
    rest = f" and {len(faulty) - _TOLD} more" if len(faulty) > _TOLD else ""
    return (
        f"weights that are not finite: {', '.join(faulty[:_TOLD])}{rest}; the checkpoint is "
        "damaged: convert it or copy it again"
    )
