"""Sparse flow around paths, and optical flow as colors. NumPy on the host.

The colors are the Middlebury wheel (Baker et al., ICCV 2007): direction is hue, magnitude is
saturation, white stands still. The bytes are those of the common PyTorch utility, which Tora's
motion VAE saw in training.
"""

import math
from functools import cache

import numpy as np

_RELEASED_SIGMA = 10.0  # pixels, at the released height
_RELEASED_HEIGHT = 480
_RELEASED_RADIUS = 49
_RADIUS_IN_SIGMAS = 4.9

# Steps between neighboring pure colors: red, yellow, green, cyan, blue, magenta, (red).
_STEPS = (15, 6, 4, 11, 13, 6)
_CORNERS = np.array(
    [[255, 0, 0], [255, 255, 0], [0, 255, 0], [0, 255, 255], [0, 0, 255], [255, 0, 255]]
)


@cache
def _wheel() -> np.ndarray:
    """The 55 colors in [0, 1] and the first one again."""
    arcs = []
    for index, steps in enumerate(_STEPS):
        start, end = _CORNERS[index], _CORNERS[(index + 1) % len(_CORNERS)]
        # The wheel's definition rounds the change of the moving channel down, not its value.
        change = np.floor(255 * np.arange(steps) / steps)
        arcs.append(start + np.sign(end - start) * change[:, None])
    colors = np.concatenate([*arcs, arcs[0][:1]])
    return (colors / 255).astype(np.float32)


def color_bytes(flow: np.ndarray) -> np.ndarray:
    """Flow as RGB bytes, normalized by the largest displacement of the whole clip.

    Args:
        flow: `[f, height, width, 2]`, displacement (x, y) in pixels.

    Returns:
        uint8 `[f, height, width, 3]`; white where nothing moves.
    """
    return _paint(flow, np.arange(256, dtype=np.uint8))


def color_flow(flow: np.ndarray) -> np.ndarray:
    """`color_bytes` in [-1, 1], float32 `[f, height, width, 3]`: what the motion VAE encodes."""
    return _paint(flow, (np.arange(256) / 127.5 - 1).astype(np.float32))


def _paint(flow: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The colors of `flow`, each byte replaced by its entry of `levels`."""
    flow = np.asarray(flow, np.float32)
    colors = np.full((*flow.shape[:-1], 3), levels[255], levels.dtype)
    # Most pixels of sparse flow are still; only the others pay for the arctangent.
    moving = np.flatnonzero((flow[..., 0] != 0) | (flow[..., 1] != 0))
    if moving.size:
        colors.reshape(-1, 3)[moving] = levels[_wheel_bytes(flow.reshape(-1, 2)[moving])]
    return colors


def _wheel_bytes(flow: np.ndarray) -> np.ndarray:
    """RGB bytes `[n, 3]` of the displacements `[n, 2]`."""
    wheel = _wheel()
    x, y = flow.T
    scale = np.sqrt(x * x + y * y).max() + np.finfo(np.float32).eps
    x, y = x / scale, y / scale
    magnitude = np.sqrt(x * x + y * y)
    turn = np.arctan2(-y, -x) / np.float32(np.pi)
    place = (turn + 1) / 2 * np.float32(len(wheel) - 2)
    below = np.floor(place)
    # All stays float32: in float64 the faintest tails of a path would leave pure white.
    fraction = (place - below)[:, None]
    index = below.astype(np.int32)
    pure = (1 - fraction) * wheel[index] + fraction * wheel[index + 1]
    # The values are positive, so the cast rounds down.
    return (255 * (1 - magnitude[:, None] * (1 - pure))).astype(np.uint8)


def flow_map(
    tracks: np.ndarray, visible: np.ndarray, height: int, width: int, compat: bool = False
) -> np.ndarray:
    """Sparse flow: each step's displacement, spread around the pixel where the step begins.

    The spread is a Gaussian of peak 1 and sigma `10 * height / 480` pixels (Tora's at its own
    height). The displacement from frame t to t + 1 stands in frame t + 1; frame 0 is zero.
    Overlapping spreads add.

    Args:
        tracks: `[e, f, 2]` in pixels.
        visible: bool `[e, f]`; a step counts if both its ends are visible.
        height: pixels.
        width: pixels.
        compat: as the released Tora: sigma 10 at any height, mirrored at the border, and where
            two steps begin on the same pixel only the last entity's remains.

    Returns:
        float32 `[f, height, width, 2]`, displacement (x, y) in pixels.
    """
    visible = np.asarray(visible, bool)
    # An unseen point may hold anything, NaN included.
    tracks = np.where(visible[..., None], np.asarray(tracks, np.float32), 0)
    flow = np.zeros((tracks.shape[1], height, width, 2), np.float32)
    displacement = tracks[:, 1:] - tracks[:, :-1]
    seen = visible[:, 1:] & visible[:, :-1]
    counts = seen & (displacement != 0).any(-1)
    pixel = np.floor(tracks).astype(int)
    # The far edge belongs to the last pixel.
    pixel -= tracks == np.array([width, height])
    spread = _mirrored_spread if compat else _cut_spread
    if compat:
        counts &= ~_overwritten(pixel[:, :-1], seen)
    for entity, frame in np.argwhere(counts):
        x, y = pixel[entity, frame]
        rows, vertical = spread(int(y), height, height)
        columns, horizontal = spread(int(x), width, height)
        bump = (vertical[:, None] * horizontal)[..., None] * displacement[entity, frame]
        flow[frame + 1, rows, columns] += bump.astype(np.float32)
    return flow


def _overwritten(pixel: np.ndarray, written: np.ndarray) -> np.ndarray:
    """Which steps `[e, f-1]` a later entity replaces, because it writes to the same pixel."""
    result = np.zeros(written.shape, bool)
    for entity in range(len(pixel)):
        same = (pixel[entity + 1 :] == pixel[entity]).all(-1) & written[entity + 1 :]
        result[entity] = same.any(0)
    return result


def _cut_spread(center: int, size: int, height: int) -> tuple[slice, np.ndarray]:
    """The pixels of one axis near `center` that lie in the frame, and their weights."""
    sigma = np.float32(_RELEASED_SIGMA * height / _RELEASED_HEIGHT)
    radius = math.ceil(_RADIUS_IN_SIGMAS * sigma)
    start, stop = max(center - radius, 0), min(center + radius + 1, size)
    offset = np.arange(start, max(stop, start), dtype=np.float32) - center
    return slice(start, max(stop, start)), np.exp(-0.5 * np.square(offset / sigma))


def _mirrored_spread(center: int, size: int, _height: int) -> tuple[slice, np.ndarray]:
    """As `_cut_spread`, with the released sigma and the image mirrored about its edge pixels."""
    offset = np.arange(-_RELEASED_RADIUS, _RELEASED_RADIUS + 1)
    weight = np.exp(-0.5 * np.square(offset / _RELEASED_SIGMA))
    period = max(2 * (size - 1), 1)
    source = np.abs((np.arange(size)[:, None] + offset) % period)
    source = np.minimum(source, period - source)
    weights = ((source == center) * weight).sum(1)
    near = np.flatnonzero(weights)
    reached = slice(near[0], near[-1] + 1) if near.size else slice(0, 0)
    return reached, weights[reached]


def flow_video(
    tracks: np.ndarray, visible: np.ndarray, height: int, width: int, compat: bool = False
) -> np.ndarray:
    """`flow_map` in colors: one clip for all entities, `[f, height, width, 3]` in [-1, 1]."""
    return color_flow(flow_map(tracks, visible, height, width, compat))
