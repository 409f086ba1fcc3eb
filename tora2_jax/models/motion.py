"""Tora's motion path: the trajectory extractor and the fuser that injects its maps into the DiT."""

from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from tora2_jax import parallel
from tora2_jax.config import MotionConfig, TransformerConfig
from tora2_jax.models.layers.basic import map_arrays, scan, stack
from tora2_jax.models.layers.batch_norm import BatchNorm
from tora2_jax.models.layers.stream import Layout
from tora2_jax.types import Array as AnyArray

_NORM_EPS = 1e-5
_HE = nnx.initializers.he_normal()


class FrameConvolution(nnx.Module):
    """A 3 x 3 convolution of single frames, zeros around them."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_init: nnx.Initializer = _HE,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        shape = (3, 3, channels_in, channels_out)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels_out, jnp.float32))
        self.dtype = dtype

    def __call__(self, frames: Float[Array, "*m h w c"]) -> Float[Array, "*m h w d"]:
        h, w = frames.shape[-3:-1]
        margin = [(0, 0)] * (frames.ndim - 3) + [(1, 1), (1, 1), (0, 0)]
        padded = jnp.pad(frames, margin)
        # One matrix product over all nine taps: XLA's gradient of a convolution's kernel is ten
        # times slower on CPU.
        taps = [
            padded[..., row : row + h, column : column + w, :]
            for row in range(3)
            for column in range(3)
        ]
        return self.product(jnp.concatenate(taps, axis=-1))

    def product(self, taps: Float[Array, "*m 9*{self.kernel.shape[2]}"]) -> Float[Array, "*m d"]:
        """Neighborhoods (row, column, channel) times the kernel."""
        return _product(taps, self.kernel, self.bias, self.dtype)


def _product(
    taps: Float[Array, "*m k"], kernel: nnx.Param, bias: nnx.Param, dtype: DTypeLike
) -> Float[Array, "*m d"]:
    """Neighborhoods times a convolution kernel, computed in `dtype`."""
    taps, shift = taps.astype(dtype), bias[...].astype(dtype)
    matrix = kernel[...].reshape(taps.shape[-1], -1).astype(dtype)
    if parallel.sequence_shards() > 1:  # see `Linear`
        return taps @ matrix + shift
    return (taps.reshape(-1, taps.shape[-1]) @ matrix + shift).reshape(*taps.shape[:-1], -1)


class ResidualBlock(nnx.Module):
    """`x + conv(relu(norm(conv(relu(norm(x))))))` on single frames, always at stored statistics.

    The second convolution starts at zero (our decision): Tora's own start lets 84 blocks in a row
    grow their input beyond all bounds when the statistics do not come from a checkpoint.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        zeros = nnx.initializers.zeros_init()
        self.first_norm = BatchNorm(channels, _NORM_EPS, rngs=rngs)
        self.first_conv = FrameConvolution(channels, channels, rngs=rngs, dtype=dtype)
        self.second_norm = BatchNorm(channels, _NORM_EPS, rngs=rngs)
        self.second_conv = FrameConvolution(channels, channels, zeros, rngs=rngs, dtype=dtype)

    def __call__(self, frames: Float[Array, "*m h w u"]) -> Float[Array, "*m h w u"]:
        hidden = self.first_conv(jax.nn.relu(self.first_norm(frames)))
        return frames + self.second_conv(jax.nn.relu(self.second_norm(hidden)))


