"""Tensors of recognition networks as people hold them, whole in memory: they are small."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from convert.engine.tensor_files import TensorFiles

# How a residual network's names begin, in each of the programs that are read.
_KNOWN = re.compile(r"((base|backbone)\.)?(conv1|bn1|layer\d)\.")


def read_tensors(source: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """All tensors by name, and what the user should know of what was read.

    What all names begin with, as with data-parallel training, is taken off.

    Raises:
        SourceError: lists every file that is missing, damaged or quantized.
    """
    files = TensorFiles(source)
    files.strip(lambda name: _KNOWN.match(name) is not None)
    return dict(files.read(files.specs)), files.notes


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
