"""The weights of a training run's folder, read on whatever devices they were made."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from tora2_jax.config import stored
from tora2_jax.weights import array_items

FROZEN = "frozen"  # folder beside the checkpoints of a run
_CONTENT = "_CHECKPOINT_METADATA"  # orbax's list of what a checkpoint holds


def load(workdir: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All variables by path, averaged if that was kept, and the run's config.

    They are of the newest checkpoint that can be read, as when the run goes on. It is logged as a
    warning that a newer one cannot.

    Raises:
        ValueError: there is no checkpoint, or none can be read.
    """
    root = workdir / "checkpoints"
    steps = sorted((int(path.name) for path in root.iterdir() if path.name.isdigit()), reverse=True)
    if not steps:
        raise ValueError(f"{workdir} has no finished checkpoint yet")
    config, variables, faults = settings(workdir), None, []
    for step in steps:
        try:
            variables = _step(root / str(step))
        except ValueError as error:
            faults.append(str(error))
            continue
        if faults:
            logging.warning("checkpoint %d is taken instead: %s", step, "; ".join(faults))
        break
    if variables is None:
        raise ValueError(f"{workdir}: no checkpoint can be read:\n  " + "\n  ".join(faults))
    for item in sorted((root / FROZEN).iterdir()) if (root / FROZEN).is_dir() else []:
        variables |= _flat(array_items.read_all(item))
    return variables, config


def settings(workdir: Path) -> dict[str, Any]:
    """The run's config.

    Raises:
        ValueError: it cannot be read.
    """
    path = workdir / "config.json"
    try:
        return stored.read(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _step(folder: Path) -> dict[str, np.ndarray]:
    """What a model needs of a checkpoint.

    Raises:
        ValueError: it is damaged.
    """
    try:
        items = sorted(json.loads((folder / _CONTENT).read_text())["item_handlers"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / _CONTENT} cannot be read: {error}") from error
    fields = {item.split(".")[0] for item in items}
    wanted = ("statistics", "average" if "average" in fields else "trainable")
    variables: dict[str, np.ndarray] = {}
    for item in items:
        if item.split(".")[0] in wanted:
            variables |= _flat(array_items.read_all(folder / item))
    return variables


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
