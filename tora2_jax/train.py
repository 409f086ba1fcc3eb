"""Training: `python -m tora2_jax.train --config configs/toy.py --workdir DIR`.

Run again in the same folder, it continues exactly where the last checkpoint was made: step s is a
function of the config and s alone. The folder holds `config.json`, `checkpoints/`, `metrics/`
(TensorBoard, and `losses.jsonl` with the loss of every step) and `samples/`.
"""

import importlib
import json
import math
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from flax import nnx
from ml_collections import config_flags
from tensorboardX import SummaryWriter
from tqdm import tqdm

from tora2_jax import checkpoint
from tora2_jax.config import to_dict
from tora2_jax.data.loader import Source, batches
from tora2_jax.models.layers import flat_variables
from tora2_jax.optim import learning_rate, make_optimizer
from tora2_jax.train_config import TrainConfig, TrainError, differences, problems
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


_CHANGING = ("trainable", "statistics", "optimizer", "average")  # saved at every checkpoint


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
    """One update; the metrics hold at least loss, gradient_norm and learning_rate."""
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
    metrics = metrics | {
        "loss": value,
        "gradient_norm": optax.tree.norm(gradients),
        "learning_rate": learning_rate(config.optim, config.steps)(state.step),
    }
    average = state.average
    if average:
        average = optax.incremental_update(trainable, average, 1 - config.ema_decay)
    new = TrainState(state.step + 1, trainable, state.frozen, statistics, optimizer, average)
    return new, metrics


def train(config: TrainConfig, workdir: str | Path) -> TrainState:
    """Starts or continues the run in `workdir` and returns its last state.

    Raises:
        TrainError: the config is wrong or differs from the folder's, nothing can be written there,
            or the loss is not finite.
    """
    workdir = Path(workdir)
    stage = find_stage(config)
    _claim(workdir, config)
    source = stage.source(config)  # first: what it may encode needs the memory of the model
    graph, state = init_state(config, stage)
    if config.export:
        _export_paths(config.export, list(_trained_components(stage, state)))  # fails early
    saved = checkpoint.Checkpoints(workdir / "checkpoints", keep=config.keep_checkpoints)
    try:
        state = _resume(saved, state)
        state = _loop(config, stage, source, graph, state, saved, workdir)
    finally:
        saved.close()
    if config.export:
        _export(config, stage, graph, state)
    return state


def _claim(workdir: Path, config: TrainConfig) -> None:
    """Writes `config.json`, after comparing it with the one of an earlier run in the folder."""
    path = workdir / "config.json"
    new = json.loads(json.dumps(to_dict(config)))
    try:
        started = path.exists() and any((workdir / "checkpoints").glob("[0-9]*"))
        old = json.loads(path.read_text()) if started else new
        if not (changed := differences(old, new)):
            (workdir / "metrics").mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(".partial")
            aside.write_text(json.dumps(new, indent=2) + "\n")
            aside.replace(path)
    except OSError as error:
        raise TrainError(f"--workdir: {workdir} cannot be the folder of a run: {error}") from error
    except ValueError as error:
        raise TrainError(f"{path} is damaged ({error}); use another folder") from error
    if changed:
        raise TrainError(
            f"{workdir} holds a run with another config; continue it as it was, or use another "
            "folder:\n  " + "\n  ".join(changed)
        )


def _resume(saved: checkpoint.Checkpoints, state: TrainState) -> TrainState:
    step = saved.latest()
    if step is None:
        saved.save_frozen(state.frozen)
        return state
    restored = saved.restore(step, _changing(state))
    return state._replace(
        step=jnp.asarray(step, jnp.int32), frozen=saved.restore_frozen(state.frozen), **restored
    )


def _changing(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in _CHANGING}


def _loop(
    config: TrainConfig,
    stage: ModuleType,
    source: Source,
    graph: nnx.GraphDef,
    state: TrainState,
    saved: checkpoint.Checkpoints,
    workdir: Path,
) -> TrainState:
    update = jax.jit(partial(train_step, config, stage, graph), donate_argnums=0)
    start = int(state.step)
    log = _Log(workdir / "metrics", start)
    data = batches(source, config.batch_size, config.seed, start, config.steps, config.workers)
    with tqdm(data, initial=start, total=config.steps, desc=config.stage, unit="step") as bar:
        for step, batch in enumerate(bar, start + 1):
            state, metrics = update(state, batch)
            log.add(step, metrics)
            last = step == config.steps
            save = last or step % config.checkpoint_every == 0
            if save or step % config.log_every == 0:
                bar.set_postfix(loss=f"{log.write():.4f}", refresh=False)
            if save:
                saved.save(step, _changing(state))
            if config.sample_every and (last or step % config.sample_every == 0):
                _sample(config, stage, graph, state, workdir / "samples")
    log.close()
    return state


