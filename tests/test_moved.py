"""Programs written before modules moved into rooms go on working, and are told where to look."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tora2_jax import moved, train
from tora2_jax.train import loop

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(("old", "new"), moved.MOVED.items())
def test_an_old_name_is_the_module_that_has_moved(old, new):
    sys.modules.pop(f"tora2_jax.{old}", None)
    target = importlib.import_module(f"tora2_jax.{new}")
    with pytest.warns(DeprecationWarning, match=rf"tora2_jax\.{old} is now tora2_jax\.{new}"):
        module = importlib.import_module(f"tora2_jax.{old}")
    assert module is target
    assert module.__name__ == module.__spec__.name == f"tora2_jax.{new}"


def test_names_that_never_were_are_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("tora2_jax.never")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("tora2_jax.media.bundle")


def test_training_by_its_old_names():
    assert train.train is loop.train and train.run is loop.run
    with pytest.raises(AttributeError, match="no attribute 'never'"):
        _ = train.never


def test_a_program_of_before_runs_and_is_told_where_to_look():
    code = "from tora2_jax.bundle import load_config; from tora2_jax import train_config"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "is now tora2_jax.weights.bundle" in done.stderr
    assert "is now tora2_jax.config.train" in done.stderr and "Error" not in done.stderr
