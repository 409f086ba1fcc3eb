"""Conditions as single arrays by name, as pools keep them; a prior's are `PRIOR_tokens` and
`PRIOR_vector`.
"""

from collections.abc import Mapping
from typing import Any

from tora2_jax.types import Array, Conditions, PriorFeatures

_PRIORS = ("face", "object")


def to_arrays(conditions: Conditions) -> dict[str, Array]:
    """All arrays by name; what is None is left out."""
    found: dict[str, Array] = {}
    for name, value in conditions._asdict().items():
        if isinstance(value, PriorFeatures):
            found |= {f"{name}_{part}": array for part, array in value._asdict().items()}
        elif value is not None:
            found[name] = value
    return found


def from_arrays(arrays: Mapping[str, Any]) -> Conditions:
    """The inverse of `to_arrays`; other names are passed over."""
    found = {name: arrays[name] for name in Conditions._fields if name in arrays}
    for name in _PRIORS:
        if f"{name}_tokens" in arrays:
            found[name] = PriorFeatures(arrays[f"{name}_tokens"], arrays[f"{name}_vector"])
    return Conditions(**found)
