"""Which reference an entity of a video is from, as the judge sees it."""

import zlib

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from tora2_jax.evaluation.bench import measure
from tora2_jax.evaluation.bench.networks import CROP_SIDE, Judge, crops_around, white_square
from tora2_jax.types import Record
from tora2_jax.world.clips import render_reference, sample_entity
from tora2_jax.world.entities import Style

CANDIDATES = 8  # references to choose among in a test, the entity's own first


def strangers(
    seed: tuple[int, ...], word: str, count: int, style: Style = "patterned"
) -> Float[np.ndarray, "count side side 3"]:
    """References of fresh identities of a word, as the judge sees them."""
    rng = np.random.default_rng(seed)
    entities = [sample_entity((*seed, member), word, style) for member in range(count)]
    return np.stack([white_square(render_reference(e, rng)) for e in entities])


@nnx.jit
def _scores(
    model: Judge,
    frames: UInt8[Array, "f height width 3"],
    centers: Float[Array, "f 2"],
    references: Float[Array, "candidates side side 3"],
) -> Float[Array, "f candidates"]:
    crops = crops_around(frames.astype(jnp.float32) / 255.0, centers, float(CROP_SIDE))
    return model.embed_crops(crops) @ model.embed_references(references).T


def judge_entity(
    model: Judge,
    video: np.ndarray,
    centers: Float[np.ndarray, "f 2"],
    present: Bool[np.ndarray, " f"],
    references: Float[np.ndarray, "candidates side side 3"],
) -> Float[np.ndarray, "candidates"] | None:
    """Cosine of every candidate with an entity, averaged over the frames that show it.

    Returns None for a video that never shows the entity.
    """
    scores = np.asarray(_scores(model, video, centers, references))
    return scores[present].mean(0) if present.any() else None


def candidates(
    seed: tuple[int, ...], word: str, image: np.ndarray, style: Style = "patterned"
) -> Float[np.ndarray, "candidates side side 3"]:
    """The own reference first, then references of seven fresh identities of the same word."""
    others = strangers(seed, word, CANDIDATES - 1, style)
    return np.concatenate([white_square(image)[None], others])


def reliability(
    model: Judge,
    records: list[Record],
    videos: list[np.ndarray] | None = None,
    seed: int = 0,
    style: Style = "patterned",
) -> measure.Estimate:
    """Share of entities whose own reference wins among eight, at their true places.

    `videos` stand in for the records' own (say, through a VAE).
    """
    right = []
    for position, record in enumerate(records):
        video = record.video if videos is None else videos[position]
        for row, entity in enumerate(record.entities):
            if not entity.images or not entity.visible.any():
                continue
            identity = (seed, zlib.crc32(b"candidates"), position, row)
            options = candidates(identity, entity.word, entity.images[0], style)
            scores = judge_entity(model, video, entity.track, entity.visible, options)
            right.append(measure.found_own(scores))
    return measure.mean_estimate(np.array(right))
