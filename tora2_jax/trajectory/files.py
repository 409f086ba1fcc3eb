"""Paths from the files that people have, one or several in each.

- JSON: a list of points as `trajectory.parse_points` takes them, or a list of such lists (ComfyUI's
  tracks, KJNodes' splines), also with single quotes or as a list of texts that hold one list each.
- Tables: a point per line, `x,y` (Tora) with commas, semicolons, tabs or spaces, and a first line
  that names the columns if there are more than these two: x, y, time or frame, visible.
- `.npy`: `[points, 2]`, or `[frames, paths, 2]` as trackers and Wan-Move write it, beside which
  `NAME_visibility.npy` tells where the paths of `NAME_tracks.npy` are visible.
"""

import ast
import io
import itertools
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from tora2_jax.errors import first_line
from tora2_jax.system import limits
from tora2_jax.system.unusable_file import why_unusable
from tora2_jax.trajectory.points import DEFAULT_CANVAS, Points, TrajectoryError, parse_points

_TOLD = 20  # problems of one file
_LITERAL_CHARACTERS = 2**20  # Python's parser takes 200 times as much memory
_NUMPY, _ARCHIVE = b"\x93NUMPY", b"PK\x03\x04"
_JSON = re.compile(r"[\"']?\s*[\[{]")  # a list, or a text that holds one
_COLUMNS = {"t": "time", "frames": "frame", "visibility": "visible", "vis": "visible"}
_TRUTH = {"true": "1", "false": "0"}
_KNOWN = ("x", "y", "time", "frame", "visible")


def load_points(
    path: str | Path,
    canvas: tuple[float, float] = DEFAULT_CANVAS,
    number: int | None = None,
) -> Points:
    """Reads one path from a file.

    Args:
        path: the file.
        canvas: width and height of the canvas that the points were drawn on.
        number: which path of the file, counted from 1; None: there must be only one.

    Raises:
        TrajectoryError: the file is unreadable, its content is no path, or it holds several and
            none of them is named. Nothing of the content is quoted but its numbers.
    """
    path = Path(path)
    try:
        paths = read_paths(path)
        if number is None and len(paths) > 1:
            raise TrajectoryError(
                [f'holds {len(paths)} paths; name one of them, such as "{path.name}#1".']
            )
        return parse_points(_numbered(paths, 1 if number is None else number), canvas)
    except TrajectoryError as error:
        raise TrajectoryError([f"{path}: {problem}" for problem in error.problems]) from error


def load_paths(
    file: str | Path, canvas: tuple[float, float] = DEFAULT_CANVAS
) -> list[tuple[Path, Points]]:
    """Reads every path of a file, or the one that `NAME#2` names; see `load_points`.

    Returns:
        Each path after its name, which is `NAME#2` if the file holds several.
    """
    path, number = split_number(file)
    if number is not None:
        return [(Path(file), load_points(path, canvas, number))]
    try:
        paths = read_paths(path)
        if len(paths) == 1:
            return [(path, parse_points(paths[0], canvas))]
    except TrajectoryError as error:
        raise TrajectoryError([f"{path}: {problem}" for problem in error.problems]) from error
    found, problems = [], []
    for index, value in enumerate(paths, 1):
        name = path.with_name(f"{path.name}#{index}")
        try:
            found.append((name, parse_points(value, canvas)))
        except TrajectoryError as error:
            problems += [f"{name}: {problem}" for problem in error.problems]
    if problems:
        more = [f"{path}: and {len(problems) - _TOLD} more problems."] * (len(problems) > _TOLD)
        raise TrajectoryError(problems[:_TOLD] + more)
    return found


def split_number(file: str | Path, folder: str | Path = "") -> tuple[Path, int | None]:
    """A file, and which of its paths is meant: `NAME#2`, unless that is the name of a file."""
    path = Path(folder) / file
    name, mark, number = path.name.rpartition("#")
    if not (mark and name and re.fullmatch(r"[0-9]{1,6}", number)) or os.path.exists(path):
        return path, None
    return path.with_name(name), int(number)


