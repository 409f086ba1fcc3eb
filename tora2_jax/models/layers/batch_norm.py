"""Batch normalization over channels, with stored statistics that only training writes."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

EPSILON = 1e-5  # PyTorch's default, added to every variance


class BatchNorm(nnx.Module):
    """Normalizes the last axis over all others; float32 inside, whatever the input is.

    Stored statistics are used unless the call says `train=True`: then the statistics of the batch
    normalize it and the stored ones move towards them. The stored variance is the unbiased one.
    """

    def __init__(
        self, features: int, eps: float = EPSILON, *, momentum: float = 0.1, rngs: nnx.Rngs
    ) -> None:
        """`momentum` is the share of the new batch in the running averages; needs no keys."""
        self.scale = nnx.Param(jnp.ones(features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(features, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(features, jnp.float32))
        self.eps = eps
        self.momentum = momentum

    def __call__(self, x: Float[Array, "*n c"], *, train: bool = False) -> Float[Array, "*n c"]:
        """Normalized `x` in the dtype of `x`."""
        values = x.astype(jnp.float32)
        mean, variance = (
            self._batch_statistics(values) if train else (_single(self.mean), _single(self.var))
        )
        factor = _single(self.scale) * jax.lax.rsqrt(variance + self.eps)
        return ((values - mean) * factor + _single(self.bias)).astype(x.dtype)

    def _batch_statistics(
        self, x: Float[Array, "*n c"]
    ) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        axes = tuple(range(x.ndim - 1))
        mean, variance = jnp.mean(x, axes), jnp.var(x, axes)
        count = x.size // x.shape[-1]
        unbiased = variance * (count / max(count - 1, 1))
        self.mean[...] += self.momentum * (jax.lax.stop_gradient(mean) - self.mean[...])
        self.var[...] += self.momentum * (jax.lax.stop_gradient(unbiased) - self.var[...])
        return mean, variance


def _single(value: nnx.Variable) -> Float[Array, " c"]:
    """An array in float32, also where it rests in half precision."""
    return value[...].astype(jnp.float32)
