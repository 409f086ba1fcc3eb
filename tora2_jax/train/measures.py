"""What a training step tells about its parts, from the gradients and variables by path."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# Name of a part -> paths of its variables, as full matches.
PARTS = {
    "fuser": r".*\.blocks\.fuser\..*",
    "extractor": r".*trajectory_extractor\..*",
    "adapters": r".*appearance\.(?!query_former\.).*",
    "qformer": r".*appearance\.query_former\..*",
    "binder": r".*binder\..*",
    "cross_attention": r".*\.cross_attention\..*",
}
_SIGMOID, _TANH = (re.compile(rf".*gate_(\w+)\.{end}") for end in (r"gate\.bias", "alpha"))


class Share(NamedTuple):
    """A mean over those samples of a step that something holds of, which may be none.

    Both parts are means over all samples, so shares of parts of a batch can be averaged.
    """

    total: jax.Array  # of the values, 0 where it does not hold
    weight: jax.Array  # of the samples of which it holds


def share(values: jax.Array, holds: jax.Array) -> Share:
    """Of values `[b]` and whether they count `[b]`."""
    return Share(jnp.where(holds, values, 0).mean(), holds.mean())


def settled(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of a step on the host, every `Share` as its mean; NaN where it holds of no sample.

    Not within the step: JAX's search for NaNs (JAX_DEBUG_NANS) would end a healthy run there.
    """

    def one(value: Any) -> float:
        if not isinstance(value, Share):
            return float(value)
        return float(value.total) / float(value.weight) if value.weight else math.nan

    return {name: one(value) for name, value in metrics.items()}


def gradient_norms(gradients: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """L2 norms of the gradients of each part that is trained: `gradient_norm/PART`."""
    norms = {}
    for name, pattern in PARTS.items():
        part = [value for path, value in gradients.items() if re.fullmatch(pattern, path)]
        if part:
            norms[f"gradient_norm/{name}"] = optax.tree.norm(part)
    return norms


def gates(variables: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """How far the binding's gates are open at zero input, on average: `gate/NAME`."""
    opened = {}
    for path, value in variables.items():
        if match := _SIGMOID.fullmatch(path):
            opened[f"gate/{match[1]}"] = jax.nn.sigmoid(value).mean()
        elif match := _TANH.fullmatch(path):
            opened[f"gate/{match[1]}"] = jnp.tanh(value).mean()
    return opened
