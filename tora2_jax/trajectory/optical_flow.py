"""Motion of real clips: optical flow of every pixel, and paths drawn along it.

Tora trains on both: first on dense flow, then on sparse paths. NumPy on the host; OpenCV is
imported when the default estimator is used.
"""

import importlib
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8


@runtime_checkable
class FlowEstimator(Protocol):
    """Says how far every pixel moves from one frame to the next."""

    def __call__(
        self, video: UInt8[np.ndarray, "f height width 3"]
    ) -> Float[np.ndarray, "f-1 height width 2"]:
        """Displacement (x, y) in pixels of frame t's pixels until frame t + 1."""
        ...


class DISFlow:
    """Dense Inverse Search (Kroeger et al., ECCV 2016), OpenCV's medium preset, on the CPU.

    Tora uses RAFT-large, which needs PyTorch and its weights; any `FlowEstimator` can stand here
    (`config.clips.estimator`).
    """

    def __call__(
        self, video: UInt8[np.ndarray, "f height width 3"]
    ) -> Float[np.ndarray, "f-1 height width 2"]:
        """See `FlowEstimator`."""
        import cv2

        estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in video]
        steps = np.zeros((len(video) - 1, *video.shape[1:3], 2), np.float32)
        for index in range(len(steps)):
            # None: it makes the array, which its stub leaves out.
            flow = estimator.calc(gray[index], gray[index + 1], None)  # type: ignore[call-overload]
            steps[index] = flow
        return steps


# As configs, stored ones too, name this module; pools of encoded clips are known by that name.
_MOVED = {"tora2_jax.optical_flow": __name__}


def load_estimator(name: str) -> FlowEstimator:
    """A flow estimator by its place.

    Args:
        name: `MODULE:NAME` of a class or function that makes one when called without arguments.

    Raises:
        ValueError: there is no such module or name, or what it makes cannot be called.
    """
    module, _, attribute = name.partition(":")
    module = _MOVED.get(module, module)
    try:
        estimator = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{name!r} is no flow estimator ({error}); give MODULE:NAME") from error
    if not callable(estimator):
        raise ValueError(
            f"{name!r} is no flow estimator (it makes {estimator!r}, which cannot be called); give "
            "MODULE:NAME of a class or function that makes one"
        )
    return estimator


def dense_flow(
    estimator: FlowEstimator, video: UInt8[np.ndarray, "f height width 3"]
) -> Float[np.ndarray, "f height width 2"]:
    """Flow as `flow_color` paints it: frame t + 1 holds the motion since frame t, frame 0 none."""
    flow = np.zeros((*video.shape[:3], 2), np.float32)
    flow[1:] = estimator(video)
    return flow


def draw_starts(
    first: Float[np.ndarray, "height width 2"], rng: np.random.Generator, grid: int, max_paths: int
) -> Float[np.ndarray, "n 2"]:
    """Where paths begin: 1 to `max_paths` places of a shifted grid, those that move most likely.

    As Tora's release, but where fewer places move than are wanted, those that do are taken, and
    where none moves, any may be (the release ends with an error there).

    Args:
        first: motion until the second frame.
        rng: source of chance.
        grid: pixels between places.
        max_paths: most paths.

    Returns:
        Centers of pixels, (x, y).
    """
    height, width = first.shape[:2]
    rows = np.arange(rng.integers(min(grid, height)), height, grid)
    columns = np.arange(rng.integers(min(grid, width)), width, grid)
    places = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)
    speed = np.linalg.norm(first[places[:, 1], places[:, 0]].astype(np.float64), axis=-1)
    wanted = int(rng.integers(1, max_paths + 1))
    moving = np.flatnonzero(speed)
    if moving.size:
        share = speed[moving] / speed[moving].sum()
        chosen = rng.choice(moving, min(wanted, moving.size), replace=False, p=share)
    else:
        chosen = rng.choice(len(places), min(wanted, len(places)), replace=False)
    return places[chosen] + 0.5


def follow(
    flow: Float[np.ndarray, "f height width 2"], starts: Float[np.ndarray, "n 2"]
) -> tuple[Float[np.ndarray, "n f 2"], Bool[np.ndarray, "n f"]]:
    """Paths that the flow carries on from their starts, with all fractions of pixels.

    Args:
        flow: from `dense_flow`.
        starts: (x, y), continuous pixels.

    Returns:
        Tracks, and where they are visible: a path that has left the picture does not come back.
    """
    frames, height, width = flow.shape[:3]
    tracks = np.empty((len(starts), frames, 2), np.float32)
    visible = np.ones((len(starts), frames), bool)
    tracks[:, 0] = starts
    for frame in range(1, frames):
        before = tracks[:, frame - 1]
        tracks[:, frame] = before + _between_pixels(flow[frame], before)
        inside = ((tracks[:, frame] >= 0) & (tracks[:, frame] <= (width, height))).all(-1)
        visible[:, frame] = visible[:, frame - 1] & inside
        tracks[:, frame] = np.clip(tracks[:, frame], 0, (width, height))
    return tracks, visible


def _between_pixels(
    field: Float[np.ndarray, "height width 2"], place: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n 2"]:
    """Bilinear, the outermost pixels' values beyond their centers."""
    last = np.array(field.shape[1::-1]) - 1
    place = np.clip(place - 0.5, 0, last)
    corner = np.minimum(np.floor(place).astype(int), np.maximum(last - 1, 0))
    x, y = corner.T
    right, below = np.minimum(corner + 1, last).T
    across, down = (place - corner).T[..., None]
    upper = field[y, x] * (1 - across) + field[y, right] * across
    lower = field[below, x] * (1 - across) + field[below, right] * across
    return upper * (1 - down) + lower * down
