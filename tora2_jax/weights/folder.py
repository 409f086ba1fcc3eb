"""Weights as a folder of orbax items: written and restored array by array, never all at once.

Every large array is an orbax item of its own, because a save holds several copies of an item; the
small ones share one. `metadata.json`, written last, says what there is: a folder without it is not
complete.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from tora2_jax.system.files import write_text
from tora2_jax.weights import array_items

OWN_ITEM = 64 << 20  # bytes from which an array is an item of its own
_CHUNK = 64 << 20  # bytes that are read at least, so that a shard does not read its neighbors
_SMALL = "_small"
_METADATA = "metadata.json"


class ArraySpec(NamedTuple):
    """One array of a folder."""

    shape: tuple[int, ...]
    dtype: np.dtype
    item: str  # name of the orbax item that holds it


class Writer:
    """Writes arrays by path into a new folder; `finish` completes it.

    Args:
        folder: Must not exist.
        own_item: Bytes from which an array is an orbax item of its own.
    """

    def __init__(self, folder: str | Path, own_item: int = OWN_ITEM):
        self._folder = Path(folder).absolute()
        self._folder.mkdir(parents=True)
        self._own_item = own_item
        self._small: dict[str, np.ndarray] = {}
        self._specs: dict[str, ArraySpec] = {}

    def write(self, path: str, array: np.ndarray) -> None:
        """Stores one array as it is. Raises OSError if the disk is full."""
        item = path if array.nbytes >= self._own_item else _SMALL
        self._specs[path] = ArraySpec(array.shape, array.dtype, item)
        if item == _SMALL:
            self._small[path] = array
        else:
            self._save(item, {path: array})

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Stores the small arrays, then says in `metadata.json` that all is there."""
        if self._small:
            self._save(_SMALL, self._small)
        arrays = {
            path: {"shape": list(spec.shape), "dtype": str(spec.dtype), "item": spec.item}
            for path, spec in self._specs.items()
        }
        text = json.dumps({"arrays": arrays, "metadata": dict(metadata)}, indent=1)
        write_text(self._folder / _METADATA, f"{text}\n")

    def _save(self, item: str, arrays: dict[str, np.ndarray]) -> None:
        options = {path: ocp.SaveArgs(chunk_byte_size=_CHUNK) for path in arrays}
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(self._folder / item, arrays, save_args=options)


def is_weight_folder(folder: str | Path) -> bool:
    """Whether a complete folder of this form is there."""
    return (Path(folder) / _METADATA).is_file()


def describe(folder: str | Path) -> tuple[dict[str, ArraySpec], dict[str, Any]]:
    """What a folder holds, by path, and the metadata it was finished with.

    Raises:
        ValueError: the folder is not one of these, not complete or damaged.
    """
    path = Path(folder) / _METADATA
    if not path.is_file():
        raise ValueError(f"{folder} holds no complete set of weights (no {_METADATA})")
    try:
        content = json.loads(path.read_text())
        specs = {name: _spec(entry) for name, entry in content["arrays"].items()}
        if not isinstance(content["metadata"], dict):
            raise TypeError("metadata is no JSON object")
        return specs, content["metadata"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}; convert it again") from error


def _spec(entry: Any) -> ArraySpec:
    """One entry of `arrays`.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    shape, item = entry["shape"], entry["item"]
    if not isinstance(shape, list) or not all(type(length) is int for length in shape):
        raise TypeError(f"shape is {shape!r}")
    if not isinstance(item, str):
        raise TypeError(f"item is {item!r}")
    return ArraySpec(tuple(shape), jnp.dtype(entry["dtype"]), item)


def restore(
    folder: str | Path, targets: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Reads arrays straight into the types and shardings wanted; waits for no other process.

    Args:
        folder: From `Writer`.
        targets: Some of the folder's paths; without a sharding, whole on every device of the
            context's mesh, or on the default device.

    Raises:
        ValueError: an item cannot be read.
    """
    specs, _ = describe(folder)
    device = jnp.zeros(()).sharding
    restored: dict[str, jax.Array] = {}
    for item, paths in _items(specs, targets).items():
        wanted = {
            path: jax.ShapeDtypeStruct(
                specs[path].shape, targets[path].dtype, sharding=targets[path].sharding or device
            )
            for path in paths
        }
        arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
        restored |= _read(folder, item, wanted, arguments)
    return restored


def read(
    folder: str | Path, paths: Iterable[str] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays as they are stored, in host memory, one item after another.

    Args:
        folder: From `Writer`.
        paths: Some of the folder's; None is all.

    Raises:
        ValueError: the folder or an item cannot be read.
    """
    specs, _ = describe(folder)
    for item, stored in _items(specs, specs if paths is None else paths).items():
        wanted = {
            path: jax.ShapeDtypeStruct(specs[path].shape, specs[path].dtype) for path in stored
        }
        arguments = {path: ocp.RestoreArgs(restore_type=np.ndarray) for path in stored}
        yield from _read(folder, item, wanted, arguments).items()


def _items(specs: Mapping[str, ArraySpec], paths: Iterable[str]) -> dict[str, list[str]]:
    items: dict[str, list[str]] = {}
    for path in paths:
        items.setdefault(specs[path].item, []).append(path)
    return items


def _read(folder: str | Path, item: str, wanted: dict, arguments: dict) -> dict[str, Any]:
    try:
        return array_items.read(Path(folder) / item, wanted, arguments)
    except ValueError as error:
        raise ValueError(f"{error}; convert it again") from error
