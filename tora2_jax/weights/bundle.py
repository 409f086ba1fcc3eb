"""A checkpoint as users hold it: one folder with a config, a tokenizer and weights by component.

`config.json` holds the model config under "model"; each component is `NAME.safetensors` or an orbax
folder `NAME/`. A training directory serves as well: its last checkpoint, with the frozen networks
and the tokenizer that its config names.
"""

from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp

from tora2_jax import config
from tora2_jax.config import stored as stored_settings
from tora2_jax.config.train import TrainConfig
from tora2_jax.errors import CheckpointError
from tora2_jax.models import tora2
from tora2_jax.models.encoders.t5 import T5Encoder
from tora2_jax.models.frozen import FrozenNetworks, computes_in, needed_networks
from tora2_jax.system.addresses import address_problem
from tora2_jax.text import Tokenizer, load_tokenizer
from tora2_jax.weights import checkpoint
from tora2_jax.weights.networks import abstract_networks
from tora2_jax.weights.run_networks import (
    TRAINED,
    frozen_files,
    frozen_networks,
    trained_model_config,
)


def load_config(directory: Path) -> config.ModelConfig:
    """The model config of a checkpoint folder.

    Raises:
        CheckpointError: if the folder or its config cannot be read.
    """
    path = directory / "config.json"
    if problem := address_problem(directory):
        raise CheckpointError(f"checkpoint: {problem}")
    if not directory.is_dir():
        raise CheckpointError(f"checkpoint: {directory} is not a folder")
    if not path.is_file():
        raise CheckpointError(f"checkpoint: {directory} has no config.json; is it a checkpoint?")
    try:
        return stored_settings.read_model(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint: {path} is not a model config: {error}") from error


class LoadedModel(NamedTuple):
    """All that makes a video of a request."""

    config: config.ModelConfig
    model: tora2.Tora2
    text: T5Encoder
    networks: FrozenNetworks
    tokenizer: Tokenizer | None  # None: takes batches of inputs only


def load_bundle(directory: Path, dtype=jnp.float32) -> LoadedModel:
    """Everything that a pipeline needs, strictly checked.

    Whether there are a motion path and a personalization path is for the folder's config to say;
    a motion VAE that is not there is a copy of the video VAE.

    Raises:
        CheckpointError: lists everything that is missing or does not fit.
    """
    if _is_workdir(directory):
        return _load_workdir(directory, dtype)
    model_config = load_config(directory)
    parts = needed_networks(model_config)
    model, text, networks = abstract_networks(model_config, parts, dtype)
    problems: list[str] = []
    for name, pattern in tora2.COMPONENTS.items():
        if name == "transformer" or getattr(model_config, name) is not None:
            _restore(model, directory, name, name, problems, dtype, pattern)
    _restore(text, directory, "text", "text", problems, jnp.float32)
    for name in parts:
        own = checkpoint.component_path(directory, name)
        source = "vae" if name == "motion_vae" and own is None else name
        own_dtype = computes_in(name, dtype)
        _restore(getattr(networks, name), directory, source, name, problems, own_dtype)
    if problems:
        raise CheckpointError(f"checkpoint {directory}:\n  " + "\n  ".join(problems))
    return LoadedModel(model_config, model, text, networks, load_bundle_tokenizer(directory))


def load_reference_encoders(
    directory: Path, dtype=jnp.float32
) -> tuple[config.ModelConfig, FrozenNetworks]:
    """The networks of a checkpoint that describe references, and none of the others.

    Raises:
        CheckpointError: lists everything that is missing or does not fit, or says that the model
            takes no references.
    """
    if _is_workdir(directory):
        run = _load_run(directory)
        model_config = trained_model_config(run)
        files = {name: path and Path(path) for name, path in frozen_files(run).items()}
    else:
        model_config = load_config(directory)
        names = needed_networks(model_config)
        files = {name: checkpoint.component_path(directory, name) for name in names}
    if model_config.personalization is None:
        raise CheckpointError(f"checkpoint {directory}: {model_config.name} takes no references")
    wanted = {name: path for name, path in files.items() if name in ("dino", "face", "object")}
    _, _, networks = abstract_networks(model_config, tuple(wanted), dtype)
    problems = []
    for name, path in wanted.items():
        if path is None:
            problems.append(f"{name}: neither {name}.safetensors nor a folder {name}/ is there")
            continue
        try:
            own_dtype = computes_in(name, dtype)
            checkpoint.restore_frozen(getattr(networks, name), path, dtype=own_dtype)
        except CheckpointError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise CheckpointError(f"checkpoint {directory}:\n  " + "\n  ".join(problems))
    return model_config, networks


def _is_workdir(directory: Path) -> bool:
    return (directory / "checkpoints").is_dir() and (directory / "config.json").is_file()


def _load_run(directory: Path) -> TrainConfig:
    """The config of a training run that a pipeline can use."""
    try:
        run = stored_settings.read_run(directory / "config.json")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint: {directory}/config.json: {error}") from error
    if run.stage not in TRAINED:
        raise CheckpointError(
            f"checkpoint: {directory} is a run of stage {run.stage}, which makes no videos; name "
            f"a run of stage {', '.join(TRAINED)}"
        )
    if run.tokenizer is None:
        raise CheckpointError(
            f"checkpoint: {directory}/config.json names no tokenizer; write the folder of "
            'one into its "tokenizer"'
        )
    return run


def _load_workdir(directory: Path, dtype) -> LoadedModel:
    """The diffusion model of a training run, with averaged weights if it keeps them."""
    run = _load_run(directory)
    model_config = trained_model_config(run)
    model, text, _ = abstract_networks(model_config, (), dtype)
    stored, _ = checkpoint.load_component(directory)
    for module, prefix in ((model, "tora2."), (text, "text.")):
        own = {path[len(prefix) :]: v for path, v in stored.items() if path.startswith(prefix)}
        checkpoint.merge(module, own)
    networks = frozen_networks(run, model_config, dtype)
    return LoadedModel(model_config, model, text, networks, load_bundle_tokenizer(directory))


def load_bundle_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder.

    Raises:
        CheckpointError: if there is none, or the folder is a run that makes no videos.
    """
    folder = directory / "tokenizer"
    if _is_workdir(directory):
        named = _load_run(directory).tokenizer
        assert named is not None  # a run without one was refused
        folder = Path(named)
    try:
        return load_tokenizer(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {directory}: {error}") from error


def _restore(
    module, directory: Path, source: str, name: str, problems: list, dtype, expected=None
) -> None:
    path = checkpoint.component_path(directory, source)
    if path is None:
        problems.append(f"{name}: neither {source}.safetensors nor a folder {source}/ is there")
        return
    try:
        checkpoint.restore_frozen(module, path, expected, dtype)
    except CheckpointError as error:
        problems.append(f"{name}: {error}")
