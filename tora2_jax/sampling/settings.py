"""How a request is sampled, and what is wrong with that."""

import json
import math
import numbers
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tora2_jax import diffusion
from tora2_jax.config.model import DiffusionConfig
from tora2_jax.errors import CheckpointError
from tora2_jax.system import limits

SEEDS = 2**32  # larger ones would repeat


class SampleSettings(NamedTuple):
    """How a request is sampled. Defaults are the paper's (section 4.1).

    `reference_guidance` and `trajectory_guidance` amplify those conditions (our addition); at 1
    they cost nothing.
    """

    steps: int = 50  # of denoising
    guidance: float = 6.0  # strength of the prompt
    dynamic_guidance: bool = True  # CogVideoX's, which changes from step to step
    scheduler: diffusion.Scheduler | None = None  # None: the checkpoint's own
    reference_guidance: float = 1.0
    trajectory_guidance: float = 1.0


DEFAULTS = SampleSettings()
STORED = "generation_config.json"  # in a checkpoint's folder: some of these settings


def stored_settings(directory: Path, config: DiffusionConfig) -> SampleSettings:
    """How a checkpoint is sampled best, as its folder says; the paper's for what it leaves out.

    Raises:
        CheckpointError: lists everything in its file that cannot be used.
    """
    path = directory / STORED
    if not path.is_file():
        return DEFAULTS
    try:
        stored = json.loads(limits.decode_text(limits.read_bytes(path, limits.JSON_BYTES)))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path} must hold an object with settings such as steps")
    known = {name: value for name, value in stored.items() if name in SampleSettings._fields}
    problems = [f"{name}: unknown setting" for name in stored if name not in known]
    settings = DEFAULTS._replace(**known)
    problems += [f"{name}: {text}" for name, text in setting_problems(settings, config).items()]
    if problems:
        raise CheckpointError(f"{path} cannot be used:\n  " + "\n  ".join(problems))
    return settings


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
