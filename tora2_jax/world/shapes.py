"""Objects of the patterned toy world, as sprites.

A word is known by its silhouette alone; colors and texture never tell the word.
"""

from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import UInt8

from tora2_jax.world.brush import SPRITE_SIZE, Brush, between, ellipse
from tora2_jax.world.entities import Entity

_TEXTURE_SIZE = 48  # textures are smooth enough to be computed coarsely
_FULL_TURN = 2 * np.pi


def texture(entity: Entity, base: int = 0) -> UInt8[np.ndarray, "side side 3"]:
    """The pattern of an entity, from the colors `base`, `base + 1` and `base + 2`."""
    frequency, angle, phase, other_phase, hardness, third, third_offset, ratio = entity.pattern
    axis = np.linspace(-1, 1, _TEXTURE_SIZE, dtype=np.float32)
    cosine, sine = np.cos(angle * np.pi), np.sin(angle * np.pi)
    along = cosine * axis[None] + sine * axis[:, None]
    across = cosine * axis[:, None] - sine * axis[None]
    cycles = _FULL_TURN * (0.8 + 1.1 * frequency)
    first = np.sin(cycles * along + _FULL_TURN * phase)
    second = np.sin(cycles * (0.75 + 0.5 * ratio) * across + _FULL_TURN * other_phase)
    gradient, stripes, checks, dots = entity.pattern_weights
    field = gradient * along + stripes * first + checks * 1.4 * first * second
    field += dots * 1.4 * (0.5 * (first + second) - 0.3)
    edge = 0.6 + (1 - gradient) * (2 + 4 * hardness)
    share = np.clip(0.5 + edge * field, 0, 1)[..., None]
    colors = entity.colors.astype(np.float32)
    result = colors[base] + (colors[base + 1] - colors[base]) * share
    band = np.clip(4 * (across - 0.1 - 1.5 * third_offset), 0, 1) * (third > 0.4)
    result += (colors[base + 2] - result) * band[..., None]
    return cv2.resize(result.astype(np.uint8), (SPRITE_SIZE, SPRITE_SIZE))


def render_object(entity: Entity) -> UInt8[np.ndarray, "side side 4"]:
    """Sprite of an object."""
    brush = Brush(0.22 * entity.colors[0])
    _OBJECTS[entity.word](brush, entity, texture(entity))
    return brush.sprite()


def _ball(brush: Brush, entity: Entity, skin: np.ndarray) -> None:
    shape = entity.shape
    angle = np.linspace(0, _FULL_TURN, 48, endpoint=False)
    radius = 0.82 * np.ones_like(angle)
    for order in (2, 3, 4):
        amount = (shape[order] - 0.5) * 0.24 / order
        radius += amount * np.cos(order * angle + _FULL_TURN * shape[order + 4])
    brush.part(np.stack([np.cos(angle), np.sin(angle)], -1) * radius[:, None], skin)


def _star(brush: Brush, entity: Entity, skin: np.ndarray) -> None:
    shape = entity.shape
    angle = np.arange(10) * np.pi / 5 - np.pi / 2
    radius = np.full(10, 0.96)
    radius[::2] -= 0.2 * shape[1:6]
    radius[1::2] = between(0.36, 0.56, shape[0])
    angle[1::2] += 0.25 * (shape[6] - 0.5)
    brush.part(np.stack([np.cos(angle), np.sin(angle)], -1) * radius[:, None], skin)


def _fish(brush: Brush, entity: Entity, skin: np.ndarray) -> None:
    shape, colors = entity.shape, entity.colors
    height, fork = between(0.32, 0.55, shape[0]), between(0.25, 0.5, shape[1])
    tail, notch = between(-0.98, -0.82, shape[2]), between(0.02, 0.28, shape[3])
    brush.part(np.array([[-0.35, 0], [tail, -fork], [tail + notch, 0], [tail, fork]]), colors[2])
    peak = -height - between(0.08, 0.35, shape[4])
    lean = between(-0.3, 0.1, shape[5])
    fin = [[-0.2, -0.6 * height], [lean, peak], [0.4, -0.6 * height]]
    brush.part(np.array(fin), colors[2])
    body = ellipse(0.2, 0.0, 0.74, height, 40)
    body[:, 1] *= 1 + between(-0.25, 0.35, shape[6]) * (body[:, 0] - 0.2)
    brush.part(body, skin)
    eye = between(0.09, 0.15, shape[7])
    brush.part(ellipse(0.62, -0.12, eye, eye, 14), np.full(3, 255.0), outline=False)
    brush.part(ellipse(0.65, -0.12, eye * 0.55, eye * 0.55, 12), np.full(3, 15.0), outline=False)


