"""`python -m convert export`: one of our checkpoints -> a folder that diffusers loads."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from convert.checkpoints import diffusers_config, own_parts
from convert.checkpoints.components import Component, components, misfits, target
from convert.engine import folders
from convert.engine.finite import not_finite
from convert.engine.rules import ConversionError, disassemble, non_finite, plan_export
from tora2_jax.config import ModelConfig
from tora2_jax.errors import CheckpointError
from tora2_jax.weights import bundle, checkpoint

SHARD_BYTES = 5 << 30  # as large as the shards that diffusers and transformers write
_JSON = {part.folder: part.file for part in diffusers_config.PARTS}


def export_folder(
    source: str | Path,
    destination: str | Path,
    shard_bytes: int = SHARD_BYTES,
    accept_differences: bool = False,
) -> list[str]:
    """Writes transformer, VAE, T5, tokenizer and scheduler as diffusers' CogVideoX pipelines do.

    A checkpoint with motion becomes a folder of Tora's diffusers version. Every tensor keeps the
    dtype in which the checkpoint holds it. What diffusers has no place for is kept in `tora2/`
    (`convert.checkpoints.own_parts`), so that the way back gives the same checkpoint.

    Args:
        source: A converted folder or a bundle.
        destination: Must not exist.
        shard_bytes: Files are not larger than this, unless one array is.
        accept_differences: Write although there are settings and weights that diffusers cannot
            hold.

    Returns:
        What the user should know: those differences, and weights that are left out as unused.

    Raises:
        CheckpointError, ConversionError: the source cannot be read, diffusers has no form for it,
            or values are not finite; all reasons at once.
        FolderError: the destination cannot be written.
    """
    source = Path(source)
    model, unused = _exported(source)
    places, problems = _places(source, model, unused)
    notes = [f"left out: {path}, which this model does not add" for path in sorted(unused)]
    own, idle = own_parts.used(own_parts.find(source), model)
    notes += [f"left out: {name}, for which this model has no use" for name in idle]
    differences = diffusers_config.inexpressible(model) + own_parts.differences(own)
    if accept_differences:
        notes += [f"not in diffusers: {difference}" for difference in differences]
    else:
        problems += [f"{text} (or --accept-differences)" for text in differences]
    if problems:
        raise ConversionError(f"{source} cannot be exported:\n  " + "\n  ".join(problems))
    size = sum(map(checkpoint.component_bytes, (places | own).values()))
    with folders.new_folder(destination, size) as folder:
        _write_components(folder, model, places, unused, shard_bytes)
        write_settings(folder, diffusers_config.write(model), source / "tokenizer")
        if own or differences:
            own_parts.write(folder, model, own)
    return notes


def _places(source: Path, model: ModelConfig, unused: set[str]) -> tuple[dict[str, Path], list]:
    """Where the components are, and which of them are missing or do not fit."""
    places, problems = {}, []
    for component in components(model).values():
        own = {name: checkpoint.component_path(source, name) for name in component.parts}
        missing = [name for name, path in own.items() if path is None]
        problems += [f"{name}: is not in {source}" for name in missing]
        if not missing:
            problems += _misfits(component, model, list(own.values()), unused)
            places |= own
    return places, problems


def _exported(source: Path) -> tuple[ModelConfig, set[str]]:
    """The model of a checkpoint as far as it goes out, and the paths that do not."""
    model = bundle.load_config(source)
    for name in ("motion", "personalization"):
        if checkpoint.component_path(source, name) is None:
            model = replace(model, **{name: None})
    transformer = model.transformer
    if transformer.learned_positions and not transformer.add_learned_positions:
        # diffusers adds every table that it has; without this one the numbers are the same.
        model = replace(model, transformer=replace(transformer, learned_positions=False))
        return model, {"transformer.positions"}
    return model, set()


def write_settings(folder: Path, settings: dict[str, dict[str, Any]], tokenizer: Path) -> None:
    """The files beside the weights: what `diffusers_config.write` gave, and a tokenizer."""
    for name, file in _JSON.items():
        folders.write_json(folder / name / file, settings[name])
    folders.write_json(folder / "model_index.json", settings["model_index"])
    folders.copy_tokenizer(tokenizer, folder / "tokenizer")


def _misfits(
    component: Component, model: ModelConfig, places: list[Path], unused: set[str]
) -> list[str]:
    """What a component has too many, too few, or of another shape."""
    try:
        return misfits(component, model, places, unused)
    except CheckpointError as error:
        return [str(error)]


def _arrays(
    component: Component, places: Mapping[str, Path], unused: set[str]
) -> Iterator[tuple[str, np.ndarray]]:
    for name in component.parts:
        for path, array in checkpoint.read_component(places[name]):
            if path not in unused:
                yield path.removeprefix(component.prefix), array


def _write_components(
    folder: Path, model: ModelConfig, places: Mapping[str, Path], unused: set[str], shard_bytes: int
) -> None:
    """Writes all weights. Raises ConversionError if values are not finite."""
    faults: list[str] = []
    for component in components(model).values():
        arrays = _arrays(component, places, unused)
        _write(folder / component.folder, component, model, arrays, shard_bytes, faults)
    if faults:
        raise non_finite(faults)


def _write(
    folder: Path,
    component: Component,
    model: ModelConfig,
    arrays: Iterable[tuple[str, np.ndarray]],
    shard_bytes: int,
    faults: list[str],
) -> None:
    """Writes a component; `faults` grows by the tensors with values that are not finite."""
    pieces = plan_export(component.rules(model), target(component, model))

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for path, array in arrays:
            for name, tensor in disassemble(pieces[path], array):
                if fault := not_finite(tensor):
                    faults.append(f"{component.folder}: {name} {fault}")
                yield name, tensor
        yield from component.constants(model).items()

    write_tensors(folder, component.stem, tensors(), shard_bytes)


def write_tensors(
    folder: Path,
    stem: str,
    tensors: Iterable[tuple[str, np.ndarray]],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes named tensors as safetensors: one file, or shards with an index.

    Args:
        folder: Is made.
        stem: How the files are called.
        tensors: One shard of them is held at a time.
        shard_bytes: See `export_folder`.
    """
    folder.mkdir()
    shards = [_save(folder, part) for part in _shards(tensors, shard_bytes)]
    suffix = ".safetensors"
    if len(shards) == 1:
        (folder / "0.partial").rename(folder / f"{stem}{suffix}")
        return
    weight_map = {}
    for number, (names, _) in enumerate(shards):
        name = f"{stem}-{number + 1:05d}-of-{len(shards):05d}{suffix}"
        (folder / f"{number}.partial").rename(folder / name)
        weight_map |= dict.fromkeys(names, name)
    index = {"metadata": {"total_size": sum(size for _, size in shards)}, "weight_map": weight_map}
    folders.write_json(folder / f"{stem}{suffix}.index.json", index)


def _shards(
    tensors: Iterable[tuple[str, np.ndarray]], limit: int
) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    if shard:
        yield shard


def _save(folder: Path, shard: dict[str, np.ndarray]) -> tuple[list[str], int]:
    """Writes one shard under a number, because how many there are is not known yet."""
    path = folder / f"{len(list(folder.iterdir()))}.partial"
    save_file(shard, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes files that only their owner can read
    return list(shard), sum(tensor.nbytes for tensor in shard.values())
