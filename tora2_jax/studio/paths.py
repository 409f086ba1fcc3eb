"""Paths of other programs, in and out."""

import tempfile
from pathlib import Path
from typing import Any

from tora2_jax.config.model import ModelConfig
from tora2_jax.request import Request
from tora2_jax.request.load import sizes_of
from tora2_jax.studio.shelf import ShelfError, decoded
from tora2_jax.system import limits
from tora2_jax.trajectory import files, formats
from tora2_jax.trajectory.points import TrajectoryError, parse_points


def read(given: Any) -> dict[str, Any]:
    """The paths of a file that the page was given, as a request has them.

    Args:
        given: its `name`, its `data` in base64, and the `canvas` that they are drawn on.

    Raises:
        TrajectoryError: there are none in it.
        ShelfError: it did not arrive.
    """
    if not isinstance(given, dict):
        raise ShelfError("no file arrived")
    data = decoded(given.get("data"), limits.PATH_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        # The ending says nothing that the content does not; the name is not trusted.
        path = Path(folder) / "paths"
        path.write_bytes(data)
        try:
            values = files.read_paths(path)
            found = [formats.point_list(parse_points(one, _canvas(given))) for one in values]
        except TrajectoryError as error:
            told = [problem.replace(f"{path}", "the file") for problem in error.problems]
            raise TrajectoryError(told) from error
    return {"paths": found[: limits.ENTITIES]}


def _canvas(given: dict[str, Any]) -> tuple[float, float]:
    canvas = given.get("canvas")
    low, high = limits.CANVAS
    if not (
        isinstance(canvas, list)
        and len(canvas) == 2
        and all(type(side) in (int, float) and low <= side <= high for side in canvas)
    ):
        raise ShelfError("the canvas has no size")
    return canvas[0], canvas[1]


def written(request: Request, form: Any, model: ModelConfig) -> list[dict[str, str]]:
    """All paths of a drawing in a form of `trajectory.formats`, as files with a name and a text.

    Raises:
        TrajectoryError: the form is unknown, cannot say one of them, or there are none.
    """
    if not isinstance(form, str) or form not in formats.SUFFIXES:
        raise TrajectoryError([f"unknown form; take one of {', '.join(formats.SUFFIXES)}"])
    drawn = [one.points for one in request.entities if one.points is not None]
    if not drawn:
        raise TrajectoryError(["there are no paths to save; draw one first"])
    height, width, frames = sizes_of(request, model)
    target = formats.Drawn(request.canvas, frames, (width, height))
    texts = formats.written(drawn, form, target)
    suffix = formats.SUFFIXES[form]
    stems = [f"path_{index}" for index in range(1, len(texts) + 1)] if len(texts) > 1 else ["paths"]
    return [
        {"name": f"{stem}{suffix}", "text": text} for stem, text in zip(stems, texts, strict=True)
    ]
