"""Numbers of the toy world's bench: distance to a path, retrieval, standard errors. No networks."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

CANVAS = 256.0  # pixels; distances are given on a canvas of this side
ABSENT = 0.5 * CANVAS * 2**0.5  # what a frame without the entity counts: half the diagonal


class Estimate(NamedTuple):
    """A mean and its standard error."""

    mean: float
    error: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.error:.2f}"


def to_canvas(
    points: Float[np.ndarray, "... 2"], height: int, width: int
) -> Float[np.ndarray, "... 2"]:
    """Pixels of a video of that size -> pixels of the canvas."""
    return np.asarray(points, np.float64) * (CANVAS / width, CANVAS / height)


def trajectory_error(
    centers: Float[np.ndarray, "... f 2"],
    present: Bool[np.ndarray, "... f"],
    path: Float[np.ndarray, "... f 2"],
    visible: Bool[np.ndarray, "... f"],
) -> Float[np.ndarray, "..."]:
    """Mean distance between where an entity is and where it should be, over the path's frames.

    Args:
        centers: found centers, pixels of the canvas.
        present: whether the entity was found; a frame without it counts `ABSENT`.
        path: wanted centers, pixels of the canvas.
        visible: frames that count.

    Returns:
        Pixels of the canvas; NaN where no frame counts.
    """
    distance = np.where(present, np.linalg.norm(centers - path, axis=-1), ABSENT)
    frames = visible.sum(-1)
    total = np.where(visible, distance, 0.0).sum(-1)
    return np.where(frames > 0, total / np.maximum(frames, 1), np.nan)


def rank_of_own(scores: Float[np.ndarray, "... candidates"]) -> Float[np.ndarray, "..."]:
    """How many candidates score above candidate 0; a tie counts half."""
    others, own = scores[..., 1:], scores[..., :1]
    return (others > own).sum(-1) + 0.5 * (others == own).sum(-1)


def found_own(scores: Float[np.ndarray, "... candidates"]) -> Bool[np.ndarray, "..."]:
    """Whether candidate 0, the entity's own reference, scores strictly best."""
    return np.asarray(np.all(scores[..., :1] > scores[..., 1:], axis=-1))


def mean_estimate(values: Shaped[np.ndarray, "..."]) -> Estimate:
    """Mean and standard error of independent values; NaN are left out."""
    values = np.asarray(values, np.float64).ravel()
    values = values[~np.isnan(values)]
    if not len(values):
        return Estimate(float("nan"), float("nan"), 0)
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return Estimate(float(values.mean()), float(error), len(values))


def cluster_estimate(
    values: Shaped[np.ndarray, "requests members"], *, samples: int = 2000, seed: int = 0
) -> Estimate:
    """Mean with a bootstrap error over whole requests, whose members are not independent.

    NaN are left out; `count` is the number of values that remain.
    """
    values = np.asarray(values, np.float64)
    kept = ~np.isnan(values)
    if not kept.any():
        return Estimate(float("nan"), float("nan"), 0)
    totals, counts = np.where(kept, values, 0.0).sum(1), kept.sum(1)
    draws = np.random.default_rng(seed).integers(len(values), size=(samples, len(values)))
    drawn_counts = counts[draws].sum(1)
    means = totals[draws].sum(1)[drawn_counts > 0] / drawn_counts[drawn_counts > 0]
    error = means.std(ddof=1) if len(values) > 1 else float("nan")
    return Estimate(float(totals.sum() / counts.sum()), float(error), int(counts.sum()))
