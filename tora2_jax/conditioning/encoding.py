"""From a request or a record to `Conditions`: the one path that training and sampling share.

`*_inputs` turn words, images and points into numbers on the host; `encode` runs the networks.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tora2_jax import text as text_room
from tora2_jax.conditioning.first_frame import encode_first_frame, first_frame
from tora2_jax.conditioning.references import (
    PreparedEntity,
    prepare_entity,
    prepare_request,
    reference_arrays,
)
from tora2_jax.conditioning.stored_features import with_stored
from tora2_jax.config.model import ModelConfig
from tora2_jax.models.frozen import FrozenNetworks
from tora2_jax.parallel import mesh
from tora2_jax.references.crops import Reference
from tora2_jax.references.faces import FaceDetector
from tora2_jax.request.load import EntityRequest, Request, with_defaults
from tora2_jax.trajectory import points
from tora2_jax.types import Array as AnyArray
from tora2_jax.types import Conditions, EncodedReferences, Inputs, Record

_LOG = logging.getLogger(__name__)


class EntityInput(NamedTuple):
    """One entity, ready to become numbers."""

    span: tuple[int, int]  # characters of its word in the caption
    appearance: PreparedEntity
    track: Float[np.ndarray, "f 2"]  # (x, y), continuous pixels
    visible: Bool[np.ndarray, " f"]  # all False: no trajectory


class Tokens(NamedTuple):
    """Caption and words as positions."""

    token_ids: Int[Array, "b l"]
    word_index: Int[Array, "b e s"]
    word_mask: Bool[Array, "b e s"]


def entity_inputs(
    model: ModelConfig,
    tokenizer,
    caption: str,
    entities: Sequence[EntityInput],
    size: tuple[int, int, int],
) -> Inputs:
    """One sample as unbatched `Inputs` (no leading `b`).

    Args:
        model: Sizes of everything; entities and references are padded to its maxima.
        tokenizer: From `text.load_tokenizer`.
        caption: The prompt.
        entities: At most `model.max_entities`.
        size: Frames, height and width in pixels.
    """
    frames, height, width = size
    tracks = np.zeros((model.max_entities, frames, 2), np.float32)
    visible = np.zeros((model.max_entities, frames), bool)
    for index, entity in enumerate(entities):
        tracks[index], visible[index] = entity.track, entity.visible
    splat = points.splat(
        tracks,
        visible,
        model.token_grid(frames, height, width),
        temporal_patch=model.transformer.patch_size_t or 1,
        temporal_compression=model.vae.temporal_compression,
        spatial=model.spatial_multiple,
    )
    length = model.transformer.max_text_length
    return Inputs(
        token_ids=text_room.tokenize(tokenizer, [caption], length)[0],
        flow_video=points.flow_video(tracks, visible, height, width),
        splat=splat.map,
        path=splat.path,
        on=splat.on,
        **_word_inputs(model, tokenizer, caption, entities),
        **reference_arrays(model, [entity.appearance for entity in entities]),
    )


def _word_inputs(model: ModelConfig, tokenizer, caption: str, entities) -> dict[str, np.ndarray]:
    shape = (model.max_entities, model.binding.word_tokens)
    index, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
    length = model.transformer.max_text_length
    for row, entity in enumerate(entities):
        found = text_room.word_tokens(tokenizer, caption, entity.span, length, shape[1])
        if found is not None:
            index[row, : len(found)], mask[row, : len(found)] = found, True
    return {"word_index": index, "word_mask": mask}


def record_inputs(
    model: ModelConfig, tokenizer, record: Record, detector: FaceDetector | None = None
) -> Inputs:
    """Unbatched `Inputs` of a record; paths that the record withholds are withheld here too.

    `detector` finds faces where `model.face_detector` needs a network.
    """
    entities = [
        EntityInput(
            entity.span,
            prepare_entity(model, entity.kind, list(map(Reference, entity.images)), detector),
            entity.track,
            entity.visible & entity.has_trajectory,
        )
        for entity in record.entities
    ]
    return entity_inputs(model, tokenizer, record.caption, entities, record.video.shape[:3])


def inputs_from_records(
    model: ModelConfig,
    tokenizer,
    records: Sequence[Record],
    detector: FaceDetector | None = None,
) -> Inputs:
    """Batched `Inputs` of records; see `record_inputs`."""
    return batch_inputs([record_inputs(model, tokenizer, record, detector) for record in records])


def request_inputs(
    model: ModelConfig,
    tokenizer,
    request: Request,
    detector: FaceDetector | None = None,
    say: Callable[[str], None] = _LOG.info,
    prepared: Sequence[PreparedEntity] | None = None,
) -> Inputs:
    """Unbatched `Inputs` of a checked request.

    Args:
        model: Sizes of everything.
        tokenizer: From `text.load_tokenizer`.
        request: From `request.load_request`.
        detector: Finds faces where `model.face_detector` needs a network.
        say: Told what was decided: kinds that the request leaves open, and the faces taken.
        prepared: What `prepare_request` has made of it, if it is at hand.

    Raises:
        RequestError: See `references.prepare_request`.
    """
    request = with_defaults(request, model)
    if prepared is None:
        prepared = prepare_request(model, request, detector)
    entities = []
    for index, (entity, appearance) in enumerate(zip(request.entities, prepared, strict=True)):
        for note in appearance.notes:
            say(f'entities[{index}] "{entity.word}": {note}')
        track, visible = request_track(entity, request, model)
        entities.append(EntityInput(entity.span, appearance, track, visible))
    size = (request.frames, request.height, request.width)
    inputs = entity_inputs(model, tokenizer, request.prompt, entities, size)
    if request.image is not None:
        inputs = inputs._replace(image=first_frame(request))
    if request.negative_prompt is not None:
        length = model.transformer.max_text_length
        ids = text_room.tokenize(tokenizer, [request.negative_prompt], length)[0]
        inputs = inputs._replace(negative_ids=ids)
    return inputs


def request_track(
    entity: EntityRequest, request: Request, model: ModelConfig
) -> tuple[Float[np.ndarray, "f 2"], Bool[np.ndarray, " f"]]:
    """Where a request wants an entity, in pixels per frame; nowhere visible without a path."""
    request = with_defaults(request, model)
    if entity.points is None:
        return np.zeros((request.frames, 2), np.float32), np.zeros(request.frames, bool)
    return points.resample(
        entity.points, request.frames, request.width, request.height, request.canvas
    )


def batch_inputs(samples: Sequence[Inputs]) -> Inputs:
    """Stack unbatched inputs along a new leading axis.

    Negative prompts and stored features may lack in some; zeros are none.
    """
    for name in ("negative_ids", "stored"):
        present = [value for sample in samples if (value := getattr(sample, name)) is not None]
        if present:
            none = jax.tree.map(np.zeros_like, present[0])
            samples = [
                sample if getattr(sample, name) is not None else sample._replace(**{name: none})
                for sample in samples
            ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *samples)


def without_paths(inputs: Inputs) -> Inputs:
    """The same request with every trajectory withheld."""
    return inputs._replace(
        flow_video=np.ones_like(inputs.flow_video),
        splat=np.zeros_like(inputs.splat),
        path=np.zeros_like(inputs.path),
        on=np.zeros_like(inputs.on),
    )


def without_references(inputs: Inputs) -> Inputs:
    """The same request with every reference image withheld."""
    names = ("reference_mask", "prior_mask", "dino_images", "face_images", "object_images")
    nothing = {name: np.zeros_like(getattr(inputs, name)) for name in names}
    return inputs._replace(**nothing, stored=jax.tree.map(np.zeros_like, inputs.stored))


def encode_visual(networks: FrozenNetworks, model: ModelConfig, inputs: Inputs) -> Conditions:
    """Everything but the text through the frozen networks; see `with_text`."""
    conditions = Conditions(
        word_mask=inputs.word_mask,
        splat=inputs.splat,
        path=inputs.path,
        on=inputs.on,
        is_human=inputs.is_human,
        reference_mask=inputs.reference_mask,
        prior_mask=inputs.prior_mask,
        **encode_references(networks, model, inputs)._asdict(),
    )
    if networks.motion_vae is not None:
        motion = networks.motion_vae.encode_latents(inputs.flow_video)
        patch_t = model.transformer.patch_size_t or 1
        conditions = conditions._replace(motion_latents=pad_front(motion, patch_t))
    if inputs.image is not None:
        frames, _, _ = model.latent_grid(*inputs.flow_video.shape[1:4])
        image_latents = encode_first_frame(networks.vae, model, inputs.image, frames)
        conditions = conditions._replace(image_latents=image_latents)
    return conditions


def encode_references(
    networks: FrozenNetworks, model: ModelConfig, inputs: Inputs
) -> EncodedReferences:
    """What encoders and feature files say about the references."""

    def features(encoder: Callable | None, images: Float[AnyArray, "b e r height width 3"]) -> Any:
        return None if encoder is None else _each(encoder, images)

    computed = EncodedReferences(
        dino=features(networks.dino, inputs.dino_images),
        face=features(networks.face, inputs.face_images),
        object=features(networks.object, inputs.object_images),
    )
    return with_stored(computed, model, inputs)


def _each(encoder: Callable, images: Float[Array, "b e r height width 3"]) -> Any:
    """An encoder's features of every reference; the references are shared out among devices."""
    features = encoder(mesh.images(images.reshape(-1, *images.shape[3:])))
    return jax.tree.map(lambda array: array.reshape(*images.shape[:3], *array.shape[1:]), features)


