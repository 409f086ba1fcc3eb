"""The contrastive loss of the recognition stages."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tora2_jax.models.contrast import diagonal

TEMPERATURE = 0.1


def contrast(
    first: Float[Array, "b d"],
    second: Float[Array, "b d"],
    word: Int[Array, " b"],
    usable: Bool[Array, " b"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Symmetric InfoNCE over the batch and over each word; also the accuracy within words."""
    logits = first @ second.T / TEMPERATURE
    logits = jnp.where(usable[None], logits, -1e9)
    logits = jnp.where(usable[:, None], logits, -1e9)
    within = jnp.where(word[:, None] == word[None], logits, -1e9)
    losses = [
        -diagonal(jax.nn.log_softmax(table, axis)) for table in (logits, within) for axis in (0, 1)
    ]
    right = jnp.argmax(within, axis=1) == jnp.arange(len(word))
    return masked_mean(sum(losses) / len(losses), usable), masked_mean(right, usable)


def normalized(x: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
    """Unit length along an axis, with a finite gradient at zero."""
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=axis, keepdims=True) + 1e-6)


def masked_mean(
    values: Float[Array, " b"] | Bool[Array, " b"], mask: Bool[Array, " b"]
) -> Float[Array, ""]:
    """Mean of the values that count; 0 if none does."""
    return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1)
