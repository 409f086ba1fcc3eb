"""Masks of what moves, without a network: the offline default where no segmenter is given.

The background is what most frames show once they are laid over the middle one (homographies of
corners; the camera may move a little). What differs from it is not background. So only entities
that move are found, and several that one caption names cannot be told apart by their words: they
are given in the order of their size.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from tora2_jax.data.curate.measures import evenly

Frames = UInt8[np.ndarray, "f height width 3"]
Mask = Bool[np.ndarray, "height width"]

_LONGER = 480  # pixels of the longer side at which it is worked
_BACKGROUND_FRAMES = 25
_DIFFERENT = 24  # of 255, in the channel that differs most
_ALIKE = 40  # of 255: what is seen where something passed is still taken for the background
_ROUGH = 5.0  # of 255: mean difference from the blurred picture
_ALL_OVER = 0.8  # share of the picture in which something passed: no surroundings are left
_AROUND = 0.12  # of the size of a thing: how far its missing parts may lie outside
_REFINED = 8  # things of a frame
_CORNERS, _FEWEST = 400, 8
_RESTING = 0.5  # pixels
_AGREE = 0.3  # share of the corners
_WIDE = 0.25  # share of the picture


def moving_masks(frames: Frames, marks: Sequence[int], count: int) -> list[dict[int, Mask]]:
    """Masks of the largest things that move.

    Args:
        frames: of the clip.
        marks: frames in which masks are wanted, rising.
        count: how many things at most.

    Returns:
        For each thing, the largest first, its masks by frame. In which frame it is not found, it
        has none.
    """
    height, width = frames.shape[1:3]
    scale = min(1.0, _LONGER / max(height, width))
    size = round(width * scale), round(height * scale)
    small = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames]
    reference = len(frames) // 2
    background = _background(small, reference)
    found: list[dict[int, Mask]] = [{} for _ in range(count)]
    for mark in marks:
        for slot, part in enumerate(_parts(small, reference, mark, background)[:count]):
            whole = cv2.resize(part.astype(np.float32), (width, height))
            found[slot][mark] = whole > 0.5
    return [masks for masks in found if masks]


def _background(frames: list[np.ndarray], reference: int) -> UInt8[np.ndarray, "height width 3"]:
    """What is behind all that moves: on a rough ground what is seen most often.

    On a smooth one the surroundings say what to expect where something passed, and of all that was
    seen there the most alike is taken: a thing that moves slowly covers most places most of the
    time, so what is seen most often would be the thing.
    """
    laid, seen = _laid(frames, reference)
    middle = np.ma.median(np.ma.array(laid, mask=~seen), axis=0).filled(0).astype(np.uint8)
    low = np.where(seen, laid, 255).min(0).astype(int)
    high = np.where(seen, laid, 0).max(0).astype(int)
    passed = ((high - low).max(-1) > _DIFFERENT).astype(np.uint8)
    passed = cv2.dilate(passed, np.ones((5, 5), np.uint8))
    if not passed.any() or passed.mean() > _ALL_OVER or _is_rough(middle, passed):
        return middle
    expected = cv2.inpaint(middle, passed, 3, cv2.INPAINT_TELEA)
    distance = np.abs(laid.astype(int) - expected).max(-1)
    distance[~seen[..., 0]] = 255
    nearest = np.argmin(distance, axis=0)
    alike = np.take_along_axis(laid, nearest[None, ..., None], 0)[0]
    known = np.take_along_axis(distance, nearest[None], 0)[0] <= _ALIKE
    inside = passed.astype(bool)
    found = middle.copy()
    found[inside] = np.where(known[..., None], alike, expected)[inside]
    return found


def _is_rough(picture: np.ndarray, passed: np.ndarray) -> bool:
    """Whether the surroundings of what passed do not say what is behind it."""
    ring = cv2.dilate(passed, np.ones((31, 31), np.uint8)).astype(bool) & ~passed.astype(bool)
    detail = np.abs(picture.astype(int) - cv2.GaussianBlur(picture, (0, 0), 5)).mean(-1)
    return not ring.any() or float(detail[ring].mean()) > _ROUGH


def _laid(frames: list[np.ndarray], reference: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames as the camera of the reference would have seen them, and where it does."""
    laid, seen = [], []
    for index in evenly(len(frames), _BACKGROUND_FRAMES):
        way = homography(frames[index], frames[reference])
        height, width = frames[index].shape[:2]
        laid.append(cv2.warpPerspective(frames[index], way, (width, height)))
        inside = cv2.warpPerspective(np.ones((height, width), np.uint8), way, (width, height))
        seen.append(np.repeat(inside[..., None] > 0, 3, -1))
    return np.stack(laid), np.stack(seen)


