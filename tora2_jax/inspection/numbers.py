"""An inspection as plain data for a JSON file; what is not a number is null."""

from typing import Any

import numpy as np

from tora2_jax.inspection.diagnosis import diagnose
from tora2_jax.inspection.views import (
    MODALITIES,
    BindingView,
    EntityView,
    Inspection,
    modality_slices,
)


def as_data(inspection: Inspection) -> dict[str, Any]:
    """Everything about a request; arrays are nested lists."""
    retrieval = inspection.retrieval
    return _plain(
        {
            "request": inspection.name,
            "checkpoint": inspection.checkpoint,
            "model": inspection.model.name,
            "prompt": inspection.request.prompt,
            "untrained": inspection.zeros._asdict(),
            "retrieval": None if retrieval is None else retrieval._asdict(),
            "entities": [_entity(inspection, entity) for entity in inspection.entities],
        }
    )


def _entity(inspection: Inspection, entity: EntityView) -> dict[str, Any]:
    path = entity.path
    return {
        "word": entity.word,
        "kind": entity.prepared.kind,
        "kind_requested": entity.requested,
        "diagnosis": [note._asdict() for note in diagnose(inspection, entity)],
        "references": [
            {
                "file": name,
                "prior": prior,
                "face": prepared.search and prepared.search.said,
            }
            for name, prior, prepared in zip(
                entity.names, entity.prior_mask, entity.prepared.references, strict=False
            )
        ],
        "references_from_features": entity.reference_mask.sum() - len(entity.names),
        "word_tokens": entity.word_tokens._asdict(),
        "path": {
            "visible": path.visible,
            "on": path.on,
            "place": np.where(path.on[:, None], path.path, np.nan),
            "still": entity.still,
        },
        "binding": _binding(entity.binding),
        "change": entity.change and entity.change._asdict(),
        "cross_attention": [view._asdict() for view in entity.blocks],
        "effect_of_references": entity.effect and entity.effect._asdict(),
    }


def _binding(view: BindingView | None) -> dict[str, Any] | None:
    if view is None:
        return None
    p, m, _ = modality_slices(view.counts)
    return {
        "tokens": dict(zip(MODALITIES, view.counts, strict=True)),
        "there": view.mask,
        "attention_between_modalities": view.summary,
        "attention": view.attention,
        "gate_p_mean": np.where(view.mask[p], view.gate_p.mean(-1), np.nan),
        "gate_m_mean": np.where(view.mask[m], view.gate_m.mean(-1), np.nan),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value
