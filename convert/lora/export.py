"""`python -m convert export --base`: what a checkpoint's transformer differs by, as a LoRA."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from convert.checkpoints.export import write_tensors
from convert.engine import folders
from convert.engine.rules import disassemble, listing
from convert.lora.merge import Base, read_base
from tora2_jax.weights import checkpoint

RANK = 64
_STEM = "pytorch_lora_weights"  # as diffusers calls it
_PREFIX = "transformer."
_SPARE = 16  # columns beyond the rank in which a random basis is looked for
_ROUNDS = 3  # multiplications by which that basis turns to the largest directions


class Thin(NamedTuple):
    """A matrix as a product of two thin ones: `up @ down`."""

    up: np.ndarray  # [out, rank]
    down: np.ndarray  # [rank, in]
    left_out: float  # norm of what the product lacks, by that of the matrix


def export_difference(
    source: str | Path,
    destination: str | Path,
    base: str | Path,
    rank: int = RANK,
    accept_differences: bool = False,
) -> list[str]:
    """Writes a LoRA that diffusers loads, and that makes the source's transformer of the base's.

    It has the smallest rank that holds all changes above the rounding of the weights' type.

    Args:
        source: A converted folder or a bundle.
        destination: A folder; must not exist.
        base: As the source, of the same model.
        rank: The largest rank.
        accept_differences: Write although biases or norms differ too, which a LoRA cannot hold.

    Returns:
        What the user should know.

    Raises:
        ConversionError: lists everything for which there is no LoRA.
        FolderError: the destination cannot be written.
    """
    source, problems = Path(source), []
    changed = read_base(source, "--src", problems)
    given = read_base(Path(base), "--base", problems)
    if not problems and _shapes(changed) != _shapes(given):
        problems.append("--base is of another model than --src")
    if problems:
        raise listing(source, problems)
    found, others = _differences(changed, given, rank)
    if others and not accept_differences:
        problems.append(
            f"a LoRA cannot hold the changes of {len(others)} biases, norms and tables, such as "
            f"{others[0]}; export the whole without --base (or --accept-differences)"
        )
    if not found:
        problems.append("there is no weight that differs from the base's")
    if problems:
        raise listing(source, problems)
    highest = max(len(thin.down) for thin in found.values())
    _write(Path(destination), _named(found, highest, changed))
    worst = max(thin.left_out for thin in found.values())
    told = (
        f"{len(found)} weights differ; rank {highest}; at most {worst:.2g} of a change is left out"
    )
    return [told, *(f"left out: the change of {name}" for name in others)]


def _write(destination: Path, tensors: dict[str, np.ndarray]) -> None:
    with folders.new_folder(destination, sum(x.nbytes for x in tensors.values())) as folder:
        folder.rmdir()  # is made anew
        write_tensors(folder, _STEM, tensors.items())


def _differences(changed: Base, given: Base, rank: int) -> tuple[dict[str, Thin], list[str]]:
    """The changes of weights by their names, and the names of what else has changed."""
    found: dict[str, Thin] = {}
    others: list[str] = []
    for name, ours, theirs in _tensors(changed, given):
        if np.array_equal(ours, theirs):
            continue
        if ours.ndim < 2 or not name.endswith(".weight"):
            others.append(name)
        else:
            found[name.removesuffix(".weight")] = _thin(ours, theirs, rank)
    return found, others


def _shapes(base: Base) -> dict[str, tuple[int, ...]]:
    return {name: weight.shape for name, weight in base.weights.items()}


def _tensors(first: Base, second: Base) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The tensors of two transformers by diffusers' names, those of one array after another."""
    for path, pieces in first.pieces.items():
        ours, theirs = (
            dict(checkpoint.read_component(base.place, [path]))[path] for base in (first, second)
        )
        pairs = zip(disassemble(pieces, ours), disassemble(pieces, theirs), strict=True)
        for (name, tensor), (_, other) in pairs:
            yield name, tensor, other


def _thin(ours: np.ndarray, theirs: np.ndarray, rank: int) -> Thin:
    """The change from one weight to another, without what rounding makes of it."""
    flat, other = (np.asarray(x, np.float32).reshape(len(x), -1) for x in (ours, theirs))
    change = flat - other
    up, values, down = _largest(change, rank)
    # Rounding adds to the weights noise of their type's size: its largest direction is shorter.
    step = max(float(jnp.finfo(x.dtype).eps) for x in (ours, theirs))
    noise = step * np.sqrt(np.mean(np.square(flat))) * sum(np.sqrt(change.shape))
    count = max(1, int(np.count_nonzero(values > noise)))
    root = np.sqrt(values[:count])
    up, down = up[:, :count] * root, root[:, None] * down[:count]
    left_out = np.linalg.norm(change - up @ down) / np.linalg.norm(change)
    return Thin(up, down, float(left_out))


def _largest(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest singular values and their directions, found in a random basis turned to them."""
    columns = rank + _SPARE
    if min(matrix.shape) <= columns:
        up, values, down = np.linalg.svd(matrix, full_matrices=False)
    else:
        start = np.random.default_rng(0).standard_normal((matrix.shape[1], columns), np.float32)
        basis, _ = np.linalg.qr(matrix @ start)
        for _ in range(_ROUNDS):
            turned, _ = np.linalg.qr(matrix.T @ basis)
            basis, _ = np.linalg.qr(matrix @ turned)
        inner, values, down = np.linalg.svd(basis.T @ matrix, full_matrices=False)
        up = basis @ inner
    return up[:, :rank], values[:rank], down[:rank]


def _named(found: dict[str, Thin], rank: int, base: Base) -> dict[str, np.ndarray]:
    """The tensors of a LoRA by diffusers' names, all of one rank: older programs want that."""
    tensors = {}
    for name, thin in found.items():
        shape, own = base.weights[name].shape, len(thin.down)
        down = np.zeros((rank, *shape[1:]), np.float32)
        up = np.zeros((shape[0], rank, *(1 for _ in shape[2:])), np.float32)
        down[:own] = thin.down.reshape(own, *shape[1:])
        up[:, :own] = thin.up.reshape(up[:, :own].shape)
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = down
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = up
    return tensors
