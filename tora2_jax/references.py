"""From a picture of an entity to the three arrays that the frozen image encoders read."""

from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from tora2_jax.config import ModelConfig
from tora2_jax.types import Kind

# Eyes, nose and corners of the mouth in a 112-pixel aligned face (ArcFace's template).
FACE_TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
_TEMPLATE_SIZE = 112
_SOLID = 127  # alpha above this belongs to the mask
_HEAD_SHARE = 0.54  # side of the head's square, in heights of the mask
_HEAD_ROWS = 0.35  # rows that tell where the middle of the head is
_SMALLEST_MASK = 8  # pixels; below, there is no head to see


class FaceDetector(Protocol):
    """Finds the landmarks of the most prominent face."""

    def __call__(self, image: UInt8[np.ndarray, "height width 3"]) -> np.ndarray | None:
        """Both eyes, nose, both corners of the mouth as `[5, 2]` (x, y) in pixels, or None."""


class PreparedReference(NamedTuple):
    """One reference image, float32 in [0, 1]; objects and faces not found have a face of zeros.

    Humans have an object crop as well: Table 2's `dino_reid` shows it to the object encoder.
    """

    dino: Float[np.ndarray, "dino_side dino_side 3"]
    face: Float[np.ndarray, "face_side face_side 3"]
    object: Float[np.ndarray, "object_side object_side 3"]
    has_prior: bool  # False: no face was found, only DINO tokens remain


def load_image(path: str | Path) -> UInt8[np.ndarray, "height width 4"]:
    """Read an image file as RGBA, upright; files without transparency are opaque.

    Raises:
        ValueError: The file is missing or is no image that can be read.
    """
    try:
        with Image.open(path) as image:
            return _to_rgba(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"cannot read the image {path}: {error}; give a PNG, JPEG or WebP file"
        ) from error


def prepare(
    image: Image.Image | np.ndarray,
    kind: Kind,
    model: ModelConfig,
    detector: FaceDetector | None = None,
) -> PreparedReference:
    """Cut the entity out of its picture and size it for the encoders.

    Args:
        image: RGB or RGBA; alpha is the mask of the entity.
        kind: Whether the prior is a face or an object.
        model: Sizes of the encoders and the way faces are found.
        detector: Needed for humans if `model.face_detector` is "insightface".

    Raises:
        ValueError: The image has no visible pixel, or a shape that is no image, or a detector
            is needed and there is none.
    """
    picture = _as_rgba(image)
    left, top, width, height = cv2.boundingRect(_solid(picture))
    if not width:
        raise ValueError(
            "a reference image is transparent everywhere; its alpha channel must mark the entity"
        )
    cut = _on_white(picture[top : top + height, left : left + width])
    face = np.zeros((model.face.image_size,) * 2 + (3,), np.float32)
    has_prior = True
    if kind == "human":
        found = _face(picture, cut, model, detector)
        has_prior = found is not None
        face = face if found is None else found
    image, thing = (_fit(cut, part.image_size) for part in (model.dino, model.object))
    return PreparedReference(image, face, thing, has_prior)


def mask_top_face(
    image: UInt8[np.ndarray, "height width 4"],
) -> UInt8[np.ndarray, "side side 3"] | None:
    """The square at the top of the mask, where the toy world's people have their head.

    Its side is a fixed share of the height of the mask; it is centred on the head, and white
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


def _face(
    picture: np.ndarray, cut: np.ndarray, model: ModelConfig, detector: FaceDetector | None
) -> np.ndarray | None:
    size = model.face.image_size
    if model.face_detector == "mask_top":
        crop = mask_top_face(picture)
        return None if crop is None else _fit(crop, size)
    if detector is None:
        raise ValueError(
            "a human reference needs a face detector: pass `detector`, a function from an RGB"
            ' image to five landmarks, or set face_detector to "mask_top" (toy world only)'
        )
    landmarks = detector(cut)
    return None if landmarks is None else _align(cut, np.asarray(landmarks, np.float64), size)


def _align(image: np.ndarray, landmarks: np.ndarray, size: int) -> np.ndarray:
    """Move five landmarks onto the template by the least-squares similarity."""
    factor, _ = _similarity(landmarks, size)
    shrink = 1.5 * abs(factor)
    if shrink < 1:  # a warp alone would alias
        extent = np.array(image.shape[1::-1])
        target = np.maximum(np.round(extent * shrink), 1).astype(int)
        image = cv2.resize(image, target.tolist(), interpolation=cv2.INTER_AREA)
        landmarks = landmarks * target / extent
    factor, shift = _similarity(landmarks - 0.5, size)  # OpenCV counts from pixel centres
    matrix = np.array(
        [[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]]
    )
    aligned = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR)
    return aligned.astype(np.float32) / 255


def _similarity(landmarks: np.ndarray, size: int) -> tuple[complex, complex]:
    """Factor and shift, as complex numbers, from landmarks to the template at that size.

    A complex factor is a turn and a scale, so this is Umeyama's fit without mirroring.
    """
    template = (FACE_TEMPLATE * size / _TEMPLATE_SIZE - 0.5) @ np.array([1, 1j])
    points = landmarks @ np.array([1, 1j])
    spread = points - points.mean()
    factor = np.vdot(spread, template - template.mean()) / np.vdot(spread, spread)
    return factor, template.mean() - factor * points.mean()


def _fit(image: np.ndarray, size: int) -> Float[np.ndarray, "size size 3"]:
    """Shrink or grow to fill a white square; the longer side touches its border."""
    height, width = image.shape[:2]
    longest = max(height, width)
    target = (max(1, round(width * size / longest)), max(1, round(height * size / longest)))
    method = cv2.INTER_AREA if longest > size else cv2.INTER_CUBIC
    resized = cv2.resize(image, target, interpolation=method)
    square = np.full((size, size, 3), 255, np.uint8)
    left, top = (size - target[0]) // 2, (size - target[1]) // 2
    square[top : top + target[1], left : left + target[0]] = resized
    return square.astype(np.float32) / 255


def _solid(image: np.ndarray) -> np.ndarray:
    return cv2.threshold(cv2.extractChannel(image, 3), _SOLID, 255, cv2.THRESH_BINARY)[1]


def _on_white(image: np.ndarray) -> np.ndarray:
    weight = cv2.extractChannel(image, 3) * np.float32(1 / 255)
    colour = cv2.cvtColor(image, cv2.COLOR_RGBA2RGB)
    return cv2.blendLinear(colour, np.full_like(colour, 255), weight, 1 - weight)


def _as_rgba(image: Image.Image | np.ndarray) -> np.ndarray:
    if isinstance(image, Image.Image):
        return _to_rgba(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (3, 4):
        raise ValueError(
            f"a reference image must be uint8 [height, width, 3 or 4], not {image.dtype} "
            f"{list(image.shape)}"
        )
    if image.shape[-1] == 3:
        return cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
    return np.ascontiguousarray(image)


def _to_rgba(image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        raise ValueError("it holds floating-point numbers without a known range")
    if image.mode.startswith("I"):  # 16-bit grey; PIL would clip it, not scale it
        grey = np.clip(np.asarray(image, np.int64) >> 8, 0, 255).astype(np.uint8)
        image = Image.fromarray(grey)
    if image.mode == "CMYK":
        image = image.convert("RGB")
    return np.array(image.convert("RGBA"))