def homography(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How the camera's motion takes one picture to another; the identity if that cannot be told.

    Corners of one moving thing agree with each other, too; only those that lie all over the
    picture say something about the camera.
    """
    before, after = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (one, other))
    corners = cv2.goodFeaturesToTrack(before, _CORNERS, 0.01, 7)
    if corners is None or len(corners) < _FEWEST:
        return np.eye(3)
    follow: Any = cv2.calcOpticalFlowPyrLK  # its stub does not know that it makes the array
    ends, found, _ = follow(before, after, corners, None)
    start, ends = corners[found[:, 0] == 1, 0], ends[found[:, 0] == 1, 0]
    if len(start) < _FEWEST:
        return np.eye(3)
    resting = np.linalg.norm(ends - start, axis=-1) < _RESTING
    if resting.mean() > _AGREE and _spread(start[resting], before.shape) > _WIDE:
        return np.eye(3)
    way, inliers = cv2.findHomography(start, ends, cv2.RANSAC, 2.0)
    if way is None:
        return np.eye(3)
    agree = inliers[:, 0] == 1
    if agree.mean() < _AGREE or _spread(start[agree], before.shape) < _WIDE:
        return np.eye(3)
    return way


def _spread(points: np.ndarray, shape: tuple[int, ...]) -> float:
    """The share of the picture that the hull of points covers."""
    if len(points) < 3:
        return 0.0
    return cv2.contourArea(cv2.convexHull(points.astype(np.float32))) / (shape[0] * shape[1])


def _parts(
    frames: list[np.ndarray], reference: int, mark: int, background: np.ndarray
) -> list[Mask]:
    """What differs from the background in a frame, the largest first."""
    frame = frames[mark]
    height, width = frame.shape[:2]
    way = homography(frames[reference], frame)
    behind = cv2.warpPerspective(background, way, (width, height), borderMode=cv2.BORDER_REPLICATE)
    differs = cv2.absdiff(frame, behind).max(-1) > _DIFFERENT
    solid = cv2.morphologyEx(differs.astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    solid = cv2.morphologyEx(solid, cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(solid)
    if count == 1:
        return []
    order = np.argsort(-stats[1:, cv2.CC_STAT_AREA]) + 1
    return [_refined(frame, labels == label) for label in order[:_REFINED]]


def _refined(frame: UInt8[np.ndarray, "height width 3"], mask: Mask) -> Mask:
    """The same thing by its colors and edges (GrabCut), where the difference has left out parts."""
    around = max(3, round(_AROUND * np.sqrt(mask.sum())))
    inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8))
    near, far = (
        cv2.dilate(mask.astype(np.uint8), np.ones((2 * size + 1,) * 2, np.uint8))
        for size in (around, 2 * around)
    )
    labels = np.full(mask.shape, cv2.GC_BGD, np.uint8)
    labels[far > 0], labels[near > 0] = cv2.GC_PR_BGD, cv2.GC_PR_FGD
    labels[inner > 0] = cv2.GC_FGD
    if not inner.any() or far.all():
        return mask
    cv2.setRNGSeed(0)  # the same clip has the same masks
    models = np.zeros((1, 65)), np.zeros((1, 65))
    picture = np.ascontiguousarray(frame[..., ::-1])
    cut: Any = cv2.grabCut  # its stub does not know that there need be no rectangle
    cut(picture, labels, None, *models, 4, cv2.GC_INIT_WITH_MASK)
    refined = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    # Where a thing has the colors of what is behind it, GrabCut takes much or nothing.
    return refined if 0.5 < refined.sum() / mask.sum() < 2 else mask
