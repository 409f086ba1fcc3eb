"""One training step as a pure function of config, state and batch, and the state it starts from."""

import importlib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from tora2_jax import checkpoint
from tora2_jax.models.layers import flat_variables
from tora2_jax.optim import learning_rate, make_optimizer
from tora2_jax.train_config import TrainConfig, TrainError, problems
from tora2_jax.weight_settings import setting_differences

# A stage is a module with
#   build(config, rngs) -> nnx.Module
#   source(config) -> tora2_jax.data.loader.Source
#   loss(config, model, batch, key) -> (scalar, dict of scalars)
#   TRAINABLE: regex, or trainable(config) -> regex, matched from the start of a parameter's path
#   COMPONENTS: name -> regex of the paths that it owns (see checkpoint.stored_names)
# and, if it likes,
#   sample(config, model, step) -> uint8 video [f, height, width, 3]
#   finish(config, model) -> dict of metadata that is stored with the exported components
# What its user can mend, it raises as train_config.TrainError.
STAGES = {
    "vae": "tora2_jax.stages.vae",
    "face": "tora2_jax.stages.recognition",
    "object": "tora2_jax.stages.recognition",
    "dino": "tora2_jax.stages.recognition",
    "judge": "tora2_jax.stages.recognition",
    "localiser": "tora2_jax.stages.localiser",
    "base": "tora2_jax.stages.diffusion",
    "motion": "tora2_jax.stages.diffusion",
    "motion_vae": "tora2_jax.stages.motion_vae",
    "tora2": "tora2_jax.stages.diffusion",
}


class TrainState(NamedTuple):
    """All that a run carries from step to step; variables by path (see checkpoint.py)."""

    step: jax.Array  # number of finished steps
    trainable: dict[str, jax.Array]  # float32 masters
    frozen: dict[str, jax.Array]
    statistics: dict[str, jax.Array]  # not parameters; a forward pass may write them
    optimizer: optax.OptState  # of the trainable ones only
    average: dict[str, jax.Array]  # exponential moving average of `trainable`, or empty


def find_stage(config: TrainConfig) -> ModuleType:
    """The module of the config's stage; raises TrainError if the config cannot be used."""
    faults = problems(config)
    if config.stage not in STAGES:
        faults.append(f"config.stage {config.stage!r} is none of {', '.join(STAGES)}")
    if faults:
        raise TrainError("\n".join(faults))
    return importlib.import_module(STAGES[config.stage])


def trainable_filter(config: TrainConfig, stage: ModuleType) -> Callable[[tuple, Any], bool]:
    """The NNX filter of the trainable set: parameters whose path the stage's regex matches."""
    regex = stage.trainable(config) if hasattr(stage, "trainable") else stage.TRAINABLE
    matches = re.compile(regex).match
    return nnx.All(nnx.Param, lambda path, _: matches(".".join(map(str, path))) is not None)


def init_state(config: TrainConfig, stage: ModuleType) -> tuple[nnx.GraphDef, TrainState]:
    """The model at step 0, from random numbers and the components in `config.weights`."""
    model = stage.build(config, nnx.Rngs(config.seed))
    for name, regex in stage.COMPONENTS.items():
        if path := getattr(config.weights, name, None):
            _load(config, model, name, checkpoint.resolve(path, name), regex)
    graph, trainable, frozen, statistics = nnx.split(
        model, trainable_filter(config, stage), nnx.Param, nnx.Not(nnx.RngState)
    )
    trainable = {path: value.astype(jnp.float32) for path, value in _flat(trainable).items()}
    if not trainable:
        raise TrainError(f"stage {config.stage}: its regex matches no parameter of the model")
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        frozen=_flat(frozen),
        statistics=_flat(statistics),
        optimizer=make_optimizer(config.optim, config.steps).init(trainable),
        average=jax.tree.map(jnp.copy, trainable) if config.ema_decay else {},
    )
    return graph, state


def _load(config: TrainConfig, model: nnx.Module, name: str, path: Path, regex: str) -> None:
    names = checkpoint.stored_names(flat_variables(model), regex)
    stored, metadata = checkpoint.load_component(path)
    if found := setting_differences(name, config.model, metadata):
        raise TrainError(f"config.weights.{name}: {path}:\n  " + "\n  ".join(found))
    try:
        renamed = {names.get(name, name): value for name, value in stored.items()}
        checkpoint.merge(model, renamed, expected=regex)
    except checkpoint.CheckpointError as error:
        raise TrainError(f"{path}: {error}") from error


def _flat(state: nnx.State) -> dict[str, jax.Array]:
    return {".".join(map(str, path)): value.get_value() for path, value in nnx.to_flat_state(state)}


def train_step(
    config: TrainConfig,
    stage: ModuleType,
    graph: nnx.GraphDef,
    state: TrainState,
    batch: dict[str, jax.Array],
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update, left out if the loss or a gradient is not finite.

    The metrics hold at least loss, gradient_norm, learning_rate, and skipped (0 or 1).
    """
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)

    def loss(trainable):
        variables = trainable | state.frozen | state.statistics
        model = nnx.merge(graph, checkpoint.nested(variables))
        value, metrics = stage.loss(config, model, batch, key)
        written = flat_variables(model)
        return value, (metrics, {path: written[path] for path in state.statistics})

    gradient = jax.value_and_grad(loss, has_aux=True)
    (value, (metrics, statistics)), gradients = gradient(state.trainable)
    updates, optimizer = make_optimizer(config.optim, config.steps).update(
        gradients, state.optimizer, state.trainable
    )
    trainable = optax.apply_updates(state.trainable, updates)
    norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    metrics = metrics | {
        "loss": value,
        "skipped": 1.0 - finite,
        "gradient_norm": norm,
        "learning_rate": learning_rate(config.optim, config.steps)(state.step),
    }
    average = state.average
    if average:
        average = optax.incremental_update(trainable, average, 1 - config.ema_decay)
    new = TrainState(state.step + 1, trainable, state.frozen, statistics, optimizer, average)
    old, own = state._replace(step=new.step, frozen={}), new._replace(frozen={})
    chosen = jax.tree.map(partial(jnp.where, finite), own, old)
    return chosen._replace(frozen=state.frozen), metrics
