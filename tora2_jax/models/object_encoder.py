"""Residual network with bottlenecks: the appearance prior of objects (re-identification)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tora2_jax.config import ObjectEncoderConfig
from tora2_jax.models.arcface import check_side, convolution
from tora2_jax.models.batch_norm import BatchNorm
from tora2_jax.types import PriorFeatures

EXPANSION = 4
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def imagenet_normalise(images: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    """RGB in [0, 1] -> zero mean and unit deviation over ImageNet, per channel."""
    return (images - jnp.asarray(IMAGENET_MEAN)) / jnp.asarray(IMAGENET_STD)


class Bottleneck(nnx.Module):
    """Convolutions 1x1, 3x3 (with the stride) and 1x1 to four times the width; plus shortcut."""

    def __init__(
        self, in_width: int, width: int, stride: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
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
        if self.shortcut is not None:
            shortcut = self.norm_shortcut(self.shortcut(x), train=train)
        x = jax.nn.relu(self.norm_reduce(self.conv_reduce(x), train=train))
        x = jax.nn.relu(self.norm_space(self.conv_space(x), train=train))
        x = self.norm_expand(self.conv_expand(x), train=train)
        return jax.nn.relu(x + shortcut)


class ObjectEncoder(nnx.Module):
    """Object crop -> map of tokens and pooled vector (ResNet-50 at 224 pixels by default)."""

    def __init__(
        self, config: ObjectEncoderConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32
    ) -> None:
        """Random weights; `convert/object_encoder.py` brings published ones."""
        self.stem = convolution(3, config.base_width, 7, 2, dtype=dtype, rngs=rngs)
        self.norm_stem = BatchNorm(config.base_width, rngs=rngs)
        self.stages = nnx.List(_stages(config, dtype, rngs))
        self.image_size = config.image_size

    def __call__(
        self, images: Float[Array, "*n side side 3"], *, train: bool = False
    ) -> PriorFeatures:
        """Tokens `[*n, k, c]` in row-major order and their mean, the vector `[*n, c]`.

        Args:
            images: RGB in [0, 1].
            train: use and update the statistics of the batch.

        Raises:
            ValueError: the images do not have the side the network was made for.
        """
        check_side("ObjectEncoder", images.shape, self.image_size)
        leading = images.shape[:-3]
        x = self.stem(imagenet_normalise(images).reshape(-1, *images.shape[-3:]))
        x = jax.nn.relu(self.norm_stem(x, train=train))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage in self.stages:
            for block in stage:
                x = block(x, train=train)
        tokens = x.reshape(*leading, -1, x.shape[-1])
        return PriorFeatures(tokens=tokens, vector=tokens.mean(-2))


def map_size(config: ObjectEncoderConfig) -> int:
    """Rows (and columns) of the last map."""
    size = config.image_size
    for stride in (2, 2, *_strides(config)):
        size = -(-size // stride)
    return size


def _strides(config: ObjectEncoderConfig) -> tuple[int, ...]:
    return (1, *[2] * (len(config.layers) - 2), config.last_stride)


def _stages(config: ObjectEncoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs) -> list[nnx.List]:
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
