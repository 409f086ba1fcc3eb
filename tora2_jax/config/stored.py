"""`config.json` of checkpoints and runs: its version, and how files of earlier ones are read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tora2_jax.config.model import ModelConfig, from_dict, to_dict
from tora2_jax.config.train import TrainConfig


def _american_spelling(content: dict[str, Any]) -> dict[str, Any]:
    """Version 1 -> 2: settings that had British names."""
    renamed = {"optim": ("tora_initialised", "tora_initialized")}
    renamed["reference_guards"] = ("colour", "color")
    for part, (old, new) in renamed.items():
        if isinstance(content.get(part), dict) and old in content[part]:
            settings = dict(content[part])
            settings[new] = settings.pop(old)
            content[part] = settings
    if content.get("stage") == "localiser":
        content["stage"] = "localizer"
    return content


def _layers_as_the_model_says(content: dict[str, Any]) -> dict[str, Any]:
    """Version 2 -> 3: `optim.stacked` is left open where the model says the same."""
    optim = content.get("optim")
    if isinstance(optim, dict) and "stacked" in optim:
        shipped = r".*\.(blocks|layers|cross_attention)\."  # of the toy configs
        if optim.get("algorithm") != "muon" or optim["stacked"] == shipped:
            content["optim"] = {**optim, "stacked": None}
    return content


# What makes a file of version k + 1 of one of version k. Whoever renames or moves a setting adds a
# step here. Files of 2026-11 and before have no number; they are of version 1.
_STEPS: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = (
    _american_spelling,
    _layers_as_the_model_says,
)
_FIRST = 1


def version() -> int:
    """That is written."""
    return _FIRST + len(_STEPS)


def of_model(model: ModelConfig) -> dict[str, Any]:
    """Content of a checkpoint's `config.json`."""
    return {"version": version(), "model": to_dict(model)}


def of_run(run: TrainConfig) -> dict[str, Any]:
    """Content of a run's `config.json`."""
    return {"version": version(), **to_dict(run)}


def current(content: Any) -> dict[str, Any]:
    """The settings in a `config.json` of any version, as this one names them, without its number.

    Raises:
        ValueError: it is no JSON object, or of a version that is not known here.
    """
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    content = dict(content)
    found = content.pop("version", _FIRST)
    if type(found) is not int or found < _FIRST:
        raise ValueError(f"version is {found!r}; it must be a number from {_FIRST} on")
    if found > version():
        raise ValueError(
            f"it is of version {found}, and this program knows those up to {version()}; use the "
            "tora2_jax that wrote it, or a later one"
        )
    for step in _STEPS[found - _FIRST :]:
        content = step(content)
    return content


def read(path: Path) -> dict[str, Any]:
    """The settings in a file (`current`).

    Raises:
        OSError, ValueError: it cannot be read.
    """
    return current(json.loads(path.read_text()))


def read_model(path: Path) -> ModelConfig:
    """Of a checkpoint or a run.

    Raises:
        OSError, ValueError: it cannot be read or names no model.
    """
    content = read(path)
    if "model" not in content:
        raise ValueError('it has no "model"')
    return _made(ModelConfig, content["model"])


def read_run(path: Path) -> TrainConfig:
    """Of a run. Nothing that the settings name is imported or opened.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    return _made(TrainConfig, read(path))


def _made(kind: type, content: Any) -> Any:
    try:
        return from_dict(kind, content)
    except (TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error
