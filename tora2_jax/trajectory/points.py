"""From points to what the model sees of a path; with `flow_color` the only rasterizer.

Pixel coordinates are continuous: pixel i covers [i, i + 1], and a track holds `(x, y)` in
[0, width] x [0, height], x right, y down. Everything here is NumPy on the host.
"""

import itertools
import math
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from tora2_jax.errors import MessageError, printable
from tora2_jax.system import limits
from tora2_jax.trajectory.flow_color import color_flow, flow_map, flow_video

__all__ = [
    "Points",
    "Splat",
    "TrajectoryError",
    "color_flow",
    "flow_map",
    "flow_video",
    "is_still",
    "parse_points",
    "resample",
    "splat",
    "token_frames",
]

DEFAULT_CANVAS = (256, 256)
_POINT_FIELDS = {"x", "y", "time", "visible"}


class TrajectoryError(MessageError):
    """A path that cannot be used; `problems` lists all that is wrong with it."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = [printable(problem) for problem in problems]


class Points(NamedTuple):
    """The points of one path as a person gave them; p counts the points."""

    position: np.ndarray  # float64 [p, 2], (x, y) in canvas units; NaN where not visible
    time: np.ndarray  # float64 [p], rising, 0 is the first and 1 the last frame
    visible: np.ndarray  # bool [p]


class Splat(NamedTuple):
    """Where each entity is, on the token grid."""

    map: np.ndarray  # float32 [e, t, h, w] in [0, 1]
    path: np.ndarray  # float32 [e, t, 4]: mean x, y and their change, fractions of the frame
    on: np.ndarray  # bool [e, t]


def parse_points(value: Any, canvas: tuple[float, float] = DEFAULT_CANVAS) -> Points:
    """Checks a list of points: `[x, y]`, `[x, y, time]`, or null where it is not visible.

    `{"x": x, "y": y}`, with `time` or `visible` if wanted, is a point as well. Without times the
    entries are equally spaced in time. Where the points have times, a null lies midway between its
    neighbors.

    Raises:
        TrajectoryError: with every kind of problem once, naming the first entry that has it
            (counted from 1); nothing of an entry is quoted but its numbers.
    """
    if not isinstance(value, list | tuple) or not len(value):
        raise TrajectoryError(["the path has no points; give a list of [x, y]."])
    if len(value) > limits.POINTS:
        raise TrajectoryError([f"the path has {len(value)} points; give at most {limits.POINTS}."])
    entries = [_plain_entry(entry) for entry in value]
    problems = _entry_problems(entries, canvas)
    given = [entry for entry in entries if entry is not None]
    if not given:
        problems.append("no point is visible; give at least one [x, y].")
    if not problems:
        problems = _time_problems(given) + _scale_problems(given, canvas)
    if problems:
        raise TrajectoryError(problems)
    visible = np.array([entry is not None for entry in entries])
    position = np.full((len(entries), 2), np.nan)
    position[visible] = [entry[:2] for entry in given]
    times = np.array([entry[2] for entry in given]) if len(given[0]) == 3 else None
    return Points(position, _entry_times(visible, times), visible)


def _plain_entry(entry: Any) -> Any:
    """An object with x and y as a list, or None if it says that it is not visible."""
    if not isinstance(entry, dict) or not {"x", "y"} <= entry.keys() <= _POINT_FIELDS:
        return entry
    if entry.get("visible", True) in (False, 0):
        return None
    time = [entry["time"]] if entry.get("time") is not None else []
    return [entry["x"], entry["y"], *time]


def _entry_problems(entries: list, canvas: tuple[float, float]) -> list[str]:
    """What is wrong with entries without regard to the others, each kind of problem once."""
    first: dict[tuple[str, ...], str] = {}
    count: Counter[tuple[str, ...]] = Counter()
    for index, entry in enumerate(entries, 1):
        if problem := _entry_problem(entry, canvas):
            fault, remedy = problem
            kind = (*fault.split()[:2], remedy)
            first.setdefault(kind, f"point {index} {fault}")
            count[kind] += 1
    return [f"{fault}{_like(count[kind] - 1)}; {kind[-1]}." for kind, fault in first.items()]


def _like(others: int) -> str:
    return f" ({others} more {'is' if others == 1 else 'are'} like it)" if others else ""


def _entry_problem(entry: Any, canvas: tuple[float, float]) -> tuple[str, str] | None:
    """What is wrong with one entry, and what to do."""
    if entry is None:
        return None
    form = 'a point is [x, y], [x, y, time], {"x": x, "y": y} or null'
    if not isinstance(entry, list | tuple):
        return f"is {_described(entry)}", form
    if len(entry) not in (2, 3):
        return f"is a list of {len(entry)}", form
    wrong = [item for item in entry if isinstance(item, bool) or not isinstance(item, int | float)]
    if wrong:
        return f"holds {_described(wrong[0])} where a number belongs", form
    if not all(_is_finite(item) for item in entry):
        return "holds a number that is not finite", "use null while the entity is out of sight"
    width, height = canvas
    if not (0 <= entry[0] <= width and 0 <= entry[1] <= height):
        return (
            f"is at ({entry[0]:g}, {entry[1]:g}), outside the canvas of {width:g} x {height:g}",
            "give the size of the canvas on which it was drawn, or null while the entity is out "
            "of sight",
        )
    return None


def _described(value: Any) -> str:
    """What a value is; it may be of a file that its reader must not see, so it is not quoted."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "an object without x and y, or with more than time and visible beside them"
    names = {bool: "true or false", str: "text", int: "one number", float: "one number"}
    return names.get(type(value), "a list")


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond all floats
        return False


