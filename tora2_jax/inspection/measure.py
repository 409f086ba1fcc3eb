"""Looks into the model while it does what it does for a sampler: numbers for `views`.

Nothing is computed a second way. Attention weights come from the model's own attention, given
one-hot rows as values; what an entity adds in a cross-attention, from that attention with the
values of all others at zero.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from tora2_jax import conditioning, diffusion
from tora2_jax import text as text_room
from tora2_jax.conditioning import references
from tora2_jax.inspection.steps import WAYS, Passing, look_at_steps
from tora2_jax.inspection.views import (
    BindingView,
    BlocksView,
    ChangeView,
    EffectView,
    EntityView,
    Inspection,
    PathView,
    Retrieval,
    WordView,
    Zeros,
    modality_slices,
)
from tora2_jax.models.binding import BindingDetails, BoundEntities, GatedBinding
from tora2_jax.models.layers.basic import flat_variables
from tora2_jax.models.tora2 import Encoded, Tora2
from tora2_jax.request import Request, load_requests
from tora2_jax.request.notes import request_notes
from tora2_jax.sampling.pipeline import Tora2Pipeline
from tora2_jax.trajectory import points
from tora2_jax.types import BoundConditions, Conditions, ContrastEmbeddings, Inputs

STEPS = 10  # of DDIM, some of which are looked at
_LOG = logging.getLogger(__name__)
_SMALL = 1e-12


class Binding(NamedTuple):
    """What the binder is given, makes of it, and how."""

    encoded: Encoded
    bound: BoundEntities
    details: BindingDetails | None
    map_change: Float[Array, "b e t u"] | None  # W_out of the change of m
    # Before and after; None for a model that was trained without the contrastive loss.
    contrast: tuple[ContrastEmbeddings, ContrastEmbeddings] | None


class Looked(NamedTuple):
    """All that is taken from the model; what it has no part for is None."""

    binding: Binding | None
    passings: list[Passing]
    zeros: Zeros


def inspect(
    pipeline: Tora2Pipeline,
    request: Request,
    name: str,
    checkpoint: str,
    *,
    seed: int = 0,
    steps: int = STEPS,
) -> Inspection:
    """Looks at every entity of a checked request.

    Args:
        pipeline: the model with its frozen networks.
        request: from `pipeline.prepare` or `request.load_request`.
        name: of the request, for titles.
        checkpoint: its name, for titles.
        seed: of the noise that the cross-attentions are looked at with.
        steps: DDIM steps (without guidance), some of which are looked at.

    Raises:
        RequestError: the request does not fit the model.
    """
    config, tokenizer = pipeline.config, pipeline.tokenizer
    (request,) = load_requests([request], config, tokenizer, names=[name])
    for note in request_notes(request, config, tokenizer):
        _LOG.warning(f"{name}: {note}")
    prepared = references.prepare_request(config, request, pipeline.detector)
    inputs = conditioning.batch_inputs(
        [conditioning.request_inputs(config, tokenizer, request, prepared=prepared)]
    )
    model = pipeline.model
    conditions = pipeline.conditions(inputs)
    binding, bound = look_at_entities(model, conditions)
    passings = []
    if bound.keys_values is not None:
        shape = pipeline.latent_shape(*inputs.flow_video.shape[:4])
        table = diffusion.step_coefficients(pipeline.config.diffusion, steps, "ddim")
        noise = diffusion.step_noise(jax.random.key(seed), 0, shape[1:])[None]
        places = [_place(inputs, index) for index in range(len(request.entities))]
        passings = look_at_steps(model, conditions, bound, noise, table, places)
    looked = Looked(jax.device_get(binding), passings, untrained(model))
    return assemble(pipeline, request, prepared, inputs, looked, (name, checkpoint))


@nnx.jit
def look_at_entities(
    model: Tora2, conditions: Conditions
) -> tuple[Binding | None, BoundConditions]:
    """The binder's way from its inputs to its outputs, and what the transformer reads of it."""
    bound = model.bind(conditions).conditions
    if model.binder is None:
        return None, bound
    return look_at_binding(model, conditions), bound


