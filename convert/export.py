"""`python -m convert export`: one of our checkpoints -> a folder that diffusers loads."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from convert import diffusers_config, folders
from convert.components import COMPONENTS, Component, target
from convert.engine import ConversionError, disassemble, plan_export
from tora2_jax import bundle, checkpoint
from tora2_jax.config import ModelConfig

SHARD_BYTES = 5 << 30  # as large as the shards that diffusers and transformers write
_JSON = {part.folder: part.file for part in diffusers_config.PARTS}


def export_folder(
    source: str | Path, destination: str | Path, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes transformer, VAE, T5, tokenizer and scheduler as diffusers' CogVideoX pipelines do.

    Every tensor keeps the dtype in which the checkpoint holds it.

    Args:
        source: A converted folder or a bundle.
        destination: Must not exist.
        shard_bytes: Files are not larger than this, unless one array is.

    Raises:
        CheckpointError, ConversionError: the source cannot be read, or diffusers has no form for
            it; all reasons at once.
        FolderError: the destination cannot be written.
    """
    source = Path(source)
    model = bundle.load_config(source)
    places = {name: checkpoint.component_path(source, name) for name in COMPONENTS}
    problems = [f"{name}: is not in {source}" for name, path in places.items() if path is None]
    problems += _additions(source)
    settings: dict[str, dict[str, Any]] = {}
    try:
        settings = diffusers_config.write(model)
    except ValueError as error:
        problems.append(str(error))
    for name, component in COMPONENTS.items():
        if places[name] is not None:
            problems += _misfits(component, model, places[name])
    if problems:
        raise ConversionError(f"{source} cannot be exported:\n  " + "\n  ".join(problems))
    with folders.new_folder(
        destination, sum(map(checkpoint.component_bytes, places.values()))
    ) as folder:
        for name, component in COMPONENTS.items():
            _write(folder / component.folder, component, model, places[name], shard_bytes)
        write_settings(folder, settings, source / "tokenizer")


def write_settings(folder: Path, settings: dict[str, dict[str, Any]], tokenizer: Path) -> None:
    """The files beside the weights: what `diffusers_config.write` gave, and a tokenizer."""
    for name, file in _JSON.items():
        folders.write_json(folder / name / file, settings[name])
    folders.write_json(folder / "model_index.json", settings["model_index"])
    folders.copy_tokenizer(tokenizer, folder / "tokenizer")


def _additions(source: Path) -> list[str]:
    """Weights that diffusers' CogVideoX has no place for."""
    return [
        f"{name}: diffusers' CogVideoX pipelines have no such weights; export the folder without it"
        for name in ("motion", "personalization")
        if checkpoint.component_path(source, name) is not None
    ]


def _misfits(component: Component, model: ModelConfig, path: Path) -> list[str]:
    """What a component has too many, too few, or of another shape."""
    found = checkpoint.component_specs(path)
    expected = {component.prefix + name: spec for name, spec in target(component, model).items()}
    return [f"{component.folder}: {fault}" for fault in checkpoint.faults(expected, found)]


def _write(
    folder: Path, component: Component, model: ModelConfig, source: Path, shard_bytes: int
) -> None:
    pieces = plan_export(component.rules(model), target(component, model))

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for path, array in checkpoint.read_component(source):
            yield from disassemble(pieces[path.removeprefix(component.prefix)], array)

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
