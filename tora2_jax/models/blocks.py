"""One layer of the transformer: joint attention and feed-forward, and where motion and references
enter.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from tora2_jax import parallel
from tora2_jax.config import MotionConfig, TransformerConfig
from tora2_jax.models.layers import basic
from tora2_jax.models.layers.attention import attention
from tora2_jax.models.layers.basic import ZEROS, LayerNorm, Linear
from tora2_jax.models.layers.stream import Layout
from tora2_jax.models.motion import MotionGuidanceFuser

# A layer's cross-attention: stream `[b, n, c]` -> what is added to the video, and what an observer
# has seen there (nothing without one).
Personalize = Callable[[jax.Array], tuple[jax.Array, Any]]


class Shared(NamedTuple):
    """What all blocks of one forward pass read."""

    layout: Layout
    embedding: jax.Array  # of the timestep, float32 [b, time_embed_dim]
    rotary: tuple[jax.Array, jax.Array] | None  # one row per position of the stream
    has_motion: jax.Array | None  # [b]
    key_mask: jax.Array | None  # which personalization tokens there are, [b, j]


class ModulatedNorm(nnx.Module):
    """LayerNorm of text and video, scaled and shifted by the timestep, and gates for both.

    Gates start at zero when trained from scratch (adaLN-zero, our decision).
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.norm = LayerNorm(config.width, config.norm_eps, rngs=rngs, dtype=dtype)
        self.modulation = Linear(
            config.time_embed_dim, 6 * config.width, kernel_init=ZEROS, rngs=rngs
        )

    def __call__(self, stream: jax.Array, shared: Shared) -> tuple[jax.Array, jax.Array]:
        """`-> stream [b, n, c], gate [b, n, c]`."""
        modulation = self.modulation(jax.nn.silu(shared.embedding)).astype(stream.dtype)
        parts = jnp.split(modulation[:, None], 6, axis=-1)
        is_text = shared.layout.is_text()
        shift, scale, gate = (
            jnp.where(is_text, text, video)
            for video, text in zip(parts[:3], parts[3:], strict=True)
        )
        return self.norm(stream) * (1 + scale) + shift, gate


class JointAttention(nnx.Module):
    """Full attention over `[text ; video]`; rotary positions on the video alone."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        width = config.width
        self.heads = config.num_heads
        self.query = Linear(width, width, rngs=rngs, dtype=dtype)
        self.key = Linear(width, width, rngs=rngs, dtype=dtype)
        self.value = Linear(width, width, rngs=rngs, dtype=dtype)
        self.query_norm = LayerNorm(config.head_dim, 1e-6, rngs=rngs, dtype=dtype)
        self.key_norm = LayerNorm(config.head_dim, 1e-6, rngs=rngs, dtype=dtype)
        self.output = Linear(width, width, rngs=rngs, dtype=dtype)

    def __call__(self, stream: jax.Array, shared: Shared) -> jax.Array:
        batch, length, width = stream.shape
        split = (batch, length, self.heads, width // self.heads)
        query, key, value = (
            parallel.wide(project(stream)).reshape(split)
            for project in (self.query, self.key, self.value)
        )
        query, key = self.query_norm(query), self.key_norm(key)
        if shared.rotary is not None:
            query, key = (basic.rotate(x, shared.rotary) for x in (query, key))
        filled = shared.layout.filled
        attended = parallel.self_attention(attention, query, key, value, filled)
        attended = checkpoint_name(attended.reshape(stream.shape), basic.ATTENTION)
        return parallel.stream(self.output(parallel.wide(attended)))


class FeedForward(nnx.Module):
    """Two linear maps with GELU (tanh form) between, four times as wide inside."""

    def __init__(self, width: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.expand = Linear(width, 4 * width, rngs=rngs, dtype=dtype)
        self.project = Linear(4 * width, width, rngs=rngs, dtype=dtype)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        hidden = parallel.wide(jax.nn.gelu(self.expand(tokens), approximate=True))
        return parallel.stream(self.project(hidden))


class Block(nnx.Module):
    """One layer: attention, then feed-forward, each normalized, modulated and gated.

    Motion enters on the modulated video tokens before attention, references between attention
    and feed-forward (Table 5 of the paper, M->P) or first in the block (P->M).
    """

    def __init__(
        self,
        config: TransformerConfig,
        motion: MotionConfig | None,
        personalization_first: bool,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        self.personalization_first = personalization_first
        self.attention_norm = ModulatedNorm(config, rngs=rngs, dtype=dtype)
        self.attention = JointAttention(config, rngs=rngs, dtype=dtype)
        self.feed_forward_norm = ModulatedNorm(config, rngs=rngs, dtype=dtype)
        self.feed_forward = FeedForward(config.width, rngs=rngs, dtype=dtype)
        if motion is not None:
            self.fuser = MotionGuidanceFuser(
                config.width, motion.width, norm_groups=motion.norm_groups, rngs=rngs, dtype=dtype
            )

    def __call__(
        self,
        stream: jax.Array,
        shared: Shared,
        motion_map: jax.Array | None = None,
        personalize: Personalize | None = None,
    ) -> tuple[jax.Array, Any]:
        """`stream [b, n, c] -> stream`, and what an observer has seen.

        Args:
            stream: text and video, see `models/layers/stream.py`.
            shared: what all blocks read.
            motion_map: this layer's map `[b, t, h, w, u]`, or None: the fuser is left out.
            personalize: this layer's cross-attention, or None.
        """
        layout, seen = shared.layout, ()
        if personalize is not None and self.personalization_first:
            added, seen = personalize(stream)
            stream = stream + jnp.where(layout.is_video(), added, 0)
        inner, gate = self.attention_norm(stream, shared)
        if motion_map is not None:
            assert shared.has_motion is not None  # comes with the maps
            inner = self.fuser(inner, motion_map, shared.has_motion, layout)
        stream = stream + gate * self.attention(inner, shared)
        if personalize is not None and not self.personalization_first:
            added, seen = personalize(stream)
            stream = stream + jnp.where(layout.is_video(), added, 0)
        inner, gate = self.feed_forward_norm(stream, shared)
        return parallel.stream(stream + gate * self.feed_forward(inner)), seen
