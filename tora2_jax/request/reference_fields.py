"""The fields of a request file that say what an entity looks like."""

import math
from typing import Any

import numpy as np

from tora2_jax.media.image_file import ImageSource, load_mask
from tora2_jax.references.crops import Box, visible_box, with_mask
from tora2_jax.references.faces import LANDMARKS, FaceChoice, landmark_fault
from tora2_jax.references.feature_files import FeatureFileError, load_features
from tora2_jax.request.fields import FieldReader, is_number, name_of

_PER_IMAGE = ("masks", "boxes", "faces")
REFERENCE_FIELDS = ("images", *_PER_IMAGE, "features")


def read_references(reader: FieldReader, data: dict, field: str) -> dict[str, tuple]:
    """`images`, and for each of them its mask, box and face, and `features`, as `EntityRequest`.

    Beside them, under `kinds`, what each of the feature files says of the entity's kind.

    Args:
        reader: Notes the problems.
        data: The entity, as JSON.
        field: What problems call the entity.
    """
    images = reader.file_list(data.get("images"), f"{field}.images", "image")
    given = {name: _per_image(reader, data, field, name, len(images)) for name in _PER_IMAGE}
    paths: list[ImageSource | None] = []
    masks: list[ImageSource | None] = []
    boxes: list[Box | None] = []
    faces: list[FaceChoice] = []
    for index, image in enumerate(images):  # one at a time is in memory
        path, pixels = reader.image(image, f"{field}.images[{index}]")
        paths.append(path)
        mask, box, face = (given[name][index] if given[name] else None for name in _PER_IMAGE)
        masks.append(None)
        if mask is not None:
            masks[-1], pixels = _mask(reader, mask, f"{field}.masks[{index}]", pixels)
        boxes.append(_box(reader, box, f"{field}.boxes[{index}]"))
        faces.append(_face(reader, face, f"{field}.faces[{index}]", pixels))
        if pixels is not None:
            _check_visible(reader, field, index, pixels, boxes[-1])
    values: dict[str, list] = {"masks": masks, "boxes": boxes, "faces": faces}
    features, kinds = _features(reader, data.get("features"), f"{field}.features")
    return {
        "features": features,
        "kinds": kinds,
        "images": tuple(path for path in paths if path is not None),
        **{name: tuple(values[name]) if given[name] else () for name in _PER_IMAGE},
    }


def _features(reader: FieldReader, value: Any, field: str) -> tuple[tuple, tuple]:
    """The feature files that can be read, and the kind that each says, or None."""
    paths, kinds = [], []
    for index, item in enumerate(reader.file_list(value, field, "feature")):
        path = reader.path(item, f"{field}[{index}]")
        if path is None:
            continue
        try:
            kinds.append(load_features(path).kind)
            paths.append(path)
        except FeatureFileError as error:
            for problem in error.problems:
                reader.note(f"{field}[{index}]", problem)
    return tuple(paths), tuple(kinds)


def _per_image(reader: FieldReader, data: dict, field: str, name: str, count: int) -> list:
    values = data.get(name)
    if values is None:
        return []
    if not isinstance(values, list):
        reader.note(f"{field}.{name}", f"must be a list, one for each image, not {name_of(values)}")
        return []
    if len(values) != count:
        reader.note(
            f"{field}.{name}",
            f"{len(values)} for {count} images; give one for each image, null for none",
        )
        return []
    return values


def _mask(
    reader: FieldReader, value: Any, field: str, pixels: np.ndarray | None
) -> tuple[ImageSource | None, np.ndarray | None]:
    """Path of the mask, and the picture without what it leaves out."""
    path, mask = reader.image(value, field, load_mask)
    if mask is None or pixels is None:
        return path, None
    try:
        return path, with_mask(pixels, mask)
    except ValueError as error:
        reader.note(field, str(error))
        return path, None


def _box(reader: FieldReader, value: Any, field: str) -> Box | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_finite, value)):
        reader.note(
            field, f"must be [left, top, right, bottom] in pixels or null, not {name_of(value)}"
        )
        return None
    left, top, right, bottom = value
    if left >= right or top >= bottom:
        reader.note(field, f"{name_of(value)} is empty; it is [left, top, right, bottom] in pixels")
        return None
    return left, top, right, bottom


def _face(reader: FieldReader, value: Any, field: str, pixels: np.ndarray | None) -> FaceChoice:
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    points = [value] if _is_point(value) else value
    wrong = not isinstance(points, list) or not all(map(_is_point, points))
    if wrong or len(points) not in (1, 5):
        reader.note(
            field,
            "must be a number (1 is the face at the left), a point [x, y] inside of the face, five "
            f"points ({LANDMARKS}) or null, not {name_of(value)}",
        )
        return None
    if pixels is not None:
        height, width = pixels.shape[:2]
        for x, y in points:
            if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
                size = f"the picture, which is {width} x {height}"
                reader.note(field, f"[{x:g}, {y:g}] is outside of {size}")
                return None
    if len(points) == 1:
        x, y = points[0]
        return x, y
    if fault := landmark_fault(np.array(points, np.float64)):
        reader.note(field, fault)
    left_eye, right_eye, nose, left, right = ((x, y) for x, y in points)
    return left_eye, right_eye, nose, left, right


def _is_finite(value: Any) -> bool:
    return is_number(value) and abs(value) < 1e9 and not math.isnan(value)


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_finite, value))


def _check_visible(reader: FieldReader, field: str, index: int, pixels, box: Box | None) -> None:
    try:
        visible_box(pixels)
    except ValueError as error:
        reader.note(f"{field}.images[{index}]", str(error))
        return
    try:
        visible_box(pixels, box)
    except ValueError as error:
        reader.note(f"{field}.boxes[{index}]", str(error))
