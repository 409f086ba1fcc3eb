"""Smooth random paths of the toy world."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_CALM_REACH = (0.2, 0.55)  # length of calm paths, in those of the others


class Motion(NamedTuple):
    """How the entities of a clip move. Lengths in pixels, angles in radians."""

    track: Float[np.ndarray, "e f 2"]
    angle: Float[np.ndarray, "e f"]
    scale: Float[np.ndarray, "e f"]  # around 1


def sample_motion(
    rng: np.random.Generator,
    count: int,
    frames: int,
    height: int,
    width: int,
    calm: bool = False,
) -> Motion:
    """Paths for all entities of a clip: curves, crossings, pauses, entries, exits, rest.

    Calm ones are about a third as long, and turn and grow half as much.
    """
    size = np.array([width, height], np.float64)
    starts = _apart(rng, count)
    reach = rng.uniform(*_CALM_REACH) if calm else 1.0
    tracks = []
    for start in starts:
        kind = rng.choice(5, p=[0.36, 0.2, 0.16, 0.14, 0.14])
        if kind == 4:
            tracks.append(np.repeat(start[None], frames, 0) + _drift(rng, frames))
        elif kind == 3 and tracks:
            tracks.append(_crossing(rng, start, tracks[-1], reach))
        else:
            points = _control_points(rng, start, kind == 2, reach)
            tracks.append(_spline(points, _progress(rng, frames, pause=kind == 1)))
    turning = 0.5 if calm else 1.0
    angle = rng.uniform(-0.12, 0.12, (count, 1)) + _wobble(rng, count, frames, 0.16)
    scale = 1 + turning * _wobble(rng, count, frames, 0.06)
    return Motion(np.stack(tracks) * size, turning * angle, scale)


def _apart(rng: np.random.Generator, count: int) -> np.ndarray:
    """Starting points, as fractions of the frame, that keep some distance."""
    points = [rng.uniform(0.2, 0.8, 2)]
    while len(points) < count:
        candidates = rng.uniform(0.2, 0.8, (8, 2))
        gaps = np.linalg.norm(candidates[:, None] - np.array(points)[None], axis=-1).min(1)
        points.append(candidates[gaps.argmax()])
    return np.array(points)


def _control_points(
    rng: np.random.Generator, start: np.ndarray, outside: bool, reach: float
) -> np.ndarray:
    if outside and reach < 1:
        return _over_the_edge(rng)
    points, heading = [start], rng.uniform(0, 2 * np.pi)
    for _ in range(rng.integers(1, 4)):
        for _ in range(6):
            step = reach * rng.uniform(0.2, 0.42) * np.array([np.cos(heading), np.sin(heading)])
            heading += rng.normal(0, 0.9)
            if np.all(np.abs(points[-1] + step - 0.5) < 0.34):
                points.append(points[-1] + step)
                break
    if len(points) == 1:
        points.append(start + reach * (rng.uniform(0.2, 0.8, 2) - start))
    if outside:
        exit_point = rng.uniform(0.1, 0.9, 2)
        exit_point[rng.integers(2)] = rng.choice([-0.2, 1.2])
        points = [*points[:2], exit_point]
        points = points[::-1] if rng.random() < 0.5 else points
    return np.array(points)


def _over_the_edge(rng: np.random.Generator) -> np.ndarray:
    """A short path that leaves the frame, or enters it."""
    inside, along = rng.uniform(0.15, 0.3), rng.uniform(0.2, 0.8)
    drift = rng.uniform(-0.12, 0.12)
    points = np.array([[inside, along], [0.05, along + drift / 2], [-0.2, along + drift]])
    points = points if rng.random() < 0.5 else 1 - points
    points = points[:, ::-1] if rng.random() < 0.5 else points
    return points[::-1] if rng.random() < 0.5 else points


def _progress(rng: np.random.Generator, frames: int, pause: bool) -> np.ndarray:
    """How far along the path, from 0 to 1, at every frame."""
    time = np.linspace(0, 1, frames - 1) if frames > 1 else np.zeros(0)
    speed = 1 + rng.uniform(-0.6, 0.6) * np.cos(np.pi * time) - rng.uniform(0, 0.7) * (time - 0.5)
    if pause:
        center, half = rng.uniform(0, 1), rng.uniform(0.12, 0.25)
        speed = speed * np.clip((np.abs(time - center) - half) / 0.1, 0, 1)
    traveled = np.concatenate([[0.0], np.cumsum(speed)])
    return traveled / max(traveled[-1], 1e-6)


def _spline(points: np.ndarray, progress: np.ndarray) -> np.ndarray:
    """Catmull-Rom through the points, at equal speed along its length."""
    ends = np.vstack([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    share = np.linspace(0, 1, 12, endpoint=False)[:, None, None]
    before, here, after, beyond = (ends[k : len(points) - 1 + k][None] for k in range(4))
    curve = 0.5 * (
        2 * here
        + (after - before) * share
        + (2 * before - 5 * here + 4 * after - beyond) * share**2
        + (3 * here - before - 3 * after + beyond) * share**3
    )
    curve = np.vstack([curve.transpose(1, 0, 2).reshape(-1, 2), points[-1:]])
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=-1))])
    position = progress * length[-1]
    return np.stack([np.interp(position, length, curve[:, axis]) for axis in (0, 1)], -1)


def _crossing(
    rng: np.random.Generator, start: np.ndarray, other: np.ndarray, reach: float
) -> np.ndarray:
    """A path that meets another one in the middle of the clip."""
    middle = np.clip(other[len(other) // 2], 0.25, 0.75) + rng.normal(0, 0.03, 2)
    if reach < 1:
        gap = start - middle
        start = middle + gap * min(1.0, 0.6 * reach / max(float(np.linalg.norm(gap)), 1e-6))
    end = np.clip(2 * middle - start + rng.normal(0, 0.08, 2), 0.16, 0.84)
    return _spline(np.stack([start, middle, end]), np.linspace(0, 1, len(other)))


def _drift(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Nothing, or hardly anything."""
    amount = rng.choice([0.0, 0.012])
    time = np.linspace(0, 2 * np.pi, frames)[:, None]
    return amount * np.sin(time * rng.uniform(0.5, 1.5, 2) + rng.uniform(0, 6.28, 2))


def _wobble(rng: np.random.Generator, count: int, frames: int, amount: float) -> np.ndarray:
    time = np.linspace(0, 2 * np.pi, frames)[None]
    rate, phase = rng.uniform(0.3, 1.6, (count, 1)), rng.uniform(0, 2 * np.pi, (count, 1))
    return amount * rng.random((count, 1)) * np.sin(time * rate + phase)
