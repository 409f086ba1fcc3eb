"""Drawing of sprites: parts with an outline, in units of [-1, 1], y down, on a square canvas."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Real, UInt8

SPRITE_SIZE = 128  # pixels
UNIT = 58.0  # pixels per unit
OUTLINES = {"patterned": 5, "bold": 11}  # pixels of a sprite, by style
_FIXED = 4  # bits behind the point in OpenCV's coordinates


class Brush:
    """Draws parts with an outline on a transparent canvas."""

    def __init__(
        self, outline: Sequence[float] | Real[np.ndarray, "3"], width: int = OUTLINES["patterned"]
    ) -> None:
        self._width = width
        self._outline = tuple(float(channel) for channel in outline)
        self._color = np.full((SPRITE_SIZE, SPRITE_SIZE, 3), self._outline, np.uint8)
        self._covered = np.zeros((SPRITE_SIZE, SPRITE_SIZE), np.uint8)

    def part(self, points: np.ndarray, fill: np.ndarray, outline: bool = True) -> None:
        """Fill a polygon `[n, 2]` with a color `[3]` or a texture `[side, side, 3]`."""
        polygon = [_fixed(points)]
        if outline:
            cv2.polylines(
                self._color, polygon, True, self._outline, self._width, cv2.LINE_AA, _FIXED
            )
            cv2.fillPoly(self._covered, polygon, 255, cv2.LINE_AA, _FIXED)
        if fill.ndim == 1:
            cv2.fillPoly(self._color, polygon, tuple(fill.tolist()), cv2.LINE_AA, _FIXED)
            return
        inside = np.zeros_like(self._covered)
        cv2.fillPoly(inside, polygon, 255, cv2.LINE_8, _FIXED)
        cv2.copyTo(fill, inside, self._color)

    def line(self, points: np.ndarray, fill: np.ndarray, width: float, outline: bool = False):
        """Draw a line of that width (units) through points `[n, 2]`."""
        thickness = max(1, round(width * UNIT))
        path, ink = [_fixed(points)], tuple(np.asarray(fill, np.float64).tolist())
        if outline:
            wide = thickness + self._width
            cv2.polylines(self._color, path, False, self._outline, wide, cv2.LINE_AA, _FIXED)
            cv2.polylines(self._covered, path, False, 255, thickness, cv2.LINE_AA, _FIXED)
        cv2.polylines(self._color, path, False, ink, thickness, cv2.LINE_AA, _FIXED)

    def sprite(self) -> UInt8[np.ndarray, "side side 4"]:
        """What was drawn, as RGBA; the outline is part of the mask."""
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (self._width, self._width))
        return cv2.merge([*cv2.split(self._color), cv2.dilate(self._covered, disc)])


def _fixed(points: np.ndarray) -> np.ndarray:
    pixels = np.asarray(points) * UNIT + (SPRITE_SIZE / 2 - 0.5)
    return np.round(pixels * (1 << _FIXED)).astype(np.int32)


def ellipse(x: float, y: float, half_width: float, half_height: float, count: int = 28):
    """Corner points `[count, 2]` of an ellipse."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([x + half_width * np.cos(angle), y + half_height * np.sin(angle)], axis=-1)


def between(low: float, high: float, share: float) -> float:
    """The point at `share` in [0, 1] of the way from low to high."""
    return low + (high - low) * float(share)
