"""What a training stage consists of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx

from tora2_jax.config import ModelConfig
from tora2_jax.config.train import TrainConfig
from tora2_jax.data.loader import Source
from tora2_jax.hardware.flops import TrainingWork


def everything(config: TrainConfig) -> str:
    """The regex of a stage that trains all parameters."""
    del config
    return ".*"


def as_configured(config: TrainConfig) -> ModelConfig:
    """The model of a stage that finds out no setting before it starts."""
    return config.model


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One kind of training. Each module of `stages/` has one, as `STAGE`.

    Faults that the user can correct are raised by its functions as `errors.TrainError`.
    """

    # A fresh model; the run gives it the weights that its config names.
    build: Callable[[TrainConfig, nnx.Rngs], nnx.Module]
    # The examples; all processes call it together.
    source: Callable[[TrainConfig], Source]
    # (config, model, batch, random) -> (loss, its parts and other scalars). `random` is a key, or
    # what `draw` made. The model is one of `build`, its variables are tracers.
    loss: Callable[[TrainConfig, Any, dict[str, jax.Array], Any], tuple[jax.Array, dict[str, Any]]]
    # Component -> regex of the paths that belong to it, see `checkpoint.stored_names`.
    components: Mapping[str, str]
    # Regex of the parameters to train, matched from the start of their paths.
    trainable: Callable[[TrainConfig], str] = everything
    # (config, batch, key) -> tree of arrays with one row per sample: all randomness of a step. A
    # stage without it cannot accumulate, because the parts of a batch would repeat their draws.
    draw: Callable[[TrainConfig, dict[str, jax.Array], jax.Array], Any] | None = None
    # One sample without its values; needed to compile a step for machines that are not here.
    example_shapes: Callable[[TrainConfig], dict[str, jax.ShapeDtypeStruct]] | None = None
    # Operations of one step, for the logged utilization.
    work: Callable[[TrainConfig], TrainingWork] | None = None
    # (config, model, step) -> uint8 video [f, height, width, 3]; called by one process alone.
    sample: Callable[[TrainConfig, Any, int], np.ndarray] | None = None
    # The model config that is exported with the components.
    exported_model: Callable[[TrainConfig], ModelConfig] = as_configured
    # Metadata for the exported components, measured with the whole model, which is brought to one
    # device for it; called by one process alone.
    finish: Callable[[TrainConfig, Any], dict[str, Any]] | None = None
    # Names of the model's settings that `finish` measures: weights to start from may have others.
    measured: tuple[str, ...] = ()
