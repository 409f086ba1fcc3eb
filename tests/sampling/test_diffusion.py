"""The noise process against diffusers' schedulers and hand-computed values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.support.parity import BLOCK_TOLERANCE, relative_error
from tora2_jax import diffusion
from tora2_jax.config import DiffusionConfig

SETTINGS = {
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "clip_sample": False,
}
SPACINGS = [("trailing", 0), ("linspace", 0), ("leading", 0), ("leading", 1)]
# Divisors of 1000, and counts whose last step stops before the clean sample.
COUNTS = (1, 4, 6, 7, 28, 30, 35, 36, 48, 50, 60, 500)


def schedulers(name: str, config: DiffusionConfig):
    from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

    cls = CogVideoXDPMScheduler if name == "dpm" else CogVideoXDDIMScheduler
    return cls(
        snr_shift_scale=config.snr_shift,
        timestep_spacing=config.timestep_spacing,
        steps_offset=config.steps_offset,
        **SETTINGS,
    )


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_schedule_equals_diffusers(shift):
    config = DiffusionConfig(snr_shift=shift)
    ours = diffusion.cumulative_alphas(config)
    theirs = schedulers("ddim", config).alphas_cumprod.numpy()
    assert np.abs(ours - theirs).max() < 1e-9
    assert ours[-1] == 0


@pytest.mark.parametrize(("spacing", "offset"), SPACINGS)
def test_timesteps_equal_diffusers(spacing, offset):
    config = DiffusionConfig(timestep_spacing=spacing, steps_offset=offset)
    scheduler = schedulers("dpm", config)
    for steps in range(1, 1001 - offset):
        scheduler.set_timesteps(steps)
        theirs = scheduler.timesteps.numpy()
        ours = diffusion.timesteps(config, steps)
        assert (ours == theirs[:steps]).all()
        # Its trailing spacing rounds to one step too many for 62 of the counts; we leave it out.
        assert (theirs[steps:] == -1).all()
    assert ours.min() >= 0 and ours.max() < 1000


def test_an_offset_may_not_lead_beyond_training():
    with pytest.raises(ValueError, match="take fewer steps"):
        diffusion.timesteps(DiffusionConfig(timestep_spacing="leading", steps_offset=1), 1000)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("spacing", "offset"), SPACINGS)
@pytest.mark.parametrize("name", ["dpm", "ddim"])
def test_steps_equal_diffusers(name, spacing, offset, shift, monkeypatch):
    from diffusers.schedulers import scheduling_dpm_cogvideox

    config = DiffusionConfig(timestep_spacing=spacing, steps_offset=offset, snr_shift=shift)
    scheduler = schedulers(name, config)
    current: list[np.ndarray] = []
    monkeypatch.setattr(
        scheduling_dpm_cogvideox, "randn_tensor", lambda *_, **__: torch.from_numpy(current[0])
    )
    for steps in COUNTS:
        compare_steps(name, config, scheduler, steps, current)


def compare_steps(name, config, scheduler, steps, current):
    """All steps of one count on random predictions; `current` holds their scheduler's noise."""
    rng = np.random.default_rng(steps)
    start, *draws = rng.standard_normal((steps + 1, 2, 3)).astype(np.float32)
    predictions = rng.standard_normal((steps, 2, 3)).astype(np.float32)
    scheduler.set_timesteps(steps)
    table = diffusion.step_coefficients(config, steps, name)
    assert all(np.isfinite(values).all() for values in table)
    theirs, old = torch.from_numpy(start), None
    ours = diffusion.SamplerState(start, np.zeros_like(start))
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
        row = diffusion.StepCoefficients(*(np.float32(values[index]) for values in table))
        ours = diffusion.sampler_step(ours, predictions[index], row, draws[index])
        assert ours.latents.dtype == np.float32
        assert relative_error(ours.latents, theirs.numpy()) < BLOCK_TOLERANCE, (steps, index)


@pytest.mark.parametrize("name", ["dpm", "ddim"])
def test_steps_run_in_float32_on_the_device(name):
    table = diffusion.step_coefficients(DiffusionConfig(), 4, name)
    rng = np.random.default_rng(0)
    start, prediction, noise = rng.standard_normal((3, 2, 3)).astype(np.float32)
    step = jax.jit(diffusion.sampler_step)
    host = device = diffusion.SamplerState(start, np.zeros_like(start))
    for index in range(4):
        row = diffusion.StepCoefficients(*(np.float32(values[index]) for values in table))
        host = diffusion.sampler_step(host, prediction, row, noise)
        device = step(device, prediction, row, noise)
        assert device.latents.dtype == jnp.float32
        assert relative_error(device.latents, host.latents) < BLOCK_TOLERANCE


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
    config = DiffusionConfig()
    with pytest.raises(ValueError, match="between 1 and 1000"):
        diffusion.timesteps(DiffusionConfig(), 0)
    with pytest.raises(ValueError, match="dpm or ddim"):
        diffusion.step_coefficients(DiffusionConfig(), 50, "euler")
    with pytest.raises(ValueError, match="'foo'; it must be trailing, linspace, leading"):
        config.timestep_spacing = "foo"  # as a config of a user may say
        diffusion.timesteps(config, 50)
