"""Parts that vision transformers (DINOv2, CLIP) share."""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from tora2_jax.models.layers.attention import attention
from tora2_jax.models.layers.basic import Linear


class SelfAttention(nnx.Module):
    """Multi-head attention of all tokens to all tokens, or to those that a mask allows."""

    def __init__(self, width: int, num_heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        """Four square maps with bias."""
        make = functools.partial(Linear, width, width, dtype=dtype, rngs=rngs)
        self.query, self.key, self.value, self.output = make(), make(), make(), make()
        self.num_heads = num_heads

    def __call__(
        self, x: Float[Array, "b n c"], mask: Bool[Array, "n n"] | None = None
    ) -> Float[Array, "b n c"]:
        """Attention and output projection; `mask` is True where a query (row) may see a key."""
        split = functools.partial(rearrange, pattern="b n (heads d) -> b n heads d")
        query, key, value = (
            split(project(x), heads=self.num_heads)
            for project in (self.query, self.key, self.value)
        )
        mixed = attention(query, key, value, mask)
        return self.output(rearrange(mixed, "b n heads d -> b n (heads d)"))


def image_patches(
    images: Float[Array, "b height width 3"], patch: int
) -> Float[Array, "b h w features"]:
    """Square patches, each as one vector in the order row, column, RGB."""
    return rearrange(images, "b (h p) (w r) channel -> b h w (p r channel)", p=patch, r=patch)


def small_normal(rngs: nnx.Rngs, *shape: int) -> Float[Array, "..."]:
    """Random tokens and positions to start from."""
    return 0.02 * jax.random.normal(rngs.params(), shape, jnp.float32)
