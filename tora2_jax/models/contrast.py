"""The contrastive loss between what an entity looks like and how it moves (eq. 6)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tora2_jax.types import ContrastEmbeddings


def contrastive_loss(
    embeddings: ContrastEmbeddings, temperature: float | Float[Array, ""]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """L_cont (eq. 6) as half the sum of two means over the entities that take part (our decision).

    Negatives are all other entities of the whole batch; with fewer than two the loss is 0.

    Returns:
        The loss, and `contrast_accuracy`: how often the own counterpart is the most similar.
    """
    part = embeddings.takes_part.reshape(-1)
    logits = _similarity(embeddings, scale=1 / temperature)
    own = [-diagonal(jax.nn.log_softmax(logits, axis)) for axis in (0, 1)]
    count = part.sum()
    means = [jnp.where(part, value, 0.0).sum() / jnp.maximum(count, 1) for value in own]
    loss = jnp.where(count >= 2, 0.5 * sum(means), 0.0)
    return loss, {"contrast_accuracy": retrieval_accuracy(embeddings)}


def diagonal(table: Float[Array, "n n"]) -> Float[Array, " n"]:
    """`jnp.diagonal`, whose gradient has a branch with exchanges between devices in it.

    On CPU nothing orders the exchanges of a branch among the others: devices can wait for each
    other forever.
    """
    return jnp.where(jnp.eye(len(table), dtype=bool), table, 0.0).sum(1)


def retrieval_accuracy(embeddings: ContrastEmbeddings) -> Float[Array, ""]:
    """How often an entity's own counterpart is the most similar, mean of both directions.

    0 if fewer than two entities take part.
    """
    part = embeddings.takes_part.reshape(-1)
    similarity = _similarity(embeddings, scale=1.0)
    right = sum(similarity.argmax(axis) == jnp.arange(part.size) for axis in (0, 1)) / 2
    count = part.sum()
    return jnp.where(count >= 2, jnp.where(part, right, 0.0).sum() / jnp.maximum(count, 1), 0.0)


def _similarity(
    embeddings: ContrastEmbeddings, scale: float | Float[Array, ""]
) -> Float[Array, "n n"]:
    """Scaled cosines of all entities of the batch; absent ones get a finite minimum."""
    p, m = (x.reshape(-1, x.shape[-1]) for x in embeddings[:2])
    part = embeddings.takes_part.reshape(-1)
    both = part[:, None] & part[None]
    return jnp.where(both, scale * p @ m.T, jnp.finfo(jnp.float32).min)
