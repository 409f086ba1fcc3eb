"""Configs of real runs, without their weights."""

import importlib

import pytest

from tora2_jax.config import DINOv2Config, ObjectEncoderConfig, to_dict
from tora2_jax.config.train import ReferenceGuardConfig, TrainConfig, problems
from tora2_jax.train.state import find_stage
from tora2_jax.weights import checkpoint


@pytest.mark.parametrize("name", ["motion_stage1", "motion_stage2", "motion_vae", "tora2_5b"])
def test_a_config_can_be_used(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    assert not problems(config)
    assert find_stage(config).components


def test_the_papers_run_is_the_papers():
    config = importlib.import_module("configs.tora2_5b").get_config()
    assert (config.steps, config.batch_size, config.optim.learning_rate) == (15_000, 32, 3e-6)
    assert (config.dropout.caption, config.dropout.references) == (0.5, 0.33)
    assert config.dropout.trajectories == 0.33 and config.contrast_weight == 0.2
    assert config.model.transformer.num_layers == 42 and config.model.motion is not None


def test_the_papers_run_reads_the_settings_of_the_encoders_that_are_there(tmp_path):
    network = ObjectEncoderConfig(layers=(2, 1, 1, 1), last_stride=1, neck=True)
    stored = to_dict(DINOv2Config(num_registers=4, image_size=518))
    del stored["image_size"]  # free: convert dinov2 does not store it
    for folder, name, settings in (
        ("reid", "object", to_dict(network)),
        ("dinov2", "dino", stored),
    ):
        path = tmp_path / folder / f"{name}.safetensors"
        checkpoint.save_component(path, {}, {"model": {name: settings}})
    config = importlib.import_module("configs.tora2_5b").get_config(str(tmp_path / "tora"))
    assert config.weights.object == str(tmp_path / "reid")
    assert config.model.object == network
    assert config.model.dino == DINOv2Config(num_registers=4)
    assert config.model.face.layers == (3, 13, 30, 3)


def test_rules_beside_the_fields_are_told_with_the_field():
    config = TrainConfig(steps=0, ema_decay=1.0, data_size=0, stop_code=2, profile_steps=(3, 1))
    config.optim.betas, config.optim.muon, config.optim.clip_norm = (0.9,), "(", 0.0
    config.dropout.caption, config.world.rich_captions, config.dtype = 1.5, -0.1, "float64"
    config.reference_guards = ReferenceGuardConfig(blur=1.0, crop=0.0)
    assert set(problems(config)) == {
        "config.steps must be positive",
        "config.ema_decay must be between 0 and 1 or None",
        "config.data_size must be positive or None",
        "config.stop_code must be between 3 and 125",
        "config.profile_steps must be the first and the last step, or (0, 0)",
        "config.optim.betas must be two numbers of at least 0 and below 1",
        "config.optim.muon is no regular expression",
        "config.optim.clip_norm must be positive",
        "config.dropout.caption must be between 0 and 1",
        "config.world.rich_captions must be between 0 and 1",
        "config.dtype must be one of float32, bfloat16",
        "config.reference_guards.blur must be at least 0, below 1",
        "config.reference_guards.crop must be above 0, at most 1",
    }
    assert not problems(TrainConfig())
