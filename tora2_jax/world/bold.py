"""Objects of the bold toy world: large flat areas of two colors and a thick outline.

The first three numbers of a shape are all that tells two objects of a word apart, besides colors.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from tora2_jax.world.brush import OUTLINES, SPRITE_SIZE, UNIT, Brush, between, ellipse
from tora2_jax.world.entities import Entity

_FULL_TURN = 2 * np.pi
_OUTLINE_COLOR = (28.0, 26.0, 34.0)
_WHITE, _BLACK, _GLASS = np.full(3, 255.0), np.full(3, 15.0), np.array([214.0, 236, 250])


def bold_brush() -> Brush:
    """A brush with this world's outline."""
    return Brush(_OUTLINE_COLOR, OUTLINES["bold"])


def render_bold_object(entity: Entity) -> UInt8[np.ndarray, "side side 4"]:
    """Sprite of an object."""
    brush = bold_brush()
    _OBJECTS[entity.word](brush, entity.shape, entity.colors[:2])
    return brush.sprite()


def _two_tone(colors: np.ndarray, second: np.ndarray) -> UInt8[np.ndarray, "side side 3"]:
    """A fill of two colors; `second [side, side]` says where the second one is."""
    return np.where(second[..., None], colors[1], colors[0]).astype(np.uint8)


def _canvas() -> tuple[np.ndarray, np.ndarray]:
    """x and y of every pixel of a sprite, in units."""
    axis = (np.arange(SPRITE_SIZE) - (SPRITE_SIZE / 2 - 0.5)) / UNIT
    return axis[None], axis[:, None]


def _ball(brush: Brush, shape: np.ndarray, colors: np.ndarray) -> None:
    angle = np.linspace(0, _FULL_TURN, 64, endpoint=False)
    power = 2 / between(1.7, 4.5, shape[2])  # from nearly a rhombus to nearly a box
    ball = np.stack([np.cos(angle), np.sin(angle)], -1)
    ball = np.sign(ball) * np.abs(ball) ** power * np.array([0.92, between(0.6, 0.92, shape[0])])
    x, y = _canvas()
    band = np.abs(y) + 0 * x < between(0.1, 0.42, shape[1])
    brush.part(ball, _two_tone(colors, band))


def _star(brush: Brush, shape: np.ndarray, colors: np.ndarray) -> None:
    angle = np.arange(10) * np.pi / 5 - np.pi / 2
    radius = np.where(np.arange(10) % 2, between(0.36, 0.68, shape[0]), 0.98)
    star = np.stack([np.cos(angle), np.sin(angle)], -1) * radius[:, None]
    star[:, 0] *= between(0.72, 1.0, shape[2])
    brush.part(star, colors[0])
    brush.part(star * between(0.32, 0.66, shape[1]), colors[1], outline=False)


def _fish(brush: Brush, shape: np.ndarray, colors: np.ndarray) -> None:
    height, fork = between(0.3, 0.58, shape[0]), between(0.24, 0.6, shape[1])
    brush.part(np.array([[-0.3, 0], [-0.96, -fork], [-0.74, 0], [-0.96, fork]]), colors[1])
    peak = -height - between(0.1, 0.38, shape[2])
    brush.part(np.array([[-0.25, -0.5 * height], [-0.1, peak], [0.5, -0.5 * height]]), colors[1])
    brush.part(ellipse(0.22, 0.0, 0.74, height, 40), colors[0])
    brush.part(ellipse(0.6, -0.1, 0.15, 0.15, 16), _WHITE, outline=False)
    brush.part(ellipse(0.64, -0.1, 0.08, 0.08, 12), _BLACK, outline=False)


def _car(brush: Brush, shape: np.ndarray, colors: np.ndarray) -> None:
    roof, back, wheel = between(-0.72, -0.4, shape[0]), between(-0.9, -0.35, shape[1]), shape[2]
    cabin = np.array([[back, 0.0], [back + 0.12, roof], [0.22, roof], [0.52, 0.0]])
    brush.part(cabin, colors[1])
    window = cabin.mean(0) + (cabin - cabin.mean(0)) * np.array([0.6, 0.5])
    brush.part(window, _GLASS, outline=False)
    body = [[-0.96, 0.0], [0.62, 0.0], [0.96, 0.16], [0.96, 0.46], [-0.96, 0.46]]
    brush.part(np.array(body), colors[0])
    radius = between(0.2, 0.34, wheel)
    for x in (-0.54, 0.54):
        brush.part(ellipse(x, 0.48, radius, radius, 24), np.full(3, 50.0))
        brush.part(ellipse(x, 0.48, radius * 0.5, radius * 0.5, 16), colors[1], outline=False)


def _tree(brush: Brush, shape: np.ndarray, colors: np.ndarray) -> None:
    trunk = between(0.12, 0.26, shape[2])
    brush.part(np.array([[-trunk, 0], [trunk, 0], [trunk, 0.95], [-trunk, 0.95]]), colors[1])
    angle = np.linspace(-np.pi / 2, 1.5 * np.pi, 60, endpoint=False)
    taper = 1 + between(0.0, 0.85, shape[1]) * np.sin(angle)  # from round to conical
    half = between(0.45, 0.8, shape[0])
    crown = np.stack([half * np.cos(angle) * taper, 0.62 * np.sin(angle) - 0.33], -1)
    brush.part(crown, colors[0])


def _kite(brush: Brush, shape: np.ndarray, colors: np.ndarray) -> None:
    half, shoulder = between(0.4, 0.72, shape[0]), between(-0.62, -0.2, shape[1])
    end, tip = between(0.6, 0.95, shape[2]), 0.34
    down = np.linspace(tip, end, 12)
    path = np.stack([0.14 * np.sin((down - tip) * 9), down], -1)
    brush.line(path, colors[1], 0.09, outline=True)
    bow = np.array([[-0.22, -0.13], [0.22, 0.13], [0.22, -0.13], [-0.22, 0.13]])
    brush.part(bow * 0.9 + path[-1], colors[1])
    frame = np.array([[0, -0.96], [half, shoulder], [0, tip], [-half, shoulder]])
    x, y = _canvas()
    brush.part(frame, _two_tone(colors, (x > 0) | (y > 9)))


_OBJECTS: dict[str, Callable[[Brush, np.ndarray, np.ndarray], None]] = {
    "ball": _ball,
    "star": _star,
    "fish": _fish,
    "car": _car,
    "tree": _tree,
    "kite": _kite,
}
