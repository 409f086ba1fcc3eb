"""The one attention call of the house, with its back ends."""

import math

import jax
import jax.numpy as jnp

from tora2_jax import parallel

MAX_LOGITS = 2**26  # elements of one block of logits (256 MiB in float32) before chunking


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    scale: float | None = None,
    *,
    max_logits: int = MAX_LOGITS,
) -> jax.Array:
    """Scaled dot-product attention with a float32 softmax.

    A query with an empty key set gets exactly 0, and all gradients stay finite (our decision).
    Unmasked half-precision attention on a GPU is done by cuDNN; all else by XLA, in chunks of
    queries where the logits would be larger than `max_logits`.

    Args:
        query: `[b, n, heads, d]`.
        key: `[b, m, heads, d]`.
        value: `[b, m, heads, dv]`.
        mask: boolean, broadcastable to `[b, heads, n, m]`; True where a query may see a key.
        scale: factor of the logits, `1 / sqrt(d)` by default.
        max_logits: elements of `[b, heads, n, m]` that may be held at once.

    Returns:
        `[b, n, heads, dv]` in the dtype of `value`.
    """
    batch, queries, heads, width = query.shape
    keys = key.shape[1]
    scale = 1 / math.sqrt(width) if scale is None else scale
    if keys == 0:
        return jnp.zeros((*query.shape[:3], value.shape[-1]), value.dtype)
    if mask is not None:
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    elif _cudnn_can(query, key, value):
        return _by_cudnn(query, key, value, scale)
    chunk = max(1, max_logits // (batch * heads * keys))
    if queries <= chunk:
        return _attend(query, key, value, mask, scale)
    return _attend_in_chunks(query, key, value, mask, scale, chunk)


def _cudnn_can(query: jax.Array, key: jax.Array, value: jax.Array) -> bool:
    half = all(x.dtype in (jnp.bfloat16, jnp.float16) for x in (query, key, value))
    width = query.shape[-1]
    half = half and value.shape[-1] == width
    return half and width % 8 == 0 and width <= 128 and parallel.platform() == "gpu"


def _by_cudnn(query, key, value, scale):
    """With one more query or key where their number is odd, of which JAX takes no gradient.

    No query sees the key; the output of the query is cut off, so nothing depends on it.
    """
    queries, keys = query.shape[1], key.shape[1]
    query, key, value = (
        jnp.pad(array, ((0, 0), (0, array.shape[1] % 2), (0, 0), (0, 0)))
        for array in (query, key, value)
    )
    seen = jnp.full(key.shape[0], keys, jnp.int32) if keys % 2 else None
    output = jax.nn.dot_product_attention(
        query, key, value, scale=scale, key_value_seq_lengths=seen, implementation="cudnn"
    )
    return output[:, :queries]


def _attend(query, key, value, mask, scale):
    logits = jnp.einsum("bnhd,bmhd->bhnm", query, key, preferred_element_type=jnp.float32) * scale
    if mask is not None:
        # Finite, so that a row without keys is a plain average and not NaN.
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    if mask is not None:
        weights = weights * jnp.any(mask, axis=-1, keepdims=True)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, value)


def _attend_in_chunks(query, key, value, mask, scale, chunk):
    batch, queries, heads, width = query.shape
    count = -(-queries // chunk)
    padding = count * chunk - queries
    query = jnp.pad(query, ((0, 0), (0, padding), (0, 0), (0, 0)))
    query = query.reshape(batch, count, chunk, heads, width).swapaxes(0, 1)
    per_query = mask is not None and mask.shape[2] > 1
    if per_query:
        mask_chunks = jnp.pad(mask, ((0, 0), (0, 0), (0, padding), (0, 0)))
        mask_chunks = mask_chunks.reshape(*mask.shape[:2], count, chunk, mask.shape[3])
        mask_chunks = jnp.moveaxis(mask_chunks, 2, 0)

    # Every chunk adds to the gradients of all keys and values: in bfloat16 the sum of hundreds of
    # them would be percents off, so outside of the chunks they are float32.
    wide_key, wide_value = key.astype(jnp.float32), value.astype(jnp.float32)

    # Without the checkpoint the backward pass would keep the weights of all chunks.
    @jax.checkpoint
    def attend_chunk(slices):
        part, part_mask = slices
        own_key, own_value = wide_key.astype(key.dtype), wide_value.astype(value.dtype)
        return _attend(part, own_key, own_value, part_mask if per_query else mask, scale)

    output = jax.lax.map(attend_chunk, (query, mask_chunks if per_query else None))
    output = output.swapaxes(0, 1).reshape(batch, count * chunk, heads, -1)
    return output[:, :queries]
