"""Training: `python -m tora2_jax.train --config configs/toy.py --workdir DIR`.

`--help` lists all that can be set, with `--config FILE` its values; `--smoke` does two steps over
few examples, to see whether all of a run works.

Run again in the same folder, it continues exactly where the last checkpoint was made: step s is a
function of the config and s alone, whatever the number of processes (docs/multi_host.md). The
folder holds `config.json`, `checkpoints/`, `metrics/` (TensorBoard; `losses.jsonl` with the loss
of every step; `skipped.jsonl`), `samples/` and `profile/`, and at the end `trained/`, the weights
that were trained.

Exit codes: 0 all steps are done; 2 the user has to change something; `config.stop_code` (75) it
was asked to stop; anything else it failed. All but 0 and 2 go on when the command is run again.
"""

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from flax import nnx
from tqdm import tqdm

from tora2_jax import parallel
from tora2_jax.config import flags as train_flags
from tora2_jax.config.train import TrainConfig
from tora2_jax.data.loader import Source, batches, identified, positions
from tora2_jax.errors import CheckpointError, TrainError
from tora2_jax.hardware import flops
from tora2_jax.hardware.targets import peak_of
from tora2_jax.parallel import processes
from tora2_jax.system import feedback
from tora2_jax.system.addresses import address_problems
from tora2_jax.system.compile_cache import keep_compiled_programs
from tora2_jax.system.finite import damage
from tora2_jax.system.lease import Lease
from tora2_jax.system.stop import StopSignals
from tora2_jax.train import measures
from tora2_jax.train.runs import folder
from tora2_jax.train.runs.checkpoints import Checkpoints, SaveError, quiet
from tora2_jax.train.runs.export import check_export, export, export_paths, trained_components
from tora2_jax.train.runs.log import MetricLog
from tora2_jax.train.runs.profile import StepProfile
from tora2_jax.train.runs.result import result_lines
from tora2_jax.train.runs.samples import write_sample
from tora2_jax.train.smoke import smoke
from tora2_jax.train.stage import Stage
from tora2_jax.train.state import TrainState, compiled_step, find_stage, init_state, mesh_of

_CHANGING = ("trainable", "statistics", "optimizer", "average")  # saved at every checkpoint
_SAVE_FAILED = 2  # above 1, which asks to stop
_TAKEN = 3  # the folder, by another run
_TOLD = 20  # examples of skipped steps


class Stopped(Exception):
    """The run was asked to stop; its last step is saved."""


class _Asked(NamedTuple):
    """Who may ask the run to end before its last step."""

    stop: StopSignals | None
    lease: Lease | None  # in process 0


class _Run(NamedTuple):
    """What stays the same from the first step to the last."""

    config: TrainConfig
    stage: Stage
    graph: nnx.GraphDef
    workdir: Path


def train(config: TrainConfig, workdir: str | Path, stop: StopSignals | None = None) -> TrainState:
    """Starts or continues the run in `workdir` and returns its last state.

    Raises:
        TrainError: the config is wrong or differs from the folder's, nothing can be written there,
            no checkpoint of an earlier run can be read, too many steps in a row have no finite
            loss or gradient, or another process cannot start.
        SaveError: the first or the last state could not be saved.
        Stopped: `stop` was requested before the last step was done.
    """
    address = address_problems({"--workdir": workdir})
    if not str(workdir):  # which `Path` takes for the current folder
        address.append("--workdir: is empty; name a folder")
    workdir = Path(workdir)
    if config.export is None and not address:
        config = replace(config, export=str(workdir / "trained"))
    stage = find_stage(config, address)
    mesh = mesh_of(config, stage)
    with ExitStack() as stack:
        lease = processes.together(lambda: folder.hold(workdir, stack))
        processes.together(lambda: folder.check(workdir, config))
        return _train(config, stage, mesh, workdir, _Asked(stop, lease))


def _train(
    config: TrainConfig, stage: Stage, mesh: jax.sharding.Mesh, workdir: Path, asked: _Asked
) -> TrainState:
    """The run in its folder, from the first or the last step on."""
    # First: what it may encode needs the memory of the model.
    source = processes.together(lambda: stage.source(config))
    with _working("making the first state"):
        graph, state = init_state(config, stage, mesh)
    components = list(trained_components(stage, state))
    if config.export:  # fails early
        paths = export_paths(config.export, components)
        processes.together(lambda: check_export(paths))
    # What is refused until here leaves the folder as it was.
    processes.first_then_others(lambda: folder.claim(workdir, config))
    run = _Run(config, stage, graph, workdir)
    saved = Checkpoints(workdir / "checkpoints", keep=config.keep_checkpoints)
    try:
        with _working("reading or making checkpoints"):
            state = _resume(run, saved, state)
        _tell_start(run, mesh, int(state.step))
        with parallel.use(mesh):
            state = _loop(run, source, state, saved, asked)
        with _working("saving the last step"):
            saved.finish()
    except Exception as error:
        # A process that fails alone must not wait for the others' part of a save.
        if jax.process_count() == 1 or isinstance(error, (TrainError, Stopped)):
            saved.close()
        raise
    saved.close()
    if config.export:
        with _working("measuring and exporting what was trained"):
            export(config, stage, graph, state)
    if processes.is_first():
        print("\n".join(result_lines(config, workdir, components)))
    return state


