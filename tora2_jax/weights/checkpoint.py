"""Components on disk, as files of weights (safetensors), and whether they fit a model.

Everywhere a set of variables is a flat dictionary from path ("blocks.attention.query.kernel") to
array.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from tora2_jax.config import ModelConfig
from tora2_jax.config import stored as stored_settings
from tora2_jax.errors import CheckpointError
from tora2_jax.models.layers.basic import flat_variables, update_variables
from tora2_jax.system import hub
from tora2_jax.system.addresses import address_problem
from tora2_jax.system.files import save_tensors, write_text
from tora2_jax.system.unusable_file import why_unusable
from tora2_jax.weights import folder as weight_folder
from tora2_jax.weights import run
from tora2_jax.weights.precision import resting_dtype

_STATISTICS = {"mean", "var"}  # last names of paths that are never stored in half precision


def save_component(
    path: str | Path,
    variables: Mapping[str, Any] | Iterable[tuple[str, Any]],
    metadata: Mapping[str, Any],
    dtype: Any = jnp.bfloat16,
) -> None:
    """Writes variables, or pairs of path and array, and JSON metadata as one safetensors file.

    Floating-point arrays are stored as `dtype`, but the statistics of norms as float32; with None
    every array as it is. Of pairs, one array at a time is held as it is given.
    """
    pairs = variables.items() if isinstance(variables, Mapping) else variables
    arrays = {name: _stored(name, value, dtype) for name, value in pairs}
    save_tensors(path, arrays, {"metadata": json.dumps(dict(metadata))})


def _stored(name: str, value: Any, dtype: Any) -> np.ndarray:
    array = np.asarray(value)
    if dtype is None or not jnp.issubdtype(array.dtype, jnp.floating):
        return np.asarray(array, order="C")  # `ascontiguousarray` would give a scalar an axis
    if name.rpartition(".")[2] in _STATISTICS:
        dtype = jnp.float32
    return np.asarray(array.astype(dtype), order="C")


def save_config(directory: str | Path, model: ModelConfig) -> None:
    """Writes a model config where `bundle.load_config` looks for it."""
    text = json.dumps(stored_settings.of_model(model), indent=1)
    write_text(Path(directory) / "config.json", f"{text}\n")


class Spec(NamedTuple):
    """Shape and type of a stored array."""

    shape: tuple[int, ...]
    dtype: np.dtype


def component_path(directory: str | Path, name: str) -> Path | None:
    """Where a component lies in a bundle or a converted folder, or None."""
    file, folder = Path(directory) / f"{name}.safetensors", Path(directory) / name
    return file if file.is_file() else folder if folder.is_dir() else None


def resolve(path: str | Path, name: str) -> Path:
    """The component at `path`: `name` inside it if it is a bundle or converted folder.

    Raises:
        CheckpointError: the path is the name of a model of the hub, which cannot be had.
    """
    path = hub.local(path)
    return component_path(path, name) or path


def load_component(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Variables and metadata of a safetensors file, a weight folder or a training workdir.

    A workdir gives the averaged weights if they were kept, of its newest checkpoint that can be
    read; its config is the metadata.

    Raises:
        CheckpointError: there is nothing of these kinds at `path`, or it is damaged.
    """
    _refuse_address(path)
    path = Path(path).absolute()
    if (path / "checkpoints").is_dir():
        try:
            return run.load(path)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
    return dict(read_component(path)), component_metadata(path)


def read_component(
    path: str | Path, names: Iterable[str] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a safetensors file or a weight folder, read one after another.

    Args:
        path: The file or folder.
        names: Some of its arrays; None is all.

    Raises:
        CheckpointError: the path is neither, or it is damaged.
    """
    path = _existing(path)
    try:
        if path.is_dir():
            yield from weight_folder.read(path, names)
            return
        with safe_open(path, "numpy") as file:
            for name in file.keys() if names is None else names:
                yield name, file.get_tensor(name)
    except (ValueError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} {_unreadable(path, error)}") from error


def component_metadata(path: str | Path) -> dict[str, Any]:
    """What was stored beside the arrays; errors are those of `read_component`."""
    return _described(path)[1]


def component_specs(path: str | Path) -> dict[str, Spec]:
    """Shapes and types of a component, unread; errors are those of `read_component`."""
    return _described(path)[0]


def component_bytes(path: str | Path) -> int:
    """Size of a component's arrays; on disk a weight folder is compressed."""
    specs = component_specs(path).values()
    return sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in specs)


def _described(path: str | Path) -> tuple[dict[str, Spec], dict[str, Any]]:
    path = _existing(path)
    try:
        if path.is_dir():
            listed, metadata = weight_folder.describe(path)
            return {name: Spec(spec.shape, spec.dtype) for name, spec in listed.items()}, metadata
        with safe_open(path, "numpy") as file:
            metadata = json.loads((file.metadata() or {}).get("metadata", "{}"))
            specs: dict[str, Spec] = {}
            for name in file.keys():  # noqa: SIM118
                shape = tuple(file.get_slice(name).get_shape())
                sliced = shape and 0 not in shape  # the library cuts nothing else
                part = file.get_slice(name)[:0] if sliced else file.get_tensor(name)
                specs[name] = Spec(shape, part.dtype)
            return specs, metadata
    except (ValueError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} {_unreadable(path, error)}") from error


