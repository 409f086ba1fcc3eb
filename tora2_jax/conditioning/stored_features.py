"""Features of references that come from files: into `Inputs`, and beside what the encoders say.

A reference from a file takes part exactly as one from an image: its slot has the same masks, and
after the encoders its features stand where theirs would.
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from tora2_jax.config.model import ModelConfig
from tora2_jax.models.encoders.prior import prior_configs, prior_of, prior_sizes, stored_priors
from tora2_jax.references.feature_files import ReferenceFeatures, dino_shape
from tora2_jax.types import Array, Inputs, Kind, StoredFeatures


def shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The features of one reference, as `StoredFeatures` and `Conditions` name them."""
    found: dict[str, tuple[int, ...]] = {"dino": dino_shape(model)}
    for name, config in prior_configs(model).items():
        sizes = prior_sizes(config)
        found[f"{name}_tokens"] = (sizes.tokens, sizes.width)
        found[f"{name}_vector"] = (sizes.vector_width,)
    return found


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
    slots = (model.max_entities, model.max_references)
    given = np.zeros(slots, bool)
    arrays = {name: np.zeros((*slots, *shape), np.float32) for name, shape in shapes(model).items()}
    for row, (kind, images, references) in enumerate(entities):
        prior = prior_of(model, kind)
        for column, features in enumerate(references, start=images):
            given[row, column] = True
            arrays["dino"][row, column] = features.dino
            if features.prior_tokens is not None:
                arrays[f"{prior}_tokens"][row, column] = features.prior_tokens
                arrays[f"{prior}_vector"][row, column] = features.prior_vector
    return StoredFeatures(given, **arrays)


def with_stored(
    computed: Mapping[str, Array | None], model: ModelConfig, inputs: Inputs
) -> dict[str, Array | None]:
    """Features of all references: those of files where there are any, else the encoders'.

    Args:
        computed: By name, as in `shapes`; None where there is no network.
        model: Says which priors have none; theirs are zeros where no file brings them.
        inputs: Batched.
    """
    found = dict(computed)
    if model.personalization is None:
        return found
    slots = inputs.reference_mask.shape
    for name in stored_priors(model):
        for part in (f"{name}_tokens", f"{name}_vector"):
            found[part] = jnp.zeros((*slots, *shapes(model)[part]), jnp.float32)
    if inputs.stored is None:
        return found
    for name, values in found.items():
        if values is not None:
            mask = _places(name, model, inputs).reshape(slots + (1,) * (values.ndim - 3))
            stored = jnp.asarray(getattr(inputs.stored, name)).astype(values.dtype)
            found[name] = jnp.where(mask, stored, values)
    return found


def _places(name: str, model: ModelConfig, inputs: Inputs) -> Array:
    """The references `[b, e, r]` whose features of that name a file brings."""
    if name == "dino":
        return inputs.stored.given
    face = inputs.is_human & (prior_of(model, "human") == "face")
    own = face if name.startswith("face") else ~face
    return inputs.stored.given & inputs.prior_mask & own[..., None]
