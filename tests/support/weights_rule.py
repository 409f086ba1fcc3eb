"""The numbers that the golden files were made with: each array follows from its name and shape."""

import math
import zlib

import numpy as np


def _normal(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return _stream(name, seed).standard_normal(shape)


def _stream(name: str, seed: int) -> np.random.Generator:
    """Random numbers that belong to one name: a counter-based generator keyed by its checksum."""
    return np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(name.encode())]))


def array(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """An input: standard-normal, float32."""
    return _normal(name, shape, seed).astype(np.float32)


def tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A weight by its PyTorch name: tame enough that activations keep their size."""
    kind = name.rsplit(".", 1)[-1]
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if kind == "running_var":
        return (1.5 * _stream(name, seed).random(shape) + 0.5).astype(np.float32)
    if len(shape) > 1:
        scale, center = 0.7 / math.sqrt(math.prod(shape[1:])), 0.0
    else:
        scale, center = {"running_mean": (0.3, 0.0), "weight": (0.2, 1.0)}.get(kind, (0.2, 0.0))
    return (center + _normal(name, shape, seed) * scale).astype(np.float32)


def state_dict(shapes: dict[str, list[int]], seed: int) -> dict[str, np.ndarray]:
    """All weights of a golden file."""
    return {name: tensor(name, tuple(shape), seed) for name, shape in shapes.items()}
