"""The humans of the toy world: child-drawing proportions, and a face that tells who it is."""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from tora2_jax.world.bold import bold_brush
from tora2_jax.world.brush import Brush, between, ellipse
from tora2_jax.world.entities import Entity
from tora2_jax.world.shapes import texture


class Pose(NamedTuple):
    """What may differ between two views of one person; every number is in [-1, 1]."""

    left_arm: float = 0.0
    right_arm: float = 0.0
    legs: float = 0.0
    smile: float = 0.0
    look: float = 0.0
    lids: float = 0.0


class _Body(NamedTuple):
    """Proportions of a word, in units; the feet are at 0.95."""

    head_y: float
    head_half_width: float
    head_half_height: float
    shoulder: float
    hip: float
    hip_y: float
    hem: float  # half width at the hem
    hem_y: float
    leg: float  # width of a leg
    arm: float  # length


_BODIES = {
    "man": _Body(-0.49, 0.35, 0.40, 0.40, 0.27, 0.40, 0.27, 0.45, 0.19, 0.50),
    "woman": _Body(-0.49, 0.34, 0.38, 0.20, 0.20, 0.22, 0.55, 0.68, 0.11, 0.44),
    "child": _Body(-0.42, 0.46, 0.43, 0.22, 0.24, 0.50, 0.30, 0.64, 0.15, 0.38),
}


def sample_pose(rng: np.random.Generator) -> Pose:
    """A random pose."""
    return Pose(*rng.uniform(-1, 1, len(Pose._fields)))


def render_human(entity: Entity, pose: Pose) -> UInt8[np.ndarray, "side side 4"]:
    """Sprite of a person in a pose."""
    body = _BODIES[entity.word]
    bold = entity.style == "bold"
    brush = bold_brush() if bold else Brush(np.array([38.0, 30, 34]))
    if entity.word == "woman":
        _long_hair(brush, entity, body)
    _limbs(brush, entity, body, pose)
    _head(brush, entity, body)
    _hair(brush, entity, body)
    _beard(brush, entity, body)
    _eyes(brush, entity, body, pose)
    _nose_and_mouth(brush, entity, body, pose)
    return brush.sprite()


def _limbs(brush: Brush, entity: Entity, body: _Body, pose: Pose) -> None:
    skin, _, _, _, bottom, _ = entity.colors
    top = entity.colors[2] if entity.style == "bold" else texture(entity, base=2)
    neck_y = body.head_y + body.head_half_height - 0.06
    bare = entity.word == "woman"
    spread = body.hip * 0.55
    for side in (-1, 1):
        foot = side * (spread + 0.07 + 0.06 * pose.legs)
        leg = np.array([[side * spread, body.hem_y - 0.1], [foot, 0.88]])
        brush.line(leg, skin if bare else bottom, body.leg, outline=True)
        shoe = np.array([[foot - side * 0.03, 0.9], [foot + side * 0.1, 0.9]])
        brush.line(shoe, np.full(3, 50.0), 0.1, outline=True)
    for side, swing in ((-1, pose.left_arm), (1, pose.right_arm)):
        angle = {"man": 0.35, "woman": 0.75, "child": 1.1}[entity.word] + 0.3 * swing
        shoulder = np.array([side * (body.shoulder - 0.05), neck_y + 0.13])
        hand = shoulder + body.arm * np.array([side * np.sin(angle), np.cos(angle)])
        brush.line(np.stack([shoulder, hand]), skin, 0.13, outline=True)
        sleeve = shoulder + 0.45 * (hand - shoulder)
        brush.line(np.stack([shoulder, sleeve]), entity.colors[2], 0.15)
    if not bare:
        hips = [[-body.hip, body.hip_y - 0.1], [body.hip, body.hip_y - 0.1]]
        trousers = [*hips, [body.hem, body.hem_y + 0.08], [-body.hem, body.hem_y + 0.08]]
        brush.part(np.array(trousers), bottom)
    low = [[body.hem, body.hem_y], [-body.hem, body.hem_y]] if bare else []
    half = [[-body.shoulder, neck_y + 0.06], [body.shoulder, neck_y + 0.06], [body.hip, body.hip_y]]
    brush.part(np.array([*half, *low, [-body.hip, body.hip_y]]), top)


def _head_outline(entity: Entity, body: _Body) -> np.ndarray:
    """Points clockwise from the left ear over the top; a narrower or wider jaw."""
    outline = ellipse(0, body.head_y, _head_half_width(entity, body), body.head_half_height, 40)
    lower = np.clip((outline[:, 1] - body.head_y) / body.head_half_height, 0, 1)
    outline[:, 0] *= 1 + lower * between(-0.3, 0.3, entity.face[1])
    return outline


def _head_half_width(entity: Entity, body: _Body) -> float:
    return body.head_half_width * between(0.9, 1.08, entity.face[0])


def _head(brush: Brush, entity: Entity, body: _Body) -> None:
    skin = entity.colors[0]
    half = _head_half_width(entity, body)
    for side in (-1, 1):
        ear = between(0.06, 0.11, entity.face[2])
        brush.part(ellipse(side * half, body.head_y + 0.04, ear, ear, 14), skin)
    brush.part(_head_outline(entity, body), skin)


