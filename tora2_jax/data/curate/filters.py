"""Named predicates over what was measured of a clip; a filter without a measure says so.

The names, their order and the paper's thresholds: section 3.3.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from tora2_jax.config.curate import FilterConfig

Values = Mapping[str, Any]  # measured of a clip, by the name of the filter


class Refusal(NamedTuple):
    """A filter that a clip does not pass."""

    filter: str
    reason: str  # with the value and the threshold


class Filter(NamedTuple):
    """One of them.

    Attributes:
        name: of the filter, of its value, and of its threshold in the config.
        judge: given the value and the threshold; what is wrong, or None.
    """

    name: str
    judge: Callable[[Any, Any], str | None]


def _at_least(what: str, unit: str = "") -> Callable[[float, float], str | None]:
    def judge(value: float, bound: float) -> str | None:
        return None if value >= bound else f"{what} is {value:g}{unit}, below {bound:g}{unit}"

    return judge


def _above(what: str) -> Callable[[float, float], str | None]:
    def judge(value: float, bound: float) -> str | None:
        return None if value > bound else f"{what} is {value:.3g}, not above {bound:g}"

    return judge


def _at_most(what: str, unit: str = "") -> Callable[[float, float], str | None]:
    def judge(value: float, bound: float) -> str | None:
        return None if value <= bound else f"{what} is {value:.3g}{unit}, above {bound:g}{unit}"

    return judge


def _zoom(value: float, bounds: tuple[float, float]) -> str | None:
    low, high = bounds
    if low <= value <= high:
        return None
    return f"zoom is {value:.2f}, outside of {low:g} to {high:g}"


def _angle(value: float, ranges: tuple[tuple[float, float], ...]) -> str | None:
    """A camera that stands still has no direction (NaN) and passes."""
    if math.isnan(value) or any(low <= value <= high for low, high in ranges):
        return None
    allowed = ", ".join(f"{low:g} to {high:g}" for low, high in ranges)
    return f"the camera moves towards {value:.0f} degrees, outside of {allowed}"


def _subject(words: list[str], wanted: bool) -> str | None:
    return None if words or not wanted else "the caption names no subject"


def _plural(words: list[str], wanted: bool) -> str | None:
    if not words or not wanted:
        return None
    return f"the caption names subjects in the plural: {', '.join(words)}"


# In the order of the paper. A value that is missing is one whose model was not given.
FILTERS = (
    Filter("seconds", _at_least("its length", " s")),
    Filter("lines", _at_least("its shorter side", " pixels")),
    Filter("text", _at_most("the share of the picture that text covers")),
    Filter("aesthetic", _above("the aesthetic score")),
    Filter("flow", _above("the flow score")),
    Filter("zoom", _zoom),
    Filter("angle", _angle),
    Filter("subject", _subject),
    Filter("plural", _plural),
)


def refusals(
    values: Values, thresholds: FilterConfig, missing: Collection[str] = ()
) -> list[Refusal]:
    """All filters that a clip does not pass, in their order.

    Args:
        values: what was measured.
        thresholds: None switches a filter off.
        missing: filters that cannot be measured at all; they are off, see `off`.
    """
    found = []
    for filter_ in FILTERS:
        bound = getattr(thresholds, filter_.name)
        if bound is None or filter_.name in missing:
            continue
        if filter_.name not in values:
            found.append(Refusal(filter_.name, "was not measured"))
            continue
        if reason := filter_.judge(values[filter_.name], bound):
            found.append(Refusal(filter_.name, reason))
    return found


def off(measured: Mapping[str, str | None], thresholds: FilterConfig) -> dict[str, str]:
    """The filters that judge nothing, and why.

    Args:
        measured: by name of a filter, why it cannot be measured; None if it can.
        thresholds: None switches a filter off.
    """
    told = {}
    for filter_ in FILTERS:
        if getattr(thresholds, filter_.name) is None:
            told[filter_.name] = "switched off in the config"
        elif reason := measured.get(filter_.name):
            told[filter_.name] = reason
    return told
