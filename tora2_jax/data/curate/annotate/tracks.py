"""Paths of entities, from their masks in a few frames: what the paper does with CoTracker3.

Points inside of a mask are followed from frame to frame by pyramidal Lucas-Kanade, each forward and
back again; those that do not come back where they began are let go. The center moves as the median
of the others: one center of a flat picture has nothing to hold on to. Between two masks this is
done twice, forward from the first and back from the second, and the two paths are blended, so that
the path meets the center of every mask. A mask that is smaller than the others, because the thing
is half hidden or half outside, has another center and does not count. CoTracker3 or files of paths
can take its place (`Tracker`).
"""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

Frames = UInt8[np.ndarray, "f height width 3"]
Mask = Bool[np.ndarray, "height width"]

POINTS = 48  # that are followed at once
FEWEST = 4  # of which the motion is still believed
_WHOLE = 0.8  # of the largest mask: smaller ones say nothing about the center
_BACK = 1.0  # pixels that a point may miss its beginning by, forward and back
_FLOW: dict[str, Any] = {"winSize": (21, 21), "maxLevel": 3}


class Track(NamedTuple):
    """Of one entity.

    Attributes:
        position: the center in pixels, x and y.
        visible: whether it is inside of the picture and could be followed.
    """

    position: Float[np.ndarray, "f 2"]
    visible: Bool[np.ndarray, " f"]


class Tracker(Protocol):
    """Follows an entity through a clip."""

    def __call__(self, frames: Frames, masks: Mapping[int, Mask]) -> Track:
        """Its path.

        Args:
            frames: of the clip.
            masks: of the entity, by frame; at least one, none of them empty.
        """
        ...


class LucasKanade:
    """The default: OpenCV, no weights."""

    def __call__(self, frames: Frames, masks: Mapping[int, Mask]) -> Track:
        """See `Tracker`."""
        gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
        # Of a thing that is half hidden or half outside the mask has another center.
        whole = _WHOLE * max(mask.sum() for mask in masks.values())
        marks = sorted(mark for mark, mask in masks.items() if mask.sum() >= whole)
        position = np.zeros((len(frames), 2))
        followed = np.zeros(len(frames), bool)
        ways = {mark: _both_ways(gray, masks[mark], mark, marks) for mark in marks}
        for before, after in zip([None, *marks], [*marks, None], strict=True):
            first = 0 if before is None else before
            last = len(frames) - 1 if after is None else after
            for frame in range(first, last + 1):
                position[frame], followed[frame] = _blend(frame, before, after, ways)
        height, width = frames.shape[1:3]
        inside = ((position >= 0) & (position <= [width, height])).all(-1)
        return Track(position.astype(np.float32), followed & inside)


_Way = dict[int, tuple[np.ndarray, bool]]  # by frame: where the center is, and whether believed


def _blend(
    frame: int, before: int | None, after: int | None, ways: Mapping[int, _Way]
) -> tuple[np.ndarray, bool]:
    """The center by the ways from the mask before and from the one after."""
    if before is None or after is None:
        (mark,) = (one for one in (before, after) if one is not None)
        return ways[mark][frame]
    (forward, one), (back, other) = ways[before][frame], ways[after][frame]
    share = (frame - before) / max(after - before, 1)
    if one != other:  # one of them has lost it
        return (forward, True) if one else (back, True)
    return (1 - share) * forward + share * back, one


def _both_ways(gray: list[np.ndarray], mask: Mask, mark: int, marks: list[int]) -> _Way:
    """From a mask to the masks beside it, or to the ends of the clip."""
    place = marks.index(mark)
    first = marks[place - 1] if place else 0
    last = marks[place + 1] if place + 1 < len(marks) else len(gray) - 1
    found: _Way = {mark: (center_of(mask), True)}
    found |= _follow(gray, mask, range(mark, last + 1))
    return found | _follow(gray, mask, range(mark, first - 1, -1))


def _follow(gray: list[np.ndarray], mask: Mask, frames: range) -> _Way:
    """Where the center of the first frame's mask goes in the others."""
    center = center_of(mask)
    found: _Way = {frames[0]: (center, True)}
    moved, points = np.zeros(2), _points(gray[frames[0]], mask)
    for before, after in itertools.pairwise(frames):
        ends, kept = _step(gray[before], gray[after], points)
        if kept.sum() < FEWEST:
            # New ones, in the mask where it would be now.
            points = _points(gray[before], _shifted(mask, moved))
            ends, kept = _step(gray[before], gray[after], points)
        if kept.sum() >= FEWEST:
            moved = moved + np.median(ends[kept] - points[kept], axis=0)
            points = ends[kept]
            found[after] = center + moved, True
        else:
            found[after] = center + moved, False
    return found


def _step(
    before: np.ndarray, after: np.ndarray, points: Float[np.ndarray, "p 2"]
) -> tuple[np.ndarray, np.ndarray]:
    """Where points go, and which of them come back when followed backward."""
    if not len(points):
        return points, np.zeros(0, bool)
    start = points.astype(np.float32).reshape(-1, 1, 2)
    # None: OpenCV makes the array, which its stub leaves out.
    follow: Any = cv2.calcOpticalFlowPyrLK
    ends, found, _ = follow(before, after, start, None, **_FLOW)
    back, returned, _ = follow(after, before, ends, None, **_FLOW)
    missed = np.linalg.norm(back - start, axis=-1)[:, 0]
    height, width = after.shape
    inside = ((ends >= 0) & (ends < [width, height])).all((1, 2))
    kept = (found[:, 0] == 1) & (returned[:, 0] == 1) & (missed <= _BACK) & inside
    return ends[:, 0].astype(float), kept


def _points(gray: np.ndarray, mask: Mask) -> Float[np.ndarray, "p 2"]:
    """Corners inside of a mask, and where there are too few, a grid over it."""
    if not mask.any():
        return np.zeros((0, 2))
    inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8))
    area = inner if inner.any() else mask.astype(np.uint8)
    corners = cv2.goodFeaturesToTrack(gray, POINTS, 0.01, 3, mask=area)
    found = np.zeros((0, 2)) if corners is None else corners[:, 0].astype(float)
    if len(found) >= POINTS // 3:
        return found
    rows, columns = np.nonzero(area)
    chosen = np.linspace(0, len(rows) - 1, min(POINTS, len(rows))).astype(int)
    return np.concatenate([found, np.stack([columns[chosen], rows[chosen]], -1)])


def _shifted(mask: Mask, way: Float[np.ndarray, "2"]) -> Mask:
    height, width = mask.shape
    move = np.array([[1, 0, way[0]], [0, 1, way[1]]], np.float32)
    return cv2.warpAffine(mask.astype(np.uint8), move, (width, height)).astype(bool)


def center_of(mask: Mask) -> Float[np.ndarray, "2"]:
    """The middle of a mask, in continuous pixels."""
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean() + 0.5, rows.mean() + 0.5])
