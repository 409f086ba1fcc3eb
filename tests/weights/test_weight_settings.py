"""What shows in no shape is compared all the same."""

import json
from dataclasses import replace

import pytest

from tora2_jax.config import to_dict, toy
from tora2_jax.config.train import TrainConfig
from tora2_jax.errors import TrainError
from tora2_jax.train import state
from tora2_jax.weights import checkpoint
from tora2_jax.weights.settings import setting_differences

METADATA = {"model": json.loads(json.dumps(to_dict(toy())))}  # as files hold it


def test_equal_settings_are_silent():
    for component in ("transformer", "motion", "personalization", "vae", "motion_vae", "text"):
        assert setting_differences(component, toy(), METADATA) == []


@pytest.mark.parametrize("component", ["transformer", "motion", "personalization"])
def test_the_noise_schedule_is_the_weights_own(component):
    model = toy()
    model.diffusion = replace(model.diffusion, snr_shift=3.0, scheduler="ddim")
    shift = toy().diffusion.snr_shift
    assert setting_differences(component, model, METADATA) == [
        f"model.diffusion.snr_shift is 3.0; the weights want {shift}"
    ]


def test_the_null_text_is_what_motion_was_trained_beside():
    released = replace(toy(), null_text="zeros")
    told = ["model.null_text is 'zeros'; the weights want 'empty'"]
    assert setting_differences("motion", released, METADATA) == told
    assert setting_differences("personalization", released, METADATA) == told
    assert setting_differences("transformer", released, METADATA) == []
    assert setting_differences("motion", released, {}) == []


def test_other_settings_are_named_with_both_values():
    model = toy()
    model.transformer.norm_eps, model.transformer.rematerialize = 0.5, "full"
    (told,) = setting_differences("transformer", model, METADATA)
    assert told.startswith("model.transformer.norm_eps is 0.5; the weights want")


def test_the_vae_goes_on_from_weights_whose_scale_was_measured(tmp_path):
    """Its stage measures the scale at its end, so a second part starts from another one."""
    config = TrainConfig(stage="vae", model=toy())
    made = replace(config.model, vae=replace(config.model.vae, scaling_factor=2.3))
    checkpoint.save_component(tmp_path / "vae.safetensors", {}, {"model": to_dict(made)})
    state._refuse_other_settings(
        config, state.find_stage(config), "vae", tmp_path / "vae.safetensors"
    )
    made.vae.norm_eps = 1e-3
    checkpoint.save_component(tmp_path / "vae.safetensors", {}, {"model": to_dict(made)})
    with pytest.raises(TrainError, match=r"norm_eps") as error:
        state._refuse_other_settings(
            config, state.find_stage(config), "vae", tmp_path / "vae.safetensors"
        )
    assert "scaling_factor" not in str(error.value)
