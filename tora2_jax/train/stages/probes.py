"""Linear probes: what the frozen features of a recognition network say of held-out identities.

The features are what the appearance adapters get: every token of the last map, and the vector.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tora2_jax.world.entities import Entity

_RIDGES = (1e-1, 1.0, 1e1, 1e2, 1e3)  # tried on a fifth of the examples that the map is fitted to
_LEAST = 0.1  # of the median, the standard deviation that a feature is divided by
COLORS = {"human": (0, 1, 2), "object": (0, 1)}  # skin, hair, shirt; both colors of an object
SHAPES = 3  # numbers of an object's shape that are seen


class Probe(NamedTuple):
    """How well looks are read off features."""

    color_error: float  # mean absolute error of the colors, of 255
    shape_r2: float  # mean share of the variance of the shapes' numbers; NaN without objects


def targets(entity: Entity) -> Float[np.ndarray, " values"]:
    """Colors in [0, 255], then the shape's numbers (objects only) in [0, 1]."""
    colors = entity.colors[list(COLORS[entity.kind])].ravel()
    return np.concatenate([colors, entity.shape[:SHAPES] if entity.kind == "object" else []])


def ridge(
    features: Float[np.ndarray, "n c"],
    wanted: Float[np.ndarray, "n values"],
    others: Float[np.ndarray, "m c"],
    strength: float,
) -> Float[np.ndarray, "m values"]:
    """Predictions for `others` by ridge regression on standardized features.

    A feature that hardly changes over the examples keeps its scale: one that is dead in all of
    them and not in the others would count a millionfold.
    """
    spread = features.std(0)
    mean, scale = features.mean(0), np.maximum(spread, _LEAST * np.median(spread) + 1e-9)
    x, y = (features - mean) / scale, wanted - wanted.mean(0)
    kernel = x @ x.T + strength * x.shape[1] / 100 * np.eye(len(x))
    return ((others - mean) / scale) @ (x.T @ np.linalg.solve(kernel, y)) + wanted.mean(0)


def predict(
    features: Float[np.ndarray, "n c"],
    wanted: Float[np.ndarray, "n values"],
    others: Float[np.ndarray, "m c"],
) -> Float[np.ndarray, "m values"]:
    """Predictions of the ridge that does best on examples that it was not fitted to."""
    held = len(features) // 5
    scale = wanted.std(0) + 1e-6

    def fault(strength: float) -> float:
        said = ridge(features[held:], wanted[held:], features[:held], strength)
        return float(np.mean(((said - wanted[:held]) / scale) ** 2))

    return ridge(features, wanted, others, min(_RIDGES, key=fault))


def probe(
    words: Sequence[str],
    examples: Callable[[str, int], tuple[Float[np.ndarray, "n c"], list[Entity]]],
    train: int = 400,
    test: int = 100,
) -> Probe:
    """One linear map per word, fitted to `train` identities and tested on `test` others.

    Args:
        words: Of the world.
        examples: Word and count -> features and identities; of one call no identity is twice.
        train: Identities per word that the maps are fitted to.
        test: Identities per word that they are tested on.
    """
    errors, shares = [], []
    for word in words:
        features, entities = examples(word, train + test)
        wanted = np.stack([targets(entity) for entity in entities])
        said = predict(features[:train], wanted[:train], features[train:])
        gap, count = said - wanted[train:], 3 * len(COLORS[entities[0].kind])
        errors.append(np.abs(gap[:, :count]).mean())
        if entities[0].kind == "object":
            variance = wanted[train:, count:].var(0)
            shares.append(1 - np.square(gap[:, count:]).mean(0) / variance)
    return Probe(float(np.mean(errors)), float(np.mean(shares)) if shares else float("nan"))
