"""Moving pictures for documentation: what was asked for at the left, the video at the right."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from tora2_jax.media.video import VideoError, overlay
from tora2_jax.system.files import written_whole

Frames = UInt8[np.ndarray, "f height width 3"]

_PAPER = 244  # gray of the empty canvas that paths are drawn on
_GAP = 8  # pixels between the parts of a row, and between rows
_FORMATS = {".webp": "WEBP", ".gif": "GIF"}


def request_row(
    frames: Frames,
    tracks: Float[np.ndarray, "e f 2"],
    visible: Bool[np.ndarray, "e f"],
    words: Sequence[str],
    references: Sequence[Sequence[np.ndarray]],
) -> UInt8[np.ndarray, "f high wide 3"]:
    """Drawn paths and references, then the video, enlarged by the whole factor of `overlay`.

    Args:
        frames: The video.
        tracks: Of each entity, (x, y) in pixels of the video.
        visible: Where an entity has a path.
        words: One per entity.
        references: Images of each entity, RGB or RGBA.
    """
    canvas = np.full_like(frames, _PAPER)
    asked = overlay(canvas, tracks, visible, words, references)
    factor = asked.shape[1] // frames.shape[1]
    made = frames.repeat(factor, 1).repeat(factor, 2)
    gap = np.full((*made.shape[:2], _GAP, 3), 255, np.uint8)
    return np.concatenate([asked, gap, made], axis=2)


def stacked(
    rows: Sequence[UInt8[np.ndarray, "f _ _ 3"]],
) -> UInt8[np.ndarray, "f height width 3"]:
    """Rows of equally many frames under each other, on white.

    Raises:
        VideoError: There is no row, or their numbers of frames differ.
    """
    counts = {len(row) for row in rows}
    if len(counts) != 1:
        raise VideoError(f"rows of an animation need equally many frames, not {sorted(counts)}")
    width = max(row.shape[2] for row in rows)
    parts = []
    for row in rows:
        below = ((0, 0), (0, _GAP), (0, width - row.shape[2]), (0, 0))
        parts.append(np.pad(row, below, constant_values=255))
    return np.concatenate(parts, axis=1)[:, :-_GAP]


def write_animation(path: str | Path, frames: Frames, fps: float = 8, hold: float = 0.8) -> None:
    """Writes an endless WebP (lossless) or GIF, by the suffix of `path`.

    Args:
        path: Where; its folder is made.
        frames: The pictures.
        fps: How many a second.
        hold: Seconds that the last one stays longer.

    Raises:
        VideoError: Another suffix, or no frame.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS or not len(frames):
        raise VideoError(f"{path}: an animation is a .webp or .gif file of at least one frame")
    pictures = [Image.fromarray(frame) for frame in frames]
    pause = [round(1000 / fps)] * len(frames)
    pause[-1] += round(1000 * hold)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"save_all": True, "append_images": pictures[1:], "duration": pause, "loop": 0}
    with written_whole(path) as aside:
        form = _FORMATS[path.suffix.lower()]
        lossless = {"lossless": True, "method": 4} if form == "WEBP" else {}
        pictures[0].save(aside, form, **options, **lossless)
