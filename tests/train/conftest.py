"""Runs of stage "base" are of the tiny stage, in the files that ask for it."""

import pytest

from tora2_jax.train import state


@pytest.fixture
def _stage(monkeypatch):
    monkeypatch.setitem(state.STAGES, "base", "tests.support.tiny_stage")
