"""The checkpoints of a training run (orbax): saved while it goes on, restored to any devices."""

import shutil
import time
from collections.abc import Mapping
from functools import partial
from logging import LogRecord
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from tora2_jax.errors import TrainError, first_line
from tora2_jax.parallel import processes
from tora2_jax.weights import array_items
from tora2_jax.weights.run import FROZEN


class SaveError(RuntimeError):
    """A state of a run could not be saved; earlier checkpoints are as they were."""


def quiet() -> None:
    """Lets orbax's log say warnings only, and not with tracebacks what `Checkpoints` tells."""
    logging.set_verbosity(logging.WARNING)  # orbax reports every save
    logging.get_absl_logger().addFilter(_not_told_here)


def _not_told_here(record: LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)


class Checkpoints:
    """The checkpoints of one training run, in a folder with one sub-folder per step.

    What changes is saved at each step, what is frozen once. Every array of at least `own_item`
    bytes (at full size: every stacked leaf) is an orbax item of its own, because a save holds
    several copies of an item; the small arrays of a field share one. Saving is asynchronous; an
    interrupted or failed save leaves no checkpoint and takes none away. All processes of a run
    call every method together.
    """

    def __init__(self, directory: str | Path, keep: int = 2, own_item: int = 64 << 20):
        self._directory = epath.Path(Path(directory).absolute())
        self._own_item = own_item
        self._step: int | None = None  # that is being saved
        self._failure: str | None = None  # of the last save that ended
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=True,
                cleanup_tmp_directories=True,  # what killed runs have left
                enable_async_checkpointing=True,
            ),
        )

    def latest(self) -> int | None:
        """The last step that was saved completely, None if there is none."""
        return self._manager.latest_step()

    def save_frozen(self, frozen: Mapping[str, Any]) -> None:
        """Saves what no step changes, one item after another, and waits for it.

        Raises:
            SaveError: it could not.
        """
        items = {FROZEN: dict(frozen)}
        self._remove(FROZEN)  # of a run that ended before its first checkpoint
        self._warn_if_full(items)
        try:
            for name, item in _split(items, self._own_item).items():
                with ocp.StandardCheckpointer() as checkpointer:
                    checkpointer.save(self._directory / FROZEN / name, item, force=True)
        except (OSError, ValueError, RuntimeError) as error:
            self._remove(FROZEN)
            reason = first_line(error)
            message = f"the frozen weights could not be saved in {self._directory}: {reason}"
            raise SaveError(message) from error

    def save(self, step: int, items: Mapping[str, Any]) -> None:
        """Starts to save the items of a step; returns when their arrays may be overwritten.

        That a save has failed is told at once and by `failed`; the next one tries again.

        Raises:
            SaveError: it could not start in this process, and others already wait for its part.
        """
        self._settle()
        if self._failure is not None and processes.is_first():
            for rest in Path(self._directory).glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(rest, ignore_errors=True)  # makes room
        self._warn_if_full(items)
        arguments = {
            name: ocp.args.StandardSave(item)
            for name, item in _split(items, self._own_item).items()
        }
        self._step = step
        try:
            self._manager.save(step, args=ocp.args.Composite(**arguments))
        except (OSError, ValueError, RuntimeError) as error:
            if jax.process_count() > 1:
                raise SaveError(f"step {step} could not be saved: {error}") from error
            self._settle(error)

    def failed(self) -> bool:
        """Whether the last save that has ended did so without a checkpoint; does not wait."""
        if self._step is not None and not self._manager.is_saving_in_progress():
            self._settle()
        return self._failure is not None

    def finish(self) -> None:
        """Waits for the last save; raises SaveError if it has failed."""
        self._settle()
        if self._failure is not None:
            raise SaveError(self._failure)

    def _settle(self, error: Exception | None = None) -> None:
        """Ends the save under way, with the error that it ends in, if any."""
        if self._step is None:
            return
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as late:
            error = error or late
        step, self._step, self._failure = self._step, None, None
        if error is not None:
            self._manager.reload()  # it has already forgotten what it meant to delete afterwards
            kept = "no checkpoint" if self.latest() is None else f"checkpoint {self.latest()}"
            reason = first_line(error)
            self._failure = f"step {step} could not be saved ({reason}); {kept} is kept"
            logging.error("%s", self._failure)

    def _warn_if_full(self, items: Mapping[str, Any]) -> None:
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(dict(items)))
        free = shutil.disk_usage(self._directory).free
        if free < needed and processes.is_first():
            logging.warning(
                "%s has %.1f GB free; a checkpoint takes up to %.1f GB",
                self._directory,
                free / 1e9,
                needed / 1e9,
            )

    def restore_newest(self, items: Mapping[str, Any]) -> tuple[int, dict[str, Any]] | None:
        """The newest step that all processes can read, and its items (see `restore`).

        Newer steps are deleted then, so that they can be saved again. None if there is no step.

        Raises:
            TrainError: there are steps, but none can be read; nothing is deleted.
        """
        untried, faults = set(self._manager.all_steps()), []
        while (step := processes.agree(max(untried, default=-1))) >= 0:
            untried = {other for other in untried if other < step}
            try:
                restored = processes.together(partial(self.restore, step, items))
            except TrainError as error:
                faults.append(str(error))
                logging.warning("checkpoint %d is damaged: %s", step, error)
            else:
                self._forget_after(step)
                return step, restored
        if not faults:
            return None
        raise TrainError(
            "no checkpoint of this run can be read; put a good copy back, or start in another "
            "folder:\n  " + "\n  ".join(faults)
        )

    def restore(self, step: int, items: Mapping[str, Any]) -> dict[str, Any]:
        """The items of a step, with the structure, types and sharding of the ones given.

        Raises:
            TrainError: this process cannot read them.
        """
        return self._restore(str(step), items)

    def restore_frozen(self, frozen: Mapping[str, Any]) -> dict[str, Any]:
        """What `save_frozen` saved, with the types and sharding of the arrays given.

        Raises:
            TrainError: this process cannot read it.
        """
        return self._restore(FROZEN, {FROZEN: dict(frozen)})[FROZEN]

    def _restore(self, folder: str, items: Mapping[str, Any]) -> dict[str, Any]:
        restored = {}
        for name, item in _split(items, self._own_item).items():
            wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, item)
            arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
            try:
                place = self._directory / folder / name
                restored[name] = array_items.read(place, wanted, arguments)
            except ValueError as error:
                raise TrainError(str(error)) from error
        return _joined(items, restored)

    def _forget_after(self, step: int) -> None:
        """Deletes the steps after this one; orbax saves none that is older than its last."""
        newer = [other for other in self._manager.all_steps() if other > step]
        if not processes.agree(len(newer)):
            return
        for other in newer:
            self._remove(str(other))
        processes.wait_for_all()
        while (self.latest() or step) > step:  # others may see a network's folder late
            time.sleep(0.1)
            self._manager.reload()

    def _remove(self, folder: str) -> None:
        if processes.is_first():
            shutil.rmtree(Path(self._directory) / folder, ignore_errors=True)

    def close(self) -> None:
        """Waits for the last save, whatever becomes of it."""
        self._settle()
        self._manager.close()


def _leaves(tree: Any) -> dict[str, Any]:
    """Every array of a pytree by a name that says where it stands."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def _split(items: Mapping[str, Any], own_item: int) -> dict[str, dict[str, Any]]:
    """Orbax items: `FIELD` with the small arrays of a field, `FIELD.PATH` for each large one."""
    split: dict[str, dict[str, Any]] = {}
    for field, tree in items.items():
        for name, leaf in _leaves(tree).items():
            large = leaf.size * leaf.dtype.itemsize >= own_item
            item = f"{field}.{name.replace('/', '.')}" if large else field
            split.setdefault(item, {})[name] = leaf
    return split


def _joined(items: Mapping[str, Any], restored: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The inverse of `_split`, with the structure of `items`."""
    joined = {}
    for field, tree in items.items():
        own = (part for name, part in restored.items() if name.split(".")[0] == field)
        leaves = {name: leaf for part in own for name, leaf in part.items()}
        structure = jax.tree.structure(tree)
        joined[field] = jax.tree.unflatten(structure, [leaves[name] for name in _leaves(tree)])
    return joined
