"""The toy world's bench as numbers and as text."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from tora2_jax.evaluation.bench import measure
from tora2_jax.evaluation.look import Seen

_SHARES = ("identified", "found", "preferred")


class Goal(NamedTuple):
    """What a model has to reach on this bench (docs/toy.md)."""

    name: str
    bound: float
    at_least: bool  # else at most


GOALS = (
    Goal("found in its visible frames, %", 93, True),
    Goal("median distance where found, px of 256", 8, False),
    Goal("mean error, px of 256", 30, False),
    Goal("mean error, % of that without paths", 30, False),
    Goal("mean error, % of that to the other path", 30, False),
    Goal("own reference first among 8, %", 70, True),
    Goal("places exchanged with the paths, % of pairs", 85, True),
    Goal("looks exchanged with the references, %", 80, True),
)


def report(seen: dict[str, list[Seen]], settings: dict[str, Any]) -> dict[str, Any]:
    """Means with standard errors over requests, per condition and for paired differences."""
    measured: dict[str, Any] = {"settings": settings, "conditions": {}}
    for condition, rows in seen.items():
        measured["conditions"][condition] = {
            name: measure.cluster_estimate(_column(rows, name))._asdict() for name in Seen._fields
        }
    full, blind = _column(seen["full"], "own_error"), _column(seen["without_paths"], "own_error")
    gain = _column(seen["full"], "identified") - _column(seen["without_references"], "identified")
    swap = _column(seen["full"], "other_error") - full
    differences = {"paths": blind - full, "other_path": swap, "references": gain}
    measured["gains"] = {
        name: measure.cluster_estimate(values)._asdict() for name, values in differences.items()
    }
    measured["goals"] = _goals(seen)
    return measured


def _goals(seen: dict[str, list[Seen]]) -> list[dict[str, Any]]:
    full = {name: _column(seen["full"], name) for name in Seen._fields}
    error = np.nanmean(full["own_error"])
    blind = np.nanmean(_column(seen["without_paths"], "own_error"))
    distances = full["distance"][~np.isnan(full["distance"])]
    values = [
        100 * full["found"].mean(),
        np.median(distances) if len(distances) else np.nan,
        error,
        100 * error / blind,
        100 * error / np.nanmean(full["other_error"]),
        100 * full["identified"].mean(),
        np.nan,
        np.nan,
    ]
    if rows := seen.get("exchanged_paths"):
        nearer = _column(rows, "own_error") < _column(rows, "other_error")
        values[6] = 100 * nearer.all(1).mean()
    if rows := seen.get("exchanged_references"):
        values[7] = 100 * _column(rows, "preferred").mean()
    told = []
    for goal, value in zip(GOALS, values, strict=True):
        met = bool(value >= goal.bound if goal.at_least else value <= goal.bound)
        number = None if np.isnan(value) else float(value)
        told.append({**goal._asdict(), "measured": number, "met": met})
    return told


def _column(rows: list[Seen], name: str) -> Shaped[np.ndarray, "requests e"]:
    return np.stack([getattr(row, name) for row in rows])


def table(measured: dict[str, Any]) -> str:
    """A report as text: errors in canvas pixels, shares in percent, each with standard error."""
    head = {
        "own_error": "own path px",
        "other_error": "other path px",
        "identified": "identified %",
        "found": "found %",
    }
    lines = ["".join(f"{title:>22}" for title in ("condition", *head.values()))]
    for condition, values in measured["conditions"].items():
        cells = [_cell(values[name], name) for name in head]
        lines.append("".join(f"{cell:>22}" for cell in (condition, *cells)))
    gains = measured["gains"]
    lines += [
        f"paths bring an entity closer to its path by {_cell(gains['paths'], '')} px",
        f"it is closer to its own than to the other path by {_cell(gains['other_path'], '')} px",
        f"references add {_cell(gains['references'], 'identified')} points of identity; "
        "chance is 12.5 %",
    ]
    for goal in measured["goals"]:
        said = "not measured" if goal["measured"] is None else f"{goal['measured']:.1f}"
        bound = f"{'at least' if goal['at_least'] else 'at most'} {goal['bound']}"
        lines.append(f"{goal['name']}: {said} ({bound}): {'met' if goal['met'] else 'missed'}")
    return "\n".join(lines)


def _cell(estimate: dict[str, float], name: str) -> str:
    factor = 100.0 if name in _SHARES else 1.0
    return f"{factor * estimate['mean']:.1f} ± {factor * estimate['error']:.1f}"
