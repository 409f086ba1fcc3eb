"""Held-out requests of the toy world, and the same with something exchanged."""

from collections.abc import Callable, Iterator

import numpy as np

from tora2_jax.conditioning import without_paths, without_references
from tora2_jax.config import ModelConfig
from tora2_jax.config.world import WorldConfig
from tora2_jax.types import Inputs, Record
from tora2_jax.world.clips import render_clip, render_reference, sample_entity
from tora2_jax.world.entities import Style

WORLD_SEED = 9_000_000  # added to the seed; no training stage uses worlds from here on
CONDITIONS: dict[str, Callable[[Inputs], Inputs]] = {
    "full": lambda inputs: inputs,
    "without_paths": without_paths,
    "without_references": without_references,
    "exchanged_paths": lambda inputs: inputs,
    "exchanged_references": lambda inputs: inputs,
}
_APART = 0.3  # of the frame: least distance of two entities that one word names


def style_of(model: ModelConfig) -> Style:
    """The world that a toy model was trained on."""
    return "bold" if model.name == "toy_bold" else "patterned"


def world_requests(
    model: ModelConfig, count: int, seed: int, one_word: bool = False
) -> list[Record]:
    """Held-out requests: two entities, each with a path and one reference.

    Their words differ, or with `one_word` are the same; then they keep some distance.
    """
    world = WorldConfig(
        seed=WORLD_SEED + seed,
        height=model.height,
        width=model.width,
        frames=model.frames,
        fps=model.fps,
        min_entities=2,
        max_entities=2,
        references=1,
        style=style_of(model),
        repeated_words=1.0 if one_word else 0.0,
    )
    return list(_usable(world, count, _APART if one_word else 0.0))


def _usable(world: WorldConfig, count: int, apart: float) -> Iterator[Record]:
    index, size = 0, np.array([world.width, world.height])
    while count:
        record = render_clip(world, index)
        index += 1
        first, second = record.entities
        gap = np.linalg.norm((first.track - second.track) / size, axis=-1).min()
        if first.visible.any() and second.visible.any() and gap >= apart:
            count -= 1
            yield record


def asked(record: Record, condition: str, number: int, style: Style) -> Record:
    """What is asked for under a condition: the record, or one with something exchanged.

    Args:
        record: Of two entities.
        condition: One of `CONDITIONS`.
        number: Of the request; it draws the identities of exchanged references.
        style: Of the world.
    """
    first, second = record.entities
    if condition == "exchanged_paths":
        pairs = ((first, second), (second, first))
        entities = [
            one._replace(track=other.track, visible=other.visible, mask=other.mask)
            for one, other in pairs
        ]
    elif condition == "exchanged_references":
        entities = [
            entity._replace(images=(_stranger(entity.word, number, row, style),))
            for row, entity in enumerate(record.entities)
        ]
    else:
        return record
    return record._replace(entities=tuple(entities))


def _stranger(word: str, number: int, row: int, style: Style) -> np.ndarray:
    seed = (WORLD_SEED, 1, number, row)
    return render_reference(sample_entity(seed, word, style), np.random.default_rng(seed))
