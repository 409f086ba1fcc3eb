"""Weights that are infinite or no number: with them every video is black."""

import numpy as np

_TOGETHER = 1 << 24  # values that are looked at together
# Bits of the exponent in 16-bit types: all of them are set in what is not finite.
_EXPONENTS = {"bfloat16": np.uint16(0x7F80), "float16": np.uint16(0x7C00)}


class NonFiniteError(ValueError):
    """Weights that are infinite or no number; `faults` has one line for each tensor."""

    def __init__(self, faults: list[str]):
        super().__init__("\n".join(faults))
        self.faults = faults


def not_finite(array: np.ndarray | np.generic) -> str | None:
    """How many values are infinite or no number, as the rest of a sentence; None if none are."""
    flat = np.ascontiguousarray(array).reshape(-1)
    parts = (flat[start : start + _TOGETHER] for start in range(0, len(flat), _TOGETHER))
    count = sum(int(np.count_nonzero(_marks(part))) for part in parts)
    return f"has {count} values of {array.size} that are not finite" if count else None


def _marks(values: np.ndarray) -> np.ndarray:
    """Which values are not finite; of 16 bits told by the exponent, which is the faster way."""
    kind = str(values.dtype)
    if kind in _EXPONENTS:
        return (values.view(np.uint16) & _EXPONENTS[kind]) == _EXPONENTS[kind]
    return ~np.isfinite(values) if "float" in kind else np.zeros(0, bool)
