"""Requests built in Python: what a request file says, with arrays and pictures beside files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tora2_jax.media.image_file import Picture
from tora2_jax.references.crops import Box
from tora2_jax.references.faces import FaceChoice
from tora2_jax.request.reader import (
    DEFAULT_FIT,
    Fit,
    Request,
    RequestedKind,
    RequestError,
    RequestReader,
)
from tora2_jax.trajectory.formats import point_list
from tora2_jax.trajectory.points import DEFAULT_CANVAS, Points

# A file, a Pillow image, or an array [height, width, 3 or 4] of bytes or of numbers in [0, 1].
ImageLike = str | Path | Image.Image | np.ndarray
# A file, points as in a request file, or an array [p, 2] or [p, 3]: x, y and time, in [0, 1]; a
# row with a NaN is where the entity is not visible.
Size = int | np.integer
PathLike = str | Path | Sequence | np.ndarray | Points


class Entity(NamedTuple):
    """An entity of `make_request`; what is left out is not given. docs/request.md has the fields.

    Attributes:
        word: A word of the prompt; `"man#2"` is its second occurrence.
        images: Reference images.
        trajectory: Its path, in canvas units.
        kind: What its prior is of.
        masks: For each image its mask (white is the entity), or None.
        boxes: For each image a box around it in pixels, or None.
        faces: For each image which face is meant, or None.
        features: Files with features of more references.
    """

    word: str
    images: Sequence[ImageLike] = ()
    trajectory: PathLike | None = None
    kind: RequestedKind = "auto"
    masks: Sequence[ImageLike | None] = ()
    boxes: Sequence[Box | None] = ()
    faces: Sequence[FaceChoice] = ()
    features: Sequence[str | Path] = ()


def make_request(
    prompt: str,
    entities: Sequence[Entity] = (),
    *,
    height: Size | None = None,
    width: Size | None = None,
    frames: Size | None = None,
    fps: Size | None = None,
    canvas: tuple[float, float] = DEFAULT_CANVAS,
    image: ImageLike | None = None,
    fit: Fit = DEFAULT_FIT,
    negative_prompt: str | None = None,
) -> Request:
    """A checked request, as `load_request` makes one of a file.

    Args:
        prompt: Describes the video and names the entities' words.
        entities: Each with references, a path, or both.
        height: Of the video in pixels; None, as for the next ones: the model's own.
        width: In pixels.
        frames: Of the video.
        fps: Frames per second.
        canvas: Width and height of the canvas of all trajectories.
        image: First frame, for an image-to-video model.
        fit: How it is brought to the size of the video.
        negative_prompt: Instead of the checkpoint's null text.

    Raises:
        RequestError: lists everything that is wrong.
    """
    sizes = {"height": height, "width": width, "frames": frames, "fps": fps}
    problems: list[str] = []
    data = {name: _number(value) for name, value in sizes.items()}
    data |= {"prompt": prompt, "canvas": _plain(canvas), "fit": fit}
    data |= {"negative_prompt": negative_prompt}
    data["image"] = None if image is None else _source(image, "image", problems)
    data["entities"] = [
        _entity(entity, f"entities[{index}]", problems) for index, entity in enumerate(entities)
    ]
    reader = RequestReader(Path())
    request = reader.request(data)
    if found := [*problems, *reader.problems]:
        raise RequestError(found)
    return request


def _entity(entity: Entity, field: str, problems: list[str]) -> dict[str, Any]:
    """As JSON would hold it; pictures stay what they are."""
    data: dict[str, Any] = {"word": entity.word, "kind": entity.kind}
    for name in ("images", "masks"):
        data[name] = [
            None if value is None else _source(value, f"{field}.{name}[{index}]", problems)
            for index, value in enumerate(getattr(entity, name))
        ]
    data["features"] = [str(path) for path in entity.features]
    data["boxes"], data["faces"] = _plain(entity.boxes), _plain(entity.faces)
    data["trajectory"] = _points(entity.trajectory)
    return {name: value for name, value in data.items() if value not in ([], None)}


def _source(value: object, field: str, problems: list[str]) -> Any:
    if isinstance(value, str | Path):
        return str(value)
    if not isinstance(value, Image.Image | np.ndarray):
        problems.append(f"{field}: must be a file, a Pillow image or an array, not {type(value)}")
        return Picture(np.zeros((1, 1), np.uint8))  # told already
    try:
        return Picture(value)
    except ValueError as error:
        problems.append(f"{field}: {error}")
        return Picture(np.zeros((1, 1), np.uint8))


def _points(value: PathLike | None) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Points):
        return point_list(value)
    if isinstance(value, np.ndarray) and value.ndim == 2:
        seen = np.asarray(np.isfinite(value.astype(np.float64)).all(-1))
        rows = zip(value.tolist(), seen, strict=True)
        return [point if visible else None for point, visible in rows]
    return _plain(value)


def _plain(value: Any) -> Any:
    """Tuples and arrays as the lists that JSON has."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
