"""CogVideoX's causal 3D VAE (arXiv 2408.06072), chunk by chunk as the published weights expect.

Group norms take their statistics over one chunk, so the chunking is part of the model: one pass
over a whole video gives other numbers. Convolutions carry their last two frames to the next chunk.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tora2_jax import parallel
from tora2_jax.config import VAEConfig
from tora2_jax.models.vae.layers import (
    OUTER_NORM_EPS,
    Cache,
    CausalConv,
    FrameConv,
    GroupNorm,
    Memory,
    PointConv,
    SpatialNorm,
    pool_frames,
    repeat_frames,
)

LOG_VARIANCE_RANGE = (-30.0, 20.0)


class Posterior(NamedTuple):
    """The diagonal Gaussian of a video's latents, unscaled."""

    mean: Float[Array, "b t_lat h_lat w_lat latent"]
    log_variance: Float[Array, "b t_lat h_lat w_lat latent"]


def _cut(
    x: Float[Array, "b f h w c"], unit: int
) -> tuple[Float[Array, "b f h2 w c"], tuple[int, int] | None]:
    """A chunk whose rows lie on several devices, and the `rows` of `Memory`.

    Each device has the same number of blocks of `unit` rows; zeros below the picture make it so.
    """
    height, parts = x.shape[2], parallel.row_parts(x.shape[0])
    missing = -height % (unit * parts)
    if parts == 1 or missing == 0:
        return parallel.picture(x), None
    x = jnp.pad(x, ((0, 0), (0, 0), (0, missing), (0, 0), (0, 0)))
    return parallel.picture(x), (height, height + missing)


def _picture_of(
    x: Float[Array, "b f h2 w c"], rows: tuple[int, int] | None
) -> Float[Array, "b f h w c"]:
    """What a network made of a chunk that `_cut` gave, without the padding."""
    x = parallel.picture(x)
    return x if rows is None else x[:, :, : x.shape[2] * rows[0] // rows[1]]


class ResnetBlock(nnx.Module):
    """Two causal convolutions and a shortcut. `make_norm(features)` builds its norms.

    From scratch the second convolution starts at zero (our decision): what the first layers see
    reaches the last ones before any block has learned something.
    """

    def __init__(
        self, in_features: int, out_features: int, make_norm: Callable[[int], nnx.Module], **options
    ):
        self.norm1 = make_norm(in_features)
        self.conv1 = CausalConv(in_features, out_features, **options)
        self.norm2 = make_norm(out_features)
        self.conv2 = CausalConv(out_features, out_features, **options)
        self.conv2.kernel.set_value(jnp.zeros_like(self.conv2.kernel[...]))
        same = in_features == out_features
        self.shortcut = None if same else PointConv(in_features, out_features, **options)

    def __call__(self, x: Array, memory: Memory, *latents: Array) -> Array:
        y = self.conv1(jax.nn.silu(self.norm1(x, memory, *latents)), memory)
        y = self.conv2(jax.nn.silu(self.norm2(y, memory, *latents)), memory)
        return y + (x if self.shortcut is None else self.shortcut(x))


def _resnets(
    in_features: int, out_features: int, count: int, make_norm: Callable, **options
) -> nnx.List:
    widths = [in_features] + [out_features] * count
    return nnx.List(
        [ResnetBlock(before, after, make_norm, **options) for before, after in pairwise(widths)]
    )


class DownBlock(nnx.Module):
    """Resnet blocks, then half the size (except in the last), and half the frames in the first."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        count: int,
        make_norm: Callable,
        *,
        halve: bool,
        halve_time: bool,
        **options,
    ):
        self.resnets = _resnets(in_features, out_features, count, make_norm, **options)
        self.halve_time = halve_time
        down = FrameConv(out_features, out_features, stride=2, **options) if halve else None
        self.downsample = down

    def __call__(self, x: Array, memory: Memory) -> Array:
        for resnet in self.resnets:
            x = resnet(x, memory)
        if self.downsample is None:
            return x
        return self.downsample(pool_frames(x) if self.halve_time else x, memory)


class UpBlock(nnx.Module):
    """Resnet blocks, then twice the size (except in the last), and more frames in the first."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        count: int,
        make_norm: Callable,
        *,
        double: bool,
        double_time: bool,
        **options,
    ):
        self.resnets = _resnets(in_features, out_features, count, make_norm, **options)
        self.double_time = double_time
        self.upsample = FrameConv(out_features, out_features, **options) if double else None

    def __call__(self, x: Array, memory: Memory, latents: Array) -> Array:
        for resnet in self.resnets:
            x = resnet(x, memory, latents)
        if self.upsample is None:
            return x
        larger = parallel.picture(jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3))
        x = self.upsample(larger, memory)
        if not self.double_time:
            return x
        # The convolution sees single frames, so repeating them after it gives the same.
        frames = x.shape[1]
        return repeat_frames(x, 2 * frames - frames % 2)


