"""The cross-attention through which references reach the video tokens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tora2_jax import parallel
from tora2_jax.models.layers.attention import attention
from tora2_jax.models.layers.basic import ZEROS, LayerNorm, Linear
from tora2_jax.types import KeysValues


class Influence(NamedTuple):
    """What the entities' tokens do to the video tokens in one cross-attention."""

    share: Float[Array, "b n e"]  # of a video token's attention, mean over heads
    added: Float[Array, "b n e"]  # norm of what the entity's tokens add, over the token's own norm


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
        dtype: DTypeLike = jnp.float32,
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

    def keys_values(self, tokens: jax.Array, mask: jax.Array) -> KeysValues:
        """What the video tokens look at; it depends on no timestep.

        Args:
            tokens: personalization tokens `[b, j, d]`; those of absent entities may hold anything.
            mask: `[b, j]`, True where there is a token.
        """
        # Before any arithmetic, so that not even a NaN in an absent token reaches a gradient.
        tokens = self.key_token_norm(jnp.where(mask[:, :, None], tokens, 0))
        return KeysValues(
            self.key_norm(self._split(self.key(tokens))), self._split(self.value(tokens))
        )

    def __call__(
        self, tokens: jax.Array, keys_values: KeysValues, key_mask: jax.Array
    ) -> jax.Array:
        """What is to be added to the tokens.

        Args:
            tokens: `[b, n, c]`, the whole stream.
            keys_values: from the method of that name.
            key_mask: `[b, j]`, True where there is a key.

        Returns:
            `[b, n, c]`; exactly 0 in a sample whose mask is empty.
        """
        return self._attend(self._query(tokens), *keys_values, key_mask)

    def influence(
        self, tokens: jax.Array, keys_values: KeysValues, key_mask: jax.Array, entities: int
    ) -> Influence:
        """Who is looked at, and how much it adds, for people to look at.

        Values that tell the entities apart, sent through the same attention: attention is linear in
        its values and the output map has no bias, so what the entities add sums up to the output.

        Args:
            tokens: as for a call.
            keys_values: as for a call; entity i has the i-th of `entities` equal parts.
            key_mask: as for a call.
            entities: e.
        """
        query, (keys, values) = self._query(tokens), keys_values
        owner = jnp.repeat(jnp.eye(entities, dtype=values.dtype), keys.shape[1] // entities, 0)
        owners = jnp.broadcast_to(owner[None, :, None], (*keys.shape[:3], entities))
        share = attention(query, keys, owners, key_mask[:, None, None, :]).mean(2)
        norm = jnp.linalg.norm(tokens.astype(jnp.float32), axis=-1)

        def add(own: jax.Array) -> jax.Array:
            added = self._attend(query, keys, values * own[None, :, None, None], key_mask)
            return jnp.linalg.norm(added.astype(jnp.float32), axis=-1)

        added = jax.lax.map(add, owner.T)
        return Influence(share, jnp.moveaxis(added, 0, -1) / jnp.maximum(norm, 1e-6)[..., None])

    def _query(self, tokens: jax.Array) -> jax.Array:
        query = self._split(parallel.wide(self.query(self.token_norm(tokens))))
        return self.query_norm(query)

    def _attend(self, query, keys, values, key_mask) -> jax.Array:
        attended = parallel.cross_attention(attention, query, keys, values, key_mask)
        attended = parallel.wide(attended.reshape(*attended.shape[:2], -1))
        return parallel.stream(self.output(attended))

    def _split(self, inputs: jax.Array) -> jax.Array:
        return inputs.reshape(*inputs.shape[:2], self.heads, -1)
