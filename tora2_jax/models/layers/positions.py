"""Where the tokens of a video stand: CogVideoX's position tables for every grid of tokens."""

import jax
import jax.numpy as jnp
import numpy as np

from tora2_jax.config import TransformerConfig
from tora2_jax.models.layers import basic
from tora2_jax.models.layers.stream import Layout

Grid = tuple[int, int, int]  # token frames, rows and columns


def sample_grid(config: TransformerConfig) -> Grid:
    """Token frames, rows and columns that the position tables were made for."""
    frames = (config.sample_frames - 1) // config.temporal_compression + 1
    patch = config.patch_size
    return frames, config.sample_height // patch, config.sample_width // patch


def sincos(config: TransformerConfig, grid: Grid) -> jax.Array:
    """CogVideoX-2B's fixed table for a grid, float32 `[t*h*w, c]`."""
    t, h, w = (np.arange(length) for length in grid)
    space, time = config.spatial_interpolation_scale, config.temporal_interpolation_scale
    return basic.sincos_table((t / time, h / space, w / space), config.width)


def stored_table(config: TransformerConfig) -> basic.Buffer:
    """The table of I2V models for text and video; from scratch, 2B's fixed one for the video."""
    text = jnp.zeros((config.max_text_length, config.width), jnp.float32)
    return basic.Buffer(jnp.concatenate([text, sincos(config, sample_grid(config))]))


def added(config: TransformerConfig, stored: jax.Array | None, layout: Layout) -> jax.Array | None:
    """What is added to the stream for where its tokens stand, float32 `[length, c]`, or None.

    Args:
        config: of the transformer.
        stored: the array of `stored_table`, if the model has one.
        layout: of the stream.
    """
    if config.learned_positions and not config.add_learned_positions:
        return None
    if stored is not None and layout.grid[0] == sample_grid(config)[0]:
        return jnp.pad(stored, ((0, layout.length - layout.filled), (0, 0)))
    if stored is not None or config.positions == "sincos":
        # diffusers, too, takes the fixed table where the stored one has other frames.
        return layout.place_video(sincos(config, layout.grid))
    return None


def rotary_grid(config: TransformerConfig, grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of token frames, rows and columns for the rotary embedding.

    CogVideoX 1.5 counts from the corner. 1.0 scales the grid so that it just fits into the one it
    was trained on, in the middle.
    """
    t, h, w = grid
    if config.patch_size_t:
        return np.arange(t), np.arange(h), np.arange(w)
    _, base_h, base_w = sample_grid(config)
    if h / w > base_h / base_w:
        fitted_h, fitted_w = base_h, round(base_h / h * w)
    else:
        fitted_h, fitted_w = round(base_w / w * h), base_w
    top, left = round((base_h - fitted_h) / 2), round((base_w - fitted_w) / 2)
    rows = np.linspace(top, (top + fitted_h) * (h - 1) / h, h)
    return np.arange(t), rows, np.linspace(left, (left + fitted_w) * (w - 1) / w, w)