class TrajectoryExtractor(nnx.Module):
    """Motion latents to one map per DiT layer (Tora): a chain whose k-th state feeds layer k."""

    def __init__(
        self,
        config: MotionConfig,
        transformer: TransformerConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        space = transformer.patch_size
        self.patch = (transformer.patch_size_t or 1, space, space)
        self.blocks_per_layer = config.blocks_per_layer
        self.rematerialize = transformer.rematerialize
        self.unroll_layers = transformer.unroll_layers
        self.dtype = dtype
        # A motion latent has as many channels as the video latent that the DiT puts out.
        channels = transformer.out_channels * self.patch[0] * space * space
        self.conv_in = FrameConvolution(channels, config.width, rngs=rngs, dtype=dtype)
        self.blocks = stack(
            lambda block_rngs: ResidualBlock(config.width, rngs=block_rngs, dtype=dtype),
            transformer.num_layers * config.blocks_per_layer,
            rngs,
        )

    def embed(
        self, motion_latents: Float[AnyArray, "b t_lat h_lat w_lat c"]
    ) -> Float[Array, "b t h w u"]:
        """The motion map M on the token grid. Incomplete patches are filled with zeros."""
        return self.conv_in(patchify(motion_latents, self.patch))

    def maps(self, motion_map: Float[Array, "b t h w u"]) -> Float[Array, "k b t h w u"]:
        """The motion map of every DiT layer, from M."""
        count = self.blocks_per_layer
        grouped = map_arrays(lambda x: x.reshape(-1, count, *x.shape[1:]), self.blocks)

        def layer(blocks, frames, _):
            for index in range(count):
                frames = map_arrays(itemgetter(index), blocks)(frames)
            return frames, frames

        start = motion_map.astype(self.dtype)
        _, states = scan(
            layer,
            grouped,
            start,
            rematerialize=self.rematerialize,
            unroll=self.unroll_layers,
        )
        return states


def patchify(
    latents: Float[AnyArray, "b t_lat h_lat w_lat c"], patch: tuple[int, int, int]
) -> Float[Array, "b t h w {patch[0]}*{patch[1]}*{patch[2]}*c"]:
    """Blocks of `patch` (time, rows, columns) become channels, in the order (c, t, h, w)."""
    padding = [(0, -size % step) for size, step in zip(latents.shape[1:4], patch, strict=True)]
    latents = jnp.pad(latents, [(0, 0), *padding, (0, 0)])
    b, t, h, w, c = latents.shape
    patch_t, patch_h, patch_w = patch
    shape = (b, t // patch_t, patch_t, h // patch_h, patch_h, w // patch_w, patch_w, c)
    blocks = latents.reshape(shape).transpose(0, 1, 3, 5, 7, 2, 4, 6)
    return blocks.reshape(*blocks.shape[:4], -1)


class TemporalConvolution(nnx.Module):
    """Convolution over time, kernel 3, first and last frame repeated; starts at zero.

    It draws nothing from `rngs`, which is there because every module takes one.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.kernel = nnx.Param(jnp.zeros((3, channels_in, channels_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels_out, jnp.float32))
        self.dtype = dtype

    def __call__(self, taps: Float[Array, "*m 3*{self.kernel.shape[1]}"]) -> Float[Array, "*m d"]:
        """A position in the frame before, in its own and in the one after -> the output."""
        # One matrix product, as in `FrameConvolution`.
        return _product(taps, self.kernel, self.bias, self.dtype)


class FrameGroupNorm(nnx.Module):
    """Group normalization with the statistics of single frames, in float32 (two passes).

    The statistics are sums over the positions of a frame, wherever they lie: of a stream that is
    cut, only these sums cross devices.
    """

    def __init__(self, channels: int, groups: int, *, rngs: nnx.Rngs):
        """Draws nothing from `rngs`, which is there because every module takes one."""
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))
        self.groups = groups

    def __call__(
        self, tokens: Float[Array, "b n c"], frames: Float[Array, "n t"]
    ) -> Float[Array, "b n c"]:
        """Normalized tokens, float32; meaningless but finite where no frame is.

        Args:
            tokens: the stream.
            frames: which frame a position belongs to, from `Layout.frames`.
        """
        groups = tokens.astype(jnp.float32).reshape(*tokens.shape[:2], self.groups, -1)
        size = frames.sum(0)[:, None] * groups.shape[-1]
        product = partial(jnp.einsum, precision="highest")

        def mean(values: Float[Array, "b n g c"]) -> Float[Array, "b t g"]:
            return product("bng,nt->btg", values.sum(-1), frames) / size

        def spread(values: Float[Array, "b t g"]) -> Float[Array, "b n g 1"]:
            return product("btg,nt->bng", values, frames)[..., None]

        centered = groups - spread(mean(groups))
        inverse = jax.lax.rsqrt(mean(jnp.square(centered)) + _NORM_EPS)
        normal = (centered * spread(inverse)).reshape(tokens.shape)
        return normal * self.scale[...] + self.bias[...]


class MotionGuidanceFuser(nnx.Module):
    """`z + GroupNorm(z) * gamma + beta`, gamma and beta from a motion map (the released Tora).

    Equation 2 of Tora2 has neither the residual nor the norm; the released weights need both.
    Gamma and beta are made where the tokens lie, from a map that every device has.
    """

    def __init__(
        self,
        width: int,
        map_width: int,
        *,
        norm_groups: int = 32,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        inner = width // 4
        self.gamma_spatial = FrameConvolution(map_width, inner, rngs=rngs, dtype=dtype)
        self.gamma_temporal = TemporalConvolution(inner, width, rngs=rngs, dtype=dtype)
        self.beta_spatial = FrameConvolution(map_width, inner, rngs=rngs, dtype=dtype)
        self.beta_temporal = TemporalConvolution(inner, width, rngs=rngs, dtype=dtype)
        self.norm = FrameGroupNorm(width, norm_groups, rngs=rngs)
        self.dtype = dtype

    def modulation(
        self, motion_map: Float[Array, "b t h w u"], layout: Layout
    ) -> tuple[Float[Array, "b n c"], Float[Array, "b n c"]]:
        """Gamma and beta of the stream; meaningless but finite beside the video.

        They do not depend on the timestep, so they can be computed once.
        """
        taps = neighborhoods(motion_map, layout)
        _, h, w = layout.grid
        step = taps.shape[2] - 2 * h * w

        def temporal(values: Float[Array, "b shards m d"]) -> Float[Array, "b n 3*d"]:
            parts = [values[:, :, start : start + step] for start in (0, h * w, 2 * h * w)]
            taps = jnp.concatenate(parts, axis=-1)
            return taps.reshape(taps.shape[0], layout.length, -1)

        gamma = self.gamma_temporal(temporal(self.gamma_spatial.product(taps)))
        beta = self.beta_temporal(temporal(self.beta_spatial.product(taps)))
        return parallel.wide(gamma), parallel.wide(beta)

    def apply(
        self,
        tokens: Float[Array, "b n c"],
        gamma: Float[Array, "b n c"],
        beta: Float[Array, "b n c"],
        select: Bool[Array, " b"],
        layout: Layout,
    ) -> Float[Array, "b n c"]:
        """The fused stream; text and samples that are not selected pass bit by bit."""
        fused = tokens + self.norm(tokens, layout.frames()) * gamma + beta
        fused = parallel.wide(fused.astype(tokens.dtype))
        chosen = select[:, None, None] & layout.is_video()
        return parallel.stream(jnp.where(chosen, fused, tokens))

    def __call__(
        self,
        tokens: Float[Array, "b n c"],
        motion_map: Float[Array, "b t h w u"],
        select: Bool[Array, " b"],
        layout: Layout,
    ) -> Float[Array, "b n c"]:
        """Fuses this layer's map into the stream's video tokens where `select` says so."""
        return self.apply(tokens, *self.modulation(motion_map, layout), select, layout)


def neighborhoods(
    motion_map: Float[Array, "b t h w u"], layout: Layout
) -> Float[Array, "b shards m 9*u"]:
    """The 3 x 3 neighborhood of each position of the stream, for each part of it.

    A part has `m` rows: its own positions and one frame more on both sides, where the first and
    the last frame are repeated. Beside the video stand values that nobody uses.
    """
    b, t, h, w, u = motion_map.shape
    area, edge = h * w, w + 1
    repeated = jnp.concatenate([motion_map[:, :1], motion_map, motion_map[:, -1:]], axis=1)
    margins = (layout.text + edge, layout.length - layout.filled + edge)
    flat = jnp.pad(repeated.reshape(b, (t + 2) * area, u), ((0, 0), margins, (0, 0)))
    windows = parallel.windows(flat, layout.length, 2 * area + 2 * edge)
    shards, rows = windows.shape[1], windows.shape[2] - 2 * edge
    position = jnp.arange(shards)[:, None] * (layout.length // shards) + jnp.arange(rows)
    row, column = jnp.divmod((position - layout.text) % area, w)
    taps = []
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            start = edge + down * w + right
            inside = (row + down >= 0) & (row + down < h)
            inside &= (column + right >= 0) & (column + right < w)
            taps.append(jnp.where(inside[..., None], windows[:, :, start : start + rows], 0))
    return jnp.concatenate(taps, axis=-1)
