"""Residual network with bottlenecks: the appearance prior of objects (re-identification)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tora2_jax.config import ObjectEncoderConfig
from tora2_jax.models.encoders.arcface import check_shape, convolution
from tora2_jax.models.layers.batch_norm import BatchNorm
from tora2_jax.types import PriorFeatures

EXPANSION = 4
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALLEST_POOLED = 1e-6  # so that any power is defined


def imagenet_normalize(images: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    """RGB in [0, 1] -> zero mean and unit deviation over ImageNet, per channel."""
    return (images - jnp.asarray(IMAGENET_MEAN, jnp.float32)) / jnp.asarray(
        IMAGENET_STD, jnp.float32
    )


class Bottleneck(nnx.Module):
    """Convolutions 1x1, 3x3 (with the stride) and 1x1 to four times the width; plus shortcut."""

    def __init__(
        self, in_width: int, width: int, stride: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        """The shortcut is a convolution where it must change the shape."""
        conv = functools.partial(convolution, dtype=dtype, rngs=rngs)
        out_width = width * EXPANSION
        self.conv_reduce = conv(in_width, width, 1, 1)
        self.norm_reduce = BatchNorm(width, rngs=rngs)
        self.conv_space = conv(width, width, 3, stride)
        self.norm_space = BatchNorm(width, rngs=rngs)
        self.conv_expand = conv(width, out_width, 1, 1)
        self.norm_expand = BatchNorm(out_width, rngs=rngs)
        reshapes = stride != 1 or in_width != out_width
        self.shortcut = conv(in_width, out_width, 1, stride) if reshapes else None
        self.norm_shortcut = BatchNorm(out_width, rngs=rngs) if reshapes else None

    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h_out w_out c_out"]:
        """One residual step."""
        shortcut = x
        if self.shortcut is not None and self.norm_shortcut is not None:
            shortcut = self.norm_shortcut(self.shortcut(x), train=train)
        x = jax.nn.relu(self.norm_reduce(self.conv_reduce(x), train=train))
        x = jax.nn.relu(self.norm_space(self.conv_space(x), train=train))
        x = self.norm_expand(self.conv_expand(x), train=train)
        return jax.nn.relu(x + shortcut)


class GeneralizedMean(nnx.Module):
    """`mean(x^p)^(1/p)` with a learned p (GeM): 1 is the mean, infinity the maximum."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        """p starts at 3; needs no keys."""
        self.exponent = nnx.Param(jnp.full(1, 3.0, jnp.float32))

    def __call__(self, x: Float[Array, "*n k c"]) -> Float[Array, "*n c"]:
        """The mean over tokens, of which the negative count as almost 0. Float32."""
        exponent = self.exponent[...].astype(jnp.float32)
        powers = jnp.maximum(x.astype(jnp.float32), SMALLEST_POOLED) ** exponent
        return powers.mean(-2) ** (1 / exponent)


class ObjectEncoder(nnx.Module):
    """Object crop -> map of tokens and pooled vector (ResNet-50 at 224 pixels by default)."""

    def __init__(
        self, config: ObjectEncoderConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> None:
        """Random weights; `convert/families/object_encoder.py` brings published ones."""
        self.stem = convolution(3, config.base_width, 7, 2, dtype=dtype, rngs=rngs)
        self.norm_stem = BatchNorm(config.base_width, rngs=rngs)
        self.stages = nnx.List(_stages(config, dtype, rngs))
        self.pool = GeneralizedMean(rngs=rngs) if config.pooling == "generalized_mean" else None
        self.neck = BatchNorm(config.width, rngs=rngs) if config.neck else None
        self.image_shape = config.image_shape
        self.stem_padding = _stem_padding(config)

    def __call__(
        self, images: Float[Array, "*n height width 3"], *, train: bool = False
    ) -> PriorFeatures:
        """Tokens `[*n, k, c]` in row-major order and what they are pooled to, `[*n, c]`.

        Args:
            images: RGB in [0, 1].
            train: use and update the statistics of the batch.

        Raises:
            ValueError: the images do not have the height and width the network was made for.
        """
        check_shape("ObjectEncoder", images.shape, self.image_shape)
        leading = images.shape[:-3]
        x = self.stem(imagenet_normalize(images).reshape(-1, *images.shape[-3:]))
        x = jax.nn.relu(self.norm_stem(x, train=train))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=self.stem_padding)
        for stage in self.stages:
            for block in stage:
                x = block(x, train=train)
        tokens = x.reshape(*leading, -1, x.shape[-1])
        vector = tokens.mean(-2) if self.pool is None else self.pool(tokens)
        if self.neck is not None:
            vector = self.neck(vector, train=train)
        return PriorFeatures(tokens=tokens, vector=vector)


def map_shape(config: ObjectEncoderConfig) -> tuple[int, int]:
    """Rows and columns of the last map."""

    def length(pixels: int) -> int:
        stem = _halved(pixels)
        pooled = _halved(stem) if config.stem_pool == "padded" else stem // 2
        for stride in _strides(config):
            pooled = -(-pooled // stride)
        return pooled

    rows, columns = config.image_shape
    return length(rows), length(columns)


def _halved(length: int) -> int:
    return -(-length // 2)


def _stem_padding(config: ObjectEncoderConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of the pooling; without it, fast-reid's last window reaches beyond a map of even length."""
    if config.stem_pool == "padded":
        return (1, 1), (1, 1)
    rows, columns = map(_halved, config.image_shape)
    return (0, 1 - rows % 2), (0, 1 - columns % 2)


def _strides(config: ObjectEncoderConfig) -> tuple[int, ...]:
    return (1, *[2] * (len(config.layers) - 2), config.last_stride)


def _stages(config: ObjectEncoderConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> list[nnx.List]:
    stages, in_width = [], config.base_width
    for position, (count, stride) in enumerate(zip(config.layers, _strides(config), strict=True)):
        width = config.base_width * 2**position
        blocks = []
        for index in range(count):
            stride_here = stride if index == 0 else 1
            blocks.append(Bottleneck(in_width, width, stride_here, dtype=dtype, rngs=rngs))
            in_width = width * EXPANSION
        stages.append(nnx.List(blocks))
    return stages