def _numbered(paths: list, number: int) -> Any:
    if not 1 <= number <= len(paths):
        held = "one path" if len(paths) == 1 else f"{len(paths)} paths"
        raise TrajectoryError([f"holds {held}; there is no number {number}."])
    return paths[number - 1]


def read_paths(path: Path) -> list[Any]:
    """The paths in a file, each as `trajectory.parse_points` takes it, unchecked.

    Raises:
        TrajectoryError: the file cannot be read, or is of none of the known forms.
    """
    try:
        data = limits.read_bytes(path, limits.PATH_BYTES)
        if data and (reason := why_unusable(path)):
            raise TrajectoryError([f"{reason}."])
        if data.startswith(_NUMPY):
            return _array_paths(path, limits.read_array(io.BytesIO(data), limits.PATH_BYTES))
        if data.startswith(_ARCHIVE):
            raise ValueError(
                "it is an archive, such as .npz, .pth or .xlsx; save it as .npy or text"
            )
        text = limits.decode_text(data).strip()
    except TrajectoryError:
        raise
    except UnicodeDecodeError as error:
        raise TrajectoryError(["cannot be read (it holds no text)."]) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise TrajectoryError([f"cannot be read ({reason})."]) from error
    return paths_of(_json(text)) if _JSON.match(text) else [_table(text)]


def paths_of(value: Any) -> list[Any]:
    """The paths in what a JSON file held: one, or several in a list.

    Raises:
        TrajectoryError: a text in the list, or the whole value, is no list.
    """
    if isinstance(value, str):
        value = _json(value)
    if isinstance(value, dict):
        raise TrajectoryError(["is a JSON object; give the list of its points alone."])
    if not isinstance(value, list | tuple):
        raise TrajectoryError(["is no list of points."])
    items = [_json(item) if isinstance(item, str) else item for item in value]
    return list(items) if any(map(_is_path, items)) else [items]


def _is_path(item: Any) -> bool:
    """Whether an item of a list is a list of points, not a point."""
    return isinstance(item, list | tuple) and any(
        isinstance(entry, list | tuple | dict) for entry in item
    )


def _json(text: str) -> Any:
    try:
        return json.loads(text, parse_int=limits.whole_number)
    except (ValueError, RecursionError) as error:
        try:  # as Python prints it, with single quotes
            if len(text) <= _LITERAL_CHARACTERS:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of a file that is no program
                    return ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            pass
        raise TrajectoryError([f"is not valid JSON ({error})."]) from error


def _table(text: str) -> list[Any]:
    """The points of a table; lines that start with # are remarks."""
    lines = text.splitlines()
    if len(lines) > limits.POINTS:
        raise TrajectoryError([f"has {len(lines)} lines; give at most {limits.POINTS} points."])
    numbered = [(index, line.strip()) for index, line in enumerate(lines, 1)]
    rows = [(index, _cells(line)) for index, line in numbered if line and line[0] != "#"]
    columns = _columns(rows[0][1]) if rows else None
    rows = rows[1:] if columns else rows
    form = ",".join(columns or ("x", "y"))
    if rows and not any(all(map(_is_number, cells)) for _, cells in rows):
        raise TrajectoryError([f"is no list of points; each line is {form} in numbers."])
    values = [[float(cell) if _is_number(cell) else cell for cell in cells] for _, cells in rows]
    if columns is None or not values:
        return values
    ragged = [index for index, cells in rows if len(cells) != len(columns)]
    if ragged:
        others = f" (nor have {len(ragged) - 1} more)" if ragged[1:] else ""
        raise TrajectoryError(
            [f"line {ragged[0]} has not the {len(columns)} columns {form}{others}."]
        )
    return _named_points(dict(zip(columns, map(list, zip(*values, strict=True)), strict=True)))