class Encoder(nnx.Module):
    """Pixels to mean and log variance, one chunk at a time."""

    def __init__(self, config: VAEConfig, **options):
        channels, top = config.channels, config.channels[-1]
        make_norm = partial(GroupNorm, groups=config.norm_groups, eps=config.norm_eps)
        halvings_in_time = config.temporal_compression.bit_length() - 1
        self.compression = 2 ** (len(channels) - 1)
        self.conv_in = CausalConv(3, channels[0], **options)
        self.down_blocks = nnx.List(
            [
                DownBlock(
                    channels[max(level - 1, 0)],
                    features,
                    config.layers_per_block,
                    make_norm,
                    halve=level < len(channels) - 1,
                    halve_time=level < halvings_in_time,
                    **options,
                )
                for level, features in enumerate(channels)
            ]
        )
        self.mid_resnets = _resnets(top, top, 2, make_norm, **options)
        self.norm_out = GroupNorm(top, config.norm_groups, OUTER_NORM_EPS)
        self.conv_out = CausalConv(top, 2 * config.latent_channels, **options)

    def __call__(self, video: Array, cache: Cache | None = None) -> tuple[Array, Cache]:
        video, rows = _cut(video, self.compression)
        memory = Memory(cache, rows)
        x = self.conv_in(video, memory)
        for block in self.down_blocks:
            x = block(x, memory)
        for resnet in self.mid_resnets:
            x = resnet(x, memory)
        x = self.conv_out(jax.nn.silu(self.norm_out(x, memory)), memory)
        return _picture_of(x, rows), memory.for_next_chunk()


class Decoder(nnx.Module):
    """Unscaled latents to pixels, one chunk at a time."""

    def __init__(self, config: VAEConfig, **options):
        channels = config.channels[::-1]
        latent = config.latent_channels

        def make_norm(features: int) -> SpatialNorm:
            return SpatialNorm(features, latent, config.norm_groups, **options)

        doublings_in_time = config.temporal_compression.bit_length() - 1
        self.conv_in = CausalConv(latent, channels[0], **options)
        self.mid_resnets = _resnets(channels[0], channels[0], 2, make_norm, **options)
        self.up_blocks = nnx.List(
            [
                UpBlock(
                    channels[max(level - 1, 0)],
                    features,
                    config.layers_per_block + 1,
                    make_norm,
                    double=level < len(channels) - 1,
                    double_time=level < doublings_in_time,
                    **options,
                )
                for level, features in enumerate(channels)
            ]
        )
        self.norm_out = make_norm(channels[-1])
        self.conv_out = CausalConv(channels[-1], 3, **options)

    def __call__(self, latents: Array, cache: Cache | None = None) -> tuple[Array, Cache]:
        latents, rows = _cut(latents, 1)
        memory = Memory(cache, rows)
        x = self.conv_in(latents, memory)
        for resnet in self.mid_resnets:
            x = resnet(x, memory, latents)
        for block in self.up_blocks:
            x = block(x, memory, latents)
        x = self.conv_out(jax.nn.silu(self.norm_out(x, memory, latents)), memory)
        return _picture_of(x, rows), memory.for_next_chunk()


def first_chunk(frames: int, size: int) -> int:
    """Frames of the first chunk: the remainder joins it, so that the others have `size`."""
    return frames - (max(frames // size, 1) - 1) * size


def by_chunks(run: Callable, x: Float[Array, "b f ..."], size: int) -> Array:
    """Run `run(chunk, cache)` over chunks of `size` frames in turn, inside one program.

    The first chunk has no past and may be longer; the others are alike and are scanned, so that a
    long video compiles no longer than a short one.
    """
    start = first_chunk(x.shape[1], size)
    first, cache = run(x[:, :start], None)
    if start == x.shape[1]:
        return first
    chunks = x[:, start:].reshape(x.shape[0], -1, size, *x.shape[2:])

    def step(cache: Cache, chunk: Array) -> tuple[Cache, Array]:
        output, cache = run(chunk, cache)
        return cache, output

    # A loop of one would only keep its body from being optimized with the rest.
    alone = chunks.shape[1] == 1
    _, rest = jax.lax.scan(step, cache, chunks.swapaxes(0, 1), unroll=alone)
    rest = rest.swapaxes(0, 1)
    rest = rest.reshape(x.shape[0], -1, *rest.shape[3:])
    return jnp.concatenate([first, rest], axis=1)


class CausalVAE(nnx.Module):
    """Video to latents and back.

    Args:
        config: Sizes; `scaling_factor` belongs to the weights.
        rngs: Source of the initial values.
        dtype: Of the computation; parameters are float32.
    """

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.encoder = Encoder(config, rngs=rngs, dtype=dtype)
        self.decoder = Decoder(config, rngs=rngs, dtype=dtype)
        self.scaling_factor = config.scaling_factor
        self.frames_per_chunk = config.frames_per_encode_chunk
        self.latents_per_chunk = config.latents_per_decode_chunk
        self.spatial_compression = self.encoder.compression
        self.dtype = dtype

    def encode(self, video: Float[Array, "b f height width 3"]) -> Posterior:
        """The posterior of a video in [-1, 1]; height and width multiples of the compression."""
        moments = by_chunks(self.encoder, video.astype(self.dtype), self.frames_per_chunk)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return Posterior(mean, jnp.clip(log_variance, *LOG_VARIANCE_RANGE))

    def decode(
        self, latents: Float[Array, "b t_lat h_lat w_lat latent"]
    ) -> Float[Array, "b f height width 3"]:
        """The video of unscaled latents, about [-1, 1], not clamped."""
        return by_chunks(self.decoder, latents.astype(self.dtype), self.latents_per_chunk)

    def encode_latents(self, video: Float[Array, "b f height width 3"]) -> Array:
        """The posterior's mode, scaled to the diffusion's unit variance."""
        return self.encode(video).mean * self.scaling_factor

    def sample_latents(self, video: Float[Array, "b f height width 3"], key: Array) -> Array:
        """A draw from the posterior, scaled to the diffusion's unit variance."""
        mean, log_variance = self.encode(video)
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        return (mean + jnp.exp(0.5 * log_variance) * noise) * self.scaling_factor

    def decode_latents(self, latents: Float[Array, "b t_lat h_lat w_lat latent"]) -> Array:
        """The video of the diffusion's latents, about [-1, 1], not clamped."""
        return self.decode(latents / self.scaling_factor)
