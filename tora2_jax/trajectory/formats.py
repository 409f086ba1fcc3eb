"""Paths as other programs read them; `trajectory.files` reads all of these back.

- `tora`: `x,y` per line on a canvas of 256 x 256, equally spaced in time; one path a file.
- `json`: this project's points, on the canvas that they were drawn on; several paths as a list.
- `comfyui`: a list of tracks, each with `{"x", "y"}` in pixels for every frame; where a path is not
  visible `"visible": false` stands beside them, which ComfyUI passes over.
"""

import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from tora2_jax.trajectory.points import DEFAULT_CANVAS, Points, TrajectoryError, resample

Format = Literal["tora", "json", "comfyui"]
SUFFIXES: dict[Format, str] = {"tora": ".txt", "json": ".json", "comfyui": ".json"}
_EVEN = 1e-6  # of the clip; times that differ less from equally spaced ones say nothing


class Drawn(NamedTuple):
    """What paths were drawn for."""

    canvas: tuple[float, float]  # width and height of the canvas of the points
    frames: int
    size: tuple[int, int]  # width and height of the video in pixels


def written(paths: Sequence[Points], form: Format, drawn: Drawn) -> list[str]:
    """The content of the files that hold paths: one file, but one for each path of Tora's form.

    Args:
        paths: the points as given.
        form: one of `SUFFIXES`.
        drawn: what they are for.

    Raises:
        TrajectoryError: the form cannot say that a path is out of sight.
    """
    if form == "tora":
        _refuse_unseen(paths)
        return [_tora(points, drawn) for points in paths]
    if form == "json":
        found = [point_list(points) for points in paths]
        return [json.dumps(found if len(found) > 1 else found[0]) + "\n"]
    return [json.dumps([_track(points, drawn) for points in paths]) + "\n"]


def point_list(points: Points) -> list[Any]:
    """A path as a request has it: `[x, y]`, `[x, y, time]` or None where it is not visible.

    Times are left out where `parse_points` would give the same ones.
    """
    columns = [points.position, points.time] if _is_timed(points) else [points.position]
    rows = np.column_stack(columns)
    return [
        [_short(value) for value in row] if seen else None
        for row, seen in zip(rows.tolist(), points.visible, strict=True)
    ]


def _is_timed(points: Points) -> bool:
    """Whether points are not equally spaced in time."""
    count = len(points.time)
    even = np.linspace(0, 1, count) if count > 1 else np.zeros(1)
    return bool(np.abs(points.time - even).max() > _EVEN)


def _refuse_unseen(paths: Sequence[Points]) -> None:
    unseen = [str(index) for index, points in enumerate(paths, 1) if not points.visible.all()]
    if unseen:
        raise TrajectoryError(
            [
                f"path {', '.join(unseen)}: Tora's form cannot say where a path is out of sight; "
                "take json or comfyui, or remove those points."
            ]
        )


def _tora(points: Points, drawn: Drawn) -> str:
    """Where the points are not equally spaced in time, a line per frame says the same."""
    scale = np.array(DEFAULT_CANVAS) / drawn.canvas
    position = points.position * scale
    if _is_timed(points):
        position, _ = resample(points, drawn.frames, *DEFAULT_CANVAS, drawn.canvas)
    return "".join(f"{_short(x)},{_short(y)}\n" for x, y in position.tolist())


def _track(points: Points, drawn: Drawn) -> list[dict[str, Any]]:
    track, visible = resample(points, drawn.frames, *drawn.size, drawn.canvas)
    return [
        {"x": _short(x), "y": _short(y)} | ({} if seen else {"visible": False})
        for (x, y), seen in zip(track.tolist(), visible, strict=True)
    ]


def _short(value: float) -> float:
    """Enough digits for a hundredth of a pixel, and for a time in a clip of any length."""
    number = round(value, 5)
    return int(number) if number == int(number) else number
