"""ArcFace's improved residual network: the appearance prior of humans."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tora2_jax.config import ArcFaceConfig
from tora2_jax.models.layers.basic import Linear
from tora2_jax.models.layers.batch_norm import BatchNorm
from tora2_jax.types import PriorFeatures


class PReLU(nnx.Module):
    """`x` where positive, a learned multiple of `x` per channel elsewhere."""

    def __init__(self, features: int, *, rngs: nnx.Rngs) -> None:
        """Slopes start at 0.25; needs no keys."""
        self.slope = nnx.Param(jnp.full(features, 0.25, jnp.float32))

    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        """The activation, in the dtype of `x`."""
        return jnp.where(x > 0, x, self.slope[...].astype(x.dtype) * x)


def convolution(
    in_features: int, out_features: int, size: int, stride: int, *, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.Conv:
    """Square convolution without bias, padded so that stride 1 keeps the size."""
    return nnx.Conv(
        in_features,
        out_features,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        dtype=dtype,
        rngs=rngs,
    )


class ResidualBlock(nnx.Module):
    """Norm, convolution, norm, PReLU, convolution with stride, norm; plus the shortcut."""

    def __init__(
        self, in_width: int, width: int, *, first: bool, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        """The first block of a stage halves the map and has a convolution on its shortcut."""
        conv = functools.partial(convolution, dtype=dtype, rngs=rngs)
        stride = 2 if first else 1
        self.norm_in = BatchNorm(in_width, rngs=rngs)
        self.conv_in = conv(in_width, width, 3, 1)
        self.norm_middle = BatchNorm(width, rngs=rngs)
        self.activation = PReLU(width, rngs=rngs)
        self.conv_out = conv(width, width, 3, stride)
        self.norm_out = BatchNorm(width, rngs=rngs)
        self.shortcut = conv(in_width, width, 1, stride) if first else None
        self.norm_shortcut = BatchNorm(width, rngs=rngs) if first else None

    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h_out w_out c_out"]:
        """One residual step."""
        shortcut = x
        if self.shortcut is not None and self.norm_shortcut is not None:
            shortcut = self.norm_shortcut(self.shortcut(x), train=train)
        x = self.conv_in(self.norm_in(x, train=train))
        x = self.activation(self.norm_middle(x, train=train))
        return self.norm_out(self.conv_out(x), train=train) + shortcut


class ArcFace(nnx.Module):
    """Aligned face -> 7x7 map of tokens and identity vector (R100 at 112 pixels by default)."""

    def __init__(
        self, config: ArcFaceConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> None:
        """Random weights; `convert/families/arcface.py` brings published ones."""
        first, last = config.widths[0], config.widths[-1]
        self.stem = convolution(3, first, 3, 1, dtype=dtype, rngs=rngs)
        self.norm_stem = BatchNorm(first, rngs=rngs)
        self.activation = PReLU(first, rngs=rngs)
        self.stages = nnx.List(_stages(config, dtype, rngs))
        self.norm_map = BatchNorm(last, rngs=rngs)
        self.embedding = Linear(
            map_size(config) ** 2 * last, config.embedding, dtype=dtype, rngs=rngs
        )
        self.norm_embedding = BatchNorm(config.embedding, rngs=rngs)
        self.image_size = config.image_size

    def __call__(
        self, images: Float[Array, "*n height width 3"], *, train: bool = False
    ) -> PriorFeatures:
        """Tokens `[*n, k, c]` in row-major order and vector `[*n, embedding]`.

        Args:
            images: RGB in [0, 1], aligned to the five-point template.
            train: use and update the statistics of the batch.

        Raises:
            ValueError: the images do not have the side the network was made for.
        """
        check_shape("ArcFace", images.shape, (self.image_size, self.image_size))
        leading = images.shape[:-3]
        x = self.stem((images.reshape(-1, *images.shape[-3:]) - 0.5) / 0.5)
        x = self.activation(self.norm_stem(x, train=train))
        for stage in self.stages:
            for block in stage:
                x = block(x, train=train)
        x = self.norm_map(x, train=train)
        vector = self.norm_embedding(self.embedding(x.reshape(x.shape[0], -1)), train=train)
        return PriorFeatures(
            tokens=x.reshape(*leading, -1, x.shape[-1]), vector=vector.reshape(*leading, -1)
        )


def map_size(config: ArcFaceConfig) -> int:
    """Rows (and columns) of the last map."""
    return -(-config.image_size // 2 ** len(config.layers))


def check_shape(name: str, shape: tuple[int, ...], wanted: tuple[int, int]) -> None:
    """Raises ValueError unless the images are RGB of that height and width."""
    if shape[-3:] != (*wanted, 3):
        height, width = wanted
        raise ValueError(
            f"{name} was made for images [..., {height}, {width}, 3] and got {list(shape)}; "
            f"resize them to {height} x {width} pixels, channels last."
        )


def _stages(config: ArcFaceConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> list[nnx.List]:
    make: Callable[..., ResidualBlock] = functools.partial(ResidualBlock, dtype=dtype, rngs=rngs)
    stages, in_width = [], config.widths[0]
    for width, count in zip(config.widths, config.layers, strict=True):
        blocks = [make(in_width, width, first=True)]
        blocks += [make(width, width, first=False) for _ in range(count - 1)]
        stages.append(nnx.List(blocks))
        in_width = width
    return stages