def pad_front(
    latents: Float[AnyArray, "b t_lat h w c"], multiple: int
) -> Float[Array, "b t2 h w c"]:
    """Repeat the first latent frame until their number is a multiple (CogVideoX 1.5)."""
    missing = -latents.shape[1] % multiple
    return jnp.concatenate([latents[:, :1]] * missing + [latents], axis=1)


TextEncoder = Callable[..., Array]  # token numbers [b, l] -> states [b, l, text_width]


class TextFeatures(NamedTuple):
    """Captions and words as T5 states."""

    text: Float[Array, "b l text_width"]
    words: Float[Array, "b e s text_width"]
    word_mask: Bool[Array, "b e s"]


def encode_text(encoder: TextEncoder, tokens: Tokens | Inputs) -> TextFeatures:
    """T5 states of the caption, and of each entity's word inside the caption."""
    states = encoder(tokens.token_ids)
    words = jax.vmap(lambda rows, index: rows[index])(states, tokens.word_index)
    words = jnp.where(tokens.word_mask[..., None], words, 0)
    return TextFeatures(states, words, tokens.word_mask)


def null_text(
    encoder: TextEncoder, model: ModelConfig, batch: int
) -> Float[Array, "b l text_width"]:
    """What the transformer is given for a dropped caption: T5 of the empty text, or zeros."""
    length = model.transformer.max_text_length
    if model.null_text == "zeros":
        return jnp.zeros((batch, length, model.text.width), jnp.float32)
    empty = jnp.zeros((1, length), jnp.int32).at[0, 0].set(1)  # </s>, then padding
    return jnp.broadcast_to(encoder(empty), (batch, length, model.text.width))


