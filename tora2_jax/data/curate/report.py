"""What a run did, in numbers: how many clips each filter dropped, and how many it would keep."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tora2_jax.config.curate import CurateConfig
from tora2_jax.data.curate.filters import FILTERS, off

Records = Sequence[dict[str, Any]]
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def counts(records: Records) -> dict[str, Any]:
    """Everything that became of the videos; each clip is counted once, under its first reason."""
    clips = [clip for record in records for clip in record["clips"]]
    kept = [clip for clip in clips if clip["kept"]]
    first = Counter(next(iter(clip["dropped"])) for clip in clips if not clip["kept"])
    return {
        "videos": len(records),
        "unusable": Counter(_kind(one["problem"]) for one in records if one["problem"]),
        "clips": len(clips),
        "dropped": first,
        "kept": len(kept),
        "entities": Counter(len(clip["entities"]) for clip in kept),
    }


def _kind(problem: str) -> str:
    return problem.split(":")[0]


def lines(records: Records, config: CurateConfig, missing: dict[str, str]) -> list[str]:
    """The report as text."""
    found = counts(records)
    told = [f"{found['videos']} videos, {found['clips']} clips, {found['kept']} kept"]
    told += [f"  not used: {count} ({kind})" for kind, count in sorted(found["unusable"].items())]
    order = {one.name: place for place, one in enumerate(FILTERS)}
    for name in sorted(found["dropped"], key=lambda one: (order.get(one, len(order)), one)):
        told.append(f"  dropped: {found['dropped'][name]} ({name})")
    told += [
        f"  kept with {entities} {'entity' if entities == 1 else 'entities'}: {count}"
        for entities, count in sorted(found["entities"].items())
    ]
    told += [f"  off: {name} ({why})" for name, why in off(missing, config.filters).items()]
    return told + distributions(records)


def distributions(records: Records) -> list[str]:
    """Quantiles of every measured value, to set thresholds by."""
    clips = [clip for record in records for clip in record["clips"] if "values" in clip]
    told = []
    for filter_ in FILTERS:
        values = [clip["values"].get(filter_.name) for clip in clips]
        numbers = [one for one in values if isinstance(one, int | float)]
        if numbers:
            shown = ", ".join(f"{value:.3g}" for value in np.quantile(numbers, _QUANTILES))
            told.append(f"  {filter_.name}: {shown} (5, 25, 50, 75, 95 % of {len(numbers)})")
    return told
