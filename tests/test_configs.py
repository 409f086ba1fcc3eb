"""Configs of real runs, without their weights."""

import importlib

import pytest

from tora2_jax.train_config import problems
from tora2_jax.train_state import find_stage


@pytest.mark.parametrize("name", ["motion_stage1", "motion_stage2", "motion_vae", "tora2_5b"])
def test_a_config_can_be_used(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    assert not problems(config)
    assert find_stage(config).COMPONENTS


def test_the_papers_run_is_the_papers():
    config = importlib.import_module("configs.tora2_5b").get_config()
    assert (config.steps, config.batch_size, config.optim.learning_rate) == (15_000, 32, 3e-6)
    assert (config.dropout.caption, config.dropout.references) == (0.5, 0.33)
    assert config.dropout.trajectories == 0.33 and config.contrast_weight == 0.2
    assert config.model.transformer.num_layers == 42 and config.model.motion is not None
