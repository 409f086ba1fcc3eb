"""Tora's motion path: the trajectory extractor and the fuser that injects its maps into the DiT."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from tora2_jax.config import MotionConfig, TransformerConfig
from tora2_jax.models.batch_norm import BatchNorm
from tora2_jax.models.layers import map_arrays, scan, stack

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
        dtype: jnp.dtype = jnp.float32,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (3, 3, channels_in, channels_out)))
        self.bias = nnx.Param(jnp.zeros(channels_out))
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
        return _product(jnp.concatenate(taps, axis=-1), self.kernel, self.bias, self.dtype)


def _product(
    taps: Float[Array, "*m k"], kernel: nnx.Param, bias: nnx.Param, dtype: jnp.dtype
) -> Float[Array, "*m d"]:
    """Neighbourhoods times a convolution kernel, computed in `dtype`."""
    flat = taps.reshape(-1, taps.shape[-1]).astype(dtype)
    result = flat @ kernel[...].reshape(taps.shape[-1], -1).astype(dtype)
    return (result + bias[...].astype(dtype)).reshape(*taps.shape[:-1], -1)


class ResidualBlock(nnx.Module):
    """`x + conv(relu(norm(conv(relu(norm(x))))))` on single frames, always at stored statistics.

    The second convolution starts at zero (our decision): Tora's own start lets 84 blocks in a row
    grow their input beyond all bounds when the statistics do not come from a checkpoint.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32):
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
        dtype: jnp.dtype = jnp.float32,
    ):
        space = transformer.patch_size
        self.patch = (transformer.patch_size_t or 1, space, space)
        self.blocks_per_layer = config.blocks_per_layer
        self.rematerialize = transformer.rematerialize
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
        self, motion_latents: Float[Array, "b t_lat h_lat w_lat c"]
    ) -> Float[Array, "b t h w u"]:
        """The motion map M on the token grid. Incomplete patches are filled with zeros."""
        return self.conv_in(patchify(motion_latents, self.patch))

    def maps(self, motion_map: Float[Array, "b t h w u"]) -> Float[Array, "k b t h w u"]:
        """The motion map of every DiT layer, from M."""
        count = self.blocks_per_layer
        grouped = map_arrays(lambda x: x.reshape(-1, count, *x.shape[1:]), self.blocks)

        def layer(blocks, frames, _):
            for index in range(count):
                frames = map_arrays(lambda x, index=index: x[index], blocks)(frames)
            return frames, frames

        start = motion_map.astype(self.dtype)
        _, states = scan(layer, grouped, start, rematerialize=self.rematerialize)
        return states


def patchify(
    latents: Float[Array, "b t_lat h_lat w_lat c"], patch: tuple[int, int, int]
) -> Float[Array, "b t h w patch*c"]:
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
        dtype: jnp.dtype = jnp.float32,
    ):
        self.kernel = nnx.Param(jnp.zeros((3, channels_in, channels_out)))
        self.bias = nnx.Param(jnp.zeros(channels_out))
        self.dtype = dtype

    def __call__(self, video: Float[Array, "b t h w c"]) -> Float[Array, "b t h w d"]:
        previous = jnp.concatenate([video[:, :1], video[:, :-1]], axis=1)
        following = jnp.concatenate([video[:, 1:], video[:, -1:]], axis=1)
        # One matrix product, as in `FrameConvolution`.
        taps = jnp.concatenate([previous, video, following], axis=-1)
        return _product(taps, self.kernel, self.bias, self.dtype)


class FrameGroupNorm(nnx.Module):
    """Group normalisation with the statistics of single frames, in float32."""

    def __init__(self, channels: int, groups: int, *, rngs: nnx.Rngs):
        """Draws nothing from `rngs`, which is there because every module takes one."""
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.groups = groups

    def __call__(self, frames: Float[Array, "b t m c"]) -> Float[Array, "b t m c"]:
        """Normalised frames, float32; m counts the positions of a frame."""
        groups = frames.astype(jnp.float32).reshape(*frames.shape[:-1], self.groups, -1)
        mean = groups.mean((2, 4), keepdims=True)
        centered = groups - mean
        variance = jnp.square(centered).mean((2, 4), keepdims=True)
        normal = (centered * jax.lax.rsqrt(variance + _NORM_EPS)).reshape(frames.shape)
        return normal * self.scale[...] + self.bias[...]


class MotionGuidanceFuser(nnx.Module):
    """`z + GroupNorm(z) * gamma + beta`, gamma and beta from a motion map (the released Tora).

    Equation 2 of Tora2 has neither the residual nor the norm; the released weights need both.
    """

    def __init__(
        self,
        width: int,
        map_width: int,
        *,
        norm_groups: int = 32,
        rngs: nnx.Rngs,
        dtype: jnp.dtype = jnp.float32,
    ):
        inner = width // 4
        self.gamma_spatial = FrameConvolution(map_width, inner, rngs=rngs, dtype=dtype)
        self.gamma_temporal = TemporalConvolution(inner, width, rngs=rngs, dtype=dtype)
        self.beta_spatial = FrameConvolution(map_width, inner, rngs=rngs, dtype=dtype)
        self.beta_temporal = TemporalConvolution(inner, width, rngs=rngs, dtype=dtype)
        self.norm = FrameGroupNorm(width, norm_groups, rngs=rngs)
        self.dtype = dtype

    def modulation(
        self, motion_map: Float[Array, "b t h w u"]
    ) -> tuple[Float[Array, "b t h w c"], Float[Array, "b t h w c"]]:
        """Gamma and beta: independent of the timestep, so they can be computed once."""
        gamma = self.gamma_temporal(self.gamma_spatial(motion_map))
        return gamma, self.beta_temporal(self.beta_spatial(motion_map))

    def apply(
        self,
        tokens: Float[Array, "b n c"],
        gamma: Float[Array, "b t h w c"],
        beta: Float[Array, "b t h w c"],
        select: Bool[Array, "b"],
    ) -> Float[Array, "b n c"]:
        """The fused tokens; those of samples that are not selected pass bit by bit."""
        b, t = gamma.shape[:2]
        frames = tokens.reshape(b, t, -1, tokens.shape[-1])
        gamma, beta = gamma.reshape(frames.shape), beta.reshape(frames.shape)
        fused = frames + self.norm(frames) * gamma + beta
        fused = fused.reshape(tokens.shape).astype(tokens.dtype)
        return jnp.where(select[:, None, None], fused, tokens)

    def __call__(
        self,
        tokens: Float[Array, "b n c"],
        motion_map: Float[Array, "b t h w u"],
        select: Bool[Array, "b"],
    ) -> Float[Array, "b n c"]:
        """Fuses the motion map of this layer into the video tokens where `select` says so."""
        return self.apply(tokens, *self.modulation(motion_map), select)
