"""What a job leaves: videos to watch and files to download, in the temporary folder."""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import UInt8
from numpy import ndarray

from tora2_jax.media import video
from tora2_jax.request import Request
from tora2_jax.sampling.result import Sample
from tora2_jax.studio.drawing import pack
from tora2_jax.studio.shelf import Shelf

_SHOWN = 384  # pixels of the shorter side from which a video is not enlarged to be watched


class Result(NamedTuple):
    """One video that was made."""

    title: str  # with number and seed, for the list of earlier ones
    request: Request
    seed: int
    video: Path  # as the model made it
    shown: Path  # the same, enlarged by a whole factor if it is small
    overlay: Path  # with paths, words and references drawn on it
    sheet: Path  # some frames side by side
    package: Path  # the request with its pictures, to load again


def keep(sample: Sample, drawing: dict[str, Any], shelf: Shelf, number: int, seed: int) -> Result:
    """Writes the files of a sample that was made of a drawing.

    Args:
        sample: of one request.
        drawing: what it was made of.
        shelf: holds its pictures; the files come into a new folder beside them.
        number: counted from 1.
        seed: that it was made with.
    """
    folder = Path(tempfile.mkdtemp(dir=shelf.folder, prefix="video"))
    request, name = sample.requests[0], f"tora2_{number}_seed_{seed}"
    overlay = sample.overlay()
    result = Result(
        title=f"{number}: seed {seed}, {request.prompt[:40]}",
        request=request,
        seed=seed,
        video=folder / f"{name}.mp4",
        shown=folder / f"{name}_shown.mp4",
        overlay=folder / f"{name}_paths.mp4",
        sheet=folder / f"{name}_sheet.png",
        package=folder / f"{name}_request.zip",
    )
    fps = request.fps or 8
    sample.save(result.video)
    video.write_video(result.shown, enlarged(sample.frames()), fps)
    video.write_video(result.overlay, overlay, fps)
    video.write_image(result.sheet, video.contact_sheet(overlay, columns=3, count=6))
    result.package.write_bytes(pack(drawing, shelf))
    return result


def enlarged(frames: UInt8[ndarray, "*f height width 3"]) -> UInt8[ndarray, "*f high wide 3"]:
    """Small pictures by a whole factor, so that players do not blur them."""
    factor = max(1, _SHOWN // min(frames.shape[-3:-1]))
    return frames.repeat(factor, -3).repeat(factor, -2)
