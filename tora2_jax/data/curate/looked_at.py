"""A shot as the stages look at it: small pictures of all frames, whole ones of three."""

import itertools
import time
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from tora2_jax.data.curate.shots import Shot
from tora2_jax.media.video_reading import VideoError

LONGER = 640  # pixels of the longer side of small pictures: 0.7 MB a frame


class TooLong(Exception):
    """A video has taken more time than it may."""


class Deadline:
    """When a video is given up; looked at between frames and stages, so it holds in any thread."""

    def __init__(self, seconds: float):
        self._end, self._seconds = time.monotonic() + seconds, seconds

    def check(self) -> None:
        """Raises TooLong after it."""
        if time.monotonic() > self._end:
            raise TooLong(f"took more than {self._seconds:g} s")

    def over(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """The same frames until then."""
        for frame in frames:
            self.check()
            yield frame


class Look(NamedTuple):
    """What is held of a shot while it is judged and annotated.

    Attributes:
        shot: which frames of the video.
        fps: frames per second; where the rate varies, the mean of the shot.
        size: height and width of the whole pictures.
        small: all frames, at most `LONGER` pixels long.
        marks: the first, the middle and the last frame, counted in the shot.
        whole: the pictures of these frames, by their number.
    """

    shot: Shot
    fps: float
    size: tuple[int, int]
    small: UInt8[np.ndarray, "f high wide 3"]
    marks: tuple[int, ...]
    whole: dict[int, UInt8[np.ndarray, "height width 3"]]

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of a whole picture per pixel of a small one, along x and along y."""
        return self.size[1] / self.small.shape[2], self.size[0] / self.small.shape[1]


def look_at(frames: Iterator[np.ndarray], shot: Shot, fps: float) -> Look:
    """Takes the frames of a shot from those of its video, which stand at its first one.

    Raises:
        VideoError: the video is damaged or cut off.
    """
    count = shot.end - shot.start
    marks = tuple(dict.fromkeys((0, count // 2, count - 1)))
    small, whole, shown = [], {}, (0, 0)
    for number, frame in enumerate(itertools.islice(frames, count)):
        shown = frame.shape[:2]
        small.append(_small(frame))
        if number in marks:
            whole[number] = frame
    if len(small) < count:
        raise VideoError("is damaged before this clip")
    return Look(shot, fps, shown, np.stack(small), marks, whole)


def _small(frame: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "high wide 3"]:
    height, width = frame.shape[:2]
    scale = LONGER / max(height, width)
    if scale >= 1:
        return frame
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def neighbors(small: np.ndarray, most: int) -> np.ndarray:
    """Frames in the middle of a shot that follow each other."""
    start = max(0, (len(small) - most) // 2)
    return small[start : start + most]


def spread(whole: dict[int, np.ndarray]) -> list[np.ndarray]:
    """The whole pictures in the order of their frames."""
    return [whole[frame] for frame in sorted(whole)]
