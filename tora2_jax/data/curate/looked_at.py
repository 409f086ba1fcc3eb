"""A shot as the stages look at it: small pictures of all frames, whole ones of three."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from tora2_jax.data.curate.shots import Shot
from tora2_jax.media.video_reading import VideoInfo, frames_at

LONGER = 640  # pixels of the longer side of small pictures: 0.7 MB a frame


class Look(NamedTuple):
    """What is held of a shot while it is judged and annotated.

    Attributes:
        shot: which frames of the video.
        fps: frames per second.
        size: height and width of the whole pictures.
        small: all frames, at most `LONGER` pixels long.
        scale: pixels of a small picture per pixel of a whole one.
        marks: the first, the middle and the last frame, counted in the shot.
        whole: the pictures of these frames, by their number.
    """

    shot: Shot
    fps: float
    size: tuple[int, int]
    small: UInt8[np.ndarray, "f high wide 3"]
    scale: float
    marks: tuple[int, ...]
    whole: dict[int, UInt8[np.ndarray, "height width 3"]]


def look_at(path: Path, video: VideoInfo, shot: Shot) -> Look:
    """Decodes a shot once.

    Raises:
        VideoError: the video is damaged or cut off.
    """
    count = shot.end - shot.start
    marks = tuple(dict.fromkeys((0, count // 2, count - 1)))
    scale = min(1.0, LONGER / max(video.height, video.width))
    size = round(video.width * scale), round(video.height * scale)
    small, whole = [], {}
    for number, frame in enumerate(frames_of(path, shot)):
        small.append(frame if scale == 1 else cv2.resize(frame, size, interpolation=cv2.INTER_AREA))
        if number in marks:
            whole[number] = frame
    shown = (video.height, video.width)
    return Look(shot, video.fps, shown, np.stack(small), scale, marks, whole)


def frames_of(path: Path, shot: Shot) -> Iterator[np.ndarray]:
    """The frames of a shot, one after another."""
    yield from frames_at(path, range(shot.start, shot.end))


def neighbors(small: np.ndarray, most: int) -> np.ndarray:
    """Frames in the middle of a shot that follow each other."""
    start = max(0, (len(small) - most) // 2)
    return small[start : start + most]


def spread(whole: dict[int, np.ndarray]) -> list[np.ndarray]:
    """The whole pictures in the order of their frames."""
    return [picture for _, picture in sorted(itertools.chain(whole.items()))]
