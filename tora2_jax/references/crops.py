"""From a picture of an entity to the three arrays that the frozen image encoders read."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from tora2_jax.config import ModelConfig
from tora2_jax.media.image_file import to_rgba
from tora2_jax.models.encoders.prior import stored_priors
from tora2_jax.references.faces import (
    Face,
    FaceChoice,
    FaceDetector,
    align,
    choose,
    from_left,
    is_landmarks,
)
from tora2_jax.types import Kind

_SOLID = 127  # alpha above this belongs to the mask
_HEAD_SHARE = 0.54  # side of the head's square, in heights of the mask
_HEAD_ROWS = 0.35  # rows that tell where the middle of the head is
_SMALLEST_MASK = 8  # pixels; below, there is no head to see

Box = tuple[float, float, float, float]  # left, top, right, bottom: edges, pixel 0 is 0 to 1


class Reference(NamedTuple):
    """A picture of an entity, and what is known about where the entity is."""

    image: UInt8[np.ndarray, "height width 4"]  # alpha is the mask
    box: Box | None = None  # the entity is inside
    face: FaceChoice = None  # which face is the entity's


class FaceSearch(NamedTuple):
    """How the face of a reference was found, or why there is none. Pixels of the whole picture."""

    landmarks: Float[np.ndarray, "5 2"] | None  # None: no face
    faces: tuple[Face, ...]  # all that the detector found, from left to right
    chosen: int | None  # which of them; None: no face, or landmarks given by hand
    said: str  # the same in words


class PreparedReference(NamedTuple):
    """One reference image, float32 in [0, 1]; objects and faces not found have a face of zeros.

    Humans have an object crop as well: Table 2's `dino_reid` shows it to the object encoder.
    """

    dino: Float[np.ndarray, "dino_side dino_side 3"]
    face: Float[np.ndarray, "face_side face_side 3"]
    object: Float[np.ndarray, "object_side object_side 3"]
    has_prior: bool  # False: no face was found, only DINO tokens remain
    search: FaceSearch | None = None  # None: no face was sought


def prepare(
    image: Image.Image | np.ndarray,
    kind: Kind,
    model: ModelConfig,
    detector: FaceDetector | None = None,
    *,
    box: Box | None = None,
    face: FaceChoice = None,
    search: FaceSearch | None = None,
) -> PreparedReference:
    """Cut the entity out of its picture and size it for the encoders.

    Args:
        image: RGB or RGBA; alpha is the mask of the entity.
        kind: Whether the prior is a face or an object.
        model: Sizes of the encoders and the way faces are found.
        detector: Needed for humans if `model.face_detector` is "insightface".
        box: Where in the image the entity is.
        face: Which of its faces is meant, or its landmarks.
        search: From `find_face` of the same image, if it was asked before.

    Raises:
        ValueError: The image has no visible pixel, or a shape that is no image, or a detector
            is needed and there is none, or it does not find the face that was chosen.
    """
    reference = Reference(_as_rgba(image), box, face)
    cut = _on_white(cut_out(reference.image, box))
    head = np.zeros((model.face.image_size,) * 2 + (3,), np.float32)
    has_prior = True
    if kind == "human" and "face" in stored_priors(model):
        has_prior = False
    elif kind == "human" and model.face_detector == "mask_top":
        crop = mask_top_face(reference.image if box is None else cut_out(reference.image, box))
        has_prior = crop is not None
        head = head if crop is None else _fit(crop, *head.shape[:2])
    elif kind == "human":
        search = find_face(reference, detector) if search is None else search
        has_prior = search.landmarks is not None
        if search.landmarks is not None:
            outside = 0 if reference.image[..., 3].min() == 255 else 255
            picture = _on_white(reference.image)
            head = align(picture, search.landmarks, model.face.image_size, outside)
    image = _fit(cut, model.dino.image_size, model.dino.image_size)
    thing = _fit(cut, *model.object.image_shape)
    return PreparedReference(image, head, thing, has_prior, search)


def find_face(reference: Reference, detector: FaceDetector | None) -> FaceSearch:
    """The face of a reference: given by hand, or sought inside of its box and mask.

    Raises:
        FaceChoiceError: The face that was chosen is not there.
        ValueError: The image has no visible pixel, or a detector is needed and there is none.
    """
    choice = reference.face
    if is_landmarks(choice):
        return FaceSearch(np.array(choice, np.float64), (), None, "its five landmarks were given")
    if detector is None:
        raise ValueError(
            "a human reference needs a face detector: pass `detector`, such as"
            " `faces.InsightFaceDetector(folder)`, or five landmarks as `face`; the toy world has"
            ' face_detector "mask_top"'
        )
    left, top, right, bottom = visible_box(reference.image, reference.box)
    seen = _on_white(reference.image[top:bottom, left:right])
    faces = from_left([_moved(face, left, top) for face in detector(seen)])
    chosen = choose(faces, choice)
    landmarks = None if chosen is None else faces[chosen].landmarks
    return FaceSearch(landmarks, faces, chosen, _in_words(faces, chosen, choice))


def _moved(face: Face, left: int, top: int) -> Face:
    shift = np.array([left, top], np.float64)
    return Face(np.add(face.box, np.tile(shift, 2)), np.add(face.landmarks, shift), face.score)


def _in_words(faces: Sequence[Face], chosen: int | None, choice: FaceChoice) -> str:
    if chosen is None:
        return "no face was found"
    if len(faces) == 1:
        return "a face was found"
    which = "the largest" if choice is None else "the chosen one"
    return f"{len(faces)} faces were found, {which} is number {chosen + 1} from the left"


def with_mask(
    image: UInt8[np.ndarray, "height width 4"], mask: UInt8[np.ndarray, "high wide"]
) -> UInt8[np.ndarray, "height width 4"]:
    """The picture without what a mask leaves out (255 is the entity).

    Raises:
        ValueError: The mask has another size, or nothing in it is the entity.
    """
    if mask.shape != image.shape[:2]:
        sizes = [f"{shape[1]} x {shape[0]}" for shape in (mask.shape, image.shape)]
        raise ValueError(f"it has {sizes[0]} pixels, its picture has {sizes[1]}")
    if mask.max() <= _SOLID:
        raise ValueError(
            "nothing in it is bright; white (255) must mark the entity, black (0) the rest"
        )
    return np.dstack([image[..., :3], np.minimum(image[..., 3], mask)])


def visible_box(image: np.ndarray, box: Box | None = None) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what the mask and the box leave of a picture, in pixels.

    Raises:
        ValueError: Nothing is left; the message says why.
    """
    solid = _solid(image)
    height, width = solid.shape
    if box is not None:
        left, top = (max(0, int(np.floor(edge))) for edge in box[:2])
        right, bottom = int(np.ceil(box[2])), int(np.ceil(box[3]))
        if left >= min(right, width) or top >= min(bottom, height):
            raise ValueError(f"the box is outside of the picture, which is {width} x {height}")
        inside = np.zeros_like(solid)
        inside[top:bottom, left:right] = solid[top:bottom, left:right]
        if solid.any() and not inside.any():
            raise ValueError("nothing of the entity's mask is inside of its box")
        solid = inside
    left, top, width, height = cv2.boundingRect(solid)
    if not width:
        raise ValueError(
            "a reference image is transparent everywhere; its alpha channel must mark the entity"
        )
    return left, top, left + width, top + height


