"""CogVideoX's diffusion transformer, with the places where motion and references enter.

The numbers are those of diffusers' `CogVideoXTransformer3DModel` for the published 2B, 5B, 5B-I2V
and 1.5 models. Blocks are stacked and scanned; there is no second, unscanned form.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from tora2_jax.config import MotionConfig, PersonalizationConfig, TransformerConfig
from tora2_jax.models import layers, positions
from tora2_jax.models.attention import attention
from tora2_jax.models.cross_attention import PersonalizationCrossAttention
from tora2_jax.models.layers import ZEROS, LayerNorm, Linear
from tora2_jax.models.motion import MotionGuidanceFuser
from tora2_jax.types import KeysValues

OFS = 2.0  # the only value that CogVideoX 1.5 I2V was trained with


class Shared(NamedTuple):
    """What all blocks of one forward pass read."""

    embedding: jax.Array  # of the timestep, float32 [b, time_embed_dim]
    rotary: tuple[jax.Array, jax.Array] | None
    has_motion: jax.Array | None  # [b]
    key_mask: jax.Array | None  # which personalization tokens there are, [b, j]


class ModulatedNorm(nnx.Module):
    """LayerNorm of text and video, scaled and shifted by the timestep, and gates for both.

    Gates start at zero when trained from scratch (adaLN-zero, our decision).
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        self.norm = LayerNorm(config.width, config.norm_eps, rngs=rngs, dtype=dtype)
        self.modulation = Linear(
            config.time_embed_dim, 6 * config.width, kernel_init=ZEROS, rngs=rngs
        )

    def __call__(self, text: jax.Array, video: jax.Array, embedding: jax.Array):
        """`-> text [b, l, c], video [b, n, c], text gate [b, 1, c], video gate [b, 1, c]`."""
        modulation = self.modulation(jax.nn.silu(embedding)).astype(video.dtype)
        parts = jnp.split(modulation[:, None], 6, axis=-1)
        shift, scale, gate, text_shift, text_scale, text_gate = parts
        text = self.norm(text) * (1 + text_scale) + text_shift
        return text, self.norm(video) * (1 + scale) + shift, text_gate, gate


class JointAttention(nnx.Module):
    """Full attention over `[text ; video]`; rotary positions on the video alone."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        width = config.width
        self.heads = config.num_heads
        self.query = Linear(width, width, rngs=rngs, dtype=dtype)
        self.key = Linear(width, width, rngs=rngs, dtype=dtype)
        self.value = Linear(width, width, rngs=rngs, dtype=dtype)
        self.query_norm = LayerNorm(config.head_dim, 1e-6, rngs=rngs, dtype=dtype)
        self.key_norm = LayerNorm(config.head_dim, 1e-6, rngs=rngs, dtype=dtype)
        self.output = Linear(width, width, rngs=rngs, dtype=dtype)

    def __call__(
        self,
        text: jax.Array,
        video: jax.Array,
        rotary: tuple[jax.Array, jax.Array] | None,
    ) -> tuple[jax.Array, jax.Array]:
        joint = jnp.concatenate([text, video], axis=1)
        batch, length, width = joint.shape
        split = (batch, length, self.heads, width // self.heads)
        query = self.query_norm(self.query(joint).reshape(split))
        key = self.key_norm(self.key(joint).reshape(split))
        value = self.value(joint).reshape(split)
        start = text.shape[1]
        if rotary is not None:
            query, key = (
                jnp.concatenate([x[:, :start], layers.rotate(x[:, start:], rotary)], axis=1)
                for x in (query, key)
            )
        output = self.output(attention(query, key, value).reshape(joint.shape))
        return output[:, :start], output[:, start:]


class FeedForward(nnx.Module):
    """Two linear maps with GELU (tanh form) between, four times as wide inside."""

    def __init__(self, width: int, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        self.expand = Linear(width, 4 * width, rngs=rngs, dtype=dtype)
        self.project = Linear(4 * width, width, rngs=rngs, dtype=dtype)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.project(jax.nn.gelu(self.expand(tokens), approximate=True))


class Block(nnx.Module):
    """One layer: attention, then feed-forward, each normalised, modulated and gated.

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
        dtype: jnp.dtype,
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
        text: jax.Array,
        video: jax.Array,
        shared: Shared,
        motion_map: jax.Array | None = None,
        personalize: Callable[[jax.Array], jax.Array] | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """`text [b, l, c], video [b, n, c] -> text, video`.

        Args:
            text: text stream.
            video: video stream.
            shared: what all blocks read.
            motion_map: this layer's map `[b, t, h, w, u]`, or None: the fuser is left out.
            personalize: this layer's cross-attention, video `[b, n, c]` -> what is added, or None.
        """
        if personalize is not None and self.personalization_first:
            video = video + personalize(video)
        text_in, video_in, text_gate, gate = self.attention_norm(text, video, shared.embedding)
        if motion_map is not None:
            video_in = self.fuser(video_in, motion_map, shared.has_motion)
        text_out, video_out = self.attention(text_in, video_in, shared.rotary)
        text, video = text + text_gate * text_out, video + gate * video_out
        if personalize is not None and not self.personalization_first:
            video = video + personalize(video)
        text_in, video_in, text_gate, gate = self.feed_forward_norm(text, video, shared.embedding)
        output = self.feed_forward(jnp.concatenate([text_in, video_in], axis=1))
        start = text.shape[1]
        return text + text_gate * output[:, :start], video + gate * output[:, start:]


