"""Optical flow as colours: the Middlebury wheel (Baker et al., ICCV 2007), in NumPy.

Direction is hue, magnitude is saturation, white stands still. The bytes are those of the
common PyTorch utility, which Tora's motion VAE saw in training.
"""

from functools import cache

import numpy as np

# Steps between neighbouring pure colours: red, yellow, green, cyan, blue, magenta, (red).
_STEPS = (15, 6, 4, 11, 13, 6)
_CORNERS = np.array(
    [[255, 0, 0], [255, 255, 0], [0, 255, 0], [0, 255, 255], [0, 0, 255], [255, 0, 255]]
)


@cache
def _wheel() -> np.ndarray:
    """The 55 colours in [0, 1] and the first one again."""
    arcs = []
    for index, steps in enumerate(_STEPS):
        start, end = _CORNERS[index], _CORNERS[(index + 1) % len(_CORNERS)]
        # The wheel's definition rounds the change of the moving channel down, not its value.
        change = np.floor(255 * np.arange(steps) / steps)
        arcs.append(start + np.sign(end - start) * change[:, None])
    colors = np.concatenate([*arcs, arcs[0][:1]])
    return (colors / 255).astype(np.float32)


def color_bytes(flow: np.ndarray) -> np.ndarray:
    """Flow as RGB bytes, normalised by the largest displacement of the whole clip.

    Args:
        flow: `[f, height, width, 2]`, displacement (x, y) in pixels.

    Returns:
        uint8 `[f, height, width, 3]`; white where nothing moves.
    """
    flow = np.asarray(flow, np.float32)
    colors = np.full((*flow.shape[:-1], 3), 255, np.uint8)
    # Most pixels of sparse flow are still; only the others pay for the arctangent.
    moving = np.flatnonzero((flow != 0).any(-1))
    if moving.size:
        colors.reshape(-1, 3)[moving] = _saturated_colors(flow.reshape(-1, 2)[moving])
    return colors


def _saturated_colors(flow: np.ndarray) -> np.ndarray:
    """RGB bytes `[n, 3]` of the displacements `[n, 2]`."""
    wheel = _wheel()
    largest = np.sqrt(np.square(flow).sum(-1)).max()
    flow = flow / (largest + np.finfo(np.float32).eps)
    magnitude = np.sqrt(np.square(flow).sum(-1, keepdims=True))
    turn = np.arctan2(-flow[:, 1], -flow[:, 0]) / np.float32(np.pi)
    place = (turn + 1) / 2 * np.float32(len(wheel) - 2)
    index = np.floor(place).astype(np.int32)
    fraction = (place - index)[:, None]
    pure = (1 - fraction) * wheel[index] + fraction * wheel[index + 1]
    return np.floor(255 * (1 - magnitude * (1 - pure))).astype(np.uint8)


@cache
def _unit_levels() -> np.ndarray:
    """What each byte is in [-1, 1]."""
    return (np.arange(256) / 127.5 - 1).astype(np.float32)


def color_flow(flow: np.ndarray) -> np.ndarray:
    """`color_bytes` in [-1, 1], float32 `[f, height, width, 3]`: what the motion VAE encodes."""
    return _unit_levels()[color_bytes(flow)]