def look_at_binding(model: Tora2, conditions: Conditions) -> Binding:
    """What the binder is given, makes of it, and how."""
    encoded, binder = model.encode(conditions), model.binder
    bound = binder(*encoded, conditions)
    details, change = binder.details(*encoded, conditions), None
    if isinstance(binder.binding, GatedBinding):
        change = binder.binding.to_map(bound.motion_tokens - bound.motion_tokens_before)
    pairs = (
        (bound.personalization_before, bound.motion_tokens_before),
        (bound.personalization, bound.motion_tokens),
    )
    contrast = None
    if binder.contrast_on != "none":
        contrast = tuple(
            binder.contrast_embeddings(p, bound.personalization_mask, m, conditions.on)
            for p, m in pairs
        )
    return Binding(encoded, bound, details, change, contrast)


def assemble(
    pipeline: Tora2Pipeline,
    request: Request,
    prepared: Sequence[references.PreparedEntity],
    inputs: Inputs,
    looked: Looked,
    names: tuple[str, str],
) -> Inspection:
    """Arrays of all entities -> one view per entity. `names` are of the request and checkpoint."""
    config, (binding, passings, zeros) = pipeline.config, looked
    views = []
    for index, entity in enumerate(request.entities):
        path = _path_view(config, request, inputs, index)
        views.append(
            EntityView(
                index=index,
                word=entity.word,
                requested=entity.kind,
                prepared=prepared[index],
                references=tuple(references.load_references(entity)),
                names=tuple(image.name for image in entity.images),
                reference_mask=np.asarray(inputs.reference_mask[0, index]),
                prior_mask=np.asarray(inputs.prior_mask[0, index]),
                word_tokens=_word_view(pipeline, request, inputs, index),
                path=path,
                still=entity.points is not None and points.is_still(entity.points),
                change=None if binding is None else _change(binding, path, index),
                binding=_binding_view(config, binding, index),
                blocks=tuple(
                    _blocks_view(config, passing, path, index, len(request.entities))
                    for passing in passings
                ),
                effect=_effect(passings, index),
            )
        )
    retrieval = _retrieval(binding, len(views))
    flow = None if config.motion is None else _strongest(inputs.flow_video[0])
    return Inspection(*names, config, request, tuple(views), retrieval, zeros, flow)


def _word_view(pipeline: Tora2Pipeline, request: Request, inputs: Inputs, index: int) -> WordView:
    tokenizer, prompt = pipeline.tokenizer, request.prompt
    pieces = [piece.spelled for piece in tokenizer.pieces(prompt)]
    span, unlimited = request.entities[index].span, len(pieces) + 2
    spelled = text_room.word_tokens(tokenizer, prompt, span, unlimited, unlimited)
    mask = np.asarray(inputs.word_mask[0, index])
    kept = np.asarray(inputs.word_index[0, index])[mask]
    return WordView(
        tuple(pieces),
        pipeline.config.transformer.max_text_length - 1,
        tuple(spelled or ()),
        tuple(kept.tolist()),
        mask.size,
    )


def _path_view(config, request: Request, inputs: Inputs, index: int) -> PathView:
    track, visible = conditioning.request_track(request.entities[index], request, config)
    frames = points.token_frames(
        len(track), config.transformer.patch_size_t or 1, config.vae.temporal_compression
    )
    fields = (inputs.splat, inputs.path, inputs.on)
    return PathView(track, visible, *(np.asarray(part[0, index]) for part in fields), frames)


def _binding_view(config, binding: Binding | None, index: int) -> BindingView | None:
    if binding is None or binding.details is None:
        return None
    details, bound = binding.details, binding.bound
    attention, mask = details.attention[0, index].mean(0), details.mask[0, index]
    q, t = bound.personalization.shape[2], bound.motion_tokens.shape[2]
    counts = (q, t, mask.size - q - t)
    return BindingView(
        attention,
        mask,
        counts,
        summary(attention, mask, counts),
        details.gate_personalization[0, index],
        details.gate_motion[0, index],
        config.binding.gate == "tanh",
    )


def summary(
    attention: Float[np.ndarray, "n n"], mask: Bool[np.ndarray, " n"], counts: tuple[int, int, int]
) -> Float[np.ndarray, "3 3"]:
    """How much of its attention a modality gives to each, mean over its tokens that are there."""
    parts = modality_slices(counts)
    table = np.full((3, 3), np.nan)
    for row, looking in enumerate(parts):
        there = attention[looking][mask[looking]]
        if len(there):
            table[row] = [there[:, seen].sum(-1).mean() for seen in parts]
    return table


