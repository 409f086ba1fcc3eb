"""Training: `python -m tora2_jax.train --config configs/toy.py --workdir DIR`.

Run again in the same folder, it continues exactly where the last checkpoint was made: step s is a
function of the config and s alone. The folder holds `config.json`, `checkpoints/`, `metrics/`
(TensorBoard, and `losses.jsonl` with the loss of every step) and `samples/`.
"""

import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from flax import nnx
from ml_collections import config_flags
from tqdm import tqdm

from tora2_jax import checkpoint
from tora2_jax.config import to_dict
from tora2_jax.data.loader import Source, batches
from tora2_jax.metric_log import MetricLog
from tora2_jax.train_config import TrainConfig, TrainError, differences
from tora2_jax.train_export import export, export_paths, shown_model, trained_components
from tora2_jax.train_state import TrainState, find_stage, init_state, train_step

_CHANGING = ("trainable", "statistics", "optimizer", "average")  # saved at every checkpoint


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
        export_paths(config.export, list(trained_components(stage, state)))  # fails early
    saved = checkpoint.Checkpoints(workdir / "checkpoints", keep=config.keep_checkpoints)
    try:
        state = _resume(saved, state)
        state = _loop(config, stage, source, graph, state, saved, workdir)
    finally:
        saved.close()
    if config.export:
        export(config, stage, graph, state)
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
    log = MetricLog(workdir / "metrics", start)
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


def _sample(
    config: TrainConfig, stage: ModuleType, graph: nnx.GraphDef, state: TrainState, folder: Path
) -> None:
    if not hasattr(stage, "sample"):
        return
    from tora2_jax.video import write_video  # loads the codecs, which training does not need

    folder.mkdir(exist_ok=True)
    step = int(state.step)
    frames = stage.sample(config, shown_model(graph, state), step)
    write_video(folder / f"{step:08d}.mp4", frames, fps=config.model.fps)


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
