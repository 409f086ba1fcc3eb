"""Backgrounds of the toy world."""

import cv2
import numpy as np
from jaxtyping import UInt8

# Color at the top and at the bottom, strength of the soft and of the fine texture (0 to 255).
_SCENES = {
    "grass": ((150, 190, 120), (110, 160, 84), 8, 5),
    "snow": ((224, 232, 242), (244, 246, 250), 7, 3),
    "sand": ((236, 216, 170), (218, 190, 138), 8, 5),
    "sea": ((150, 196, 222), (84, 146, 192), 8, 5),
    "night": ((46, 52, 104), (66, 68, 116), 6, 3),
    "meadow": ((190, 216, 236), (150, 186, 110), 8, 4),
    "street": ((188, 188, 192), (146, 146, 152), 8, 4),
}


def background(
    rng: np.random.Generator, scene: str, height: int, width: int, plain: bool = False
) -> UInt8[np.ndarray, "height width 3"]:
    """A calm backdrop; a plain one has no texture."""
    top, bottom, soft, fine = _SCENES[scene]
    if plain:
        return _plain(rng, (np.array(top) + np.array(bottom)) / 2, height, width)
    tint = rng.normal(0, 5, 3)
    position = np.linspace(-1, 1, height) * rng.uniform(1.0, 2.5) + rng.uniform(-0.5, 0.5)
    share = np.clip(0.5 + 0.5 * position, 0, 1)[:, None]
    color = np.array(top) * (1 - share) + np.array(bottom) * share + tint
    texture = soft * _noise(rng, 5, height, width) + fine * _noise(rng, 24, height, width)
    planes = [color[:, axis, None].astype(np.float32) + texture for axis in range(3)]
    return cv2.convertScaleAbs(np.maximum(cv2.merge(planes), 0))


def _plain(rng: np.random.Generator, color: np.ndarray, height: int, width: int) -> np.ndarray:
    """One color, a little lighter at the top."""
    slope = np.linspace(1, -1, height)[:, None, None] * rng.uniform(2, 8)
    image = np.broadcast_to(color + rng.normal(0, 3, 3) + slope, (height, width, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def random_scene(rng: np.random.Generator) -> str:
    """The name of a background."""
    return list(_SCENES)[rng.integers(len(_SCENES))]


def _noise(rng: np.random.Generator, cells: int, height: int, width: int) -> np.ndarray:
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
