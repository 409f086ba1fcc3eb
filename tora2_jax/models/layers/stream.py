"""The one stream of tokens that goes through the blocks: `[text ; video ; padding]`.

Everything that differs between text and video is chosen by position, so that no block has to join
or cut the stream, wherever its parts lie.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tora2_jax import parallel


class Layout(NamedTuple):
    """What stands where in the stream."""

    text: int  # l
    grid: tuple[int, int, int]  # t, h, w
    length: int  # positions, with the padding that makes them divisible

    @classmethod
    def of(cls, text: int, grid: tuple[int, int, int]) -> "Layout":
        """The layout of so much text and video on the mesh of the context."""
        return cls(text, grid, parallel.padded(text + math.prod(grid)))

    @property
    def filled(self) -> int:
        """Positions without the padding."""
        return self.text + math.prod(self.grid)

    def place_video(self, tokens: Float[Array, "*b n f"]) -> Float[Array, "*b length f"]:
        """Video tokens where they stand; zeros elsewhere."""
        around = [(0, 0)] * tokens.ndim
        around[-2] = (self.text, self.length - self.filled)
        return jnp.pad(tokens, around)

    def take_video(self, stream: Float[Array, "b length f"]) -> Float[Array, "b n f"]:
        """The inverse of `place_video`."""
        return stream[:, self.text : self.filled]

    def place_text(
        self, text: Float[Array, "b l c"], video: Float[Array, "b length c"]
    ) -> Float[Array, "b length c"]:
        """The stream of text and already placed video."""
        rows = jnp.minimum(jnp.arange(self.length), max(self.text - 1, 0))
        if self.text == 0:
            return video
        return jnp.where(self.is_text(), jnp.take(text, rows, axis=1).astype(video.dtype), video)

    def is_text(self) -> Bool[Array, "length 1"]:
        """Where text stands."""
        return parallel.positions(jnp.arange(self.length)[:, None] < self.text)

    def is_video(self) -> Bool[Array, "length 1"]:
        """Where video stands."""
        position = jnp.arange(self.length)[:, None]
        return parallel.positions((position >= self.text) & (position < self.filled))

    def frames(self) -> Float[Array, "length t"]:
        """1 where a position belongs to a token frame; text and padding belong to none."""
        t, h, w = self.grid
        index = jnp.arange(self.length) - self.text
        inside = (index >= 0) & (index < t * h * w)
        frame = jnp.where(inside, index // (h * w), -1)
        return parallel.positions((frame[:, None] == jnp.arange(t)).astype(jnp.float32))
