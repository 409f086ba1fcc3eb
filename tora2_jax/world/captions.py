"""Captions of the toy world: the words alone, or with what one sees.

Plain captions never tell looks or places, so that those can come from references and paths only.
Rich ones, which the base stages train on, tell some of the colors, shapes, places and directions.
"""

import colorsys
from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Real

from tora2_jax.world.entities import WORDS, Entity

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

# Upper ends of the sectors of the color wheel, in turns.
_HUES = (
    (0.03, "red"),
    (0.11, "orange"),
    (0.19, "yellow"),
    (0.44, "green"),
    (0.54, "cyan"),
    (0.70, "blue"),
    (0.80, "purple"),
    (0.94, "pink"),
    (1.01, "red"),
)
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
NEUTRAL = ("brown", "white", "gray", "black")
_SHAPES = {  # of a low and of a high first number
    "ball": ("flat", "round"),
    "star": ("thin", "fat"),
    "fish": ("thin", "fat"),
    "car": ("tall", "low"),
    "tree": ("narrow", "wide"),
    "kite": ("narrow", "wide"),
}
_DIRECTIONS = ("right", "down", "left", "up")
_MOVES = 0.1  # of the frame from the first to the last visible point; below, it is a place
_LIMIT = 22  # words of a caption, periods included; one token is the end's


class Phrase(NamedTuple):
    """An entity as a caption tells it: `a red ball at the top`."""

    word: str
    before: str = ""
    after: str = ""

    def text(self) -> str:
        """With its article."""
        rest = " ".join(filter(None, (self.before, self.word, self.after)))
        return f"{'an' if rest[0] in 'aeio' else 'a'} {rest}"


def color_name(color: Real[np.ndarray, "3"]) -> str:
    """The plain English name of an RGB color in [0, 255]."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(np.asarray(color, float) / 255))
    if value < 0.22:
        return "black"
    if saturation < 0.2:
        return "white" if value > 0.8 else "gray"
    name = next(name for end, name in _HUES if hue < end)
    return "brown" if name in ("red", "orange") and value < 0.62 and saturation < 0.85 else name


def place_name(point: Float[np.ndarray, "2"]) -> str:
    """Where a point is, in fractions of the frame, y down."""
    rows = ("top", "", "bottom")[int(np.clip(point[1] * 3, 0, 2))]
    columns = ("left", "", "right")[int(np.clip(point[0] * 3, 0, 2))]
    where = " ".join(filter(None, (rows, columns)))
    return f"at the {where}" if where else "in the middle"


def whereabouts(track: Float[np.ndarray, "f 2"]) -> str:
    """The direction in which a path goes, or where it stays; in fractions of the frame."""
    gap = track[-1] - track[0]
    if np.linalg.norm(gap) < _MOVES:
        return place_name(track.mean(0))
    return "moving " + _DIRECTIONS[round(float(np.arctan2(gap[1], gap[0])) / (np.pi / 2)) % 4]


def rich_phrases(
    rng: np.random.Generator,
    entities: Sequence[Entity],
    tracks: Float[np.ndarray, "e f 2"],
    limit: int,
) -> list[Phrase]:
    """Phrases that together have at most `limit` words; what does not fit is left out.

    Args:
        rng: Chooses what is told.
        entities: In the order of the caption.
        tracks: In fractions of the frame.
        limit: In words, with articles and the `and`s between.
    """
    told: list[list[str]] = [["", "", "", ""] for _ in entities]  # shape, color, look, place
    left = limit - 3 * len(entities)  # a word, its article, and what joins it to the next one
    wishes = []
    for slot, (entity, track) in enumerate(zip(entities, tracks, strict=True)):
        wishes.append((rng.random() * 0.4, slot, 1, _color(entity)))
        wishes.append((rng.random(), slot, 3, whereabouts(track)))
        if entity.kind == "human":
            hair = f"with {color_name(entity.colors[1])} hair"
            wishes.append((rng.random() + 0.2, slot, 2, hair))
        else:
            name = _SHAPES[entity.word][int(entity.shape[0] > 0.5)]
            wishes.append((rng.random() + 0.2, slot, 0, name))
            second = color_name(entity.colors[1])
            wishes.append((rng.random() + 0.2, slot, 1, f"{_color(entity)} and {second}"))
    for _, slot, part, text in sorted(wishes):
        cost = len(text.split()) - len(told[slot][part].split())
        if cost <= left and rng.random() < 0.85:
            told[slot][part], left = text, left - cost
    return [_phrase(entity, *parts) for entity, parts in zip(entities, told, strict=True)]


def _color(entity: Entity) -> str:
    """Of a human the clothes, of an object its main color."""
    if entity.kind == "human":
        return f"in {color_name(entity.colors[2])}"
    return color_name(entity.colors[0])


def _phrase(entity: Entity, shape: str, color: str, look: str, place: str) -> Phrase:
    if entity.kind == "human":
        return Phrase(entity.word, "", " ".join(filter(None, (color, look, place))))
    return Phrase(entity.word, " ".join(filter(None, (shape, color))), place)


def caption_for(template: str, phrases: Sequence[Phrase], scene: str) -> tuple[str, list]:
    """A caption and the character range of every word in it, in the order of `phrases`."""
    listed = [phrase.text() for phrase in phrases]
    entities = " and ".join([", ".join(listed[:-1]), listed[-1]]) if listed[1:] else listed[0]
    caption = template.format(entities=entities, place=PLACES[scene])
    caption = caption[0].upper() + caption[1:]
    spans, position = [], caption.lower().index(entities)
    for phrase in phrases:
        start = caption.index(f" {phrase.word}", position) + 1
        position = start + len(phrase.word)
        spans.append((start, position))
        position += len(phrase.after)
    return caption, spans


def rich_caption(
    rng: np.random.Generator,
    entities: Sequence[Entity],
    tracks: Float[np.ndarray, "e f 2"],
    scene: str,
) -> tuple[str, list]:
    """A caption that tells looks and places, and its words' character ranges."""
    template = CAPTIONS[rng.integers(2)]
    around = len(template.format(entities="", place=PLACES[scene]).replace(".", " .").split())
    phrases = rich_phrases(rng, entities, tracks, _LIMIT - around)
    return caption_for(template, phrases, scene)


def caption_corpus() -> Iterator[str]:
    """Captions that cover every word, place and template; enough to train a tokenizer on."""
    names = [word for word, _ in WORDS]
    for template in CAPTIONS:
        for scene in PLACES:
            for count in (1, 2, 3):
                for words in permutations(names, count):
                    yield caption_for(template, [Phrase(word) for word in words], scene)[0]


def rich_corpus() -> Iterator[str]:
    """What rich captions say besides, for a tokenizer."""
    shapes = sorted({name for pair in _SHAPES.values() for name in pair})
    for color in (*COLORS, *NEUTRAL):
        yield f"an {color} and {color} ball in {color} with {color} hair"
    for shape in shapes:
        yield f"a {shape} ball"
    for direction in _DIRECTIONS:
        yield f"a ball moving {direction}"
    for column in (0.1, 0.5, 0.9):
        for row in (0.1, 0.5, 0.9):
            yield f"a ball {place_name(np.array([column, row]))}"