class _Log:
    """Losses of every step as JSON lines; means of all metrics between writes for TensorBoard."""

    def __init__(self, directory: Path, start: int):
        self._path = directory / "losses.jsonl"
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        rows = self._path.read_text().splitlines() if self._path.exists() else []
        aside = self._path.with_suffix(".partial")
        # The rows after the checkpoint belong to steps that are done again.
        aside.write_text("".join(f"{row}\n" for row in rows[:start]))
        aside.replace(self._path)
        self._board = SummaryWriter(str(directory), purge_step=start)

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Keeps the metrics of a step without waiting for them."""
        self._pending.append((step, metrics))

    def write(self) -> float:
        """Writes what was added; returns the mean loss. Raises TrainError if one is not finite."""
        rows = [(step, jax.tree.map(float, metrics)) for step, metrics in self._pending]
        self._pending = []
        with self._path.open("a") as file:
            for step, metrics in rows:
                file.write(json.dumps({"step": step, "loss": metrics["loss"]}) + "\n")
        means = {name: float(np.mean([row[name] for _, row in rows])) for name in rows[0][1]}
        for name, value in means.items():
            self._board.add_scalar(name, value, rows[-1][0])
        if bad := [step for step, metrics in rows if not math.isfinite(metrics["loss"])]:
            raise TrainError(f"the loss of step {bad[0]} is not finite; lower the learning rate")
        return means["loss"]

    def close(self) -> None:
        """Flushes TensorBoard's file."""
        self._board.close()


def _model(graph: nnx.GraphDef, state: TrainState) -> nnx.Module:
    """The model to look at or to export: with the averaged weights, if they are kept."""
    variables = (state.average or state.trainable) | state.frozen | state.statistics
    return nnx.merge(graph, checkpoint.nested(variables))


def _sample(
    config: TrainConfig, stage: ModuleType, graph: nnx.GraphDef, state: TrainState, folder: Path
) -> None:
    if not hasattr(stage, "sample"):
        return
    from tora2_jax.video import write_video  # loads the codecs, which training does not need

    folder.mkdir(exist_ok=True)
    step = int(state.step)
    frames = stage.sample(config, _model(graph, state), step)
    write_video(folder / f"{step:08d}.mp4", frames, fps=config.model.fps)


def _export(config: TrainConfig, stage: ModuleType, graph: nnx.GraphDef, state: TrainState) -> None:
    """Writes the components that this stage has trained, each with all its variables."""
    model = _model(graph, state)
    variables = flat_variables(model)
    names = _trained_components(stage, state)
    extra = stage.finish(config, model) if hasattr(stage, "finish") else {}
    metadata = {"stage": config.stage, "model": to_dict(config.model), **extra}
    for name, path in _export_paths(config.export, list(names)).items():
        arrays = {stored: variables[own] for stored, own in names[name].items()}
        checkpoint.save_component(path, arrays, metadata)
    if not config.export.endswith(".safetensors"):
        checkpoint.save_config(config.export, metadata["model"])


def _trained_components(stage: ModuleType, state: TrainState) -> dict[str, dict[str, str]]:
    """Names in the file -> paths, of every component of which something is trained."""
    paths = state.trainable.keys() | state.frozen.keys() | state.statistics.keys()
    names = {
        component: checkpoint.stored_names(sorted(paths), regex)
        for component, regex in stage.COMPONENTS.items()
    }
    return {
        component: own
        for component, own in names.items()
        if state.trainable.keys() & set(own.values())
    }


def _export_paths(export: str, components: list[str]) -> dict[str, Path]:
    if not export.endswith(".safetensors"):
        return {name: Path(export) / f"{name}.safetensors" for name in components}
    if len(components) != 1:
        raise TrainError(
            f"config.export is one file, but the stage trains {', '.join(components)}; "
            "name a folder instead"
        )
    return {components[0]: Path(export)}


def main(arguments: list[str]) -> int:
    """Trains as the flags say; returns the exit code, 2 if the user has to change something."""
    del arguments
    logging.set_verbosity(logging.WARNING)  # orbax reports every save
    try:
        train(flags.FLAGS.config, flags.FLAGS.workdir)
    except (TrainError, checkpoint.CheckpointError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def run(arguments: list[str]) -> None:
    """The program: defines the flags, reads them, trains, exits."""
    # The choices are checked with the rest of the config (train_config.problems).
    config_flags.register_flag_parser_for_type(Literal, flags.ArgumentParser())
    config_flags.DEFINE_config_file("config", None, "A file of configs/.")
    flags.DEFINE_string("workdir", None, "Folder of this run; made if needed.")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, argv=arguments, flags_parser=_parse)


def _parse(arguments: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(arguments)
        getattr(flags.FLAGS.config, "stage", None)  # raises if the file could not be loaded
        return rest
    except (flags.Error, AttributeError, ValueError, TypeError, KeyError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)


if __name__ == "__main__":
    run(sys.argv)
