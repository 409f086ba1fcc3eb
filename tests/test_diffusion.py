"""The noise process against diffusers' schedulers and hand-computed values."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity import BLOCK_TOLERANCE, relative_error
from tora2_jax import diffusion
from tora2_jax.config import DiffusionConfig

SETTINGS = {
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "clip_sample": False,
    "timestep_spacing": "trailing",
}


def schedulers(name: str, shift: float):
    from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

    cls = CogVideoXDPMScheduler if name == "dpm" else CogVideoXDDIMScheduler
    return cls(snr_shift_scale=shift, **SETTINGS)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_schedule_equals_diffusers(shift):
    ours = diffusion.cumulative_alphas(DiffusionConfig(snr_shift=shift))
    theirs = schedulers("ddim", shift).alphas_cumprod.numpy()
    assert np.abs(ours - theirs).max() < 1e-9
    assert ours[-1] == 0


@pytest.mark.parametrize("steps", [4, 7, 30, 50])
@pytest.mark.parametrize("name", ["dpm", "ddim"])
def test_steps_equal_diffusers(name, steps, monkeypatch):
    import torch
    from diffusers.schedulers import scheduling_dpm_cogvideox

    rng = np.random.default_rng(0)
    draws = rng.standard_normal((2 * steps + 2, 2, 3)).astype(np.float32)
    predictions = rng.standard_normal((steps, 2, 3)).astype(np.float32)
    scheduler = schedulers(name, 1.0)
    scheduler.set_timesteps(steps)
    current: list[np.ndarray] = []
    monkeypatch.setattr(
        scheduling_dpm_cogvideox, "randn_tensor", lambda *_, **__: torch.from_numpy(current[0])
    )
    table = diffusion.step_coefficients(DiffusionConfig(), steps, name)
    assert (table.timestep == scheduler.timesteps.numpy()).all()

    start = draws[-1]
    theirs, old = torch.from_numpy(start), None
    ours = diffusion.SamplerState(jnp.asarray(start), jnp.zeros_like(start))
    times = scheduler.timesteps
    for index in range(steps):
        current[:] = [draws[index]]
        prediction = torch.from_numpy(predictions[index])
        if name == "ddim":
            theirs = scheduler.step(prediction, times[index], theirs, return_dict=False)[0]
        else:
            back = times[index - 1] if index else None
            theirs, old = scheduler.step(
                prediction, old, times[index], back, theirs, return_dict=False
            )
        row = diffusion.StepCoefficients(*(values[index] for values in table))
        ours = diffusion.sampler_step(ours, predictions[index], row, draws[index])
        assert relative_error(ours.latents, theirs.numpy()) < BLOCK_TOLERANCE


def test_dynamic_guidance_is_what_cogvideox_computes():
    import math

    times = diffusion.timesteps(DiffusionConfig(), 50)
    ours = diffusion.dynamic_guidance(6.0, times, 50)
    theirs = [
        1 + 6.0 * (1 - math.cos(math.pi * ((50 - int(time)) / 50) ** 5.0)) / 2 for time in times
    ]
    assert np.abs(ours - np.array(theirs)).max() < 1e-9
    assert ours[0] == pytest.approx(2.291, abs=1e-3)  # published figure for the first step


def test_velocity_and_noise_are_consistent():
    rng = np.random.default_rng(1)
    clean, noise = rng.standard_normal((2, 4, 5)).astype(np.float32)
    alpha = jnp.asarray([0.9, 0.5, 0.1, 0.0])
    noisy = diffusion.add_noise(jnp.asarray(clean), jnp.asarray(noise), alpha)
    target = diffusion.velocity(jnp.asarray(clean), jnp.asarray(noise), alpha)
    root = np.sqrt(np.asarray(alpha))[:, None]
    rest = np.sqrt(1 - np.asarray(alpha))[:, None]
    assert relative_error(root * noisy - rest * target, clean) < 1e-6


def test_impossible_step_counts_and_names_are_refused():
    with pytest.raises(ValueError, match="between 1 and 1000"):
        diffusion.timesteps(DiffusionConfig(), 0)
    with pytest.raises(ValueError, match="dpm or ddim"):
        diffusion.step_coefficients(DiffusionConfig(), 50, "euler")