def is_still(points: Points) -> bool:
    """Whether a path never leaves its first place; a flow picture does not show such a path."""
    position = points.position[points.visible]
    return bool((position == position[0]).all())


def _time_problems(given: list) -> list[str]:
    """What is wrong with the third numbers of the visible entries; at most one problem."""
    if len({len(entry) for entry in given}) > 1:
        return ["some points have a time and some do not; give it for all or for none."]
    if len(given[0]) == 2:
        return []
    times = [entry[2] for entry in given]
    falls = [pair for pair in itertools.pairwise(times) if pair[1] <= pair[0]]
    least, most = min(times), max(times)
    if least >= 0 and most <= 1 and not falls:
        return []
    meaning = "a third number is the time, rising from 0 (first frame) to 1 (last frame)"
    if set(times) <= {0, 1}:
        return [
            f"the third numbers are all 0 or 1, but {meaning}; if they tell whether the point is "
            'visible, write null where it is not, or {"x": x, "y": y, "visible": 0}.'
        ]
    if least < 0 or most > 1:
        return [
            f"the third numbers run from {least:g} to {most:g}, but {meaning}; leave them out if "
            "the points are equally spaced in time, or name the columns of a table in its first "
            "line, such as frame,x,y."
        ]
    earlier, later = falls[0]
    return [f"times must rise, but {later:g} follows {earlier:g}{_like(len(falls) - 1)}."]


def _scale_problems(given: list, canvas: tuple[float, float]) -> list[str]:
    """Asks about a path that lies within the first pixel of its canvas."""
    farthest = max(max(entry[:2]) for entry in given)
    if not 0 < farthest <= 1 or min(canvas) <= 2:  # 0 is the same place on every canvas
        return []
    return [
        "all coordinates lie between 0 and 1, in one corner of the canvas of "
        f"{canvas[0]:g} x {canvas[1]:g}; if they are fractions of the picture, set the canvas to "
        "1 x 1, or multiply them by its size."
    ]


def _entry_times(visible: np.ndarray, times: np.ndarray | None) -> np.ndarray:
    """A time for every entry, the null ones included."""
    count = len(visible)
    if times is None:
        return np.linspace(0, 1, count) if count > 1 else np.zeros(1)
    known = np.flatnonzero(visible).astype(float)
    # Virtual neighbors just outside the list give leading and trailing nulls the time that
    # the points leave free.
    known = np.concatenate([[-1.0], known, [float(count)]])
    return np.interp(np.arange(count), known, np.concatenate([[0.0], times, [1.0]]))