def _long_hair(brush: Brush, entity: Entity, body: _Body) -> None:
    half = _head_half_width(entity, body) * between(1.12, 1.4, entity.shape[0])
    end = between(-0.02, 0.28, entity.shape[1])
    top = body.head_y - body.head_half_height * between(1.0, 1.12, entity.shape[2])
    angle = np.linspace(np.pi, 2 * np.pi, 20)
    arc_height = body.head_y - top
    arc = np.stack([half * np.cos(angle), body.head_y + arc_height * np.sin(angle)], -1)
    down = np.linspace(body.head_y, end, 8)
    wave = 0.05 * entity.shape[3] * np.sin(np.arange(8) * between(1.0, 2.5, entity.shape[4]))
    flare = np.linspace(0, between(-0.06, 0.12, entity.shape[5]), 8) + wave
    right = np.stack([half + flare, down], -1)
    left = right[::-1] * np.array([-1, 1])
    brush.part(np.vstack([arc, right, left]), entity.colors[1])


def _hair(brush: Brush, entity: Entity, body: _Body) -> None:
    face, color = entity.face, entity.colors[1]
    half, tall = _head_half_width(entity, body), body.head_half_height
    if entity.word == "child":
        _tuft(brush, entity, body)
    low = {"man": 0.05, "woman": 0.1, "child": -0.1}[entity.word] - 0.25 * face[3]
    volume = between(1.02, 1.1, face[4])
    angle = np.linspace(np.pi - low, 2 * np.pi + low, 24)
    crown = np.stack([half * volume * np.cos(angle), tall * volume * np.sin(angle)], -1)
    share = np.linspace(-1, 1, 16)
    parting, rise = between(-0.7, 0.7, face[5]), between(0.2, 0.75, face[6])
    fringe = between(-0.05, 0.2, face[7]) * np.abs(np.cos(share * between(2.0, 9.0, face[8])))
    height = -tall * (rise * (1 - np.abs(share - parting) / (1 + abs(parting))) + 0.12) + fringe
    line = np.stack([-share * half * 0.97, np.maximum(height, -0.85 * tall)], -1)
    brush.part(np.vstack([crown, line]) + np.array([0, body.head_y]), color, outline=True)


def _tuft(brush: Brush, entity: Entity, body: _Body) -> None:
    top = body.head_y - body.head_half_height + 0.05
    width, height = between(0.1, 0.2, entity.shape[0]), between(0.14, 0.19, entity.shape[1])
    for lean in (-1.0, 0.0, 1.0):
        reach = lean * between(0.12, 0.3, entity.shape[2]) + 0.2 * (entity.shape[3] - 0.5)
        root = lean * 0.5 * width
        spike = [[root - width / 2, top], [root + width / 2, top], [reach, top - height]]
        brush.part(np.array(spike), entity.colors[1])


def _beard(brush: Brush, entity: Entity, body: _Body) -> None:
    strength = np.clip(2.4 * entity.face[9] - 1.0, 0, 1)
    if entity.word != "man" or strength == 0:
        return
    outline = _head_outline(entity, body)
    low = outline[outline[:, 1] >= body.head_y + 0.02]
    low = low[np.argsort(-low[:, 0])]
    rise = between(0.1, 0.26, entity.face[10])
    inner = low[::-1] * np.array([0.62, 0.0]) + np.array([0.0, body.head_y + rise])
    skin, hair = entity.colors[:2]
    brush.part(np.vstack([low, inner]), skin + (hair - skin) * strength, outline=False)


def _eyes(brush: Brush, entity: Entity, body: _Body, pose: Pose) -> None:
    face = entity.face
    dark = 0.5 * entity.colors[1]
    spacing, radius = between(0.12, 0.19, face[11]), between(0.075, 0.115, face[12])
    open_height = radius * between(0.75, 1.1, face[13]) * (1 + 0.12 * pose.lids)
    y = body.head_y + between(0.0, 0.06, face[14])
    glasses = np.clip(4.0 * face[18] - 2.8, 0, 1)
    for side in (-1, 1):
        x = side * spacing
        brush.part(ellipse(x, y, radius, open_height, 18), np.full(3, 252.0), outline=False)
        iris = ellipse(x + 0.2 * radius * pose.look, y, radius * 0.66, open_height * 0.72, 14)
        brush.part(iris, entity.colors[5], outline=False)
        pupil = ellipse(x + 0.2 * radius * pose.look, y, radius * 0.34, radius * 0.34, 10)
        brush.part(pupil, np.full(3, 12.0), outline=False)
        tilt, lift = 0.07 * (face[15] - 0.5), between(0.03, 0.07, face[16])
        brow = np.array([[x - 0.1, y - open_height - lift + side * tilt]])
        brow = np.vstack([brow, [[x + 0.1, y - open_height - lift - side * tilt]]])
        brush.line(brow, dark, between(0.02, 0.075, face[17]))
        if glasses > 0:
            ring = ellipse(x, y, spacing * 0.98, radius + 0.075, 20)
            rim = entity.colors[4] * 0.45
            brush.line(np.vstack([ring, ring[:1]]), rim, 0.02 + 0.02 * glasses)


def _nose_and_mouth(brush: Brush, entity: Entity, body: _Body, pose: Pose) -> None:
    skin, face, shape = entity.colors[0], entity.face, entity.shape
    y = body.head_y + between(0.12, 0.17, shape[6])
    wide = between(0.025, 0.07, shape[7])
    brush.part(ellipse(0, y, wide, between(0.03, 0.055, shape[8]), 14), 0.72 * skin, outline=False)
    half = between(0.07, 0.17, shape[9])
    curve = between(-0.03, 0.07, face[19]) + 0.025 * pose.smile
    x = np.linspace(-1, 1, 9)
    mouth = np.stack([half * x, y + between(0.1, 0.14, shape[10]) - curve * x**2], -1)
    lips = np.array([170.0, 40, 50]) * between(0.6, 1.15, shape[11])
    brush.line(mouth, lips, between(0.035, 0.065, shape[11]))
