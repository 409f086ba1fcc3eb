"""Stage `localizer`: the bench's network that finds the toy world's words in a frame."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from tora2_jax.config.train import TrainConfig
from tora2_jax.data.loader import ENDLESS
from tora2_jax.evaluation.bench.localizer import Reliability, reliability, truth
from tora2_jax.evaluation.bench.networks import (
    NAMES,
    PRESENT,
    STRIDE,
    UNSURE,
    Localizer,
    cell_centers,
    degrade,
    peak_centers,
    presence,
)
from tora2_jax.train.stage import Stage
from tora2_jax.types import Record
from tora2_jax.world.clips import render_clip

TARGET_SIGMA = 3.0  # pixels; spread of the wanted heat around the center
HELD_OUT = 2_000_000_000  # clip numbers from here on are never trained on


def build(config: TrainConfig, rngs: nnx.Rngs) -> Localizer:
    """A fresh localizer for every word of the world."""
    return Localizer(rngs=rngs)


def word_of_cells(record: Record) -> Int[np.ndarray, "f y x"]:
    """Number of the word that covers most of every cell of the heat map, else the word count."""
    frames, height, width = record.video.shape[:3]
    cells = np.full((frames, height // STRIDE, width // STRIDE), len(NAMES), np.int32)
    for entity in record.entities:
        blocks = entity.mask.reshape(*cells.shape[:2], STRIDE, -1, STRIDE)
        cells[blocks.mean((2, 4)) > 0.5] = NAMES.index(entity.word)
    return cells


class _Frames:
    """Every clip with its truth."""

    def __init__(self, config: TrainConfig):
        self.config = config

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record = render_clip(self.config.world, index)
        centers, state = truth(record)
        cells = word_of_cells(record)
        return {"frames": record.video, "centers": centers, "state": state, "cells": cells}


def source(config: TrainConfig) -> _Frames:
    """Examples: `frames [f, height, width, 3]`, `centers [f, words, 2]`, `state [f, words]` and
    `cells [f, y, x]`.
    """
    return _Frames(config)


def loss(
    config: TrainConfig, model: Localizer, batch: dict[str, Array], key: Array
) -> tuple[Array, dict[str, Array]]:
    """Divergence of the heat map, distance of its mean place, presence, and word of every cell."""
    frames, centers, state, cells = (
        batch[name].reshape(-1, *batch[name].shape[2:])
        for name in ("frames", "centers", "state", "cells")
    )
    heat, evidence = model.maps(degrade(frames.astype(jnp.float32) / 255.0, key))
    shown = presence(heat, evidence)
    present, sure = state == PRESENT, state != UNSURE
    count = jnp.maximum(present.sum(), 1)
    place_loss = jnp.where(present, _place_loss(heat, centers), 0.0).sum() / count
    distance = jnp.linalg.norm(peak_centers(heat) - centers + 1e-6, axis=-1)
    distance_loss = jnp.where(present, jnp.minimum(distance, 8.0), 0.0).sum() / count
    said = present * jax.nn.softplus(-shown) + ~present * jax.nn.softplus(shown)
    presence_loss = jnp.where(sure, said, 0.0).sum() / jnp.maximum(sure.sum(), 1)
    cell_loss = _cell_loss(evidence, cells)
    total = place_loss + 0.2 * distance_loss + 3.0 * presence_loss + 3.0 * cell_loss
    return total, {
        "place": place_loss,
        "presence": presence_loss,
        "cells": cell_loss,
        "pixels": jnp.where(present, distance, 0.0).sum() / count,
        "right": jnp.where(sure, (shown > 0) == present, 0).sum() / jnp.maximum(sure.sum(), 1),
    }


def _place_loss(
    heat: Float[Array, "b y x words"], centers: Float[Array, "b words 2"]
) -> Float[Array, "b words"]:
    """Divergence of the heat map from a Gaussian around the center."""
    batch, rows, columns, words = heat.shape
    places = cell_centers(rows, columns).reshape(-1, 2)
    squared = jnp.sum((places[None, :, None] - centers[:, None]) ** 2, axis=-1)
    wanted = jax.nn.log_softmax(-squared / (2 * TARGET_SIGMA**2), axis=1)
    said = jax.nn.log_softmax(heat.reshape(batch, rows * columns, words), axis=1)
    return jnp.sum(jnp.exp(wanted) * (wanted - said), axis=1)


def _cell_loss(
    evidence: Float[Array, "b y x words"], cells: Int[Array, "b y x"]
) -> Float[Array, ""]:
    """Cross-entropy of the word of every cell, background last; words count as much as it."""
    background = jnp.zeros((*cells.shape, 1), jnp.float32)
    said = jax.nn.log_softmax(jnp.concatenate([evidence, background], axis=-1))
    wrong = -jnp.take_along_axis(said, cells[..., None], axis=-1)[..., 0]
    covered = cells < evidence.shape[-1]
    parts = [jnp.sum(wrong * part) / jnp.maximum(part.sum(), 1) for part in (covered, ~covered)]
    return sum(parts) / 2


def finish(config: TrainConfig, model: Localizer, clips: int = 64) -> dict[str, float]:
    """Held-out numbers on clean clips: error in canvas pixels and shares of right answers."""
    records = [render_clip(config.world, HELD_OUT + index) for index in range(clips)]
    result = reliability(model, records)
    return {name: getattr(result, name).mean for name in Reliability._fields}


STAGE = Stage(build=build, source=source, loss=loss, components={"localizer": ".*"}, finish=finish)