def resample(
    points: Points,
    frames: int,
    width: int,
    height: int,
    canvas: tuple[float, float] = DEFAULT_CANVAS,
    compat: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """One position per frame, in pixels, linear in time between the points.

    A path with one point stands still. A frame is visible if the entry nearest in time is; before
    the first and after the last time the path rests.

    Args:
        points: the path in canvas units.
        frames: pixel frames of the clip (f).
        width: pixels.
        height: pixels.
        canvas: width and height of the canvas.
        compat: resample as the released Tora does: whole pixels, and a path of more points than
            frames is thinned by a whole stride, which can cut its end off. Times are ignored.

    Returns:
        The track, float32 `[f, 2]`, and whether it is visible, bool `[f]`.

    Raises:
        TrajectoryError: `compat` and the path has invisible points.
    """
    if compat:
        return _released_track(points, frames, width, height, canvas), np.ones(frames, bool)
    scale = np.array([width / canvas[0], height / canvas[1]])
    time = np.linspace(0, 1, frames) if frames > 1 else np.zeros(1)
    known = points.time[points.visible]
    position = points.position[points.visible] * scale
    track = np.stack([np.interp(time, known, position[:, axis]) for axis in (0, 1)], -1)
    return track.astype(np.float32), _nearest_visible(points, time)


def _nearest_visible(points: Points, time: np.ndarray) -> np.ndarray:
    """Whether the entry nearest to each time is visible, bool `[f]`; of two, whether one is."""
    before = np.searchsorted(points.time, time, side="right") - 1
    after = np.searchsorted(points.time, time, side="left")
    around = np.stack([before, after], -1).clip(0, len(points.time) - 1)
    distance = np.abs(time[:, None] - points.time[around])
    # The tolerance lets a visible entry win a tie that rounding would decide.
    near = distance <= distance.min(1, keepdims=True) + 1e-9
    return (near & points.visible[around]).any(1)


def _released_track(
    points: Points, frames: int, width: int, height: int, canvas: tuple[float, float]
) -> np.ndarray:
    """The released Tora's whole-pixel track, float32 `[f, 2]`; the far edge is the last pixel."""
    if not points.visible.all():
        raise TrajectoryError(["compat paths cannot have invisible points; remove the nulls."])
    position = np.trunc(points.position)
    count = len(position)
    if count == 1:
        position = np.repeat(position, frames, 0)
    elif count > frames:
        position = position[:: count // frames][:frames]
    elif count < frames:
        segments = count - 1
        rounds, rest = divmod(frames - count, segments)
        parts = 1 + rounds + (np.arange(segments) < rest)
        segment = np.repeat(np.arange(segments), parts)
        step = np.arange(frames - 1) - np.repeat(np.cumsum(parts) - parts, parts)
        between = (step / parts[segment])[:, None] * np.diff(position, axis=0)[segment]
        position = np.concatenate([np.trunc(position[segment] + between), position[-1:]])
    size = np.array([width, height])
    pixels = np.trunc(size * position / np.array(canvas))
    return np.minimum(pixels, size - 1).astype(np.float32)


def splat(
    tracks: np.ndarray,
    visible: np.ndarray,
    token_grid: tuple[int, int, int],
    temporal_patch: int = 1,
    temporal_compression: int = 4,
    spatial: int = 16,
    sigma: float = 1.0,
) -> Splat:
    """Where each entity is on the token grid (our decision; the paper leaves it open).

    A token frame holds the pixel frames of its latents: latent 0 frame 0, latent k frames
    4k-3..4k. The map is the maximum over those frames of a Gaussian around the point.

    Args:
        tracks: `[e, f, 2]` in pixels.
        visible: bool `[e, f]`; points outside the frame count as not visible.
        token_grid: token frames, rows and columns (t, h, w).
        temporal_patch: latents per token frame; an odd number of latents is padded in front.
        temporal_compression: pixel frames per latent.
        spatial: pixels per token.
        sigma: tokens.

    Raises:
        ValueError: the number of frames does not give `t` token frames.
    """
    tracks, visible = np.asarray(tracks, np.float32), np.asarray(visible, bool)
    t, h, w = token_grid
    token_frame = token_frames(tracks.shape[1], temporal_patch, temporal_compression)
    if token_frame[-1] + 1 != t:
        raise ValueError(
            f"{tracks.shape[1]} frames are {token_frame[-1] + 1} token frames, not {t}."
        )
    size = np.array([w, h], np.float32) * spatial
    inside = ((tracks >= 0) & (tracks <= size)).all(-1)
    seen = visible & inside
    starts = np.searchsorted(token_frame, np.arange(t))
    # An unseen point may hold anything, NaN included; it must not reach the sums.
    tracks = np.where(seen[..., None], tracks, 0)
    token = tracks / spatial - 0.5
    across = np.exp(-0.5 * np.square((np.arange(w) - token[..., :1]) / sigma))
    down = np.exp(-0.5 * np.square((np.arange(h) - token[..., 1:]) / sigma))
    bumps = (down * seen[..., None])[..., :, None] * across[..., None, :]
    maps = np.maximum.reduceat(bumps, starts, axis=1)
    return Splat(maps.astype(np.float32), *_mean_path(tracks / size, seen, starts))


def _mean_path(
    fractions: np.ndarray, seen: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean seen position per token frame and its change `[e, t, 4]`, and where there is one."""
    number = np.add.reduceat(seen.astype(np.float32), starts, axis=1)
    on = number > 0
    mean = np.add.reduceat(fractions, starts, axis=1) / np.maximum(number, 1)[..., None]
    change = np.zeros_like(mean)
    both = (on[:, 1:] & on[:, :-1])[..., None]
    change[:, 1:] = np.where(both, mean[:, 1:] - mean[:, :-1], 0)
    return np.concatenate([mean, change], -1).astype(np.float32), on


def token_frames(frames: int, temporal_patch: int, temporal_compression: int) -> np.ndarray:
    """The token frame of each pixel frame, `[f]`: a token frame holds the frames of its latents."""
    latent = -(-np.arange(frames) // temporal_compression)
    padding = -(latent[-1] + 1) % temporal_patch
    return (latent + padding) // temporal_patch
