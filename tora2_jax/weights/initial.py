"""Weights that a run starts from, read straight to where they lie on the mesh."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tora2_jax.errors import CheckpointError
from tora2_jax.weights import folder as weight_folder
from tora2_jax.weights import run
from tora2_jax.weights.checkpoint import (
    Spec,
    component_metadata,
    component_specs,
    load_component,
    refuse_misfits,
    stored_names,
)


def metadata_of(path: str | Path) -> dict[str, Any]:
    """What a component says of itself; a training workdir says its config.

    Raises:
        CheckpointError: there is no component, or it is damaged.
    """
    path = Path(path)
    if (path / "checkpoints").is_dir():
        try:
            return run.settings(path)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
    return component_metadata(path)


def restore(
    path: str | Path, targets: Mapping[str, jax.ShapeDtypeStruct], expected: str
) -> dict[str, jax.Array]:
    """A component's arrays in the types and shardings wanted, by the model's paths.

    A weight folder is read array by array, each device its own part; of a file or a workdir every
    process reads all.

    Args:
        path: a safetensors file, a weight folder or a training workdir.
        targets: all of the model's arrays, with shardings.
        expected: regex of the paths that the component owns, see `checkpoint.stored_names`.

    Raises:
        CheckpointError: the component cannot be read, or lists all that does not fit.
    """
    if not weight_folder.is_weight_folder(path):
        arrays = load_component(path)[0]
        own = _fitting(targets, arrays, expected)
        return {own[name]: _placed(array, targets[own[name]]) for name, array in arrays.items()}
    own = _fitting(targets, component_specs(path), expected)
    try:
        restored = weight_folder.restore(path, {name: targets[at] for name, at in own.items()})
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    return {own[name]: array for name, array in restored.items()}


def _fitting(
    targets: Mapping[str, jax.ShapeDtypeStruct],
    stored: Mapping[str, Spec] | Mapping[str, np.ndarray],
    expected: str,
) -> dict[str, str]:
    """The model's path of each array that is stored; CheckpointError lists all misfits."""
    names = stored_names(targets, expected)
    own = {name: names.get(name, name) for name in stored}
    refuse_misfits(targets, {own[name]: spec for name, spec in stored.items()}, expected)
    return own


def _placed(array: np.ndarray, target: jax.ShapeDtypeStruct) -> jax.Array:
    array = np.asarray(array, target.dtype)
    return jax.make_array_from_callback(array.shape, target.sharding, lambda index: array[index])