def _working(what: str) -> AbstractContextManager:
    return feedback.working(what, silent=not processes.is_first())


def _resume(run: _Run, saved: Checkpoints, state: TrainState) -> TrainState:
    """The state of the newest checkpoint that can be read; of a new run, the one given."""
    found = saved.restore_newest(_changing(state))
    if found is None:
        saved.save_frozen(state.frozen)
        return state
    step, restored = found
    if step > (wanted := run.config.steps):
        raise TrainError(
            f"{run.workdir} has done {step} steps, but config.steps is {wanted}; there is no way "
            "back, so set it higher or use another folder"
        )
    frozen = processes.together(lambda: saved.restore_frozen(state.frozen))
    position = jax.device_put(np.int32(step), state.step.sharding)
    return state._replace(step=position, frozen=frozen, **restored)


def _tell_start(run: _Run, mesh: jax.sharding.Mesh, done: int) -> None:
    if not processes.is_first():
        return
    device = mesh.devices.flat[0].device_kind
    unused = jax.device_count() - mesh.size
    rest = f"; {unused} of {jax.device_count()} devices are not used" if unused else ""
    begins = f"goes on after step {done}" if done else "starts"
    if done == run.config.steps:
        begins = f"all {done} steps are done already; --config.steps asks for more"
    else:
        begins += ", the first step is compiled"
    sys.stderr.write(
        f"{run.config.stage}: {mesh.size} x {device}, {parallel.written(mesh)}{rest}; {begins}\n"
    )


def _changing(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in _CHANGING}


def _loop(
    run: _Run, source: Source, state: TrainState, saved: Checkpoints, asking: _Asked
) -> TrainState:
    config, start = run.config, int(state.step)
    update = compiled_step(config, run.stage, run.graph, state)
    mesh = state.step.sharding.mesh
    log = MetricLog(run.workdir / "metrics", start, processes.is_first(), _speed(run, mesh))
    data = _batches(config, source, start, mesh)
    skipped: list[dict[str, Any]] = []  # steps in a row
    batch = next(data, None)
    if asking.stop is not None:
        asking.stop.can_save = True
    steps = range(start + 1, config.steps + 1)
    profile = StepProfile(run.workdir, *config.profile_steps)
    with _bar(config, steps) as bar, log, profile:
        for step in steps:
            with profile.of(step):
                state, metrics = update(state, batch)
                with log.timed("data"):
                    batch = next(data, None)  # while the devices work
                with log.timed("step"):
                    metrics = measures.settled(jax.device_get(metrics))
            log.add(step, metrics)
            asked = processes.agree(_request(saved, asking))
            last = step == config.steps
            sample = _is_sampled(run, step)
            save = last or asked or sample or step % config.checkpoint_every == 0
            skipped = (
                [*skipped, _skip_row(config, source, step, metrics)] if metrics["skipped"] else []
            )
            if skipped:
                log.add_skipped(skipped[-1])
            if save or skipped or step % config.log_every == 0:
                bar.set_postfix(loss=f"{log.write():.4f}", skipped=log.skipped, refresh=False)
            if len(skipped) > config.skips_allowed:
                raise TrainError(_too_many(run, state, skipped))
            if asked == _TAKEN:
                raise TrainError(_who_took(run.workdir, asking))
            if asked == _SAVE_FAILED:
                raise SaveError("a process could not save its part; its message says why")
            if save:
                with log.timed("save"):
                    saved.save(step, _changing(state))
            if asked and not last:
                saved.finish()
                raise Stopped(f"stopped after step {step} of {config.steps}, which is saved")
            if sample and not asked:
                _sample(run, saved, state)
            bar.update()
    return state


def _batches(
    config: TrainConfig, source: Source, start: int, mesh: jax.sharding.Mesh
) -> Iterator[dict[str, jax.Array]]:
    """The batches that are left; each process makes its samples of them."""
    size = config.batch_size
    rows = parallel.batch_rows(mesh, size)
    own = batches(source, size, config.seed, start, config.steps, config.workers, rows)
    return map(partial(parallel.global_batch, mesh, size), own)


