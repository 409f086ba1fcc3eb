"""The references of entities as the encoders read them, padded to what a model takes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tora2_jax.config import ModelConfig
from tora2_jax.references import FaceDetector, PreparedReference, prepare
from tora2_jax.types import Kind


class PreparedEntity(NamedTuple):
    """What the encoders see of one entity."""

    kind: Kind
    references: tuple[PreparedReference, ...]


def prepare_entity(
    model: ModelConfig,
    kind: Kind,
    images: Sequence[np.ndarray],
    detector: FaceDetector | None = None,
) -> PreparedEntity:
    """Every reference of an entity, ready for the encoders.

    Args:
        model: Sizes of the encoders and the way faces are found.
        kind: Whether the prior is a face or an object.
        images: RGBA references, at most `model.max_references`.
        detector: Finds faces where `model.face_detector` needs a network.

    Raises:
        ValueError: There are too many images; see also `references.prepare`.
    """
    if len(images) > model.max_references:
        raise ValueError(
            f"an entity has {len(images)} reference images; {model.name} takes at most "
            f"{model.max_references}"
        )
    references = tuple(prepare(image, kind, model, detector) for image in images)
    return PreparedEntity(kind, references)


def reference_arrays(
    model: ModelConfig, entities: Sequence[PreparedEntity]
) -> dict[str, np.ndarray]:
    """The fields of `Inputs` that come from references, unbatched; absent ones are zero."""
    shape = (model.max_entities, model.max_references)
    sides = {name: getattr(model, name).image_size for name in ("dino", "face", "object")}
    images = {name: np.zeros((*shape, side, side, 3), np.float32) for name, side in sides.items()}
    reference_mask, prior_mask = np.zeros(shape, bool), np.zeros(shape, bool)
    is_human = np.zeros(shape[0], bool)
    for row, entity in enumerate(entities):
        is_human[row] = entity.kind == "human"
        for column, prepared in enumerate(entity.references):
            for name, array in images.items():
                array[row, column] = getattr(prepared, name)
            reference_mask[row, column] = True
            prior_mask[row, column] = prepared.has_prior
    return {
        "is_human": is_human,
        "reference_mask": reference_mask,
        "prior_mask": prior_mask,
        **{f"{name}_images": array for name, array in images.items()},
    }
