"""What an inspection's numbers mean for an entity, in sentences; thresholds are ours."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from tora2_jax.inspection.views import EntityView, Inspection
from tora2_jax.references.crops import Reference, visible_box

Level = Literal["problem", "note", "fine"]

_OFTEN = 0.5  # of a fair share of the attention: below, the others drown the entity
_ELSEWHERE = 0.95  # of the attention everywhere: below, it is looked at off its path
_FAINT = 1e-3  # change over value: below, it is as good as nothing
_WEAK = 0.05  # of the velocity where it is: below, little of its looks can arrive
_CLOSED = 0.05  # mean of a gate's factors
_SMALL_PICTURE = 0.5  # of the side that DINO reads
_NEAR = 0.5  # overlap of two splats from which entities are in one place
_EMPTY = "nothing of its looks reaches the model"


class Note(NamedTuple):
    """One line of a diagnosis."""

    level: Level  # problem: this part of the entity cannot act, or is drowned
    text: str


def diagnose(inspection: Inspection, entity: EntityView) -> list[Note]:
    """All there is to say about an entity, in the order of the picture's panels."""
    parts = (_references, _word, _path, _binding, _blocks, _retrieval)
    return [Note(*note) for part in parts for note in part(inspection, entity)]


def _references(inspection: Inspection, entity: EntityView) -> Iterator[tuple[Level, str]]:
    model, prepared = inspection.model, entity.prepared
    if model.personalization is None:
        yield "problem", f"{model.name} takes no references: {_EMPTY}"
        return
    count = int(entity.reference_mask.sum())
    if not count:
        yield "problem", f"no reference: {_EMPTY}"
        return
    for note in prepared.notes:
        yield "note", note
    for name, prior, source, reference in zip(
        entity.names, entity.prior_mask, entity.references, prepared.references, strict=False
    ):
        if not prior:
            lacks_face = prepared.kind == "human" and not reference.has_prior
            reason = "no face found" if lacks_face else "no prior"
            yield "problem", f"{name}: {reason}: prior masked, only DINO tokens remain"
        yield from _size(name, source, len(reference.dino))
    if stored := count - len(prepared.references):
        yield "note", f"features of {stored} more from files: there are no pixels to show"
    if entity.prior_mask[:count].all():
        yield "fine", f"references: {count}, taken as {prepared.kind}"


def _size(name: str, source: Reference, side: int) -> Iterator[tuple[Level, str]]:
    left, top, right, bottom = visible_box(source.image, source.box)
    if max(right - left, bottom - top) < _SMALL_PICTURE * side:
        yield (
            "note",
            f"{name}: the entity is {right - left} x {bottom - top} pixels, enlarged to {side}: "
            "the encoders see a blur",
        )


def _word(inspection: Inspection, entity: EntityView) -> Iterator[tuple[Level, str]]:
    word = entity.word_tokens
    if not word.kept:
        yield "problem", f"word cut at {word.room} tokens: the binder gets no word"
        return
    pieces = [word.pieces[position] for position in word.spelled]
    if any("<unk>" in piece for piece in pieces):
        yield "problem", "the tokenizer does not know all of the word (<unk>)"
    if len(word.kept) < len(word.spelled):
        text = f"the word has {len(word.spelled)} tokens, the binder reads the first {word.slots}"
        yield "note", text
    else:
        yield "fine", f"word at token {_ranges(word.kept)} of the prompt"
    if len(word.pieces) > word.room:
        yield "note", f"the prompt has {len(word.pieces)} tokens and is cut at {word.room}"


def _path(inspection: Inspection, entity: EntityView) -> Iterator[tuple[Level, str]]:
    path = entity.path
    if inspection.model.motion is None:
        yield "problem", f"{inspection.model.name} takes no trajectories: no path reaches the model"
        return
    if inspection.zeros.fusers:
        yield "problem", "fusers' temporal convolutions are zero (untrained): no path acts"
    if inspection.request.entities[entity.index].points is None:
        yield "problem", "no path: it may be anywhere"
        return
    hidden = np.flatnonzero(~path.visible)
    if len(hidden):
        masked = np.flatnonzero(~path.on)
        tokens = f" (token frames {_ranges(masked)} masked)" if len(masked) else ""
        level = "problem" if not path.visible.any() else "note"
        yield level, f"path not visible in frames {_ranges(hidden)}{tokens}"
    if entity.still:
        yield "note", "stands still: white in the flow picture, it acts through the binder alone"
    for other in inspection.entities:
        if other.index != entity.index and (shared := _together(path.splat, other.path.splat)):
            yield (
                "note",
                f'in one place with "{other.word}" in token frames {_ranges(shared)}: their '
                "motion adds up there",
            )
    if not len(hidden):
        yield "fine", f"path visible in all {len(path.visible)} frames"


