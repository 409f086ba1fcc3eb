"""The cross-attention through which references reach the video tokens."""

import jax
import jax.numpy as jnp
from flax import nnx

from tora2_jax.models.attention import attention
from tora2_jax.models.layers import ZEROS, LayerNorm, Linear


class PersonalizationCrossAttention(nnx.Module):
    """Video tokens look at the personalization tokens of all entities (our decision in form).

    The output map starts at zero, so a new module changes nothing; it has no bias, so a sample
    without keys gets exactly 0 at every point of training. Neither timestep nor position enters
    the keys and values.
    """

    def __init__(
        self,
        width: int,
        key_width: int,
        heads: int,
        head_dim: int,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype = jnp.float32,
    ):
        inner = heads * head_dim
        self.heads = heads
        self.dtype = dtype
        self.token_norm = LayerNorm(width, 1e-5, rngs=rngs, dtype=dtype)
        self.key_token_norm = LayerNorm(key_width, 1e-5, rngs=rngs, dtype=dtype)
        self.query = Linear(width, inner, use_bias=False, rngs=rngs, dtype=dtype)
        self.key = Linear(key_width, inner, use_bias=False, rngs=rngs, dtype=dtype)
        self.value = Linear(key_width, inner, use_bias=False, rngs=rngs, dtype=dtype)
        self.query_norm = LayerNorm(head_dim, 1e-6, rngs=rngs, dtype=dtype)
        self.key_norm = LayerNorm(head_dim, 1e-6, rngs=rngs, dtype=dtype)
        self.output = Linear(
            inner, width, use_bias=False, kernel_init=ZEROS, rngs=rngs, dtype=dtype
        )

    def __call__(self, tokens: jax.Array, keys: jax.Array, key_mask: jax.Array) -> jax.Array:
        """What is to be added to the tokens.

        Args:
            tokens: video tokens `[b, n, c]`.
            keys: personalization tokens `[b, j, d]`; those of absent entities may hold anything.
            key_mask: `[b, j]`, True where there is a token.

        Returns:
            `[b, n, c]`; exactly 0 in a sample whose mask is empty.
        """
        # Before any arithmetic, so that not even a NaN in an absent key reaches a gradient.
        keys = self.key_token_norm(jnp.where(key_mask[:, :, None], keys, 0))
        query = self.query_norm(self._split(self.query(self.token_norm(tokens))))
        key = self.key_norm(self._split(self.key(keys)))
        value = self._split(self.value(keys))
        attended = attention(query, key, value, key_mask[:, None, None, :])
        return self.output(attended.reshape(*attended.shape[:2], -1))

    def _split(self, inputs: jax.Array) -> jax.Array:
        return inputs.reshape(*inputs.shape[:2], self.heads, -1)
