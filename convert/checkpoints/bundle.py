"""`python -m convert bundle`: the weights that a config names -> one self-contained directory."""

import shutil
from dataclasses import replace
from pathlib import Path

from convert.engine import folders
from convert.engine.rules import ConversionError
from tora2_jax.config import ModelConfig, to_dict
from tora2_jax.config import stored as stored_settings
from tora2_jax.config.train import TrainConfig
from tora2_jax.errors import CheckpointError, TrainError
from tora2_jax.models.frozen import needed_networks
from tora2_jax.text import load_tokenizer
from tora2_jax.train.runs.export import export_paths
from tora2_jax.weights import checkpoint
from tora2_jax.weights.networks import misfits
from tora2_jax.weights.run_networks import TRAINED


def make_bundle(config: TrainConfig, destination: str | Path) -> None:
    """Copies every component that `config.weights` names, with config and tokenizer.

    What the config's stage trains is taken from where it is exported, if the config names a place:
    so the bundle of a run's config is the run's result. A component that the config leaves out is
    left out: without motion and personalization the bundle is plain CogVideoX, without a motion VAE
    the video VAE serves as one.

    Args:
        config: From a file of `configs/`; its model, stage, weights, export and tokenizer are read.
        destination: Must not exist.

    Raises:
        ConversionError: lists every component that is missing or does not fit the model.
        FolderError: the destination cannot be written.
    """
    places, problems = _places(config)
    model = config.model
    for name in ("motion", "personalization"):
        if name not in places:
            model = replace(model, **{name: None})
    problems += _absent(model, places)
    if not problems:
        model = replace(model, vae=_trained_vae(model, places["vae"]))
        problems += misfits(model, places, needed_networks(model))
    if problems:
        raise ConversionError("cannot be bundled:\n  " + "\n  ".join(problems))
    size = sum(map(folders.size, places.values()))
    with folders.new_folder(destination, size) as folder:
        for name, path in places.items():
            if path.is_file():
                shutil.copyfile(path, folder / f"{name}.safetensors")
            else:
                shutil.copytree(path, folder / name)
        folders.copy_tokenizer(Path(config.tokenizer), folder / "tokenizer")
        folders.write_json(folder / "config.json", stored_settings.of_model(model))


def _places(config: TrainConfig) -> tuple[dict[str, Path], list[str]]:
    """Where each component lies, and what is wrong with that."""
    exported, given = _exported(config), to_dict(config.weights)
    places = {name: checkpoint.resolve(path, name) for name, path in given.items() if path}
    places |= exported
    problems = []
    for name, path in places.items():
        if name in exported and not path.is_file():
            problems.append(f"config.export: {path} is not there; train this config first")
            continue
        try:
            checkpoint.component_metadata(path)
        except CheckpointError as error:
            problems.append(f"config.weights.{name}: {error}")
    try:
        if config.tokenizer is None:
            raise ValueError("names no folder; the text encoder's is needed")
        load_tokenizer(config.tokenizer)
    except (OSError, ValueError) as error:
        problems.append(f"config.tokenizer: {error}")
    return places, problems


def _exported(config: TrainConfig) -> dict[str, Path]:
    """Where the config's stage leaves what it trains, if the config names a place."""
    trained = TRAINED.get(config.stage, ()) if config.export else ()
    names = [name for name in trained if getattr(config.model, name, True) is not None]
    try:
        return export_paths(config.export, names) if names else {}
    except TrainError as error:
        raise ConversionError(f"cannot be bundled:\n  {error}") from error


def _absent(model: ModelConfig, places: dict[str, Path]) -> list[str]:
    needed = {"transformer", "text", *needed_networks(model)} - {"motion_vae"}
    return [f"config.weights.{name}: is needed" for name in sorted(needed - places.keys())]


def _trained_vae(model: ModelConfig, path: Path):
    """The VAE's settings, with the scaling factor that belongs to its weights."""
    stored = checkpoint.component_metadata(path).get("model", {}).get("vae", {})
    return replace(model.vae, scaling_factor=stored.get("scaling_factor", model.vae.scaling_factor))