def _cells(line: str) -> list[str]:
    """The fields of a line; a separator at its end has nothing behind it."""
    if ";" in line:  # as programs write tables where the comma is the decimal sign
        cells = line.replace(",", ".").split(";")
    else:
        cells = line.split(",") if "," in line else line.split()
    cells = [cell.strip().strip("\"'") for cell in cells]
    cells = [_TRUTH.get(cell.lower(), cell) for cell in cells]
    return cells[:-1] if len(cells) > 1 and not cells[-1] else cells


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _columns(cells: list[str]) -> list[str] | None:
    """What the first line calls the columns, or None if it holds a point."""
    names = [_COLUMNS.get(cell.lower(), cell.lower()) for cell in cells]
    if not {"x", "y"} <= set(names):
        return None
    if not set(names) <= set(_KNOWN) or len(set(names)) < len(names):
        raise TrajectoryError(
            [f"its columns must be {', '.join(_KNOWN)}, each at most once; leave out the others."]
        )
    return names


def _named_points(columns: dict[str, list[Any]]) -> list[Any]:
    """The points of a table whose columns have names."""
    times, frames = columns.get("time"), columns.get("frame")
    if times is None and frames and all(isinstance(frame, float) for frame in frames):
        if not all(one < next_one for one, next_one in itertools.pairwise(frames)):
            raise TrajectoryError(
                ["the numbers of its frames must rise; sort its lines, and give one path alone."]
            )
        first, last = frames[0], frames[-1]
        times = [(frame - first) / (last - first or 1) for frame in frames] if frames[1:] else None
    fields = [columns["x"], columns["y"], *([] if times is None else [times])]
    visible = columns.get("visible", [1.0] * len(fields[0]))
    return [list(point) if seen else None for *point, seen in zip(*fields, visible, strict=True)]


def _array_paths(path: Path, array: np.ndarray) -> list[Any]:
    """The paths in a NumPy file; positions that are not a number are not visible."""
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim not in (2, 3) or array.shape[-1] not in (2, 3) or array.dtype.kind not in "iuf":
        raise TrajectoryError(
            [
                f"holds {array.dtype} {list(array.shape)}; [points, 2] is one path, "
                "[frames, paths, 2] are several."
            ]
        )
    if not array.size:
        raise TrajectoryError([f"holds no point; its shape is {list(array.shape)}."])
    visible = np.isfinite(array).all(-1) & _visibility(path, array.shape[:-1])
    if array.ndim == 2:
        array, visible = array[:, None], visible[:, None]
    return [
        [point if seen else None for point, seen in zip(points.tolist(), shown, strict=True)]
        for points, shown in zip(np.moveaxis(array, 1, 0), visible.T, strict=True)
    ]


def files_of(path: Path) -> tuple[Path, ...]:
    """All files that are read for the points of one: those of its visibility, too."""
    beside = _beside(path)
    return (path, beside) if beside != path and beside.is_file() else (path,)


def _beside(path: Path) -> Path:
    """Where the visibility of `NAME_tracks.npy` would be; of other names the file itself."""
    return path.with_name(re.sub(r"tracks\.npy$", "visibility.npy", path.name))


def _visibility(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Where the points of `NAME_tracks.npy` are visible: everywhere if no file tells it."""
    beside = _beside(path)
    if beside == path or not beside.is_file():
        return np.ones(shape, bool)
    try:
        data = limits.read_bytes(beside, limits.PATH_BYTES)
        seen = limits.read_array(io.BytesIO(data), limits.PATH_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise TrajectoryError([f"{beside.name} beside it cannot be read ({reason})."]) from error
    fits = [size for size in seen.shape if size > 1] == [size for size in shape if size > 1]
    if not fits or seen.dtype.kind not in "biuf":
        raise TrajectoryError(
            [f"has {list(shape)} points, but {beside.name} holds {seen.dtype} {list(seen.shape)}."]
        )
    return seen.reshape(shape) > 0.5
