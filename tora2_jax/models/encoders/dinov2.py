"""DINOv2: the vision transformer whose patch tokens describe a reference image."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tora2_jax.config import DINOv2Config
from tora2_jax.models.encoders.object_encoder import imagenet_normalize
from tora2_jax.models.layers.basic import LayerNorm, Linear, scan, stack
from tora2_jax.models.layers.vit import SelfAttention, image_patches, small_normal


def hidden_width(config: DINOv2Config) -> int:
    """Channels inside the feed-forward layer; SwiGLU has two thirds, rounded up to a multiple of 8.

    Two thirds, because it has three maps where the other has two.
    """
    hidden = config.width * config.mlp_ratio
    return hidden if config.feed_forward == "gelu" else -(-(hidden * 2 // 3) // 8) * 8


class Block(nnx.Module):
    """Attention and feed-forward layer, each behind a norm and scaled per channel."""

    def __init__(self, config: DINOv2Config, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        """Layer scales start at 1."""
        width, hidden = config.width, hidden_width(config)
        gated = config.feed_forward == "swiglu"
        norm = functools.partial(LayerNorm, width, eps=config.norm_eps, dtype=dtype, rngs=rngs)
        self.norm_attention = norm()
        self.attention = SelfAttention(width, config.num_heads, dtype=dtype, rngs=rngs)
        self.scale_attention = nnx.Param(jnp.ones(width, jnp.float32))
        self.norm_mlp = norm()
        self.mlp_gate = Linear(width, hidden, dtype=dtype, rngs=rngs) if gated else None
        self.mlp_in = Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.mlp_out = Linear(hidden, width, dtype=dtype, rngs=rngs)
        self.scale_mlp = nnx.Param(jnp.ones(width, jnp.float32))

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """One layer."""
        x = x + self.attention(self.norm_attention(x)) * self.scale_attention[...].astype(x.dtype)
        return x + self._feed_forward(self.norm_mlp(x)) * self.scale_mlp[...].astype(x.dtype)

    def _feed_forward(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        if self.mlp_gate is None:
            return self.mlp_out(jax.nn.gelu(self.mlp_in(x), approximate=False))
        return self.mlp_out(jax.nn.silu(self.mlp_gate(x)) * self.mlp_in(x))


class DINOv2(nnx.Module):
    """Images -> patch tokens (ViT-L/14, 256 tokens at 224 pixels by default)."""

    def __init__(
        self, config: DINOv2Config, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> None:
        """Random weights; `convert/families/dinov2.py` brings published ones."""
        width, registers = config.width, config.num_registers
        normal = functools.partial(small_normal, rngs)
        self.patch_embedding = Linear(config.patch_size**2 * 3, width, dtype=dtype, rngs=rngs)
        self.class_token = nnx.Param(normal(1, width))
        self.positions = nnx.Param(normal(1 + config.position_grid**2, width))
        self.registers = nnx.Param(normal(registers, width)) if registers else None
        make_block = functools.partial(Block, config, dtype=dtype)
        self.blocks = stack(lambda rngs: make_block(rngs=rngs), config.num_layers, rngs)
        self.norm = LayerNorm(width, eps=config.norm_eps, dtype=dtype, rngs=rngs)
        self.patch_size = config.patch_size
        self.position_grid = config.position_grid
        self.dtype = dtype

    def __call__(self, images: Float[Array, "*n height width 3"]) -> Float[Array, "*n patches c"]:
        """Patch tokens after the last norm, row-major; `images` are RGB in [0, 1].

        Raises:
            ValueError: an image side is not a multiple of the patch size.
        """
        return self.features(images)[1]

    def features(
        self, images: Float[Array, "*n height width 3"]
    ) -> tuple[Float[Array, "*n c"], Float[Array, "*n patches c"]]:
        """Class token and patch tokens after the last norm; `images` are RGB in [0, 1].

        Raises:
            ValueError: an image side is not a multiple of the patch size.
        """
        leading = images.shape[:-3]
        x = self._embed(imagenet_normalize(images).reshape(-1, *images.shape[-3:]))
        x, _ = scan(lambda block, carry, _: (block(carry), None), self.blocks, x)
        x = self.norm(x)
        x = x.reshape(*leading, *x.shape[1:])
        count = 1 if self.registers is None else 1 + self.registers.shape[0]
        return x[..., 0, :], x[..., count:, :]

    def _embed(self, images: Float[Array, "b height width 3"]) -> Float[Array, "b n c"]:
        patch = self.patch_size
        if images.shape[1] % patch or images.shape[2] % patch:
            raise ValueError(
                f"DINOv2 cuts images into patches of {patch} x {patch} pixels and got images of "
                f"{images.shape[1]} x {images.shape[2]}; resize them to multiples of {patch}."
            )
        tokens = self.patch_embedding(image_patches(images, patch).astype(self.dtype))
        tokens = tokens + self._positions(*tokens.shape[1:3]).astype(self.dtype)
        parts = [self.class_token[...] + self.positions[...][:1]]
        if self.registers is not None:
            parts.append(self.registers[...])
        first = jnp.concatenate(parts).astype(self.dtype)
        first = jnp.broadcast_to(first, (tokens.shape[0], *first.shape))
        return jnp.concatenate([first, rearrange(tokens, "b h w c -> b (h w) c")], axis=1)

    def _positions(self, rows: int, columns: int) -> Float[Array, "h w c"]:
        """The stored grid, resampled in float32; the register models were trained antialiased."""
        side, antialias = self.position_grid, self.registers is not None
        grid = self.positions[...][1:].astype(jnp.float32).reshape(side, side, -1)
        if (rows, columns) == (side, side):
            return grid
        vertical = bicubic_matrix(side, rows, antialias)
        horizontal = bicubic_matrix(side, columns, antialias)
        return jnp.einsum("hi,wj,ijc->hwc", vertical, horizontal, grid)


def bicubic_matrix(source: int, target: int, antialias: bool) -> Float[np.ndarray, "target source"]:
    """Matrix that resamples a line of `source` values to `target` values, pixel centers at 0.5.

    PyTorch's two kernels: without antialiasing Keys' cubic with -0.75 and repeated border values;
    with it -0.5, widened by the shrink factor, border values cut off and weights normalized.
    """
    ratio = source / target
    center = (np.arange(target) + 0.5) * ratio - 0.5
    if antialias:
        distance = (np.arange(source) - center[:, None]) / max(ratio, 1.0)
        weights = _keys_cubic(distance, -0.5)
        return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    matrix = np.zeros((target, source))
    for offset in range(-1, 3):
        position = np.floor(center).astype(int) + offset
        weights = _keys_cubic(position - center, -0.75)
        np.add.at(matrix, (np.arange(target), position.clip(0, source - 1)), weights)
    return matrix.astype(np.float32)


def _keys_cubic(distance: Float[np.ndarray, "..."], a: float) -> Float[np.ndarray, "..."]:
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
