"""One training step as a pure function of config, state and batch, and the state it starts from."""

import importlib
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from tora2_jax import parallel
from tora2_jax.config.train import MeshConfig, TrainConfig, problems
from tora2_jax.data.loader import REPLACED
from tora2_jax.errors import CheckpointError, TrainError
from tora2_jax.models.layers.basic import flat_variables, stacked_paths
from tora2_jax.parallel import placement, processes
from tora2_jax.train import measures
from tora2_jax.train.optim import after_skipped_step, learning_rate, make_optimizer
from tora2_jax.train.stage import Stage
from tora2_jax.weights import checkpoint
from tora2_jax.weights.initial import metadata_of, restore
from tora2_jax.weights.precision import resting_dtype
from tora2_jax.weights.settings import setting_differences

# Stage -> the module whose `STAGE` it is; loaded when a run needs it.
STAGES = {
    "vae": "tora2_jax.train.stages.vae",
    "face": "tora2_jax.train.stages.recognition",
    "object": "tora2_jax.train.stages.recognition",
    "dino": "tora2_jax.train.stages.recognition",
    "judge": "tora2_jax.train.stages.judge",
    "localizer": "tora2_jax.train.stages.localizer",
    "base": "tora2_jax.train.stages.diffusion",
    "motion": "tora2_jax.train.stages.diffusion",
    "motion_vae": "tora2_jax.train.stages.motion_vae",
    "tora2": "tora2_jax.train.stages.diffusion",
}


# For a program of which the CPU's back end would spend much longer on making than on running it.
_RUNS_ONCE = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}


class TrainState(NamedTuple):
    """All that a run carries from step to step; variables by path (see weights.checkpoint)."""

    step: jax.Array  # number of finished steps
    trainable: dict[str, jax.Array]  # float32 masters
    frozen: dict[str, jax.Array]
    statistics: dict[str, jax.Array]  # not parameters; a forward pass may write them
    optimizer: optax.OptState  # of the trainable ones only
    average: dict[str, jax.Array]  # exponential moving average of `trainable`, or empty


def find_stage(config: TrainConfig, others: Sequence[str] = ()) -> Stage:
    """The config's stage.

    Raises:
        TrainError: the config cannot be used, or there are `others`: problems that are told too.
    """
    faults = [*others, *problems(config)]
    if config.stage not in STAGES:
        faults.append(f"config.stage {config.stage!r} is none of {', '.join(STAGES)}")
    if faults:
        raise TrainError("\n".join(faults))
    return importlib.import_module(STAGES[config.stage]).STAGE


def mesh_of(config: TrainConfig, stage: Stage, devices: list | None = None) -> Mesh:
    """The mesh of a config, on all devices or on these.

    Raises:
        TrainError: the devices or the batch cannot be shared so.
    """
    mesh = parallel.make_mesh(config.mesh, devices)
    shards = parallel.batch_shards(mesh)
    faults = []
    if config.batch_size % (shards * config.accumulate):
        faults.append(
            f"config.batch_size {config.batch_size} is not a multiple of {shards} (mesh.data x "
            f"mesh.fsdp) x {config.accumulate} (accumulate)"
        )
    if config.accumulate > 1 and stage.draw is None:
        faults.append(f"config.accumulate must be 1 in stage {config.stage}")
    if faults:
        raise TrainError("\n".join(faults))
    return mesh


def trainable_filter(config: TrainConfig, stage: Stage) -> Callable[[tuple, Any], bool]:
    """The NNX filter of the trainable set: parameters whose path the stage's regex matches."""
    matches = re.compile(stage.trainable(config)).match
    return nnx.All(nnx.Param, lambda path, _: matches(".".join(map(str, path))) is not None)


def abstract_state(
    config: TrainConfig, stage: Stage, mesh: Mesh
) -> tuple[nnx.GraphDef, TrainState]:
    """The state as shapes, types and shardings, without numbers; the devices need not be here."""
    model = nnx.eval_shape(lambda: stage.build(config, nnx.Rngs(config.seed)))
    graph, trainable, frozen, statistics = nnx.split(
        model, trainable_filter(config, stage), nnx.Param, nnx.Not(nnx.RngState)
    )

    def resting(path: str, value: Any) -> jax.ShapeDtypeStruct:
        dtype = resting_dtype(path, value.dtype, config.frozen_dtype)
        return jax.ShapeDtypeStruct(value.shape, dtype)

    trainable = {
        path: jax.ShapeDtypeStruct(value.shape, jnp.float32)
        for path, value in _flat(trainable).items()
    }
    if not trainable:
        raise TrainError(f"stage {config.stage}: its regex matches no parameter of the model")
    state = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        trainable=trainable,
        frozen={path: resting(path, value) for path, value in _flat(frozen).items()},
        statistics={
            path: jax.ShapeDtypeStruct(value.shape, value.dtype)
            for path, value in _flat(statistics).items()
        },
        optimizer=jax.eval_shape(_optimizer(config, model).init, trainable),
        average=trainable if config.ema_decay else {},
    )
    return graph, placement.abstract(mesh, state)


