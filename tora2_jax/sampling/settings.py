"""How a request is sampled, and what is wrong with that."""

import math
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tora2_jax import diffusion
from tora2_jax.config.model import DiffusionConfig

SEEDS = 2**32  # larger ones would repeat


class SampleSettings(NamedTuple):
    """How a request is sampled. Defaults are the paper's (section 4.1).

    `reference_guidance` and `trajectory_guidance` amplify those conditions (our addition); at 1
    they cost nothing.
    """

    steps: int = 50
    guidance: float = 6.0
    dynamic_guidance: bool = True
    scheduler: diffusion.Scheduler | None = None  # None: the checkpoint's own
    reference_guidance: float = 1.0
    trajectory_guidance: float = 1.0


DEFAULTS = SampleSettings()


def setting_problems(settings: SampleSettings, config: DiffusionConfig) -> dict[str, str]:
    """What is wrong with settings for a model, by the name of the field; empty if nothing is."""
    problems = {
        name: f"{getattr(settings, name)!r} is not a finite number"
        for name in ("guidance", "reference_guidance", "trajectory_guidance")
        if not _is_finite(getattr(settings, name))
    }
    if not isinstance(settings.dynamic_guidance, bool):
        problems["dynamic_guidance"] = f"{settings.dynamic_guidance!r} is neither True nor False"
    scheduler = settings.scheduler or config.scheduler
    if scheduler not in diffusion.SCHEDULERS:
        known = " or ".join(diffusion.SCHEDULERS)
        problems["scheduler"] = f"{scheduler!r} is unknown; it must be {known}"
        scheduler = "ddim"  # the number of steps can be looked at all the same
    if problem := _steps_problem(settings.steps, config, scheduler):
        problems["steps"] = problem
    return problems


def _is_finite(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _steps_problem(
    steps: Any, config: DiffusionConfig, scheduler: diffusion.Scheduler
) -> str | None:
    if not _is_whole(steps) or not 1 <= steps <= config.num_steps:
        return f"{steps!r} is not a whole number from 1 to {config.num_steps}"
    try:
        diffusion.step_coefficients(config, steps, scheduler)
    except ValueError as error:
        return str(error)
    return None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def seed_problems(seeds: Sequence[int]) -> list[str]:
    """What is wrong with each of these seeds that cannot be used."""
    return [
        f"{seed!r} is not a whole number from 0 to {SEEDS - 1}"
        for seed in seeds
        if not _is_whole(seed) or not 0 <= seed < SEEDS
    ]
