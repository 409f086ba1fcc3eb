"""The references of a request through the encoders, once and for all: images -> feature files."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from tora2_jax.conditioning import encoding
from tora2_jax.config.model import ModelConfig
from tora2_jax.models.encoders.prior import prior_of
from tora2_jax.models.frozen import FrozenNetworks
from tora2_jax.references.faces import FaceDetector
from tora2_jax.references.feature_files import ReferenceFeatures, save_features
from tora2_jax.request.load import Request
from tora2_jax.types import EncodedReferences, Inputs


def encode_request(
    networks: FrozenNetworks,
    model: ModelConfig,
    tokenizer,
    request: Request,
    detector: FaceDetector | None = None,
    say: Callable[[str], None] = print,
) -> list[list[ReferenceFeatures]]:
    """What the encoders say about every reference of every entity, in the order of the request.

    Args:
        networks: With `dino`, `face` and `object`, as far as the model has them.
        model: Sizes of everything.
        tokenizer: From `text.load_tokenizer`.
        request: From `request.load_request`.
        detector: See `conditioning.request_inputs`.
        say: See `conditioning.request_inputs`.

    Raises:
        RequestError: See `conditioning.request_inputs`.
    """
    inputs = encoding.request_inputs(model, tokenizer, request, detector, say)
    inputs = encoding.batch_inputs([inputs])
    graph, state = nnx.split(networks)

    @jax.jit
    def encode(state, inputs):
        return encoding.encode_references(nnx.merge(graph, state), model, inputs)

    computed = jax.tree.map(np.asarray, encode(state, inputs))
    return [
        split_features(model, computed, inputs, (0, row)) for row in range(len(request.entities))
    ]


def split_features(
    model: ModelConfig, computed: EncodedReferences, inputs: Inputs, place: tuple[int, int]
) -> list[ReferenceFeatures]:
    """The features of one entity's references.

    Args:
        model: Says which prior is whose.
        computed: From `conditioning.encode_references`.
        inputs: What they were computed from, batched.
        place: Row of the batch, and number of the entity.
    """
    kind = "human" if inputs.is_human[place] else "object"
    name = prior_of(model, kind)
    found = []
    for column in np.flatnonzero(inputs.reference_mask[place]):
        at = (*place, column)
        prior = {}
        if inputs.prior_mask[at]:
            own = getattr(computed, name)
            prior = {"prior_tokens": own.tokens[at], "prior_vector": own.vector[at]}
        found.append(ReferenceFeatures(computed.dino[at], **prior, kind=kind))
    return found


def write_features(
    folder: Path, references: list[list[ReferenceFeatures]], suffix: str
) -> list[list[str]]:
    """Writes one file per reference and returns their names, entity by entity.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for row, features in enumerate(references):
        names.append([f"entity{row}_reference{column}{suffix}" for column in range(len(features))])
        for name, reference in zip(names[-1], features, strict=True):
            save_features(folder / name, reference)
    return names
