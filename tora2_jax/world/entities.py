"""Who lives in the toy world: words, and identities as points in a continuous space."""

import colorsys
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from tora2_jax.types import Kind

WORDS: tuple[tuple[str, Kind], ...] = (
    ("ball", "object"),
    ("star", "object"),
    ("fish", "object"),
    ("car", "object"),
    ("tree", "object"),
    ("kite", "object"),
    ("man", "human"),
    ("woman", "human"),
    ("child", "human"),
)
KINDS: dict[str, Kind] = dict(WORDS)


Style = Literal["patterned", "bold"]  # as WorldConfig.style


class Entity(NamedTuple):
    """An identity: a word and a point in a continuous space."""

    word: str
    kind: Kind
    shape: Float[np.ndarray, "12"]  # in [0, 1]
    colors: Float[np.ndarray, "6 3"]  # RGB in [0, 255]
    pattern: Float[np.ndarray, "8"]  # in [0, 1]
    pattern_weights: Float[np.ndarray, "4"]  # gradient, stripes, checks, dots; their sum is 1
    face: Float[np.ndarray, "20"]  # in [0, 1]; humans only
    style: Style = "patterned"


def sample_entity(seed: Sequence[int], word: str, style: Style = "patterned") -> Entity:
    """The identity that a seed gives to a word.

    Args:
        seed: Non-negative integers; another seed is another identity.
        word: One of `WORDS`.
        style: Of the world that it lives in.

    Raises:
        ValueError: The world has no such word.
    """
    if word not in KINDS:
        raise ValueError(f"the toy world has no {word!r}; its words are {', '.join(KINDS)}")
    position = list(KINDS).index(word)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([*seed, position])))
    kind = KINDS[word]
    colors = _COLORS[style, kind](rng)
    weights = rng.gamma(0.3, size=4) + 1e-3  # a small shape: mostly one pattern prevails
    return Entity(
        word=word,
        kind=kind,
        shape=rng.random(12),
        colors=colors,
        pattern=rng.random(8),
        pattern_weights=weights / weights.sum(),
        face=rng.random(20),
        style=style,
    )


def _hsv(hue: float, saturation: float, value: float) -> list[float]:
    return [255 * channel for channel in colorsys.hsv_to_rgb(hue % 1.0, saturation, value)]


def _object_colors(rng: np.random.Generator) -> np.ndarray:
    hue = rng.random()
    other = hue + rng.uniform(0.2, 0.8)
    light = rng.random() < 0.5
    values = (rng.uniform(0.85, 1.0), rng.uniform(0.5, 0.75))
    colors = [
        _hsv(hue, rng.uniform(0.65, 1.0), values[0] if light else values[1]),
        _hsv(other, rng.uniform(0.2, 0.9), values[1] if light else values[0]),
        *(_hsv(rng.random(), rng.uniform(0.4, 0.9), rng.uniform(0.55, 1.0)) for _ in range(4)),
    ]
    return np.array(colors)


def _human_colors(rng: np.random.Generator) -> np.ndarray:
    depth, warmth = rng.random(), rng.random()
    light, dark = np.array([255.0, 224, 196]), np.array([104.0, 62, 38])
    skin = light + (dark - light) * depth + np.array([0.0, -14, 10]) * (warmth - 0.5)
    hair = _hsv(rng.random(), rng.uniform(0.3, 0.95), rng.uniform(0.15, 0.95))
    if rng.random() < 0.6:  # natural: black, brown, red, blond
        hair = _hsv(rng.uniform(0.02, 0.14), rng.uniform(0.3, 0.85), rng.uniform(0.12, 0.95))
    top, second = _object_colors(rng)[:2]
    bottom = _hsv(rng.random(), rng.uniform(0.3, 0.9), rng.uniform(0.35, 0.85))
    eyes = _hsv(rng.random(), rng.uniform(0.5, 1.0), rng.uniform(0.25, 0.8))
    return np.array([skin, hair, top, second, bottom, eyes])


def _bold_pair(rng: np.random.Generator) -> list[list[float]]:
    """Two strong colors far apart in hue and in lightness; the second may be white or dark."""
    hue = rng.random()
    light = rng.random() < 0.5
    values = (rng.uniform(0.9, 1.0), rng.uniform(0.5, 0.7))
    main = _hsv(hue, rng.uniform(0.75, 1.0), values[0] if light else values[1])
    chance = rng.random()
    if chance < 0.2:
        return [main, _hsv(rng.random(), rng.uniform(0, 0.1), rng.uniform(0.9, 1.0))]
    other = hue + rng.uniform(0.25, 0.75)
    return [main, _hsv(other, rng.uniform(0.75, 1.0), values[1] if light else values[0])]


def _bold_object_colors(rng: np.random.Generator) -> np.ndarray:
    return np.array(_bold_pair(rng) + _bold_pair(rng) + _bold_pair(rng))


def _bold_human_colors(rng: np.random.Generator) -> np.ndarray:
    """Skin, hair, shirt or dress, its second color, trousers, eyes."""
    colors = _human_colors(rng)
    if rng.random() < 0.5:
        colors[1] = _hsv(rng.random(), rng.uniform(0.7, 1.0), rng.uniform(0.5, 1.0))
    colors[2], colors[4] = _bold_pair(rng)
    colors[3] = colors[4]
    return colors


_COLORS = {
    ("patterned", "object"): _object_colors,
    ("patterned", "human"): _human_colors,
    ("bold", "object"): _bold_object_colors,
    ("bold", "human"): _bold_human_colors,
}