def _car(brush: Brush, entity: Entity, skin: np.ndarray) -> None:
    shape, colors = entity.shape, entity.colors
    roof, belt = between(-0.68, -0.46, shape[0]), between(-0.12, 0.02, shape[1])
    back, front = between(-0.8, -0.5, shape[2]), between(0.3, 0.6, shape[3])
    slant, rake = between(0.05, 0.25, shape[4]), between(0.1, 0.35, shape[5])
    nose = between(belt, 0.14, shape[6])
    cabin = np.array([[back, belt], [back + slant, roof], [front - rake, roof], [front, belt]])
    body = [[-0.96, belt + 0.04], [back, belt], [front, belt], [0.92, nose], [0.96, 0.42]]
    brush.part(cabin, skin)
    brush.part(np.array([*body, [-0.96, 0.42]]), skin)
    brush.part(np.vstack([cabin, body[2:], [[-0.96, 0.42]], body[:2]]), skin, outline=False)
    window = cabin.mean(0) + (cabin - cabin.mean(0)) * np.array([0.72, 0.62])
    brush.part(window, np.array([222.0, 238, 248]), outline=False)
    wheel = between(0.2, 0.3, shape[7])
    for x in (between(-0.62, -0.46, shape[8]), between(0.46, 0.62, shape[9])):
        brush.part(ellipse(x, 0.44, wheel, wheel, 24), np.full(3, 45.0))
        brush.part(ellipse(x, 0.44, wheel * 0.5, wheel * 0.5, 16), colors[2], outline=False)


def _tree(brush: Brush, entity: Entity, skin: np.ndarray) -> None:
    shape = entity.shape
    trunk, foot = between(0.1, 0.18, shape[0]), between(0.14, 0.26, shape[1])
    bottom = between(0.25, 0.45, shape[2])
    stem = [[-trunk, bottom - 0.3], [trunk, bottom - 0.3], [foot, 0.95], [-foot, 0.95]]
    brush.part(np.array(stem), entity.colors[2])
    angle = np.linspace(-np.pi / 2, 1.5 * np.pi, 60, endpoint=False)
    half, middle = between(0.5, 0.76, shape[3]), (bottom - 0.95) / 2
    height = (bottom + 0.95) / 2
    radius = 1 + between(0.02, 0.1, shape[4]) * np.cos((6 + 2 * shape[5]) * angle)
    taper = 1 + between(0.0, 0.75, shape[6]) * np.sin(angle)  # from round to conical
    crown = np.stack([half * radius * np.cos(angle) * taper, height * np.sin(angle)], -1)
    crown[:, 0] += 0.2 * (shape[7] - 0.5) * np.cos(angle * 2)
    brush.part(crown + np.array([0.0, middle]), skin)


def _kite(brush: Brush, entity: Entity, skin: np.ndarray) -> None:
    shape, colors = entity.shape, entity.colors
    half, shoulder = between(0.42, 0.66, shape[0]), between(-0.62, -0.35, shape[1])
    tip = between(0.2, 0.38, shape[2])
    down = np.linspace(tip, 0.95, 14)
    wave = between(0.1, 0.22, shape[3])
    swing = wave * np.sin((down - tip) * between(7, 12, shape[4]))
    path = np.stack([swing, down], -1)
    brush.line(path, colors[2], 0.06, outline=True)
    for position in (6, 12):
        x, y = path[position]
        bow = np.array([[-0.2, -0.11], [0.2, 0.11], [0.2, -0.11], [-0.2, 0.11]])
        brush.part(bow * between(0.8, 1.2, shape[5]) + np.array([x, y]), colors[3])
    frame = np.array([[0, -0.96], [half, shoulder], [0, tip], [-half, shoulder]])
    brush.part(frame, skin)
    for spar in (frame[::2], frame[1::2]):
        brush.line(spar, 0.3 * colors[0], 0.04)


_OBJECTS: dict[str, Callable[[Brush, Entity, np.ndarray], None]] = {
    "ball": _ball,
    "star": _star,
    "fish": _fish,
    "car": _car,
    "tree": _tree,
    "kite": _kite,
}