def _speed(run: _Run, mesh: jax.sharding.Mesh) -> Callable | None:
    if run.stage.work is None:
        return None
    operations = run.stage.work(run.config).model
    peak = peak_of(mesh.devices.flat[0].device_kind)
    return partial(flops.speed, operations, devices=mesh.size, peak=peak)


def _bar(config: TrainConfig, steps: range) -> AbstractContextManager[tqdm]:
    return feedback.bar(
        config.stage,
        config.steps,
        "step",
        initial=steps.start - 1,
        silent=not processes.is_first() or not steps,
    )


def _request(saved: Checkpoints, asking: _Asked) -> int:
    """What this process asks of all of them. Alone, it can go on after a failed save."""
    if asking.lease is not None and asking.lease.lost:
        return _TAKEN
    if jax.process_count() > 1 and saved.failed():
        return _SAVE_FAILED
    return int(asking.stop is not None and asking.stop.requested)


def _who_took(workdir: Path, asking: _Asked) -> str:
    other = "another program" if asking.lease is None else asking.lease.lost
    return (
        f"{workdir} has been taken over by {other}, while this run gave no sign of life; "
        "it ends here and has saved nothing since"
    )


def _skip_row(config: TrainConfig, source: Source, step: int, metrics: dict) -> dict[str, Any]:
    rows = positions(source, config.batch_size, config.seed, step - 1)
    values = {name: str(metrics[name]) for name in ("loss", "gradient_norm")}
    return {"step": step, **values, "examples": identified(source, rows)}


def _too_many(run: _Run, state: TrainState, skipped: list[dict[str, Any]]) -> str:
    first, last = skipped[0]["step"], skipped[-1]["step"]
    examples = [
        " ".join(f"{name} {value}" for name, value in example.items())
        for row in skipped
        for example in row["examples"]
    ]
    told = examples[:_TOLD] + [f"and {len(examples) - _TOLD} more"] * (len(examples) > _TOLD)
    none = (
        f"steps {first} to {last} had no finite loss and gradient, more than "
        f"config.skips_allowed ({run.config.skips_allowed}) in a row; "
    )
    if fault := damage(state.trainable | state.frozen | state.statistics):
        return none + fault
    return (
        f"{none}start from its weights "
        "(config.weights) in another folder with a lower learning rate, or look at their "
        f"examples, which {run.workdir / 'metrics' / 'skipped.jsonl'} lists: " + "; ".join(told)
    )


def _is_sampled(run: _Run, step: int) -> bool:
    config = run.config
    due = config.sample_every and (step == config.steps or step % config.sample_every == 0)
    return bool(due) and run.stage.sample is not None


def _sample(run: _Run, saved: Checkpoints, state: TrainState) -> None:
    """A video may take longer than there is time to stop, so what it is of has to be saved."""
    with suppress(SaveError):  # told already; the next save tries again
        saved.finish()
    write_sample(run.config, run.stage, run.graph, state, run.workdir)


def main(arguments: list[str]) -> int:
    """Trains as the flags say; returns the exit code (see the module)."""
    del arguments
    quiet()
    options = flags.FLAGS
    config, code = options.config, 0
    if options.smoke:
        config = smoke(config, options.workdir)
    try:
        keep_compiled_programs()
        processes.start(options.coordinator, options.processes, options.process)
        with StopSignals(config.stop_code, config.stop_seconds) as stop:
            train(config, options.workdir, stop)
    except Stopped as stopped:
        sys.stderr.write(f"{stopped}; run again to go on\n")
        code = config.stop_code
    except (TrainError, CheckpointError) as error:
        sys.stderr.write(f"{error}\n")
        code = 2
    except (SaveError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        code = 1
    except Exception:  # one of several processes has to end with its code all the same
        traceback.print_exc()
        code = 1
    processes.leave(code)
    return code


def run(arguments: list[str]) -> None:
    """The program: defines the flags, reads them, trains, exits."""
    train_flags.define_config()
    flags.DEFINE_string("workdir", None, "Folder of this run; made if needed.")
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, if not from the cluster.")
    flags.DEFINE_integer("processes", None, "Number of processes, if not from the cluster.")
    flags.DEFINE_integer("process", None, "Which of them this is, from 0.")
    flags.DEFINE_bool("smoke", False, "Two steps over a few examples: does all of the run work?")
    train_flags.run(main, arguments, __doc__, needed=("config", "workdir"))
