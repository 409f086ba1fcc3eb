"""`python -m convert lora`: a LoRA merged into a converted CogVideoX or Tora."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convert.checkpoints import own_parts
from convert.checkpoints.components import COMPONENTS, target
from convert.engine import folders
from convert.engine.finite import not_finite
from convert.engine.rules import Piece, listing, non_finite, plan_export
from convert.lora import files
from convert.lora.files import Lora
from tora2_jax.config import ModelConfig
from tora2_jax.errors import CheckpointError
from tora2_jax.weights import bundle, checkpoint
from tora2_jax.weights import folder as weight_folder

TRANSFORMER = COMPONENTS["transformer"]
_OTHERS = ("motion", "vae", "text")  # further components that a base may have


class Weight(NamedTuple):
    """Where a tensor of diffusers lies in our transformer."""

    path: str  # as the checkpoint names it
    piece: Piece
    shape: tuple[int, ...]  # as diffusers has it


class Base(NamedTuple):
    """A checkpoint whose transformer is to change."""

    folder: Path
    model: ModelConfig
    place: Path  # of its transformer
    pieces: dict[str, list[Piece]]  # tensors of diffusers by the path of what holds them
    weights: dict[str, Weight]  # by diffusers' names, without `.weight`


def merge_lora(
    source: str | Path, destination: str | Path, base: str | Path, scale: float = 1.0
) -> list[str]:
    """Adds a LoRA to the transformer of a checkpoint; the rest is copied.

    Every changed weight is computed in float32 and rounded once, to the type that the base has.

    Args:
        source: A file, or a folder with one: by PEFT, diffusers or a trainer for ComfyUI.
        destination: Must not exist.
        base: A folder that `convert cogvideox`, `tora` or this command made, or a bundle.
        scale: Strength, on top of alpha by rank.

    Returns:
        What the user should know.

    Raises:
        ConversionError: lists everything about LoRA and base that is missing, damaged, or does not
            fit.
        FolderError: the destination cannot be written.
    """
    source, problems = Path(source), []
    found = read_base(Path(base), "--base", problems)
    if problems:
        raise listing(source, problems + files.missing(source))
    lora = files.read(source, found.weights, problems)
    for name, factors in lora.factors.items():
        shape = found.weights[name].shape
        if factors.change_shape() != shape:
            problems.append(
                f"misshapen: {name} changes a weight {factors.change_shape()}, but the base's is "
                f"{shape}"
            )
    if problems:
        raise listing(source, problems)
    _write(Path(destination), found, lora, scale)
    ranks = sorted({factors.rank for factors in lora.factors.values()})
    scales = sorted({round(factors.scale * scale, 6) for factors in lora.factors.values()})
    told = f"merged {len(lora.factors)} weights of rank {_list(ranks)}, scaled by {_list(scales)}"
    return [*lora.notes, told]


def _list(values: list) -> str:
    return ", ".join(f"{value:g}" for value in values)


def read_base(folder: Path, option: str, problems: list[str]) -> Base | None:
    """A checkpoint with a transformer; what is wrong with it goes to `problems`.

    Args:
        folder: A converted folder or a bundle.
        option: Of the command line, for messages.
        problems: Grows.
    """
    try:
        model = bundle.load_config(folder)
        place = checkpoint.component_path(folder, "transformer")
        if place is None:
            raise CheckpointError(f"transformer is not in {folder}")
        shapes = target(TRANSFORMER, model)
        own = {TRANSFORMER.prefix + path: shape for path, shape in shapes.items()}
        faults = checkpoint.faults(own, checkpoint.component_specs(place))
    except CheckpointError as error:
        problems.append(f"{option}: {error} (`convert cogvideox` makes such a folder)")
        return None
    problems += [f"{option}: {fault}" for fault in faults]
    pieces = {
        TRANSFORMER.prefix + path: found
        for path, found in plan_export(TRANSFORMER.rules(model), shapes).items()
    }
    weights = {
        piece.name.removesuffix(".weight"): Weight(path, piece, _shape(piece, own[path].shape))
        for path, found in pieces.items()
        for piece in found
        if piece.name.endswith(".weight")
    }
    return Base(folder, model, place, pieces, weights)


def _shape(piece: Piece, shape: tuple[int, ...]) -> tuple[int, ...]:
    own = shape if piece.layer is None else shape[1:]
    return piece.transform.backward(np.broadcast_to(np.zeros((), np.int8), own)).shape


def _write(destination: Path, base: Base, lora: Lora, scale: float) -> None:
    places = {name: checkpoint.component_path(base.folder, name) for name in _OTHERS}
    places = {name: path for name, path in places.items() if path} | own_parts.find(base.folder)
    size = checkpoint.component_bytes(base.place) + sum(map(folders.size, places.values()))
    changes: dict[str, list[tuple[Piece, files.Factors]]] = {}
    for name, factors in lora.factors.items():
        weight = base.weights[name]
        changes.setdefault(weight.path, []).append((weight.piece, factors))
    faults: list[str] = []
    with folders.new_folder(destination, size) as folder:
        writer = weight_folder.Writer(folder / "transformer")
        for path, array in checkpoint.read_component(base.place):
            writer.write(path, _changed(array, changes.get(path, []), scale, faults))
        writer.finish(checkpoint.component_metadata(base.place))
        if faults:
            raise non_finite(faults)
        _copy(places, folder)
        shutil.copyfile(base.folder / "config.json", folder / "config.json")
        folders.copy_tokenizer(base.folder / "tokenizer", folder / "tokenizer")


def _copy(places: Mapping[str, Path], folder: Path) -> None:
    for name, path in places.items():
        if path.is_file():
            shutil.copyfile(path, folder / f"{name}{path.suffix}")
        else:
            shutil.copytree(path, folder / name)


def _changed(
    array: np.ndarray,
    changes: list[tuple[Piece, files.Factors]],
    scale: float,
    faults: list[str],
) -> np.ndarray:
    """An array of ours with the changes to it, in its own type."""
    if not changes:
        return array
    array = np.array(array)
    for piece, factors in changes:
        place = ... if piece.layer is None else piece.layer
        change = piece.transform.forward(factors._replace(scale=factors.scale * scale).change())
        array[place] = array[place].astype(np.float32) + change
        if fault := not_finite(array[place]):
            faults.append(f"{piece.name}, merged, {fault}")
    return array