def init_state(
    config: TrainConfig, stage: Stage, mesh: Mesh | None = None
) -> tuple[nnx.GraphDef, TrainState]:
    """The model at step 0, from random numbers and the components in `config.weights`.

    Every array is made or read where it lies on the mesh (default: the first device) and in the
    type in which it rests; nothing is ever whole on one device. All processes call it together.

    Raises:
        TrainError: a component, here or in another process, is missing, damaged or does not fit.
    """
    mesh = parallel.make_mesh(MeshConfig(data=1)) if mesh is None else mesh
    graph, target = abstract_state(config, stage, mesh)
    targets = target.trainable | target.frozen | target.statistics
    variables = processes.together(lambda: _stored(config, stage, targets))
    missing = {path: value for path, value in targets.items() if path not in variables}

    def draw() -> dict[str, jax.Array]:
        made = flat_variables(stage.build(config, nnx.Rngs(config.seed)))
        return {path: made[path].astype(value.dtype) for path, value in missing.items()}

    def rest(trainable: dict) -> tuple[optax.OptState, dict]:
        model = nnx.merge(graph, checkpoint.nested(targets))
        optimizer = _optimizer(config, model).init(trainable)
        return optimizer, jax.tree.map(jnp.copy, trainable) if config.ema_decay else {}

    shardings = jax.tree.map(lambda value: value.sharding, (target, missing))
    options = _RUNS_ONCE if mesh.devices.flat[0].platform == "cpu" else None
    with parallel.use(mesh):
        variables |= jax.jit(draw, out_shardings=shardings[1], compiler_options=options)()
        trainable = {path: variables[path] for path in target.trainable}
        kept = (shardings[0].optimizer, shardings[0].average)
        optimizer, average = jax.jit(rest, out_shardings=kept)(trainable)
        step = jax.device_put(jnp.zeros((), jnp.int32), shardings[0].step)
    state = TrainState(
        step=step,
        trainable=trainable,
        frozen={path: variables[path] for path in target.frozen},
        statistics={path: variables[path] for path in target.statistics},
        optimizer=optimizer,
        average=average,
    )
    return graph, state


def _optimizer(config: TrainConfig, model: nnx.Module) -> optax.GradientTransformation:
    """For a model that may be abstract: only what it says about its variables counts."""
    return make_optimizer(config.optim, config.steps, stacked_paths(model))


def _stored(config: TrainConfig, stage: Stage, targets: dict) -> dict[str, jax.Array]:
    """The variables of all components in `config.weights`."""
    variables = {}
    for name, regex in stage.components.items():
        if given := getattr(config.weights, name, None):
            path = checkpoint.resolve(given, name)
            _refuse_other_settings(config, stage, name, path)
            variables |= _component(path, regex, targets)
    return variables


def _refuse_other_settings(config: TrainConfig, stage: Stage, name: str, path: Path) -> None:
    try:
        if found := setting_differences(name, config.model, metadata_of(path), stage.measured):
            raise TrainError(f"config.weights.{name}: {path}:\n  " + "\n  ".join(found))
    except CheckpointError as error:
        raise TrainError(f"{path}: {error}") from error


def _component(path: Path, regex: str, targets: dict) -> dict[str, jax.Array]:
    try:
        return restore(path, targets, regex)
    except CheckpointError as error:
        raise TrainError(f"{path}: {error}") from error


def _flat(state: nnx.State) -> dict[str, Any]:
    return {".".join(map(str, path)): value.get_value() for path, value in nnx.to_flat_state(state)}


def compiled_step(
    config: TrainConfig, stage: Stage, graph: nnx.GraphDef, state: TrainState
) -> Callable:
    """`train_step` as one program that takes a state's memory and leaves its arrays where they lie.

    To be traced and called within `parallel.use(mesh)`; `state` may be abstract.
    """
    shardings = jax.tree.map(lambda value: value.sharding, state)
    step = partial(train_step, config, stage, graph)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


class AbstractStep(NamedTuple):
    """A training step without numbers, to be compiled for devices that need not be here."""

    step: Callable  # jitted, see `compiled_step`
    state: TrainState  # of jax.ShapeDtypeStruct with shardings
    batch: dict[str, jax.ShapeDtypeStruct]
    mesh: Mesh

    def lower(self) -> jax.stages.Lowered:
        """The program; `.compile()` it."""
        with parallel.use_abstractly(self.mesh):
            return self.step.lower(self.state, self.batch)


