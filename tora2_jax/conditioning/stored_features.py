"""Features of references that come from files: into `Inputs`, and beside what the encoders say.

A reference from a file takes part exactly as one from an image: its slot has the same masks, and
after the encoders its features stand where theirs would.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tora2_jax.config.model import ModelConfig
from tora2_jax.models.encoders.prior import prior_configs, prior_of, prior_sizes, stored_priors
from tora2_jax.references.feature_files import ReferenceFeatures, dino_shape
from tora2_jax.types import (
    Array,
    EncodedReferences,
    Inputs,
    Kind,
    PriorFeatures,
    StoredFeatures,
)


class Sizes(NamedTuple):
    """Shapes of the features of one reference."""

    dino: tuple[int, ...]
    priors: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # tokens and vector


def shapes(model: ModelConfig) -> Sizes:
    """The features of one reference, of all priors."""
    priors = {name: prior_sizes(config) for name, config in prior_configs(model).items()}
    return Sizes(
        dino_shape(model),
        {name: ((own.tokens, own.width), (own.vector_width,)) for name, own in priors.items()},
    )


def stored_arrays(
    model: ModelConfig,
    entities: Sequence[tuple[Kind, int, Sequence[ReferenceFeatures]]],
) -> StoredFeatures | None:
    """The features of all entities, unbatched; None if no entity has any.

    Args:
        model: Sizes and maxima.
        entities: Kind, how many images it has besides, and features, which stand behind them.
    """
    if not any(features for _, _, features in entities):
        return None
    slots, sizes = (model.max_entities, model.max_references), shapes(model)
    given = np.zeros(slots, bool)
    dino = np.zeros((*slots, *sizes.dino), np.float32)
    priors = {
        name: PriorFeatures(*(np.zeros((*slots, *shape), np.float32) for shape in own))
        for name, own in sizes.priors.items()
    }
    for row, (kind, images, references) in enumerate(entities):
        prior = priors[prior_of(model, kind)]
        for column, features in enumerate(references, start=images):
            given[row, column] = True
            dino[row, column] = features.dino
            if features.prior_tokens is not None:
                prior.tokens[row, column] = features.prior_tokens
                prior.vector[row, column] = features.prior_vector
    return StoredFeatures(given, EncodedReferences(dino, **priors))


def with_stored(
    computed: EncodedReferences, model: ModelConfig, inputs: Inputs
) -> EncodedReferences:
    """Features of all references: those of files where there are any, else the encoders'.

    Args:
        computed: None where there is no network.
        model: Says which priors have none; theirs are zeros where no file brings them.
        inputs: Batched.
    """
    if model.personalization is None:
        return computed
    found = computed._asdict()
    slots, sizes = inputs.reference_mask.shape, shapes(model)
    for name in stored_priors(model):
        zeros = (jnp.zeros((*slots, *shape), jnp.float32) for shape in sizes.priors[name])
        found[name] = PriorFeatures(*zeros)
    if inputs.stored is None:
        return EncodedReferences(**found)
    stored = inputs.stored.features._asdict()
    for name, values in found.items():
        if values is not None:
            choose = partial(_chosen, _places(name, model, inputs))
            found[name] = jax.tree.map(choose, stored[name], values)
    return EncodedReferences(**found)


def _chosen(places: Array, stored: Array, computed: Array) -> Array:
    """What is stored for those places `[b, e, r]`, else what was computed."""
    mask = places.reshape(places.shape + (1,) * (computed.ndim - 3))
    return jnp.where(mask, jnp.asarray(stored).astype(computed.dtype), computed)


def _places(name: str, model: ModelConfig, inputs: Inputs) -> Array:
    """The references `[b, e, r]` whose features of that network a file brings."""
    if name == "dino":
        return inputs.stored.given
    face = inputs.is_human & (prior_of(model, "human") == "face")
    own = face if name == "face" else ~face
    return inputs.stored.given & inputs.prior_mask & own[..., None]