def unconditional_text(
    encoder: TextEncoder, model: ModelConfig, inputs: Inputs
) -> Float[Array, "b l text_width"]:
    """What guidance leads away from: T5 of the negative prompt, or the null text without one."""
    null = null_text(encoder, model, inputs.token_ids.shape[0])
    if inputs.negative_ids is None:
        return null
    given = (inputs.negative_ids != text_room.PAD_ID).any(-1)  # a text has its end at least
    return jnp.where(given[:, None, None], encoder(inputs.negative_ids), null)


def with_text(conditions: Conditions, text: TextFeatures) -> Conditions:
    """The conditions of `encode_visual` and the text that belongs to them."""
    return conditions._replace(**text._asdict())


def encode(
    networks: FrozenNetworks, text: TextEncoder, model: ModelConfig, inputs: Inputs
) -> Conditions:
    """`Inputs` through the text encoder and every frozen network."""
    return with_text(encode_visual(networks, model, inputs), encode_text(text, inputs))


def keep_references(conditions: Conditions, keep: Bool[Array, "b e"]) -> Conditions:
    """Withhold the references of the entities that are not kept, as a dropped condition."""
    return conditions._replace(
        reference_mask=conditions.reference_mask & keep[..., None],
        prior_mask=conditions.prior_mask & keep[..., None],
    )


def keep_trajectories(conditions: Conditions, keep: Bool[Array, " b"]) -> Conditions:
    """Withhold all trajectories of the samples that are not kept."""

    def kept(values: Array | None) -> Array | None:
        if values is None:
            return None
        return jnp.where(keep.reshape(-1, *[1] * (values.ndim - 1)), values, 0)

    names = ("splat", "path", "motion_latents")
    changed = {name: kept(getattr(conditions, name)) for name in names}
    return conditions._replace(on=conditions.on & keep[:, None, None], **changed)
