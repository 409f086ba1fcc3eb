"""Tensors of recognition networks as people hold them, whole in memory: they are small."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from convert.tensor_files import TensorFiles

# Where training programs put the weights of a network beside what else they keep.
_WRAPPERS = ("state_dict_backbone", "state_dict", "model", "net")
_PARALLEL = "module."  # torch's DistributedDataParallel


def read_tensors(source: Path) -> dict[str, np.ndarray]:
    """All tensors by name, without what data-parallel training puts before the names.

    Raises:
        SourceError: lists every file that is missing or damaged.
    """
    files = TensorFiles(source, wrappers=_WRAPPERS)
    names = list(files.specs)
    prefix = _PARALLEL if names and all(name.startswith(_PARALLEL) for name in names) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in files.read(names)}


def block_counts(tensors: Mapping[str, np.ndarray], prefix: str = "") -> tuple[int, ...]:
    """How many blocks each stage has, of names such as `layer1.0.conv1.weight`."""
    found: dict[int, int] = {}
    for name in tensors:
        if match := re.match(rf"{re.escape(prefix)}layer(\d+)\.(\d+)\.", name):
            stage, block = map(int, match.groups())
            found[stage] = max(found.get(stage, 0), block + 1)
    return tuple(found.get(stage + 1, 0) for stage in range(max(found, default=0)))


def first_names(tensors: Mapping[str, np.ndarray]) -> str:
    """Some of the names, for a message about a network that is another."""
    return ", ".join(list(tensors)[:4]) or "nothing"
