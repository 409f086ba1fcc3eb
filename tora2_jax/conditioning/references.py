"""The references of entities as the encoders read them, padded to what a model takes.

`prepare_request` is the one place where a request's pictures are read, its faces found and its
open kinds decided; `PreparedEntity` says how.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tora2_jax.conditioning.stored_features import stored_arrays
from tora2_jax.config.model import ModelConfig
from tora2_jax.media.image_file import load_image, load_mask
from tora2_jax.models.encoders.prior import prior_of, stored_priors
from tora2_jax.references.crops import (
    FaceSearch,
    PreparedReference,
    Reference,
    find_face,
    prepare,
    with_mask,
)
from tora2_jax.references.faces import GET_FACE_MODELS, FaceChoiceError, FaceDetector, is_landmarks
from tora2_jax.references.feature_files import FeatureFileError, ReferenceFeatures, load_fitting
from tora2_jax.references.kinds import kind_of_word
from tora2_jax.request.reader import EntityRequest, Request, RequestedKind, RequestError
from tora2_jax.types import Kind


class PreparedEntity(NamedTuple):
    """What the encoders see of one entity."""

    kind: Kind
    references: tuple[PreparedReference, ...]  # each with its face search
    notes: tuple[str, ...] = ()  # what was decided here, in words
    features: tuple[ReferenceFeatures, ...] = ()  # of more references, which files bring


def prepare_entity(
    model: ModelConfig,
    kind: RequestedKind,
    references: Sequence[Reference],
    detector: FaceDetector | None = None,
    word: str = "",
) -> PreparedEntity:
    """Every reference of an entity, ready for the encoders.

    Args:
        model: Sizes of the encoders and the way faces are found.
        kind: Whether the prior is a face or an object; `auto` is human if any has a face.
        references: At most `model.max_references`.
        detector: Finds faces where `model.face_detector` needs a network.
        word: Decides an open kind where no face is sought.

    Raises:
        RequestError: There are too many references, or a chosen face is not there.
        ValueError: See `references.prepare`.
    """
    if len(references) > model.max_references:
        raise RequestError(
            [
                f"images: {len(references)} are too many; {model.name} takes at most "
                f"{model.max_references} per entity"
            ]
        )
    searches: list[FaceSearch | None] = [None] * len(references)
    seeks = model.face_detector == "insightface" and "face" not in stored_priors(model)
    by_hand = any(is_landmarks(reference.face) for reference in references)
    if kind == "auto" and (seeks or by_hand or detector is not None):
        searches = _find_faces(references, detector, may_lack=detector is None)
    elif kind == "human" and seeks:
        searches = _find_faces(references, detector)
    decided, notes = _decide(kind, searches, None if detector else word)
    prepared = [
        prepare(
            reference.image,
            decided,
            model,
            box=reference.box,
            face=reference.face,
            search=search,
        )
        for reference, search in zip(references, searches, strict=True)
    ]
    return PreparedEntity(decided, tuple(prepared), tuple(notes))


def _find_faces(
    references: Sequence[Reference], detector: FaceDetector | None, may_lack: bool = False
) -> list[FaceSearch | None]:
    """The face of every reference; with `may_lack` those that need a detector have none."""
    searches, problems = [], []
    for index, reference in enumerate(references):
        if may_lack and reference.face is None:
            searches.append(FaceSearch(None, (), None, "there are no face models to look for one"))
            continue
        try:
            searches.append(find_face(reference, detector))
        except FaceChoiceError as error:
            problems.append(f"faces[{index}]: {error}")
    if problems:
        raise RequestError(problems)
    return searches


def _decide(
    kind: RequestedKind, searches: list[FaceSearch | None], word: str | None
) -> tuple[Kind, list[str]]:
    """The kind, and what there is to say about it and about the faces.

    `word` decides an open kind if no face was found; None: all were looked for.
    """
    seen = [index for index, found in enumerate(searches) if found and found.landmarks is not None]
    if kind != "auto":
        decided, notes = kind, []
    elif seen:
        decided, notes = "human", [f"taken as human, for the face in images[{seen[0]}]"]
    elif word is not None:
        decided = kind_of_word(word)
        notes = [f'taken as {decided}, for its word; "kind" says it otherwise']
    else:
        decided, notes = "object", ["taken as object, for no face was found"] if searches else []
    if decided == "human":
        for index, found in enumerate(searches):
            if found is not None and found.landmarks is None:
                notes.append(f"images[{index}]: {found.said}; only its DINO tokens are used")
            elif found is not None and len(found.faces) > 1:
                notes.append(f"images[{index}]: {found.said}")
    return decided, notes


def prepare_request(
    model: ModelConfig, request: Request, detector: FaceDetector | None = None
) -> list[PreparedEntity]:
    """The references of every entity of a checked request.

    Raises:
        RequestError: Lists every reference that needs face models without there being any, and
            every chosen face that is not there.
        FaceModelError: The face models cannot be used.
    """
    problems = face_problems(model, request, detector is not None)
    if problems:
        raise RequestError(problems)
    prepared = []
    for index, entity in enumerate(request.entities):
        try:
            appearance = _appearance(model, entity, detector)
            features = load_fitting(entity.features, appearance.kind, model)
            prepared.append(appearance._replace(features=features))
        except (RequestError, FeatureFileError) as error:
            problems += [f"entities[{index}].{problem}" for problem in error.problems]
    if problems:
        raise RequestError(problems)
    return prepared


def _appearance(
    model: ModelConfig, entity: EntityRequest, detector: FaceDetector | None
) -> PreparedEntity:
    """An entity's images; without any, its word decides an open kind, which features need."""
    if entity.images:
        references = load_references(entity)
        return prepare_entity(model, entity.kind, references, detector, entity.word)
    decided = prepare_entity(model, entity.kind, (), word=entity.word)
    return decided if entity.features else decided._replace(notes=())


