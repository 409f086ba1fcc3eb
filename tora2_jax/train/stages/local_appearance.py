"""What makes the tokens of a recognition network carry local color and shape.

A metric loss alone shapes the pooled vector; nothing then keeps in a token what its own patch looks
like, as DINOv2's tokens do (Oquab et al., arXiv 2304.07193). Here a linear map of every token has
to draw its cell, also where a Vision Transformer saw only gray in its place (our decision; after
the masked-image objectives of MAE and iBOT).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

PIXELS = 4  # rows and columns to which the cell of a token is shrunk
_MASKED_IMAGES, _MASKED_PATCHES = 0.5, 0.4  # shares: of the images, and of the patches of such one
_GRAY = 0.5


def cells(images: Float[Array, "b height width 3"], rows: int, columns: int) -> Array:
    """What each token should draw: means of its pixels, `[b, rows x columns, PIXELS² x 3]`.

    Height and width are multiples of `rows x PIXELS` and `columns x PIXELS`.
    """
    batch, height, width, _ = images.shape
    tall, wide = rows * PIXELS, columns * PIXELS
    small = images.reshape(batch, tall, height // tall, wide, width // wide, 3).mean((2, 4))
    small = small.reshape(batch, rows, PIXELS, columns, PIXELS, 3).transpose(0, 1, 3, 2, 4, 5)
    return small.reshape(batch, rows * columns, -1)


def mask_patches(
    images: Float[Array, "b height width 3"], patch: int, key: Array
) -> Float[Array, "b height width 3"]:
    """Some of the patches of some of the images become gray."""
    image_key, patch_key = jax.random.split(key)
    batch, height, width, _ = images.shape
    chosen = jax.random.bernoulli(image_key, jnp.float32(_MASKED_IMAGES), (batch, 1, 1))
    grid = (batch, height // patch, width // patch)
    masked: Bool[Array, "b rows columns"] = chosen & jax.random.bernoulli(
        patch_key, jnp.float32(_MASKED_PATCHES), grid
    )
    masked = jnp.repeat(jnp.repeat(masked, patch, axis=1), patch, axis=2)
    return jnp.where(masked[..., None], _GRAY, images)


def drawing_loss(
    drawn: Float[Array, "b tokens values"], images: Float[Array, "b height width 3"]
) -> Float[Array, ""]:
    """Mean squared error of the drawn cells of a square map, in units of [0, 1]."""
    side = round(drawn.shape[1] ** 0.5)
    return jnp.square(drawn - cells(images, side, side)).mean()