def cut_out(image: np.ndarray, box: Box | None = None) -> UInt8[np.ndarray, "h w 4"]:
    """The part of an RGBA picture that its mask and its box leave; see `visible_box`."""
    left, top, right, bottom = visible_box(image, box)
    return image[top:bottom, left:right]


def mask_top_face(
    image: UInt8[np.ndarray, "height width 4"],
) -> UInt8[np.ndarray, "side side 3"] | None:
    """The square at the top of the mask, where the toy world's people have their head.

    Its side is a fixed share of the height of the mask; it is centered on the head, and white
    outside of the mask. None if the mask is too small. Needs no network.
    """
    solid = _solid(image)
    _, top, _, height = cv2.boundingRect(solid)
    if height < _SMALLEST_MASK:
        return None
    side = round(_HEAD_SHARE * height)
    columns = solid[top : top + max(1, round(_HEAD_ROWS * height))].astype(np.float64).sum(0)
    middle = float(columns @ (np.arange(len(columns)) + 0.5) / columns.sum())
    left = round(middle - side / 2)
    crop = np.zeros((side, side, 4), np.uint8)
    start, stop = max(left, 0), min(left + side, image.shape[1])
    crop[:, start - left : stop - left] = image[top : top + side, start:stop]
    return _on_white(crop)


def _fit(image: np.ndarray, rows: int, columns: int) -> Float[np.ndarray, "rows columns 3"]:
    """Shrink or grow to fill a white rectangle, the aspect ratio kept."""
    height, width = image.shape[:2]
    if height * columns >= width * rows:
        target = (max(1, round(width * rows / height)), rows)
    else:
        target = (columns, max(1, round(height * columns / width)))
    method = cv2.INTER_AREA if height * width > target[0] * target[1] else cv2.INTER_CUBIC
    resized = cv2.resize(image, target, interpolation=method)
    canvas = np.full((rows, columns, 3), 255, np.uint8)
    left, top = (columns - target[0]) // 2, (rows - target[1]) // 2
    canvas[top : top + target[1], left : left + target[0]] = resized
    return canvas.astype(np.float32) / 255


def _solid(image: np.ndarray) -> np.ndarray:
    return cv2.threshold(cv2.extractChannel(image, 3), _SOLID, 255, cv2.THRESH_BINARY)[1]


def _on_white(image: np.ndarray) -> np.ndarray:
    weight = cv2.extractChannel(image, 3) * np.float32(1 / 255)
    color = cv2.cvtColor(image, cv2.COLOR_RGBA2RGB)
    return cv2.blendLinear(color, np.full_like(color, 255), weight, 1 - weight)


def _as_rgba(image: Image.Image | np.ndarray) -> np.ndarray:
    if isinstance(image, Image.Image):
        return to_rgba(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (3, 4):
        raise ValueError(
            f"a reference image must be uint8 [height, width, 3 or 4], not {image.dtype} "
            f"{list(image.shape)}"
        )
    if image.shape[-1] == 3:
        return cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
    return np.ascontiguousarray(image)