def abstract_step(config: TrainConfig, stage: Stage, mesh: Mesh) -> AbstractStep:
    """The training step of a config on a mesh, which may be of an absent machine.

    Args:
        config: of a stage that has `example_shapes`.
        stage: from `find_stage`.
        mesh: from `parallel.make_mesh`, also of the devices of an AOT topology.
    """
    graph, state = abstract_state(config, stage, mesh)
    sharding = parallel.batch_sharding(mesh, config.batch_size)
    batch = {
        name: jax.ShapeDtypeStruct((config.batch_size, *leaf.shape), leaf.dtype, sharding=sharding)
        for name, leaf in stage.example_shapes(config).items()
    }
    return AbstractStep(compiled_step(config, stage, graph, state), state, batch, mesh)


def train_step(
    config: TrainConfig,
    stage: Stage,
    graph: nnx.GraphDef,
    state: TrainState,
    batch: dict[str, jax.Array],
) -> tuple[TrainState, dict[str, Any]]:
    """One update, left out if the loss or a gradient is not finite.

    The metrics, scalars and `measures.Share`s, hold at least loss, gradient_norm, learning_rate,
    and skipped (0 or 1); the host settles them (`measures.settled`).
    """
    (value, (metrics, statistics)), gradients = loss_and_gradients(
        config, stage, graph, state, batch
    )
    model = nnx.merge(graph, checkpoint.nested(gradients | state.frozen | state.statistics))
    updates, optimizer = _optimizer(config, model).update(
        gradients, state.optimizer, state.trainable
    )
    trainable = optax.apply_updates(state.trainable, updates)
    norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    metrics = metrics | {
        "loss": value,
        "skipped": 1.0 - finite,
        "gradient_norm": norm,
        **measures.gradient_norms(gradients),
        **measures.gates(state.trainable),
        "learning_rate": learning_rate(config.optim, config.steps)(state.step),
    }
    if REPLACED in batch:
        metrics[REPLACED] = batch[REPLACED].sum()
    average = state.average
    if average:
        average = optax.incremental_update(trainable, average, 1 - config.ema_decay)
    new = TrainState(state.step + 1, trainable, state.frozen, statistics, optimizer, average)
    kept = after_skipped_step(state.optimizer, optimizer)
    old = state._replace(step=new.step, frozen={}, optimizer=kept)
    own = new._replace(frozen={})
    chosen = jax.tree.map(partial(jnp.where, finite), own, old)
    return chosen._replace(frozen=state.frozen), metrics


def loss_and_gradients(
    config: TrainConfig,
    stage: Stage,
    graph: nnx.GraphDef,
    state: TrainState,
    batch: dict[str, jax.Array],
) -> tuple[tuple[jax.Array, tuple[dict, dict]], dict[str, jax.Array]]:
    """`((loss, (metrics, statistics)), gradients of the trainable variables)`.

    With `config.accumulate` the means over so many parts of the batch, one after another. All
    randomness is drawn for the whole batch, so the parts see what the whole would see.
    """
    batch = parallel.batch(batch)
    random = jax.random.fold_in(jax.random.key(config.seed), state.step)
    if stage.draw is not None:
        random = parallel.batch(stage.draw(config, batch, random))

    def loss(trainable, batch, random):
        variables = trainable | state.frozen | state.statistics
        model = nnx.merge(graph, checkpoint.nested(variables))
        value, metrics = stage.loss(config, model, batch, random)
        written = flat_variables(model)
        return value, (metrics, {path: written[path] for path in state.statistics})

    gradient = jax.value_and_grad(loss, has_aux=True)
    if config.accumulate == 1:
        return gradient(state.trainable, batch, random)

    def one(total, part):
        result = gradient(state.trainable, *part)
        return jax.tree.map(jnp.add, total, result), None

    parts = jax.tree.map(lambda array: _in_parts(array, config.accumulate), (batch, random))
    first = jax.tree.map(lambda array: array[0], parts)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(gradient, state.trainable, *first),
    )
    total, _ = jax.lax.scan(one, zeros, parts)
    (value, (metrics, _)), gradients = jax.tree.map(lambda x: x / config.accumulate, total)
    return (value, (metrics, state.statistics)), gradients


def _in_parts(array: jax.Array, parts: int) -> jax.Array:
    """`[b, ...] -> [parts, b / parts, ...]`; every device's samples are dealt out evenly."""
    split = array.reshape(array.shape[0] // parts, parts, *array.shape[1:])
    return parallel.batch(jnp.swapaxes(split, 0, 1), axis=1)