def _change(binding: Binding, path: PathView, index: int) -> ChangeView:
    bound = jax.tree.map(lambda values: np.asarray(values, np.float32), binding.bound)
    p, m = bound.personalization_before[0, index], bound.motion_tokens_before[0, index]
    ratio_p = _ratio(np.linalg.norm(bound.personalization[0, index] - p), np.linalg.norm(p))
    ratio_m = _ratio(np.linalg.norm(bound.motion_tokens[0, index] - m), np.linalg.norm(m))
    if binding.map_change is None or not path.on.any():
        return ChangeView(ratio_p, ratio_m, np.nan, np.nan)
    # The entity's share of the change is splat x W_out(change of m), so its norm factors.
    change = np.linalg.norm(binding.map_change[0, index], axis=-1)
    spread = np.linalg.norm(np.linalg.norm(path.splat, axis=(1, 2)) * change)
    motion_map = np.asarray(binding.encoded.motion_map[0], np.float32)
    here = np.linalg.norm(motion_map * path.splat[..., None])
    whole = np.linalg.norm(motion_map)
    return ChangeView(ratio_p, ratio_m, _ratio(spread, whole), _ratio(spread, here))


def _ratio(change: float | np.floating, whole: float | np.floating) -> float:
    return float(change / whole) if whole > _SMALL else float("nan")


def _blocks_view(config, passing: Passing, path: PathView, index: int, count: int) -> BlocksView:
    share, added = (np.asarray(part[:, 0], np.float32) for part in passing.influence)
    weights = path.splat.reshape(-1)
    own, total = share[..., index], weights.sum()
    here = np.full(len(share), np.nan)
    share_here = own @ weights / total if total > 0 else here
    added_here = added[..., index] @ weights / total if total > 0 else here
    every = config.personalization.every_k
    return BlocksView(
        timestep=passing.timestep,
        blocks=tuple(range(0, config.transformer.num_layers, every)),
        shares=share[..., :count].mean(1),
        share_here=share_here,
        added=added[..., index].mean(1),
        added_here=added_here,
        where=own.mean(0).reshape(path.splat.shape),
    )


def _place(inputs: Inputs, index: int) -> Float[np.ndarray, "t h w"] | None:
    """Where an entity with references is: all over the video, if it has no path."""
    if not inputs.reference_mask[0, index].any():
        return None
    splat = np.asarray(inputs.splat[0, index], np.float32)
    return splat if splat.any() else np.ones_like(splat)


def _effect(passings: list[Passing], index: int) -> EffectView | None:
    if not passings or np.isnan(passings[0].effect["both"][index]):
        return None
    return EffectView(
        tuple(passing.timestep for passing in passings),
        *(np.array([passing.effect[way][index] for passing in passings]) for way in WAYS),
    )


def _retrieval(binding: Binding | None, count: int) -> Retrieval | None:
    if binding is None or binding.contrast is None:
        return None
    before, after = (
        np.asarray(side.personalization[0] @ side.motion[0].T)[:count, :count]
        for side in binding.contrast
    )
    return Retrieval(before, after, np.asarray(binding.contrast[0].takes_part[0])[:count])


def _strongest(flow: Float[np.ndarray, "f height width 3"]) -> Float[np.ndarray, "height width 3"]:
    """All frames of a flow clip in one: at every place the color farthest from white."""
    strongest = np.abs(1 - flow).sum(-1).argmax(0)
    picture = np.take_along_axis(flow, strongest[None, ..., None], 0)[0]
    return picture / 2 + 0.5


def untrained(model: Tora2) -> Zeros:
    """Which of the maps that training starts at zero are still zero."""
    variables = flat_variables(model)

    def zero(*names: str) -> bool | None:
        found = [variables[name] for name in names if name in variables]
        return not any(bool(jnp.any(values)) for values in found) if found else None

    fuser = "transformer.blocks.fuser.{}_temporal.kernel"
    return Zeros(
        zero("transformer.cross_attention.output.kernel"),
        zero("binder.binding.to_map.kernel"),
        zero(fuser.format("gamma"), fuser.format("beta")),
    )
