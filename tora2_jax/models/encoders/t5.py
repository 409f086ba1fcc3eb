"""T5 v1.1 encoder: caption tokens to text states, frozen (CogVideoX's text encoder)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from tora2_jax import parallel
from tora2_jax.config import T5Config
from tora2_jax.models.layers.basic import Linear, scan, stack
from tora2_jax.types import Array as AnyArray


def relative_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """Which learned bias belongs to a pair of positions.

    Half of the buckets is for keys after the query. In each half, the first half counts single
    steps and the rest widens logarithmically up to `max_distance`.

    Returns:
        Integers `[query, key]` in `[0, buckets)`.
    """
    positions = np.arange(length)
    offset = positions[None, :] - positions[:, None]
    per_side = buckets // 2
    exact = per_side // 2
    distance = np.abs(offset)
    # float32, as the reference: the borders between two buckets fall on exact powers of two.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    wide = exact + (ratio / np.float32(np.log(max_distance / exact)) * (per_side - exact)).astype(
        np.int32
    )
    one_side = np.where(distance < exact, distance, np.minimum(wide, per_side - 1))
    return one_side + np.where(offset > 0, per_side, 0)


class SelfAttention(nnx.Module):
    """Unscaled attention with an additive position bias; every token is attended to."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        inner = config.num_heads * config.head_dim
        # The logits are not divided by sqrt(head_dim); the query's initial scale does it instead.
        query_scale = (config.width * config.head_dim) ** -0.5

        def linear(features_in: int, features_out: int, scale: float) -> Linear:
            init = nnx.initializers.normal(scale)
            return Linear(
                features_in, features_out, use_bias=False, kernel_init=init, dtype=dtype, rngs=rngs
            )

        self.query = linear(config.width, inner, query_scale)
        self.key = linear(config.width, inner, config.width**-0.5)
        self.value = linear(config.width, inner, config.width**-0.5)
        self.output = linear(inner, config.width, inner**-0.5)

    def __call__(
        self, hidden: Float[Array, "b l width"], bias: Float[Array, "heads l l"]
    ) -> Float[Array, "b l width"]:
        heads = (*hidden.shape[:2], self.num_heads, self.head_dim)
        query = self.query(hidden).reshape(heads)
        key = self.key(hidden).reshape(heads)
        value = self.value(hidden).reshape(heads)
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits + bias, axis=-1).astype(value.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return self.output(mixed.reshape(*hidden.shape[:2], -1))


class GatedMLP(nnx.Module):
    """GELU-gated feed-forward layer."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs, dtype=jnp.float32):
        def linear(features_in: int, features_out: int) -> Linear:
            init = nnx.initializers.normal(features_in**-0.5)
            return Linear(
                features_in, features_out, use_bias=False, kernel_init=init, dtype=dtype, rngs=rngs
            )

        self.gate = linear(config.width, config.mlp_dim)
        self.up = linear(config.width, config.mlp_dim)
        self.down = linear(config.mlp_dim, config.width)

    def __call__(self, hidden: Float[Array, "b l width"]) -> Float[Array, "b l width"]:
        return self.down(jax.nn.gelu(self.gate(hidden), approximate=True) * self.up(hidden))


class Block(nnx.Module):
    """Pre-norm attention and feed-forward layer on a float32 residual stream."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs, dtype=jnp.float32):
        norm = {"epsilon": config.norm_eps, "dtype": dtype, "rngs": rngs}
        self.attention_norm = nnx.RMSNorm(config.width, **norm)
        self.attention = SelfAttention(config, rngs=rngs, dtype=dtype)
        self.mlp_norm = nnx.RMSNorm(config.width, **norm)
        self.mlp = GatedMLP(config, rngs=rngs, dtype=dtype)

    def __call__(
        self, hidden: Float[Array, "b l width"], bias: Float[Array, "heads l l"]
    ) -> Float[Array, "b l width"]:
        hidden = hidden + self.attention(self.attention_norm(hidden), bias).astype(hidden.dtype)
        return hidden + self.mlp(self.mlp_norm(hidden)).astype(hidden.dtype)


class T5Encoder(nnx.Module):
    """T5 v1.1 encoder; padding is attended to like any other token, as in CogVideoX.

    It computes in float32 whatever types its weights rest in (our decision, figures in
    docs/cogvideox.md): the transformer attends to all 226 states, padding included, and half
    precision is off by a per cent in each. The accelerators' default products of float32 arrays
    have the precision of bfloat16 or TF32, so the full one is asked for. `dtype` is for the test
    that measures this. The residual stream is float32 always.
    """

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.config = config
        self.token_embedding = nnx.Embed(
            config.vocab_size,
            config.width,
            embedding_init=nnx.initializers.normal(1.0),
            rngs=rngs,
        )
        self.relative_bias = nnx.Embed(
            config.relative_buckets,
            config.num_heads,
            embedding_init=nnx.initializers.normal(config.width**-0.5),
            rngs=rngs,
        )
        self.blocks = stack(
            lambda rngs: Block(config, rngs=rngs, dtype=dtype), config.num_layers, rngs
        )
        self.final_norm = nnx.RMSNorm(config.width, epsilon=config.norm_eps, rngs=rngs)

    def __call__(self, token_ids: Int[AnyArray, "b l"]) -> Float[Array, "b l width"]:
        """Text states in float32, one per token, padding included."""
        with jax.default_matmul_precision("highest"):
            return self._encode(jnp.asarray(token_ids))

    def _encode(self, token_ids: Int[Array, "b l"]) -> Float[Array, "b l width"]:
        config = self.config
        buckets = relative_buckets(
            token_ids.shape[1], config.relative_buckets, config.relative_max_distance
        )
        bias = jnp.transpose(self.relative_bias(jnp.asarray(buckets)), (2, 0, 1))

        def step(block: Block, hidden: Array, _) -> tuple[Array, None]:
            return block(hidden, bias), None

        embedded = parallel.texts(self.token_embedding(token_ids).astype(jnp.float32))
        hidden, _ = scan(step, self.blocks, embedded)
        return self.final_norm(hidden)
