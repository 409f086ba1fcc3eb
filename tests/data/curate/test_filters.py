"""Each filter at its threshold, with the value and the threshold in its reason."""

import math

import pytest

from tora2_jax.config.curate import FilterConfig
from tora2_jax.data.curate.filters import FILTERS, off, refusals

GOOD = {
    "seconds": 2.0,
    "lines": 720,
    "text": 0.02,
    "aesthetic": 5.01,
    "flow": 2.01,
    "zoom": 0.4,
    "angle": 200.0,
    "subject": ["man"],
    "plural": [],
}


def test_a_clip_at_every_threshold_passes():
    assert refusals(GOOD, FilterConfig()) == []
    assert [one.name for one in FILTERS] == list(GOOD)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("seconds", 1.9, "its length is 1.9 s, below 2 s"),
        ("lines", 719, "its shorter side is 719 pixels, below 720 pixels"),
        ("text", 0.0211, "covers is 0.0211, above 0.02"),
        ("aesthetic", 5.0, "the aesthetic score is 5, not above 5"),
        ("flow", 2.0, "the flow score is 2, not above 2"),
        ("zoom", 0.39, "zoom is 0.39, outside of 0.4 to 0.6"),
        ("zoom", 0.61, "zoom is 0.61"),
        ("angle", 30.6, "the camera moves towards 31 degrees, outside of 0 to 30, 150 to 200"),
        ("angle", 149.0, "149 degrees"),
        ("angle", 270.0, "270 degrees"),
        ("subject", [], "names no subject"),
        ("plural", ["men", "dogs"], "in the plural: men, dogs"),
    ],
)
def test_one_that_misses_a_threshold_is_refused_with_value_and_threshold(name, value, told):
    found = refusals(GOOD | {name: value}, FilterConfig())
    assert [one.filter for one in found] == [name] and told in found[0].reason


@pytest.mark.parametrize("angle", [0.0, 30.0, 150.0, 200.0, 330.0, 360.0, math.nan])
def test_directions_that_the_paper_allows(angle):
    assert refusals(GOOD | {"angle": angle}, FilterConfig()) == []


def test_all_refusals_are_told_in_the_papers_order():
    found = refusals(GOOD | {"flow": 0.1, "lines": 200, "plural": ["men"]}, FilterConfig())
    assert [one.filter for one in found] == ["lines", "flow", "plural"]


def test_a_filter_without_a_measure_is_off_and_named_not_passed_in_silence():
    without = {name: value for name, value in GOOD.items() if name != "aesthetic"}
    assert refusals(without, FilterConfig(flow=None), {"aesthetic"}) == []
    (found,) = refusals(without, FilterConfig())
    assert found == ("aesthetic", "was not measured")
    told = off({"aesthetic": "no weights of the predictor were given"}, FilterConfig(flow=None))
    assert told == {
        "aesthetic": "no weights of the predictor were given",
        "flow": "switched off in the config",
    }