def _together(one: np.ndarray, other: np.ndarray) -> list[int]:
    """Token frames in which two splats mostly overlap."""
    least = np.minimum(one.sum((1, 2)), other.sum((1, 2)))
    overlap = np.minimum(one, other).sum((1, 2))
    return np.flatnonzero((least > 0) & (overlap > _NEAR * least)).tolist()


def _binding(inspection: Inspection, entity: EntityView) -> Iterator[tuple[Level, str]]:
    model = inspection.model
    if entity.change is None:
        return
    if entity.binding is None:
        kind = model.binding.variant
        text = {"none": "nothing is bound", "linear": "p alone changes, without attention"}[kind]
        yield "note", f"binding: {kind}: {text}"
        return
    if inspection.zeros.motion_map:
        yield "problem", "binding does not reach the motion map: W_out is zero (untrained)"
    gates = (("G_p", entity.binding.gate_p, 0), ("G_m", entity.binding.gate_m, 1))
    starts = np.cumsum((0, *entity.binding.counts))
    for name, gate, part in gates:
        there = gate[entity.binding.mask[starts[part] : starts[part + 1]]]
        if there.size and np.abs(there).mean() < _CLOSED:
            yield "problem", f"{name} is closed (mean {np.abs(there).mean():.3f})"
    for name, change in (("p", entity.change.p), ("m", entity.change.m)):
        if change < _FAINT:
            yield (
                "problem",
                f"binding leaves {name} as it was (|delta {name}|/|{name}| {change:.1e})",
            )
    if entity.change.p >= _FAINT or entity.change.m >= _FAINT:
        yield (
            "fine",
            f"binding moves p by {_percent(entity.change.p)}, m by {_percent(entity.change.m)}, "
            f"the motion map where it is by {_percent(entity.change.map_here)}",
        )


def _blocks(inspection: Inspection, entity: EntityView) -> Iterator[tuple[Level, str]]:
    blocks = entity.strongest
    if blocks is None or not entity.reference_mask.any():
        return
    yield from _effect(entity)
    if inspection.zeros.cross_attention:
        text = "contribution to the stream is 0: W_o is zero (untrained)"
        yield "problem", text
        return
    strongest = float(blocks.added.max())
    if strongest < _FAINT:
        yield (
            "problem",
            f"contribution to the stream is at most {strongest:.1e} of it, in any block",
        )
    else:
        block = blocks.blocks[int(blocks.added.argmax())]
        text = f"adds at most {_percent(strongest)} to the stream"
        yield "fine", f"{text} (block {block}, timestep {blocks.timestep})"
    rivals = sum(bool(other.reference_mask.any()) for other in inspection.entities)
    share, fair = float(blocks.shares[:, entity.index].mean()), 1 / rivals
    if share < _OFTEN * fair:
        text = f"drowned: it gets {_percent(share)} of the attention, a fair share is "
        yield "problem", text + _percent(fair)
    here = float(blocks.share_here.mean())
    if np.isfinite(here) and rivals > 1:
        level = "fine" if here > _ELSEWHERE * share else "note"
        text = f"on its path it gets {_percent(here)} of the attention, everywhere "
        yield level, text + _percent(share)


def _effect(entity: EntityView) -> Iterator[tuple[Level, str]]:
    """By both ways in, at the timestep at which they change most."""
    effect = entity.effect
    if effect is None:
        return
    most = int(effect.both.argmax())
    both = float(effect.both[most])
    level = "problem" if both < _FAINT else "note" if both < _WEAK else "fine"
    text = (
        f"its references change the prediction where it is by at most {_percent(both)} (timestep "
        f"{effect.timesteps[most]}; cross-attention {_percent(effect.cross_attention[most])}, "
        f"motion map {_percent(effect.motion_map[most])})"
    )
    yield level, text + ": little of its looks can arrive" * (level != "fine")


def _retrieval(inspection: Inspection, entity: EntityView) -> Iterator[tuple[Level, str]]:
    retrieval = inspection.retrieval
    if retrieval is None or retrieval.takes_part.sum() < 2:
        return
    if not retrieval.takes_part[entity.index]:
        yield "note", "lacks a reference or a path, so it has no part in the contrastive loss"
        return
    for row, near, far in (
        (retrieval.after[entity.index], "references", "path"),
        (retrieval.after[:, entity.index], "path", "references"),
    ):
        best = int(np.where(retrieval.takes_part, row, -np.inf).argmax())
        if best != entity.index:
            other = inspection.entities[best].word
            yield "problem", f'its {near} are closest to the {far} of "{other}" (after binding)'


def _percent(value: float) -> str:
    if not np.isfinite(value):
        return "-"
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.2g} %"


def _ranges(numbers: Sequence[int] | np.ndarray) -> str:
    """`0-3, 7`."""
    numbers = [int(number) for number in numbers]
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    pairs = zip(starts, ends, strict=True)
    return ", ".join(f"{start}" if start == end else f"{start}-{end}" for start, end in pairs)
