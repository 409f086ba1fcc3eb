"""Tora's motion path: the trajectory extractor and the fuser that injects its maps into the DiT."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from tora2_jax.config import MotionConfig, TransformerConfig
from tora2_jax.models.batch_norm import BatchNorm
from tora2_jax.models.layers import map_arrays, scan, stack

_NORM_EPS = 1e-5


def _convolution(
    channels_in: int,
    channels_out: int,
    kernel_init: nnx.Initializer,
    *,
    rngs: nnx.Rngs,
    dtype: jnp.dtype,
) -> nnx.Conv:
    """A 3 x 3 convolution of single frames that keeps their size."""
    return nnx.Conv(
        channels_in, channels_out, (3, 3), kernel_init=kernel_init, dtype=dtype, rngs=rngs
    )


def _per_frame(
    convolution: nnx.Conv, video: Float[Array, "b t h w c"]
) -> Float[Array, "b t h w d"]:
    """A two-dimensional convolution of every frame."""
    frames = convolution(video.reshape(-1, *video.shape[2:]))
    return frames.reshape(*video.shape[:2], *frames.shape[1:])


class ResidualBlock(nnx.Module):
    """`x + conv(relu(norm(conv(relu(norm(x))))))` on single frames, always at stored statistics.

    The second convolution starts at zero (our decision): Tora's own start lets 84 blocks in a row
    grow their input beyond all bounds when the statistics do not come from a checkpoint.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32):
        he, zeros = nnx.initializers.he_normal(), nnx.initializers.zeros_init()
        self.first_norm = BatchNorm(channels, _NORM_EPS, rngs=rngs)
        self.first_conv = _convolution(channels, channels, he, rngs=rngs, dtype=dtype)
        self.second_norm = BatchNorm(channels, _NORM_EPS, rngs=rngs)
        self.second_conv = _convolution(channels, channels, zeros, rngs=rngs, dtype=dtype)

    def __call__(self, frames: Float[Array, "m h w u"]) -> Float[Array, "m h w u"]:
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
        self.num_layers = transformer.num_layers
        self.blocks_per_layer = config.blocks_per_layer
        self.rematerialize = transformer.rematerialize
        self.dtype = dtype
        # A motion latent has as many channels as the video latent that the DiT puts out.
        channels = transformer.out_channels * self.patch[0] * space * space
        he = nnx.initializers.he_normal()
        self.conv_in = _convolution(channels, config.width, he, rngs=rngs, dtype=dtype)
        self.blocks = stack(
            lambda block_rngs: ResidualBlock(config.width, rngs=block_rngs, dtype=dtype),
            self.num_layers * self.blocks_per_layer,
            rngs,
        )

    def embed(
        self, motion_latents: Float[Array, "b t_lat h_lat w_lat c"]
    ) -> Float[Array, "b t h w u"]:
        """The motion map M on the token grid. Incomplete patches are filled with zeros."""
        return _per_frame(self.conv_in, patchify(motion_latents, self.patch).astype(self.dtype))

    def maps(self, motion_map: Float[Array, "b t h w u"]) -> Float[Array, "k b t h w u"]:
        """The motion map of every DiT layer, from M."""
        b, t, *rest = motion_map.shape
        count = self.blocks_per_layer
        grouped = map_arrays(lambda x: x.reshape(-1, count, *x.shape[1:]), self.blocks)

        def layer(blocks, frames, _):
            for index in range(count):
                frames = map_arrays(lambda x, index=index: x[index], blocks)(frames)
            return frames, frames

        frames = motion_map.reshape(b * t, *rest).astype(self.dtype)
        _, states = scan(layer, grouped, frames, rematerialize=self.rematerialize)
        return states.reshape(self.num_layers, b, t, *rest)


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
    """Convolution over time, kernel 3, first and last frame repeated; starts at zero."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype = jnp.float32,
    ):
        zeros = nnx.initializers.zeros_init()
        self.kernel = nnx.Param(zeros(rngs.params(), (3, channels_in, channels_out)))
        self.bias = nnx.Param(zeros(rngs.params(), (channels_out,)))
        self.dtype = dtype

    def __call__(self, video: Float[Array, "b t h w c"]) -> Float[Array, "b t h w d"]:
        previous = jnp.concatenate([video[:, :1], video[:, :-1]], axis=1)
        following = jnp.concatenate([video[:, 1:], video[:, -1:]], axis=1)
        # One matrix product over all three taps is faster than a convolution on CPU.
        taps = jnp.concatenate([previous, video, following], axis=-1).astype(self.dtype)
        kernel = self.kernel[...].astype(self.dtype).reshape(taps.shape[-1], -1)
        result = taps.reshape(-1, taps.shape[-1]) @ kernel + self.bias[...].astype(self.dtype)
        return result.reshape(*video.shape[:-1], -1)


class FrameGroupNorm(nnx.Module):
    """Group normalisation with the statistics of single frames, in float32."""

    def __init__(self, channels: int, groups: int, *, rngs: nnx.Rngs):
        """`rngs` only keeps the form of every module; nothing here is random."""
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
        inner, he = width // 4, nnx.initializers.he_normal()
        self.gamma_spatial = _convolution(map_width, inner, he, rngs=rngs, dtype=dtype)
        self.gamma_temporal = TemporalConvolution(inner, width, rngs=rngs, dtype=dtype)
        self.beta_spatial = _convolution(map_width, inner, he, rngs=rngs, dtype=dtype)
        self.beta_temporal = TemporalConvolution(inner, width, rngs=rngs, dtype=dtype)
        self.norm = FrameGroupNorm(width, norm_groups, rngs=rngs)
        self.dtype = dtype

    def modulation(
        self, motion_map: Float[Array, "b t h w u"]
    ) -> tuple[Float[Array, "b t h w c"], Float[Array, "b t h w c"]]:
        """Gamma and beta: independent of the timestep, so they can be computed once."""
        motion_map = motion_map.astype(self.dtype)
        gamma = self.gamma_temporal(_per_frame(self.gamma_spatial, motion_map))
        return gamma, self.beta_temporal(_per_frame(self.beta_spatial, motion_map))

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
