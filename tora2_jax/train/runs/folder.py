"""The folder of a training run: one run at a time, and one config for all of its starts."""

import errno
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
        workdir.mkdir(parents=True, exist_ok=True)
        try:
            return stack.enter_context(Lease(workdir))
        except LeaseError as error:
            raise TrainError(f"{error}; stop it, or use another folder") from error


@contextmanager
def _refused_folder(workdir: Path) -> Iterator[None]:
    """Raises TrainError for errors that another start will meet again."""
    try:
        yield
    except OSError as error:
        if error.errno in _PASSING:
            raise
        raise TrainError(f"--workdir: {workdir} cannot be the folder of a run: {error}") from error


def claim(workdir: Path, config: TrainConfig) -> None:
    """Writes `config.json`, after comparing it with the one of an earlier run in the folder.

    Processes behind the first compare theirs with what it has just written.

    Raises:
        TrainError, OSError: see `hold`; also if an earlier run had another config.
    """
    path = workdir / "config.json"
    text = json.dumps(of_run(config), indent=2) + "\n"
    started = not processes.is_first()
    try:
        with _refused_folder(workdir):
            started |= any((workdir / "checkpoints").glob("[0-9]*"))
            if started and not path.exists():
                raise TrainError(f"{path} is missing; put it back, or use another folder")
            if not started and path.exists() and not _is_of_a_run(path):
                raise TrainError(
                    f"{path} is not of a run, and would be overwritten; use another folder"
                )
            stored = path.read_text() if started else text
            changed = differences(current(json.loads(stored)), to_dict(config))
            if not changed and processes.is_first():
                (workdir / "metrics").mkdir(parents=True, exist_ok=True)
                if not started or stored != text:
                    write_text(path, text)
    except TrainError:
        raise
    except ValueError as error:
        raise TrainError(f"{path} is damaged ({error}); use another folder") from error
    if changed:
        raise TrainError(
            f"{workdir} holds a run with another config; continue it as it was, or use another "
            "folder:\n  " + "\n  ".join(changed) + _why_no_more_steps(changed, config, workdir)
        )


def _is_of_a_run(path: Path) -> bool:
    """Whether a `config.json` is one that `claim` has written, and not of a checkpoint or a
    stranger."""
    try:
        content = json.loads(path.read_text())
    except ValueError:
        return False
    return isinstance(content, dict) and {"stage", "steps", "model"} <= content.keys()


def _why_no_more_steps(changed: list[str], config: TrainConfig, workdir: Path) -> str:
    if not any(line.startswith("config.steps:") for line in changed):
        return ""
    return (
        f"\nWith optim.schedule {config.optim.schedule} the learning rate of every step, also of "
        "those that are done, depends on config.steps; only a constant one can be given more. To "
        "train on, start a run in another folder from these weights: "
        f"--config.weights.NAME={workdir / 'trained'} for every component NAME there."
    )
