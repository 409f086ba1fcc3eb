"""The toy world: an endless, seeded supply of clips with complete ground truth."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from tora2_jax.config.world import WorldConfig
from tora2_jax.types import EntityRecord, Record
from tora2_jax.world.bold import render_bold_object
from tora2_jax.world.brush import SPRITE_SIZE
from tora2_jax.world.captions import (
    CAPTIONS,
    Phrase,
    caption_corpus,
    caption_for,
    rich_caption,
)
from tora2_jax.world.entities import WORDS, Entity, sample_entity
from tora2_jax.world.humans import Pose, render_human, sample_pose
from tora2_jax.world.paths import Motion, sample_motion
from tora2_jax.world.scenes import background, random_scene
from tora2_jax.world.shapes import render_object

__all__ = [
    "CAPTIONS",
    "REFERENCE_SIZE",
    "WORDS",
    "Entity",
    "caption_corpus",
    "render_clip",
    "render_reference",
    "sample_entity",
]

REFERENCE_SIZE = 128  # pixels, before the augmentation
_SEEN_SHARE = 0.4  # of an entity's pixels, for it to count as visible
_LOOKING = ("fish", "car")  # these face the way they go
# Longest side in pixels of a 96-pixel frame, by style; objects that are not named have the last.
_LENGTHS = {
    "patterned": {
        "man": (36, 42),
        "woman": (36, 42),
        "child": (31, 35),
        "car": (34, 44),
        "kite": (37, 44),
        "": (30, 40),
    },
    "bold": {
        "man": (48, 54),
        "woman": (48, 54),
        "child": (41, 46),
        "car": (45, 52),
        "kite": (47, 54),
        "": (40, 46),
    },
}
_COUNTS = (0.42, 0.44, 0.14)  # shares of clips of 1, 2 and 3 entities in the bold world


class _Sprite(NamedTuple):
    """A picture ready to be placed, and the point that is its center."""

    pixels: UInt8[np.ndarray, "side side 4"]  # colors go on outside of the mask
    anchor: Float[np.ndarray, "2"]


def render_clip(
    config: WorldConfig,
    index: int,
    entities: Sequence[Entity] | None = None,
    words: Sequence[str] | None = None,
) -> Record:
    """One clip, a pure function of the seed of the config and the index.

    Args:
        config: Sizes and seed of the world.
        index: Which clip, from 0 on; there is no last one.
        entities: Identities to show instead of random ones.
        words: Words to show with random identities; ignored if `entities` is given.

    Raises:
        ValueError: There is no entity, or a word is unknown.
    """
    rng = np.random.Generator(np.random.Philox(key=[config.seed, index]))
    if entities is None:
        drawn = _draw_words(rng, config)
        chosen = drawn if words is None else words
        entities = _identities(config, index, chosen)
    if not entities:
        raise ValueError("a clip needs one or more entities")
    scene = random_scene(rng)
    template = CAPTIONS[rng.integers(len(CAPTIONS))]
    size, bold = (config.height, config.width), config.style == "bold"
    motion = _motion(rng, len(entities), config)
    caption, spans = _caption(config, index, template, entities, motion.track, scene)
    backdrop = background(rng, scene, *size, plain=bold)
    sources = [_picture(entity, rng) for entity in entities]
    layers = [_sprite(*pair, rng, config) for pair in zip(entities, sources, strict=True)]
    flips = [_flip(rng, *pair) for pair in zip(entities, motion.track, strict=True)]
    video, masks, visible, flow = _compose(backdrop, layers, motion, flips)
    records = []
    for slot, entity in enumerate(entities):
        images = _references(entity, sources[slot], rng, config.references)
        record = EntityRecord(
            word=entity.word,
            span=spans[slot],
            kind=entity.kind,
            images=images,
            track=motion.track[slot].astype(np.float32),
            visible=visible[slot],
            mask=masks[slot],
            has_trajectory=bool(rng.random() < config.trajectory_probability),
        )
        records.append(record)
    name = clip_name(config, index)
    return Record(name, caption, video, config.fps, tuple(records), flow)


def clip_name(config: WorldConfig, index: int) -> str:
    """What a clip is called."""
    return f"world-{config.seed}-{index}"


def _motion(rng: np.random.Generator, count: int, config: WorldConfig) -> Motion:
    """Paths of this style, as far from the middle of the frame as the config says."""
    size, calm = (config.height, config.width), config.style == "bold"
    motion = sample_motion(rng, count, config.frames, *size, calm=calm)
    if config.spread == 1:
        return motion
    middle = np.array([config.width, config.height]) / 2
    return motion._replace(track=middle + config.spread * (motion.track - middle))


def _identities(config: WorldConfig, index: int, words: Sequence[str]) -> list[Entity]:
    """Random ones; of several with one word, each has a seed of its own."""
    entities = []
    for slot, word in enumerate(words):
        earlier = list(words[:slot]).count(word)
        seed = (config.seed, index, *([earlier] if earlier else []))
        entities.append(sample_entity(seed, word, config.style))
    return entities


def _caption(
    config: WorldConfig,
    index: int,
    template: str,
    entities: Sequence[Entity],
    track: np.ndarray,
    scene: str,
) -> tuple[str, list]:
    # A generator of its own: what a caption tells does not change what is drawn.
    rng = np.random.default_rng((config.seed, index, 1))
    if rng.random() >= config.rich_captions:
        return caption_for(template, [Phrase(entity.word) for entity in entities], scene)
    return rich_caption(rng, entities, track / (config.width, config.height), scene)


def render_reference(
    entity: Entity, rng: np.random.Generator, size: int = REFERENCE_SIZE
) -> UInt8[np.ndarray, "height width 4"]:
    """An entity apart from any clip: other pose, light and place, and augmented.

    Alpha is the mask; outside of it the picture shows a background. The sides are between 0.7
    of `size` and `size`. Augmentation after the reference augmentation of multi-subject work:
    downscale, blur, color, brightness, flip, shear, rotation, and a crop that spares humans.
    """
    return _reference(entity, _picture(entity, rng), rng, size)


def _draw_words(rng: np.random.Generator, config: WorldConfig) -> list[str]:
    count = _draw_count(rng, config)
    weights = np.array([1.5 if kind == "human" else 1.0 for _, kind in WORDS])
    chosen = rng.choice(len(WORDS), count, replace=False, p=weights / weights.sum())
    words = [WORDS[position][0] for position in chosen]
    if count > 1 and config.repeated_words and rng.random() < config.repeated_words:
        words[1] = words[0]
    return words


def _draw_count(rng: np.random.Generator, config: WorldConfig) -> int:
    most = min(config.max_entities, len(WORDS))
    if config.style == "patterned":
        return int(rng.integers(config.min_entities, most + 1))
    shares = np.array(_COUNTS[config.min_entities - 1 : most])
    return config.min_entities + int(rng.choice(len(shares), p=shares / shares.sum()))


def _picture(entity: Entity, rng: np.random.Generator) -> np.ndarray:
    """A sprite at full size; people take a random pose."""
    if entity.kind == "object":
        return (render_bold_object if entity.style == "bold" else render_object)(entity)
    return render_human(entity, Pose(*(0.6 * value for value in sample_pose(rng))))


def _sprite(
    entity: Entity, picture: np.ndarray, rng: np.random.Generator, config: WorldConfig
) -> _Sprite:
    """Shrink once, with antialiasing, to the size in the clip."""
    box = cv2.boundingRect(picture[..., 3])
    lengths = _LENGTHS[config.style]
    length = rng.uniform(*lengths.get(entity.word, lengths[""]))
    length *= min(config.height, config.width) / 96
    side = max(2, round(SPRITE_SIZE * length / max(box[2:])))
    shrink = cv2.INTER_AREA if side < SPRITE_SIZE else cv2.INTER_LINEAR
    pixels = cv2.resize(picture, (side, side), interpolation=shrink)
    pixels = cv2.copyMakeBorder(pixels, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    rim = np.ones(pixels.shape[:2], bool)
    rim[1:-1, 1:-1] = False
    pixels[rim, 3] = 0  # a transparent rim keeps borders clean
    left, top, wide, high = cv2.boundingRect(pixels[..., 3])
    left, top = left - 1, top - 1
    pixels = np.ascontiguousarray(pixels[top : top + high + 2, left : left + wide + 2])
    moments = cv2.moments(cv2.extractChannel(pixels, 3))
    anchor = np.array([moments["m10"], moments["m01"]]) / moments["m00"] + 0.5
    return _Sprite(pixels, anchor)


def _flip(rng: np.random.Generator, entity: Entity, track: np.ndarray) -> float:
    if entity.kind == "human":
        return 1.0
    if entity.word in _LOOKING and abs(track[-1, 0] - track[0, 0]) > 4:
        return float(np.sign(track[-1, 0] - track[0, 0]))
    return float(rng.choice([-1.0, 1.0]))


def _compose(
    backdrop: np.ndarray, layers: Sequence[_Sprite], motion: Motion, flips: Sequence[float]
) -> tuple[np.ndarray, ...]:
    """Paint all frames back to front; video, masks, visibility and forward flow."""
    count, frames = motion.angle.shape
    height, width = backdrop.shape[:2]
    video = np.repeat(backdrop[None], frames, axis=0)
    masks = np.zeros((count, frames, height, width), bool)
    areas = np.ones((count, frames))
    linear = _linear_parts(motion, np.asarray(flips))
    for frame in range(frames):
        for slot, layer in enumerate(layers):
            center = motion.track[slot, frame]
            placed = _place(layer, linear[slot, frame], center, height, width)
            if placed is None:
                continue
            rows, columns, patch, areas[slot, frame] = placed
            opacity = cv2.extractChannel(patch, 3)
            weight = opacity * np.float32(1 / 255)
            region = video[frame, rows, columns]
            color = cv2.cvtColor(patch, cv2.COLOR_RGBA2RGB)
            region[:] = cv2.blendLinear(region, color, 1 - weight, weight)
            inside = opacity > 127
            masks[:slot, frame, rows, columns] &= ~inside
            masks[slot, frame, rows, columns] = inside
    x, y = motion.track[..., 0], motion.track[..., 1]
    in_frame = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    seen = masks.reshape(count, frames, -1).sum(-1) >= _SEEN_SHARE * areas
    return video, masks, in_frame & seen, _flow(masks, linear, motion.track)


def _flow(masks: np.ndarray, linear: np.ndarray, track: np.ndarray) -> np.ndarray:
    """How far every pixel travels to the next frame, by the affine motion of its entity."""
    _, frames, height, width = masks.shape
    flow = np.zeros((frames, height, width, 2), np.float32)
    change = linear[:, 1:] @ np.linalg.inv(linear[:, :-1]) - np.eye(2)
    shift = track[:, 1:] - track[:, :-1]
    for slot in range(len(masks)):
        position = np.flatnonzero(masks[slot, :-1])
        frame, position_in_frame = np.divmod(position, height * width)
        row, column = np.divmod(position_in_frame, width)
        x = column + 0.5 - track[slot, frame, 0]
        y = row + 0.5 - track[slot, frame, 1]
        for axis in (0, 1):
            along = change[slot, :, axis]
            moved = along[frame, 0] * x + along[frame, 1] * y + shift[slot, frame, axis]
            flow.reshape(-1, 2)[position, axis] = moved
    return flow


def _linear_parts(motion: Motion, flips: np.ndarray) -> Float[np.ndarray, "e f 2 2"]:
    """From sprite to frame, without the shift."""
    cosine, sine = np.cos(motion.angle), np.sin(motion.angle)
    turn = np.stack([np.stack([cosine, -sine], -1), np.stack([sine, cosine], -1)], -2)
    turn = turn * motion.scale[..., None, None]
    turn[..., 0] *= flips[:, None, None]
    return turn


def _place(
    layer: _Sprite, linear: np.ndarray, center: np.ndarray, height: int, width: int
) -> tuple[slice, slice, np.ndarray, float] | None:
    """The part of a moved sprite inside the frame, and the area of the whole of it."""
    far = np.maximum(layer.anchor, np.array(layer.pixels.shape[1::-1]) - layer.anchor)
    reach = np.ceil(np.abs(linear) @ far)
    left, top = (int(value) for value in np.floor(center) - reach)
    wide, high = (int(value) for value in 2 * reach + 1)
    # OpenCV counts from pixel centers, the world from pixel corners.
    shift = center - np.array([left, top]) - 0.5 - linear @ (layer.anchor - 0.5)
    matrix = np.concatenate([linear, shift[:, None]], axis=1)
    patch = cv2.warpAffine(
        layer.pixels, matrix, (wide, high), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    area = float(np.count_nonzero(patch[..., 3] > 127))
    rows = slice(max(top, 0), min(top + high, height))
    columns = slice(max(left, 0), min(left + wide, width))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return None
    inner = patch[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return rows, columns, inner, area


def _references(
    entity: Entity, picture: np.ndarray, rng: np.random.Generator, count: int
) -> tuple[np.ndarray, ...]:
    images = []
    for _ in range(count):
        if entity.kind == "human":
            picture = render_human(entity, sample_pose(rng))
        images.append(_reference(entity, picture, rng, REFERENCE_SIZE))
    return tuple(images)


def _reference(
    entity: Entity, picture: np.ndarray, rng: np.random.Generator, size: int
) -> np.ndarray:
    is_human = entity.kind == "human"
    side = round(size * rng.uniform(112 / REFERENCE_SIZE, 1.0))
    turn = np.deg2rad(8 if is_human else 20) * rng.uniform(-1, 1)
    cosine, sine = np.cos(turn), np.sin(turn)
    shear = np.array([[1, rng.uniform(-0.05, 0.05)], [rng.uniform(-0.05, 0.05), 1]])
    mirror = np.diag([rng.choice([-1.0, 1.0]), 1.0])
    linear = np.array([[cosine, -sine], [sine, cosine]]) @ shear @ mirror
    left, top, width, height = cv2.boundingRect(picture[..., 3])
    corners = np.abs(linear) @ np.array([width, height])
    linear *= side * rng.uniform(0.78, 0.96) / corners.max()
    slack = (side - np.abs(linear) @ np.array([width, height])) / 2
    center = side / 2 + rng.uniform(-1, 1, 2) * slack
    shift = center - 0.5 - linear @ np.array([left + width / 2 - 0.5, top + height / 2 - 0.5])
    matrix = np.concatenate([linear, shift[:, None]], axis=1)
    moved = cv2.warpAffine(picture, matrix, (side, side), flags=cv2.INTER_LINEAR)
    plain = entity.style == "bold"
    place = background(rng, random_scene(rng), side, side, plain)
    alpha = cv2.extractChannel(moved, 3)
    cv2.copyTo(
        _light(moved, rng, 0.4 if plain else 1.0), cv2.compare(alpha, 127, cv2.CMP_GT), place
    )
    result = cv2.merge([*cv2.split(place), alpha])
    if not is_human:
        result = _crop(result, rng)
    if rng.random() < 0.5:
        result = cv2.GaussianBlur(result, (3, 3), rng.uniform(0.3, 0.9))
    return result


def _light(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Brightness, a color cast, and light that falls from one side."""
    side = image.shape[0]
    gains = 1 + strength * rng.uniform(-0.1, 0.1)
    gains = gains * (1 + strength * rng.uniform(-0.05, 0.05, 3))
    slope = strength * rng.uniform(-0.05, 0.05, 2)
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    light = 1 + slope[0].astype(np.float32) * axis[None] + slope[1] * axis[:, None]
    light = cv2.merge([(light * gain).astype(np.float32) for gain in gains])
    color = cv2.cvtColor(image, cv2.COLOR_RGBA2RGB)
    return cv2.multiply(color, light, dtype=cv2.CV_8U)  # saturates


def _crop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size = np.array(image.shape[:2])
    kept = np.round(size * np.sqrt(rng.uniform(0.67, 1.0, 2))).astype(int)
    top, left = (int(rng.integers(room + 1)) for room in size - kept)
    return np.ascontiguousarray(image[top : top + kept[0], left : left + kept[1]])
