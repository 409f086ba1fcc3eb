"""What a diffusers folder has no place for, kept in a folder `tora2/` of it as we hold it.

`tora2/config.json` is the whole model config; each component is one safetensors file by our names,
with the settings that it was made for. diffusers looks at none of it; the commands that read
diffusers folders take it back.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from convert.checkpoints import diffusers_config
from convert.engine import folders
from tora2_jax.config import ModelConfig, stored
from tora2_jax.errors import CheckpointError
from tora2_jax.models.frozen import needed_networks
from tora2_jax.weights import bundle, checkpoint
from tora2_jax.weights.networks import misfits

FOLDER = "tora2"
_ENCODERS = ("dino", "face", "object")  # PyTorch programs have them in files of their own
_LOST = {
    "personalization": "neither CogVideoX nor Tora has such weights",
    "motion_vae": "Tora's pipelines have one VAE for both",
}


def find(source: Path) -> dict[str, Path]:
    """The components of a checkpoint that diffusers has no place for."""
    places = {name: checkpoint.component_path(source, name) for name in (*_LOST, *_ENCODERS)}
    return {name: path for name, path in places.items() if path is not None}


def used(places: Mapping[str, Path], model: ModelConfig) -> tuple[dict[str, Path], list[str]]:
    """Those of the components that the model uses, and the names of the others."""
    wanted = ("personalization", *needed_networks(model))
    kept = {name: path for name, path in places.items() if name in wanted}
    return kept, [name for name in places if name not in kept]


def differences(places: Mapping[str, Path]) -> list[str]:
    """What a model with these components does not have in diffusers, one line each."""
    return [
        f"{name}: {reason}; it is kept in {FOLDER}/, where diffusers does not look"
        for name, reason in _LOST.items()
        if name in places
    ]


def write(folder: Path, model: ModelConfig, places: Mapping[str, Path]) -> None:
    """Makes the folder `tora2/` of an exported folder.

    Args:
        folder: The exported folder.
        model: As it is exported.
        places: From `find`; arrays keep their types.
    """
    own = folder / FOLDER
    own.mkdir()
    for name, path in places.items():
        target = own / f"{name}.safetensors"
        if path.is_file():
            shutil.copyfile(path, target)
            continue
        arrays = dict(checkpoint.read_component(path))
        checkpoint.save_component(target, arrays, checkpoint.component_metadata(path), dtype=None)
    folders.write_json(own / "config.json", stored.of_model(model))


def read(
    source: Path, model: ModelConfig, problems: list[str]
) -> tuple[ModelConfig, dict[str, Path]]:
    """The whole model of an exported folder, and where its components of `tora2/` are.

    Args:
        source: A diffusers folder; without `tora2/` the model is the one given.
        model: What the folder's other files say.
        problems: Grows by what is damaged or does not belong to those files.
    """
    folder = source / FOLDER
    if not folder.is_dir():
        return model, {}
    try:
        whole = bundle.load_config(folder)
    except CheckpointError as error:
        problems.append(str(error))
        return model, {}
    if diffusers_config.write(whole) != diffusers_config.write(model):
        problems.append(
            f"{FOLDER}/config.json: is of another model than the files beside it; remove {FOLDER}/ "
            "to convert those alone"
        )
        return model, {}
    places = find(folder)
    if whole.personalization is not None and "personalization" not in places:
        problems.append(
            f"{FOLDER}/personalization.safetensors: is missing; {FOLDER}/config.json says that the "
            "model has it"
        )
    found = misfits(whole, places, needed_networks(whole))
    problems += [f"{FOLDER}/{fault.removeprefix('config.weights.')}" for fault in found]
    return whole, places
