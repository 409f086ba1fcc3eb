"""The noise process as pure functions: schedule, training target, DPM and DDIM steps, guidance.

Coefficients are computed on the host in float64, because they reach infinities (zero terminal
signal) and differences of nearly equal numbers; steps run in float32 on the device.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tora2_jax.config import DiffusionConfig
from tora2_jax.types import Array as AnyArray

Scheduler = Literal["dpm", "ddim"]
SCHEDULERS = get_args(Scheduler)
SPACINGS = ("trailing", "linspace", "leading")


def cumulative_alphas(config: DiffusionConfig) -> np.ndarray:
    """Signal share alpha-bar of every training timestep, `[num_steps]` float64; the last is 0.

    Scaled-linear betas, SNR shift, then the rescaling to zero terminal SNR, as CogVideoX does.
    """
    roots = np.linspace(config.beta_start**0.5, config.beta_end**0.5, config.num_steps)
    alphas = np.cumprod(1 - roots**2)
    alphas = alphas / (config.snr_shift + (1 - config.snr_shift) * alphas)
    signal = np.sqrt(alphas)
    return ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2


def timesteps(config: DiffusionConfig, num_inference_steps: int) -> np.ndarray:
    """Descending training timesteps visited by a sampler, `[num_inference_steps]`.

    Raises:
        ValueError: if there are more inference steps than training steps, or none, if the
            offset leads beyond the last training step, or for an unknown spacing.
    """
    if config.timestep_spacing not in SPACINGS:
        raise ValueError(
            f"timestep_spacing is {config.timestep_spacing!r}; it must be {', '.join(SPACINGS)}"
        )
    total, count = config.num_steps, num_inference_steps
    if not 1 <= count <= total:
        raise ValueError(f"steps is {count}; it must lie between 1 and {total}")
    if config.timestep_spacing == "trailing":
        # Rounding can make one too many, at -1 (61 steps); diffusers reads that as timestep 999.
        return np.round(np.arange(total, 0, -total / count)).astype(np.int64)[:count] - 1
    if config.timestep_spacing == "linspace":
        return np.round(np.linspace(0, total - 1, count))[::-1].astype(np.int64)
    times = (np.arange(count) * (total // count))[::-1] + config.steps_offset
    if times[0] >= total:
        raise ValueError(
            f"steps is {count}: with an offset of {config.steps_offset} the first timestep is "
            f"{times[0]}, after the last of training ({total - 1}); take fewer steps"
        )
    return times.astype(np.int64)


def add_noise(
    clean: Float[AnyArray, "b ..."], noise: Float[AnyArray, "b ..."], alpha: Float[AnyArray, " b"]
) -> Float[Array, "b ..."]:
    """sqrt(alpha-bar) * clean + sqrt(1 - alpha-bar) * noise."""
    alpha = alpha.reshape(-1, *[1] * (clean.ndim - 1))
    return jnp.sqrt(alpha) * clean + jnp.sqrt(1 - alpha) * noise


def velocity(
    clean: Float[AnyArray, "b ..."], noise: Float[AnyArray, "b ..."], alpha: Float[AnyArray, " b"]
) -> Float[Array, "b ..."]:
    """The training target v = sqrt(alpha-bar) * noise - sqrt(1 - alpha-bar) * clean.

    The mean square of its error equals CogVideoX's weighted error of the clean sample at every
    timestep; the paper's epsilon loss (eqs. 1, 8) is undefined at zero terminal SNR (our decision).
    """
    alpha = alpha.reshape(-1, *[1] * (clean.ndim - 1))
    return jnp.sqrt(alpha) * noise - jnp.sqrt(1 - alpha) * clean


class StepCoefficients(NamedTuple):
    """One sampling step: next = sample * x + clean * x0 + previous * x0_before + noise * eps.

    `signal` and `residual` give x0 = signal * x - residual * v.
    """

    timestep: Int[np.ndarray, " steps"]
    signal: Float[np.ndarray, " steps"]
    residual: Float[np.ndarray, " steps"]
    sample: Float[np.ndarray, " steps"]
    clean: Float[np.ndarray, " steps"]
    previous: Float[np.ndarray, " steps"]
    noise: Float[np.ndarray, " steps"]


def step_coefficients(
    config: DiffusionConfig, num_inference_steps: int, scheduler: Scheduler | str
) -> StepCoefficients:
    """Coefficients of all steps of a sampler, each `[steps]`, computed in float64.

    Steps go to `t - num_steps // steps` (integer division) as diffusers does, also where that is
    not the next timestep visited.

    Raises:
        ValueError: for an unknown scheduler or spacing, or an impossible number of steps.
    """
    if scheduler not in SCHEDULERS:
        raise ValueError(f"scheduler is {scheduler!r}; it must be {' or '.join(SCHEDULERS)}")
    alphas = cumulative_alphas(config)
    times = timesteps(config, num_inference_steps)
    targets = times - config.num_steps // num_inference_steps
    rows = []
    for index, (time, target) in enumerate(zip(times, targets, strict=True)):
        alpha, alpha_next = alphas[time], alphas[target] if target >= 0 else 1.0
        before = alphas[times[index - 1]] if index else None
        if scheduler == "ddim":
            row = _ddim(alpha, alpha_next)
        else:
            row = _dpm(alpha, alpha_next, None if target < 0 else before)
        rows.append((alpha**0.5, (1 - alpha) ** 0.5, *row))
    return StepCoefficients(times, *np.array(rows, np.float64).T)


def _ddim(alpha: float, alpha_next: float) -> tuple[float, float, float, float]:
    ratio = ((1 - alpha_next) / (1 - alpha)) ** 0.5
    return ratio, alpha_next**0.5 - alpha**0.5 * ratio, 0.0, 0.0


def _dpm(
    alpha: float, alpha_next: float, alpha_before: float | None
) -> tuple[float, float, float, float]:
    """SDE-DPM-Solver++ 2M; first order where there is no step before, or nothing after."""
    if alpha_next == 1.0:
        return 0.0, 1.0, 0.0, 0.0
    decay = _exp_minus_h(alpha, alpha_next)
    sample = ((1 - alpha_next) / (1 - alpha)) ** 0.5 * decay
    clean = alpha_next**0.5 * (1 - decay**2)
    noise = (1 - alpha_next) ** 0.5 * (1 - decay**2) ** 0.5
    extrapolation = 0.0
    if alpha_before:  # 0 at the first timestep: r is infinite there
        h = _half_log_snr(alpha_next) - _half_log_snr(alpha)
        r = (_half_log_snr(alpha) - _half_log_snr(alpha_before)) / h
        extrapolation = 1 / (2 * r)
    return sample, clean * (1 + extrapolation), -clean * extrapolation, noise


def _half_log_snr(alpha: float) -> float:
    return 0.5 * np.log(alpha / (1 - alpha))


def _exp_minus_h(alpha: float, alpha_next: float) -> float:
    return (alpha / (1 - alpha) * (1 - alpha_next) / alpha_next) ** 0.5


def dynamic_guidance(
    guidance: float, times: Int[np.ndarray, " steps"], num_inference_steps: int
) -> Float[np.ndarray, " steps"]:
    """CogVideoX's guidance scale of every step.

    It takes the *training* timestep for the step index, as diffusers and SAT do; the argument of
    the cosine reaches 1e7, hence float64.
    """
    count = num_inference_steps
    phase = np.pi * ((count - times.astype(np.float64)) / count) ** 5.0
    return 1 + guidance * (1 - np.cos(phase)) / 2


class SamplerState(NamedTuple):
    """What one step hands to the next."""

    latents: Float[Array, "b t_lat h_lat w_lat c"]
    previous_clean: Float[Array, "b t_lat h_lat w_lat c"]


def sampler_step(
    state: SamplerState,
    prediction: Float[AnyArray, "b ..."],
    row: StepCoefficients,
    noise: Float[AnyArray, "b ..."] | float,
) -> SamplerState:
    """One step of either sampler, float32. `row` holds the coefficients of this step.

    `noise` is a number, 0, for a sampler that takes none.
    """
    clean = row.signal * state.latents - row.residual * prediction
    latents = (
        row.sample * state.latents
        + row.clean * clean
        + row.previous * state.previous_clean
        + row.noise * noise
    )
    return SamplerState(latents, clean)


def step_noise(key: jax.Array, step: int | jax.Array, shape: tuple[int, ...]) -> Array:
    """Fresh noise of one step: a pure function of the request's key and the step."""
    return jax.random.normal(jax.random.fold_in(key, step), shape, jnp.float32)
