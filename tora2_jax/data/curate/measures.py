"""What filters judge of a clip, measured without a network: motion of pixels and of the camera.

The paper names its tools (UniMatch's flow, a public camera motion detector), but not how they were
run. What stands here is our decision, see `docs/decisions.md`; OpenCV's DIS flow takes UniMatch's
place, and any `FlowEstimator` can take that.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from tora2_jax.trajectory.optical_flow import DISFlow, FlowEstimator

Frames = UInt8[np.ndarray, "f height width 3"]

FLOW_SIZE = (320, 576)  # shorter and longer side of pictures whose flow is scored
FLOW_FRAMES = 10  # evenly spaced over the clip
CAMERA_LINES = 720  # to which pictures are scaled before the camera's motion is measured
CAMERA_WINDOW = 300  # pixels of a side of the square in their middle that is looked at
_STILL = 0.1  # pixels from one frame to the next: rounding of the flow


class CameraMotion(NamedTuple):
    """How the camera moves between two frames, in the mean over a clip.

    Attributes:
        zoom: share of the moving pixels that move away from the middle: 0.5 is no zoom, 1 zooms
            in, 0 out.
        angle: degrees of the motion of the picture, from 0 (to the right) over 90 (down) to 360;
            NaN if it stands still.
        speed: pixels from one frame to the next, at 720 lines.
    """

    zoom: float
    angle: float
    speed: float


def flow_score(frames: Frames, estimator: FlowEstimator | None = None) -> float:
    """How much moves: mean length of the flow between evenly spaced frames, in pixels of 320 x 576.

    Args:
        frames: of the clip, at least two; ten of them are enough.
        estimator: by default DIS.
    """
    chosen = evenly(len(frames), FLOW_FRAMES)
    upright = frames.shape[1] > frames.shape[2]
    size = FLOW_SIZE if upright else FLOW_SIZE[::-1]  # as OpenCV takes it: width, height
    small = np.stack([cv2.resize(frames[index], size) for index in chosen])
    flow = (estimator or DISFlow())(small)
    return float(np.linalg.norm(flow, axis=-1).mean())


def camera_motion(frames: Frames, estimator: FlowEstimator | None = None) -> CameraMotion:
    """How the camera moves, by the flow in the middle of the picture.

    After the detector that the paper cites: the share of pixels that move away from the middle,
    and the median of their directions. Unlike it, pixels at rest have no say, the direction is a
    mean of vectors (0 and 360 degrees are the same), and a still picture has none.

    Args:
        frames: neighbors in time, at least two.
        estimator: by default DIS.
    """
    middle = np.stack([_middle(frame) for frame in frames])
    flow = (estimator or DISFlow())(middle)
    side = middle.shape[1]
    place = np.stack(np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 2), -1)
    lengths = np.linalg.norm(flow, axis=-1)
    zooms, ways = [], []
    for step, length in zip(flow, lengths, strict=True):
        moving = length > _STILL
        if moving.any():
            outward = np.linalg.norm(place + step, axis=-1) > np.linalg.norm(place, axis=-1)
            zooms.append(outward[moving].mean())
        ways.append(np.median(step.reshape(-1, 2), axis=0))
    way = np.mean(ways, axis=0)
    speed = float(np.linalg.norm(ways, axis=-1).mean())
    still = float(np.linalg.norm(way)) <= _STILL
    angle = math.nan if still else math.degrees(math.atan2(way[1], way[0])) % 360
    return CameraMotion(float(np.mean(zooms)) if zooms else 0.5, angle, speed)


def evenly(count: int, most: int) -> np.ndarray:
    """At most so many of `count` frames, from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _middle(frame: UInt8[np.ndarray, "height width 3"]) -> np.ndarray:
    """The square in the middle of a picture of 720 lines."""
    height, width = frame.shape[:2]
    scale = CAMERA_LINES / min(height, width)
    high, wide = round(height * scale), round(width * scale)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    scaled = cv2.resize(frame, (wide, high), interpolation=how)
    top, left = (high - CAMERA_WINDOW) // 2, (wide - CAMERA_WINDOW) // 2
    return scaled[top : top + CAMERA_WINDOW, left : left + CAMERA_WINDOW]
