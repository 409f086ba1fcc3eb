"""CogVideoX's diffusion transformer, with the places where motion and references enter.

The numbers are those of diffusers' `CogVideoXTransformer3DModel` for the published 2B, 5B, 5B-I2V
and 1.5 models. Blocks (`models/blocks.py`) are stacked and scanned.
"""

from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from tora2_jax import parallel
from tora2_jax.config import MotionConfig, PersonalizationConfig, TransformerConfig
from tora2_jax.models.blocks import Block, Shared
from tora2_jax.models.cross_attention import PersonalizationCrossAttention
from tora2_jax.models.layers import basic, positions
from tora2_jax.models.layers.basic import ZEROS, LayerNorm, Linear
from tora2_jax.models.layers.stream import Layout
from tora2_jax.types import KeysValues

OFS = 2.0  # the only value that CogVideoX 1.5 I2V was trained with


# (cross-attention, video tokens, keys and values, mask) -> arrays that say something about them.
Observer = Callable[[PersonalizationCrossAttention, jax.Array, KeysValues, jax.Array], Any]


class Group(NamedTuple):
    """Blocks of which the first has a cross-attention; several groups behind one another."""

    blocks: Block  # arrays [groups, size, ...]
    cross_attention: PersonalizationCrossAttention | None  # arrays [groups, ...]
    motion_maps: jax.Array | None  # [groups, size, b, t, h, w, u]
    keys_values: KeysValues | None  # [groups, b, j, heads, head_dim]
    size: int  # blocks in a group


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
        dtype: DTypeLike = jnp.float32,
    ):
        width, time_width = config.width, config.time_embed_dim
        patch_volume = config.patch_size**2 * (config.patch_size_t or 1)
        self.config, self.looping = config, (config.rematerialize, config.unroll_layers)
        self.dtype = dtype
        self.motion = motion
        self.every = 1 if personalization is None else personalization.every_k
        self.patch_embedding = Linear(
            config.in_channels * patch_volume, width, rngs=rngs, dtype=dtype
        )
        self.text_projection = Linear(config.text_embed_dim, width, rngs=rngs, dtype=dtype)
        self.time_embedding = basic.TimestepEmbedding(width, time_width, rngs=rngs)
        ofs = config.ofs_embed_dim
        self.ofs_embedding = basic.TimestepEmbedding(ofs, ofs, rngs=rngs) if ofs else None
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
            else basic.stack(
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
        self.blocks = basic.stack(
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

        return basic.scan(step, self.cross_attention, None)[1]

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
    ) -> jax.Array:
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

        Raises:
            ValueError: lists every input that does not fit the model.
        """
        conditions = (motion_maps, has_motion, keys_values, key_mask)
        return self._run(latents, timestep, text, *conditions, None)[0]

    def observe(
        self,
        observer: Observer,
        latents: jax.Array,
        timestep: jax.Array,
        text: jax.Array,
        *,
        motion_maps: jax.Array | None = None,
        has_motion: jax.Array | None = None,
        keys_values: KeysValues | None = None,
        key_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """The velocity, and what the observer says of each cross-attention along a leading axis x.

        The inputs are those of a plain call.
        """
        conditions = (motion_maps, has_motion, keys_values, key_mask)
        return self._run(latents, timestep, text, *conditions, observer)

    def _run(
        self, latents, timestep, text, motion_maps, has_motion, keys_values, key_mask, observer
    ):
        grid = self._check(latents, timestep, text, motion_maps, keys_values)
        layout, embedding = Layout.of(text.shape[1], grid), self._embed_time(timestep)
        shared = self._share(layout, embedding, motion_maps, has_motion, keys_values, key_mask)
        stream = self._embed(latents, text, shared.layout)
        stream, seen = self._run_blocks(stream, shared, motion_maps, keys_values, observer)
        modulation = self.output_modulation(jax.nn.silu(embedding)).astype(stream.dtype)
        shift, scale = jnp.split(modulation[:, None], 2, axis=-1)
        stream = self.output_norm(self.final_norm(stream)) * (1 + scale) + shift
        # The last map makes it small enough for every device to have all of it.
        output = parallel.batch(self.output_projection(stream).astype(jnp.float32))
        output, config = layout.take_video(output), self.config
        output = basic.unpatchify(output, grid, config.patch_size, config.patch_size_t or 1)
        return output, seen

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
        embedding = self.time_embedding(basic.sinusoid(timestep, self.config.width))
        width = self.config.ofs_embed_dim
        if self.ofs_embedding is not None and width is not None:
            ofs = basic.sinusoid(jnp.full((1,), OFS, jnp.float32), width)
            embedding = embedding + self.ofs_embedding(ofs)
        return embedding

    def _share(self, layout, embedding, motion_maps, has_motion, keys_values, key_mask):
        if motion_maps is not None and has_motion is None:
            has_motion = jnp.ones(embedding.shape[0], bool)
        if keys_values is not None and key_mask is None:
            key_mask = jnp.ones(keys_values.keys.shape[1:3], bool)
        rotary = None
        if self.config.positions == "rotary":
            coordinates = positions.rotary_grid(self.config, layout.grid)
            cosines, sines = map(
                layout.place_video, basic.rotary_tables(coordinates, self.config.head_dim)
            )
            # By an angle of zero where there is no video.
            cosines = jnp.where(layout.is_video(), cosines, 1.0)
            rotary = parallel.positions(cosines), parallel.positions(sines)
        return Shared(layout, embedding, rotary, has_motion, key_mask)

    def _embed(self, latents, text, layout):
        """The stream before the first block, made in place: the parts of it are never whole."""
        patches = layout.place_video(basic.patchify(latents, layout.grid))
        stream = layout.place_text(text, self.patch_embedding(parallel.stream(patches)))
        stored = None if self.positions is None else self.positions[...]
        if (table := positions.added(self.config, stored, layout)) is not None:
            stream = stream + parallel.positions(table).astype(stream.dtype)
        return parallel.stream(stream)

    def _run_blocks(self, carry, shared, motion_maps, keys_values, observer=None):
        """All blocks; with an observer also what it has seen, else None."""
        seen = []
        for group in self._groups(motion_maps, keys_values):
            step = partial(_run_group, shared, group.size, observer)
            modules = (group.blocks, group.cross_attention)
            inputs = (group.motion_maps, group.keys_values)
            carry, found = basic.scan(step, modules, carry, inputs, *self.looping)
            seen.append(found)
        if observer is None or keys_values is None:
            return carry, None
        return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *seen)

    def _groups(self, motion_maps, keys_values) -> list[Group]:
        """Groups of equal size, then one of the blocks that are left."""
        every = 1 if keys_values is None else self.every
        full, rest = divmod(self.config.num_layers, every)
        groups = []
        for first, count, size in ((0, full, every), (full, 1, rest)):
            if count * size == 0:
                continue

            def layers(x, start=first * every, count=count, size=size):
                return x[start : start + count * size].reshape(count, size, *x.shape[1:])

            def heads(x, first=first, count=count):
                return x[first : first + count]

            cross = None if keys_values is None else basic.map_arrays(heads, self.cross_attention)
            groups.append(
                Group(
                    blocks=basic.map_arrays(layers, self.blocks),
                    cross_attention=cross,
                    motion_maps=None if motion_maps is None else layers(motion_maps),
                    keys_values=jax.tree.map(heads, keys_values),
                    size=size,
                )
            )
        return groups


def _run_group(shared, size, observer, modules, carry, inputs):
    """The blocks of one group, in turn."""
    (blocks, cross), (maps, known) = modules, inputs

    def personalize(stream):
        seen = ()
        if observer is not None:
            seen = observer(cross, shared.layout.take_video(stream), known, shared.key_mask)
        return cross(stream, known, shared.key_mask), seen

    carry = checkpoint_name(carry, basic.STREAM)
    seen = ()
    for index in range(size):
        block = basic.map_arrays(itemgetter(index), blocks)
        motion_map = None if maps is None else maps[index]
        if index == 0 and known is not None:
            carry, seen = block(carry, shared, motion_map, personalize)
        else:
            carry, _ = block(carry, shared, motion_map)
    return carry, seen