def _unreadable(path: Path, error: Exception) -> str:
    """What is wrong with a component, as the rest of a sentence."""
    reason = why_unusable(path) if path.is_file() else None
    return reason or f"cannot be read: {error}"


def _refuse_address(path: str | Path) -> None:
    if problem := address_problem(path):
        raise CheckpointError(problem)


def _existing(path: str | Path) -> Path:
    _refuse_address(path)
    path = Path(path).absolute()
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    return path


def stored_names(paths: Any, regex: str) -> dict[str, str]:
    """Paths of a component by the names that its file uses.

    Args:
        paths: of all variables of a module.
        regex: matched from the start of a path. A named group `prefix` is left out of the name,
            as in `(?P<prefix>vae\\.)`: so the file fits the component wherever it is mounted.
    """
    names = {}
    for path in paths:
        if match := re.match(regex, path):
            names[path[len(match.groupdict().get("prefix") or "") :]] = path
    return names


def merge(module: nnx.Module, *components: Mapping[str, Any], expected: str | None = None) -> None:
    """Assigns the variables of components to a module, keeping the module's dtypes.

    Args:
        module: changed in place, all or nothing.
        components: variables by path; no path may occur in two of them.
        expected: regex, matched from the start of a path: which variables must be covered; None
            is all of them.

    Raises:
        CheckpointError: lists every missing, extra, repeated and misshapen path.
    """
    given: dict[str, Any] = {}
    repeated = []
    for component in components:
        repeated += [f"repeated {path}" for path in sorted(given.keys() & component.keys())]
        given |= component
    _refuse(repeated + faults(flat_variables(module), given, expected))
    update_variables(module, given)


def faults(
    own: Mapping[str, Any], given: Mapping[str, Any], expected: str | None = None
) -> list[str]:
    """How a component does not fit a model: every missing, extra and misshapen path.

    Args:
        own: the model's arrays, or their shapes, by path.
        given: the component's.
        expected: see `merge`.
    """
    required = {path for path in own if expected is None or re.match(expected, path)}
    found = [f"missing {path} {own[path].shape}" for path in sorted(required - given.keys())]
    found += [f"extra {path} {given[path].shape}" for path in sorted(given.keys() - own.keys())]
    return found + [
        f"misshapen {path}: {given[path].shape} does not fit {own[path].shape}"
        for path in sorted(own.keys() & given.keys())
        if tuple(own[path].shape) != tuple(given[path].shape)
    ]


def refuse_misfits(own: Mapping[str, Any], given: Mapping[str, Any], expected: str | None) -> None:
    """Raises CheckpointError with all `faults`."""
    _refuse(faults(own, given, expected))


def _refuse(found: list[str]) -> None:
    if found:
        raise CheckpointError("weights do not fit the model:\n  " + "\n  ".join(found))


def restore_frozen(
    module: nnx.Module, path: str | Path, expected: str | None = None, dtype: Any = jnp.float32
) -> None:
    """Gives a module that is never trained the weights of a component, all or nothing.

    A weight folder is restored array by array straight into the dtype of `precision.resting_dtype`
    and the sharding that the module's arrays have; the arrays of a file take the module's dtypes.

    Args:
        module: changed in place; abstract becomes concrete.
        path: a safetensors file, a weight folder or a training workdir.
        expected: see `merge`.
        dtype: in which the module computes.

    Raises:
        CheckpointError: the component cannot be read, or lists all that does not fit.
    """
    if not weight_folder.is_weight_folder(path):
        merge(module, load_component(path)[0], expected=expected)
        return
    own, stored = flat_variables(module), component_specs(path)
    refuse_misfits(own, stored, expected)
    targets = {
        name: jax.ShapeDtypeStruct(
            spec.shape,
            resting_dtype(name, spec.dtype, dtype),
            sharding=_place(own[name]),
        )
        for name, spec in stored.items()
    }
    try:
        restored = weight_folder.restore(path, targets)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    update_variables(module, restored, keep_dtypes=False)


def _place(array: Any) -> jax.sharding.Sharding | None:
    """Where an array lies; None if that is open: shapes made within a mesh name no devices."""
    sharding = getattr(array, "sharding", None)
    mesh = getattr(sharding, "mesh", None)
    return None if isinstance(mesh, jax.sharding.AbstractMesh) else sharding


def nested(flat: Mapping[str, Any]) -> dict:
    """The inverse of `flat_variables`, in the form that `nnx.merge` and `nnx.update` take."""
    tree: dict = {}
    for path, value in flat.items():
        *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree
