"""Backgrounds and captions of the toy world."""

from collections.abc import Iterator, Sequence
from itertools import permutations

import cv2
import numpy as np
from jaxtyping import UInt8

from tora2_jax.world.shapes import WORDS

# Colour at the top and at the bottom, strength of the soft and of the fine texture (0 to 255).
_SCENES = {
    "grass": ((150, 190, 120), (110, 160, 84), 8, 5),
    "snow": ((224, 232, 242), (244, 246, 250), 7, 3),
    "sand": ((236, 216, 170), (218, 190, 138), 8, 5),
    "sea": ((150, 196, 222), (84, 146, 192), 8, 5),
    "night": ((46, 52, 104), (66, 68, 116), 6, 3),
    "meadow": ((190, 216, 236), (150, 186, 110), 8, 4),
    "street": ((188, 188, 192), (146, 146, 152), 8, 4),
}
PLACES = {
    "grass": "on the grass",
    "snow": "in the snow",
    "sand": "on the sand",
    "sea": "by the sea",
    "night": "at night",
    "meadow": "in a meadow",
    "street": "on the street",
}
CAPTIONS = ("{entities}.", "{entities} {place}.", "A video of {entities} {place}.")


def background(
    rng: np.random.Generator, scene: str, height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
    """A calm backdrop."""
    top, bottom, soft, fine = _SCENES[scene]
    tint = rng.normal(0, 5, 3)
    position = np.linspace(-1, 1, height) * rng.uniform(1.0, 2.5) + rng.uniform(-0.5, 0.5)
    share = np.clip(0.5 + 0.5 * position, 0, 1)[:, None]
    colour = np.array(top) * (1 - share) + np.array(bottom) * share + tint
    texture = soft * _noise(rng, 5, height, width) + fine * _noise(rng, 24, height, width)
    planes = [colour[:, axis, None].astype(np.float32) + texture for axis in range(3)]
    return cv2.convertScaleAbs(np.maximum(cv2.merge(planes), 0))


def random_scene(rng: np.random.Generator) -> str:
    """The name of a background."""
    return list(_SCENES)[rng.integers(len(_SCENES))]


def caption_for(template: str, words: Sequence[str], scene: str) -> tuple[str, list]:
    """A caption and the character range of every word in it, in the order of `words`."""
    listed = [f"a {word}" for word in words]
    entities = " and ".join([", ".join(listed[:-1]), listed[-1]]) if words[1:] else listed[0]
    caption = template.format(entities=entities, place=PLACES[scene])
    caption = caption[0].upper() + caption[1:]
    spans, position = [], caption.lower().index(entities)
    for word in words:
        start = caption.index(f" {word}", position) + 1
        position = start + len(word)
        spans.append((start, position))
    return caption, spans


def caption_corpus() -> Iterator[str]:
    """Captions that cover every word, place and template; enough to train a tokenizer on."""
    names = [word for word, _ in WORDS]
    for template in CAPTIONS:
        for scene in _SCENES:
            for count in (1, 2, 3):
                for words in permutations(names, count):
                    yield caption_for(template, words, scene)[0]


def _noise(rng: np.random.Generator, cells: int, height: int, width: int) -> np.ndarray:
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
