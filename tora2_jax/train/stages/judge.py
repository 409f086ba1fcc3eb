"""Stage `judge`: the bench's network that says which reference an entity of a video is from.

Another seed and another architecture than the encoders', so that it does not share their blind
spots.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from tora2_jax.config.train import TrainConfig
from tora2_jax.data.loader import ENDLESS, Source
from tora2_jax.evaluation.bench.judge import reliability, strangers
from tora2_jax.evaluation.bench.networks import (
    JUDGE_SIDE,
    NAMES,
    Judge,
    crops_around,
    degrade,
    white_square,
)
from tora2_jax.train.stage import Stage
from tora2_jax.train.stages.contrast import TEMPERATURE, contrast, masked_mean
from tora2_jax.train.stages.localizer import HELD_OUT
from tora2_jax.world.clips import render_clip

ENTITIES = 3  # entities of a clip that an example has room for
VIEWS = 2  # frames of a clip in an example
STRANGERS = 3  # fresh identities of the same word beside every entity of an example
JITTER = 2.0  # pixels by which the localizer may miss


def build(config: TrainConfig, rngs: nnx.Rngs) -> Judge:
    """A fresh judge."""
    return Judge(rngs=rngs)


def source(config: TrainConfig) -> Source:
    """Examples, of two frames each.

    `frames [2, height, width, 3]`, `centers [2, entities, 2]`, `visible [2, entities]`,
    `references [entities, 4, side, side, 3]` with the own one first, `word [entities]`.
    """
    return _Clips(config)


class _Clips:
    """Two frames of every clip; every entity with its reference and those of strangers."""

    def __init__(self, config: TrainConfig):
        self.config = config

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record = render_clip(self.config.world, index)
        style = self.config.world.style
        rng = np.random.default_rng((self.config.seed, index))
        chosen = rng.choice(len(record.video), VIEWS, replace=False)
        centers = np.zeros((VIEWS, ENTITIES, 2), np.float32)
        visible = np.zeros((VIEWS, ENTITIES), bool)
        side = (JUDGE_SIDE, JUDGE_SIDE, 3)
        references = np.ones((ENTITIES, 1 + STRANGERS, *side), np.float32)
        word = np.zeros(ENTITIES, np.int32)
        for row, entity in enumerate(record.entities[:ENTITIES]):
            if not entity.images:
                continue
            centers[:, row], visible[:, row] = entity.track[chosen], entity.visible[chosen]
            own = entity.images[rng.integers(len(entity.images))]
            references[row, 0] = white_square(own)
            seed = (self.config.seed, index, row)
            references[row, 1:] = strangers(seed, entity.word, STRANGERS, style)
            word[row] = NAMES.index(entity.word)
        return {
            "frames": record.video[chosen],
            "centers": centers,
            "visible": visible,
            "references": references,
            "word": word,
        }


def loss(
    config: TrainConfig, model: Judge, batch: dict[str, Array], key: Array
) -> tuple[Array, dict[str, Array]]:
    """Crop and reference of one entity find each other, among strangers and the whole batch."""
    crops, visible = _training_crops(batch, key)
    references, word = batch["references"], batch["word"].reshape(-1)
    key = jax.random.fold_in(key, 1)
    images = degrade(references.reshape(-1, *references.shape[3:]), key)
    reference = model.embed_references(images)
    reference = reference.reshape(len(word), 1 + STRANGERS, -1)
    own = reference[:, 0]
    total, among, hits = 0.0, 0.0, 0.0
    for view in range(VIEWS):
        crop = model.embed_crops(crops[:, view])
        batch_loss, _ = contrast(crop, own, word, visible[:, view])
        logits = jnp.einsum("bd,bsd->bs", crop, reference) / TEMPERATURE
        stranger_loss = -jax.nn.log_softmax(logits)[:, 0]
        among += masked_mean(stranger_loss, visible[:, view]) / VIEWS
        right = jnp.argmax(logits, axis=-1) == 0
        hits += masked_mean(right, visible[:, view]) / VIEWS
        total += batch_loss / VIEWS
    return total + among, {"batch": total, "strangers": among, "right": hits}


def _training_crops(
    batch: dict[str, Array], key: Array
) -> tuple[Float[Array, "n views side side 3"], Bool[Array, "n views"]]:
    """Degraded frames, cut around centers that are a little off, at slightly different sizes."""
    frames = batch["frames"].astype(jnp.float32) / 255.0
    samples, views = frames.shape[:2]
    fault_key, jitter_key, side_key = jax.random.split(key, 3)
    flat = degrade(frames.reshape(-1, *frames.shape[2:]), fault_key)
    frames = jnp.repeat(flat.reshape(frames.shape)[:, None], ENTITIES, axis=1)
    centers = batch["centers"].transpose(0, 2, 1, 3).reshape(-1, 2)
    centers += jax.random.uniform(jitter_key, centers.shape, jnp.float32, -JITTER, JITTER)
    side = jax.random.uniform(side_key, centers.shape[:1], jnp.float32, 40.0, 44.0)
    crops = crops_around(frames.reshape(-1, *frames.shape[3:]), centers, side)
    visible = batch["visible"].transpose(0, 2, 1).reshape(-1, views)
    return crops.reshape(samples * ENTITIES, views, *crops.shape[1:]), visible


def finish(config: TrainConfig, model: Judge, clips: int = 64) -> dict[str, float]:
    """Held-out share of own references found among eight of the same word, on clean clips."""
    records = [render_clip(config.world, HELD_OUT + index) for index in range(clips)]
    return {"retrieval": reliability(model, records, style=config.world.style).mean}


STAGE = Stage(build=build, source=source, loss=loss, components={"judge": ".*"}, finish=finish)
