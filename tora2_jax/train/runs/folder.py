"""The folder of a training run: one run at a time, and one config for all of its starts."""

import errno
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tora2_jax.config import to_dict
from tora2_jax.config.stored import current, of_run
from tora2_jax.config.train import TrainConfig, differences
from tora2_jax.errors import TrainError
from tora2_jax.parallel import processes
from tora2_jax.system.files import write_text
from tora2_jax.system.lease import Lease, LeaseError

_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)  # another start may do better


def hold(workdir: Path, stack: ExitStack) -> Lease | None:
    """Makes the folder if needed and keeps other runs out of it until the stack closes.

    Process 0 does it for all of a run; None in the others.

    Raises:
        TrainError: another run is at work there, or it can be no folder of a run.
        OSError: it cannot be written to now; another start may do better.
    """
    if not processes.is_first():
        return None
    with _refused_folder(workdir):
        stack.callback(
            _remove_empty, [path for path in (workdir, *workdir.parents) if not path.exists()]
        )
        workdir.mkdir(parents=True, exist_ok=True)
        try:
            return stack.enter_context(Lease(workdir))
        except LeaseError as error:
            raise TrainError(f"{error}; stop it, or use another folder") from error


def _remove_empty(made: Sequence[Path]) -> None:
    """A run that is refused leaves nothing behind."""
    with suppress(OSError):  # the first one that holds something
        for path in made:
            path.rmdir()


@contextmanager
def _refused_folder(workdir: Path) -> Iterator[None]:
    """Raises TrainError for errors that another start will meet again."""
    try:
        yield
    except OSError as error:
        if error.errno in _PASSING:
            raise
        raise TrainError(f"--workdir: {_why_no_folder(workdir, error)}") from error


def _why_no_folder(workdir: Path, error: OSError) -> str:
    for path in (workdir, *workdir.parents):
        if path.is_file():
            return f"{path} is a file; name a folder"
    return f"{workdir} cannot be the folder of a run: {error.strerror or error}"


def check(workdir: Path, config: TrainConfig) -> None:
    """Compares the config with that of an earlier run in the folder, and with other processes'.

    Raises:
        TrainError, OSError: see `hold`; also if there is another config.
    """
    of_first = processes.of_all(_text(config))[0]
    if not processes.is_first():
        changed = differences(current(json.loads(of_first)), to_dict(config))
        if changed:
            raise TrainError("process 0 has another config:\n  " + "\n  ".join(changed))
        return
    path = workdir / "config.json"
    try:
        with _refused_folder(workdir):
            if not any((workdir / "checkpoints").glob("[0-9]*")):
                _refuse_strangers(path)
                return
            if not path.exists():
                raise TrainError(f"{path} is missing; put it back, or use another folder")
            changed = differences(current(json.loads(path.read_text())), to_dict(config))
    except TrainError:
        raise
    except ValueError as error:
        raise TrainError(f"{path} is damaged ({error}); use another folder") from error
    if changed:
        raise TrainError(
            f"{workdir} holds a run with another config; continue it as it was, or use another "
            "folder:\n  " + "\n  ".join(changed) + _why_no_more_steps(changed, config, workdir)
        )


def claim(workdir: Path, config: TrainConfig) -> None:
    """Writes what makes the folder that of this run, where `check` has found nothing wrong.

    Raises:
        TrainError, OSError: see `hold`.
    """
    path, text = workdir / "config.json", _text(config)
    if not processes.is_first():
        if not path.exists():
            raise TrainError(
                f"{path} is not there, and process 0 has written one; give all the same folder"
            )
        return
    with _refused_folder(workdir):
        (workdir / "metrics").mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            write_text(path, text)


def _text(config: TrainConfig) -> str:
    return json.dumps(of_run(config), indent=2) + "\n"


def _refuse_strangers(path: Path) -> None:
    """A `config.json` that no run has written is of a checkpoint or of another program."""
    if not path.exists():
        return
    try:
        content = json.loads(path.read_text())
    except ValueError:
        content = None
    if not (isinstance(content, dict) and {"stage", "steps", "model"} <= content.keys()):
        raise TrainError(f"{path} is not of a run, and would be overwritten; use another folder")


def _why_no_more_steps(changed: list[str], config: TrainConfig, workdir: Path) -> str:
    if not any(line.startswith("config.steps:") for line in changed):
        return ""
    return (
        f"\nWith optim.schedule {config.optim.schedule} the learning rate of every step, also of "
        "those that are done, depends on config.steps; only a constant one can be given more. To "
        "train on, start a run in another folder from these weights: "
        f"--config.weights.NAME={workdir / 'trained'} for every component NAME there."
    )