class CogVideoXTransformer(nnx.Module):
    """Predicts the velocity of noisy latents; see the module docstring.

    Trained from scratch, linear maps start as LeCun normal; modulations and the output projection
    start at zero (our decision).
    """

    def __init__(
        self,
        config: TransformerConfig,
        motion: MotionConfig | None = None,
        personalization: PersonalizationConfig | None = None,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype = jnp.float32,
    ):
        width, time_width = config.width, config.time_embed_dim
        patch_volume = config.patch_size**2 * (config.patch_size_t or 1)
        self.config = config
        self.dtype = dtype
        self.motion = motion
        self.every = 1 if personalization is None else personalization.every_k
        self.patch_embedding = Linear(
            config.in_channels * patch_volume, width, rngs=rngs, dtype=dtype
        )
        self.text_projection = Linear(config.text_embed_dim, width, rngs=rngs, dtype=dtype)
        self.time_embedding = layers.TimestepEmbedding(width, time_width, rngs=rngs)
        ofs = config.ofs_embed_dim
        self.ofs_embedding = layers.TimestepEmbedding(ofs, ofs, rngs=rngs) if ofs else None
        self.positions = positions.stored_table(config) if config.learned_positions else None
        self._make_blocks(motion, personalization, rngs, dtype)
        self.final_norm = LayerNorm(width, config.norm_eps, rngs=rngs, dtype=dtype)
        self.output_norm = LayerNorm(width, config.final_norm_eps, rngs=rngs, dtype=dtype)
        self.output_modulation = Linear(time_width, 2 * width, kernel_init=ZEROS, rngs=rngs)
        self.output_projection = Linear(
            width, config.out_channels * patch_volume, kernel_init=ZEROS, rngs=rngs, dtype=dtype
        )

    def _make_blocks(self, motion, personalization, rngs, dtype):
        config = self.config
        self.cross_attention = (
            None
            if personalization is None
            else layers.stack(
                lambda streams: PersonalizationCrossAttention(
                    config.width,
                    personalization.width,
                    personalization.cross_heads,
                    personalization.cross_head_dim,
                    rngs=streams,
                    dtype=dtype,
                ),
                -(-config.num_layers // self.every),
                rngs,
            )
        )
        first = personalization is not None and personalization.order == "personalization_first"
        self.blocks = layers.stack(
            lambda streams: Block(config, motion, first, rngs=streams, dtype=dtype),
            config.num_layers,
            rngs,
        )

    def project_text(self, text: jax.Array) -> jax.Array:
        """T5 states `[b, l, text_width]` -> the text stream before the first block `[b, l, c]`.

        The timestep has no part in it, so it is done once per request.
        """
        return self.text_projection(text)

    def keys_values(self, tokens: jax.Array, mask: jax.Array) -> KeysValues:
        """Personalization tokens as every cross-attention reads them, once per request.

        Args:
            tokens: `[b, j, d]`; those that the mask hides may hold anything.
            mask: `[b, j]`, which tokens there are.

        Returns:
            `[x, b, j, heads, head_dim]` each, one row per layer with a cross-attention.
        """

        def step(cross, carry, _):
            return carry, cross.keys_values(tokens, mask)

        return layers.scan(step, self.cross_attention, None)[1]

    def __call__(
        self,
        latents: jax.Array,
        timestep: jax.Array,
        text: jax.Array,
        *,
        motion_maps: jax.Array | None = None,
        has_motion: jax.Array | None = None,
        keys_values: KeysValues | None = None,
        key_mask: jax.Array | None = None,
        observe: Callable | None = None,
    ) -> jax.Array | tuple[jax.Array, Any]:
        """The velocity, float32 `[b, t_lat, h_lat, w_lat, c_out]`.

        Args:
            latents: noisy latents `[b, t_lat, h_lat, w_lat, c_in]`; I2V: image latents follow on
                the channels. CogVideoX 1.5: `t_lat` is already padded to a multiple.
            timestep: `[b]`, 0 to 999.
            text: from `project_text`, `[b, l, c]`.
            motion_maps: one map per layer `[k, b, t, h, w, u]`; None leaves the fusers out.
            has_motion: `[b]`, which samples the fusers change; None: all.
            keys_values: from the method of that name; None leaves the cross-attention out.
            key_mask: `[b, j]`, which keys are there; None: all.
            observe: `(cross_attention, video, keys_values, key_mask) -> arrays`, called where each
                cross-attention is; its results follow the velocity, along a leading axis x.

        Raises:
            ValueError: lists every input that does not fit the model.
        """
        grid = self._check(latents, timestep, text, motion_maps, keys_values)
        embedding = self._embed_time(timestep)
        shared = self._share(grid, embedding, motion_maps, has_motion, keys_values, key_mask)
        text, video = self._embed(latents, text, grid)
        video, seen = self._run_blocks(text, video, shared, motion_maps, keys_values, observe)
        modulation = self.output_modulation(jax.nn.silu(embedding)).astype(video.dtype)
        shift, scale = jnp.split(modulation[:, None], 2, axis=-1)
        video = self.output_norm(self.final_norm(video)) * (1 + scale) + shift
        output = self.output_projection(video).astype(jnp.float32)
        patch = (self.config.patch_size, self.config.patch_size_t or 1)
        output = layers.unpatchify(output, grid, *patch)
        return output if observe is None else (output, seen)

    def _check(self, latents, timestep, text, motion_maps, keys_values):
        """The token grid, after everything that must fit has been seen to fit."""
        config = self.config
        batch, *size, channels = latents.shape
        patch = (config.patch_size_t or 1, config.patch_size, config.patch_size)
        names = ("frames (pad them in front)", "rows", "columns")
        problems = [
            f"{length} latent {name} are not a multiple of {part}"
            for length, part, name in zip(size, patch, names, strict=True)
            if length % part
        ]
        if channels != config.in_channels:
            problems.append(f"latents have {channels} channels, not {config.in_channels}")
        if timestep.shape != (batch,):
            problems.append(f"timestep has shape {timestep.shape}, not ({batch},)")
        if text.shape[-1] != config.width:
            problems.append(
                f"text has width {text.shape[-1]}, not {config.width}: project it first"
            )
        if config.learned_positions:
            if tuple(size[1:]) != (config.sample_height, config.sample_width):
                stored = f"{config.sample_height} x {config.sample_width}"
                problems.append(f"the stored positions are for {stored} latent rows and columns")
            if text.shape[1] != config.max_text_length:
                problems.append(f"text has {text.shape[1]} tokens, not {config.max_text_length}")
        if motion_maps is not None and self.motion is None:
            problems.append("motion maps were given to a model without fusers")
        if motion_maps is not None and len(motion_maps) != config.num_layers:
            problems.append(f"{len(motion_maps)} motion maps for {config.num_layers} layers")
        if keys_values is not None and self.cross_attention is None:
            problems.append("personalization was given to a model without cross-attention")
        grid = tuple(length // part for length, part in zip(size, patch, strict=True))
        limits = (config.sample_height // patch[1], config.sample_width // patch[2])
        if config.patch_size_t and (grid[1] > limits[0] or grid[2] > limits[1]):
            problems.append(f"more than {limits[0]} x {limits[1]} token rows and columns")
        if problems:
            raise ValueError("the transformer cannot take its inputs: " + "; ".join(problems))
        return grid

    def _embed_time(self, timestep):
        embedding = self.time_embedding(layers.sinusoid(timestep, self.config.width))
        if self.ofs_embedding is not None:
            ofs = layers.sinusoid(jnp.full((1,), OFS), self.config.ofs_embed_dim)
            embedding = embedding + self.ofs_embedding(ofs)
        return embedding

    def _share(self, grid, embedding, motion_maps, has_motion, keys_values, key_mask):
        if motion_maps is not None and has_motion is None:
            has_motion = jnp.ones(embedding.shape[0], bool)
        if keys_values is not None and key_mask is None:
            key_mask = jnp.ones(keys_values.keys.shape[1:3], bool)
        rotary = None
        if self.config.positions == "rotary":
            coordinates = positions.rotary_grid(self.config, grid)
            rotary = layers.rotary_tables(coordinates, self.config.head_dim)
        return Shared(embedding, rotary, has_motion, key_mask)

    def _embed(self, latents, text, grid):
        config = self.config
        video = self.patch_embedding(layers.patchify(latents, grid))
        if config.learned_positions and not config.add_learned_positions:
            return text, video
        if self.positions is not None and grid[0] == positions.sample_grid(config)[0]:
            table = self.positions[...].astype(video.dtype)
            return text + table[: text.shape[1]], video + table[text.shape[1] :]
        if self.positions is not None or config.positions == "sincos":
            # diffusers, too, takes the fixed table where the stored one has other frames.
            video = video + positions.sincos(config, grid).astype(video.dtype)
        return text, video

    def _run_blocks(self, text, video, shared, motion_maps, keys_values, observe):
        """All blocks, scanned in groups whose first block has a cross-attention."""
        every = 1 if keys_values is None else self.every
        groups, rest = divmod(self.config.num_layers, every)
        carry, seen = (text, video), []
        for start, count, size in ((0, groups, every), (groups * every, 1, rest)):
            if count * size == 0:
                continue

            def regroup(x, start=start, count=count, size=size):
                return x[start : start + count * size].reshape(count, size, *x.shape[1:])

            def take(x, first=start // every, count=count):
                return x[first : first + count]

            def step(group, carry, inputs, size=size):
                (blocks, cross), (maps, known) = group, inputs
                personalize, found = None, []

                def attend(video):
                    if observe is not None:
                        found.append(observe(cross, video, known, shared.key_mask))
                    return cross(video, known, shared.key_mask)

                if known is not None:
                    personalize = attend
                for index in range(size):
                    block = layers.map_arrays(lambda x, index=index: x[index], blocks)
                    motion_map = None if maps is None else maps[index]
                    carry = block(*carry, shared, motion_map, personalize if index == 0 else None)
                return carry, found

            with_keys = keys_values is not None
            cross = layers.map_arrays(take, self.cross_attention) if with_keys else None
            maps = None if motion_maps is None else regroup(motion_maps)
            inputs = (maps, jax.tree.map(take, keys_values))
            group = (layers.map_arrays(regroup, self.blocks), cross)
            carry, found = layers.scan(step, group, carry, inputs, self.config.rematerialize)
            seen += found
        seen = jax.tree.map(lambda *parts: jnp.concatenate(parts), *seen) if seen else None
        return carry[1], seen
