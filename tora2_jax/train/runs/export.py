"""What a training run leaves behind: the components that it has trained, as files of weights."""

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tora2_jax.config import ModelConfig, from_dict, to_dict
from tora2_jax.config.train import TrainConfig
from tora2_jax.errors import TrainError
from tora2_jax.parallel import processes
from tora2_jax.train.stage import Stage
from tora2_jax.train.state import TrainState
from tora2_jax.weights import checkpoint


def shown_variables(state: TrainState) -> dict[str, jax.Array]:
    """The model to look at or to export, by path: with the averaged weights, if they are kept."""
    return (state.average or state.trainable) | state.frozen | state.statistics


def on_first(variables: dict[str, jax.Array]) -> dict[str, Any]:
    """Variables whole on process 0 (see `processes.on_first`), None in the others."""
    return {path: processes.on_first(array) for path, array in variables.items()}


def model_of(graph: nnx.GraphDef, variables: Mapping[str, Any]) -> nnx.Module:
    """The model with these variables; of several processes one calls it, in `processes.alone`."""
    return nnx.merge(graph, checkpoint.nested(jax.tree.map(jnp.asarray, variables)))


def export(config: TrainConfig, stage: Stage, graph: nnx.GraphDef, state: TrainState) -> None:
    """Writes the components that this stage has trained, each with all its variables.

    All processes must call it together. Only what is written is sent to process 0, array by array.
    """
    variables, names = shown_variables(state), trained_components(stage, state)
    metadata = _metadata(config, stage, graph, variables)
    for name, path in export_paths(config.export, list(names)).items():
        arrays = (
            (stored, processes.on_first(variables[own])) for stored, own in names[name].items()
        )
        if processes.is_first():
            checkpoint.save_component(path, arrays, metadata)
        else:
            deque(arrays, maxlen=0)  # takes part in sending them
    if processes.is_first() and not config.export.endswith(".safetensors"):
        checkpoint.save_config(config.export, from_dict(ModelConfig, metadata["model"]))
    processes.wait_for_all()


def _metadata(
    config: TrainConfig, stage: Stage, graph: nnx.GraphDef, variables: dict[str, jax.Array]
) -> dict[str, Any]:
    """What is stored beside the arrays; in full on process 0 only."""
    metadata = {"stage": config.stage, "model": to_dict(stage.exported_model(config))}
    if stage.finish is not None:
        whole = on_first(variables)
        if processes.is_first():
            with processes.alone():
                metadata |= stage.finish(config, model_of(graph, whole))
    return metadata


def trained_components(stage: Stage, state: TrainState) -> dict[str, dict[str, str]]:
    """Names in the file -> paths, of every component of which something is trained."""
    paths = state.trainable.keys() | state.frozen.keys() | state.statistics.keys()
    names = {
        component: checkpoint.stored_names(sorted(paths), regex)
        for component, regex in stage.components.items()
    }
    return {
        component: own
        for component, own in names.items()
        if state.trainable.keys() & set(own.values())
    }


def check_export(paths: Mapping[str, Path]) -> None:
    """That the files of `export_paths` can be written, before a run of days.

    Raises:
        TrainError: they cannot.
    """
    for path in paths.values() if processes.is_first() else ():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise TrainError(f"config.export: {path} cannot be written ({error})") from error


def export_paths(export: str, components: list[str]) -> dict[str, Path]:
    if not export.endswith(".safetensors"):
        return {name: Path(export) / f"{name}.safetensors" for name in components}
    if len(components) != 1:
        raise TrainError(
            f"config.export is one file, but the stage trains {', '.join(components)}; "
            "name a folder instead"
        )
    return {components[0]: Path(export)}
