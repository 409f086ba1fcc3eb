"""How training changes references, so that a model cannot paste them into the video.

Kinds and ranges of changes after Video Alchemist (Chen et al., CVPR 2025), Table 4; their order and
what the table leaves open are ours (docs/entity_clips.md). Colors are kept apart from what lies
outside of the mask: all that resamples works on colors times alpha.
"""

import hashlib
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from tora2_jax.config.train import ReferenceGuardConfig
from tora2_jax.types import Kind, Record

Picture = UInt8[np.ndarray, "height width 4"]
_SOLID = 127  # alpha above this belongs to the mask


class Change(NamedTuple):
    """One draw of every change of a picture."""

    scale: float  # both sides, at most 1
    kernel: int  # side of the blur in pixels of the scaled picture, odd; 1 is none
    flip: bool
    linear: Float[np.ndarray, "2 2"]  # rotation and shear
    kept: Float[np.ndarray, "2"]  # shares of height and width that the crop keeps
    place: Float[np.ndarray, "2"]  # where the crop is, from 0 (top, left) to 1
    gains: Float[np.ndarray, "3"]  # of the channels, color and brightness together


def generator(seed: int, name: str, *numbers: int) -> np.random.Generator:
    """Chance that depends on a seed, the name of a clip and some numbers alone."""
    digest = hashlib.sha256(name.encode()).digest()
    words = np.frombuffer(digest, np.uint32).tolist()
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *words, *numbers])))


def draw_count(guards: ReferenceGuardConfig, limit: int, rng: np.random.Generator) -> int:
    """How many references an entity gets: 1 to `max_images`, at most `limit`."""
    return int(rng.integers(1, min(guards.max_images, limit) + 1))


def draw_change(
    guards: ReferenceGuardConfig, height: int, width: int, rng: np.random.Generator
) -> Change:
    """Every change of a picture of this size; takes the same numbers from `rng` for any size."""
    longest = max(height, width)
    scale = rng.uniform(min(1.0, guards.smallest / longest), 1.0)
    kernel = int(rng.uniform() * (int(guards.blur * longest * scale) + 1))
    turn = np.deg2rad(guards.rotate) * rng.uniform(-1, 1)
    shear = guards.shear * rng.uniform(-1, 1, 2)
    cosine, sine = np.cos(turn), np.sin(turn)
    rotation = np.array([[cosine, -sine], [sine, cosine]])
    gains = 1 + guards.color * rng.uniform(-1, 1, 3)
    return Change(
        scale=scale,
        kernel=max(1, kernel - 1 + kernel % 2),
        flip=bool(rng.random() < guards.flip),
        linear=rotation @ np.array([[1, shear[0]], [shear[1], 1]]),
        kept=np.sqrt(rng.uniform(guards.crop, 1.0, 2)),
        place=rng.uniform(0, 1, 2),
        gains=gains * (1 + guards.brightness * rng.uniform(-1, 1)),
    )


def augment(
    image: Picture, kind: Kind, guards: ReferenceGuardConfig, rng: np.random.Generator
) -> UInt8[np.ndarray, "high wide 4"]:
    """A reference changed at random; outside of its mask the result is white and transparent.

    Args:
        image: RGBA, alpha is the mask.
        kind: The crop of a human never takes the head: it keeps the top of the mask.
        guards: Ranges.
        rng: Source of chance.

    Returns:
        RGBA of another size. An image of which the changes would leave nothing comes back as it is.
    """
    changed = apply_change(image, kind, draw_change(guards, *image.shape[:2], rng))
    return changed if (changed[..., 3] > _SOLID).any() else image


def apply_change(image: Picture, kind: Kind, change: Change) -> UInt8[np.ndarray, "high wide 4"]:
    """`augment` with a draw that is given: shrink, blur, mirror, turn and shear, crop, color."""
    picture = image.astype(np.float32) / 255
    picture[..., :3] *= picture[..., 3:]
    if change.scale < 1:
        size = [max(1, round(side * change.scale)) for side in image.shape[1::-1]]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    if change.kernel > 1:
        side = (change.kernel, change.kernel)
        picture = cv2.GaussianBlur(picture, side, 0, borderType=cv2.BORDER_REPLICATE)
    if change.flip:
        picture = picture[:, ::-1]
    picture = _cropped(_turned(picture, change.linear), kind, change)
    alpha = np.clip(picture[..., 3:], 0, 1)
    color = np.clip(picture[..., :3] / np.maximum(alpha, 1e-6) * change.gains, 0, 1)
    color = np.where(np.round(alpha * 255) > 0, color, 1)
    return np.round(np.concatenate([color, alpha], -1) * 255).astype(np.uint8)


def _turned(picture: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """The picture in a new frame that holds all of it; transparent where there was nothing."""
    if np.array_equal(linear, np.eye(2)):
        return picture
    size = np.array(picture.shape[1::-1])
    target = np.ceil(np.abs(linear) @ size).astype(int)
    # OpenCV counts from pixel centers.
    shift = target / 2 - 0.5 - linear @ (size / 2 - 0.5)
    matrix = np.concatenate([linear, shift[:, None]], axis=1)
    return cv2.warpAffine(picture, matrix, target.tolist(), flags=cv2.INTER_LINEAR)


def _cropped(picture: np.ndarray, kind: Kind, change: Change) -> np.ndarray:
    """A part of the mask's box; all of the box if the part would hold nothing of the mask."""
    solid = (picture[..., 3] > _SOLID / 255).astype(np.uint8)
    left, top, width, height = cv2.boundingRect(solid)
    if not width:
        return picture
    box = np.array([height, width])
    kept = np.maximum(1, np.round(box * change.kept)).astype(int)
    start = np.array([top, left]) + np.floor(change.place * (box - kept + 1)).astype(int)
    if kind == "human":
        start[0] = top
    rows, columns = (slice(first, first + size) for first, size in zip(start, kept, strict=True))
    if not solid[rows, columns].any():
        rows, columns = slice(top, top + height), slice(left, left + width)
    return picture[rows, columns]


def guard_record(
    record: Record, guards: ReferenceGuardConfig, seed: int, draw: int, limit: int
) -> Record:
    """A record whose references are drawn with replacement from its own and augmented.

    Args:
        record: Its references are the choice.
        guards: Ranges.
        seed: With the record's id and `draw` it determines everything.
        draw: Which draw of this record.
        limit: Most references of an entity.
    """
    entities = []
    for slot, entity in enumerate(record.entities):
        rng = generator(seed, record.id, draw, slot)
        count = draw_count(guards, limit, rng) if entity.images else 0
        chosen = [entity.images[rng.integers(len(entity.images))] for _ in range(count)]
        images = tuple(augment(image, entity.kind, guards, rng) for image in chosen)
        entities.append(entity._replace(images=images))
    return record._replace(entities=tuple(entities))