def load_references(entity: EntityRequest) -> tuple[Reference, ...]:
    """The pictures of an entity, with their masks in the alpha channel.

    Raises:
        ValueError: A file cannot be read, or a mask does not fit its picture.
    """
    references = []
    for index, path in enumerate(entity.images):
        image, mask = load_image(path), _at(entity.masks, index)
        if mask is not None:
            image = with_mask(image, load_mask(mask))
        references.append(Reference(image, _at(entity.boxes, index), _at(entity.faces, index)))
    return tuple(references)


def _at(values: Sequence, index: int):
    """What is given for an image; nothing is given for any if there are no values."""
    return values[index] if values else None


def face_problems(model: ModelConfig, request: Request, has_detector: bool) -> list[str]:
    """What of a request cannot be prepared because there are no face models."""
    if has_detector:
        return []
    problems = []
    for index, entity in enumerate(request.entities):
        chosen = [face for face in entity.faces if face is not None and not is_landmarks(face)]
        by_hand = entity.faces and all(map(is_landmarks, entity.faces))
        needless = entity.kind == "human" and "face" in stored_priors(model)
        if not entity.images or entity.kind == "object" or by_hand or needless:
            continue
        if model.face_detector == "insightface" and (chosen or entity.kind == "human"):
            face = "chosen face" if chosen else "face"
            problems.append(f"entities[{index}].kind: there are no face models to find the {face}")
    if problems and model.face_detector == "insightface":
        problems.append(
            f"face models: {GET_FACE_MODELS}. Without them, give the five landmarks of every face "
            'in "faces", or leave "kind" out to do without faces'
        )
    return problems


def reference_arrays(
    model: ModelConfig, entities: Sequence[PreparedEntity]
) -> dict[str, np.ndarray]:
    """The fields of `Inputs` that come from references, unbatched; absent ones are zero."""
    shape = (model.max_entities, model.max_references)
    sizes = {name: (getattr(model, name).image_size,) * 2 for name in ("dino", "face")}
    sizes["object"] = model.object.image_shape
    images = {name: np.zeros((*shape, *size, 3), np.float32) for name, size in sizes.items()}
    reference_mask, prior_mask = np.zeros(shape, bool), np.zeros(shape, bool)
    is_human = np.zeros(shape[0], bool)
    for row, entity in enumerate(entities):
        is_human[row] = entity.kind == "human"
        only_stored = prior_of(model, entity.kind) in stored_priors(model)
        for column, prepared in enumerate(entity.references):
            for name, array in images.items():
                array[row, column] = getattr(prepared, name)
            reference_mask[row, column] = True
            prior_mask[row, column] = prepared.has_prior and not only_stored
        for column, features in enumerate(entity.features, start=len(entity.references)):
            reference_mask[row, column] = True
            prior_mask[row, column] = features.prior_tokens is not None
    stored = [(entity.kind, len(entity.references), entity.features) for entity in entities]
    return {
        "is_human": is_human,
        "reference_mask": reference_mask,
        "prior_mask": prior_mask,
        "stored": stored_arrays(model, stored),
        **{f"{name}_images": array for name, array in images.items()},
    }
