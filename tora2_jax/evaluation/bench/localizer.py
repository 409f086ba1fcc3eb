"""How well the localizer finds the words of clips with ground truth."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from tora2_jax.evaluation.bench import measure
from tora2_jax.evaluation.bench.networks import ABSENT, NAMES, PRESENT, UNSURE, Localizer, locate
from tora2_jax.types import Record


class Truth(NamedTuple):
    """Where the words are in frames of one clip."""

    centers: Float[np.ndarray, "f words 2"]  # pixels of the clip
    state: Int[np.ndarray, "f words"]  # ABSENT, PRESENT or UNSURE


def truth(record: Record) -> Truth:
    """What the localizer should say about every frame of a clip.

    A frame that shows part of an entity which does not count as visible is UNSURE.
    """
    frames, words = len(record.video), len(NAMES)
    centers = np.zeros((frames, words, 2), np.float32)
    state = np.full((frames, words), ABSENT, np.int32)
    for entity in record.entities:
        column = NAMES.index(entity.word)
        centers[:, column] = entity.track
        partly = np.where(entity.mask.any((1, 2)), UNSURE, ABSENT)
        state[:, column] = np.where(entity.visible, PRESENT, partly)
    return Truth(centers, state)


class Reliability(NamedTuple):
    """How well a localizer does on clips with ground truth."""

    error: measure.Estimate  # pixels of the canvas, where center and entity are seen
    absent: measure.Estimate  # share of words of the world rightly called absent
    present: measure.Estimate  # share of visible words rightly called present


def reliability(
    model: Localizer, records: list[Record], videos: list[np.ndarray] | None = None
) -> Reliability:
    """Compares with ground truth; `videos` stand in for the records' own (say, through a VAE)."""
    errors, absent, present = [], [], []
    for position, record in enumerate(records):
        video = record.video if videos is None else videos[position]
        height, width = video.shape[1:3]
        centers, state = truth(record)
        found, seen = locate(model, video, NAMES)
        found, seen = found.transpose(1, 0, 2), seen.T
        gap = measure.to_canvas(found - centers, height, width)
        errors.append(np.linalg.norm(gap, axis=-1)[state == PRESENT].mean())
        absent.append(1.0 - seen[state == ABSENT].mean())
        present.append(seen[state == PRESENT].mean())
    return Reliability(*(measure.mean_estimate(np.array(v)) for v in (errors, absent, present)))
