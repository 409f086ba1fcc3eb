"""The checkpoints of a training run (orbax): saved while it goes on, restored to any devices."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from tora2_jax import processes
from tora2_jax.checkpoint import FROZEN


class SaveError(RuntimeError):
    """The last state of a run could not be saved; earlier checkpoints are as they were."""


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
        """Saves what no step changes, one item after another, and waits for it."""
        for name, item in _split({FROZEN: dict(frozen)}, self._own_item).items():
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(self._directory / FROZEN / name, item, force=True)

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
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
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

    def restore(self, step: int, items: Mapping[str, Any]) -> dict[str, Any]:
        """The items of a step, with the structure, types and sharding of the ones given."""
        targets = {
            name: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, item))
            for name, item in _split(items, self._own_item).items()
        }
        restored = self._manager.restore(step, args=ocp.args.Composite(**targets))
        return _joined(items, dict(restored.items()))

    def restore_frozen(self, frozen: Mapping[str, Any]) -> dict[str, Any]:
        """What `save_frozen` saved, with the types and sharding of the arrays given."""
        restored = {}
        for name, item in _split({FROZEN: dict(frozen)}, self._own_item).items():
            target = jax.tree.map(ocp.utils.to_shape_dtype_struct, item)
            with ocp.StandardCheckpointer() as checkpointer:
                restored[name] = checkpointer.restore(self._directory / FROZEN / name, target)
        return _joined({FROZEN: dict(frozen)}, restored)[FROZEN]

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
