"""What a training run leaves behind: the components that it has trained, as files of weights."""

from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
from flax import nnx

from tora2_jax import checkpoint, processes
from tora2_jax.config import to_dict
from tora2_jax.models.layers import flat_variables
from tora2_jax.train_config import TrainConfig, TrainError
from tora2_jax.train_state import TrainState


def shown_model(graph: nnx.GraphDef, state: TrainState) -> nnx.Module:
    """The model to look at or to export: with the averaged weights, if they are kept.

    All processes must call it together; each gets the whole model.
    """
    variables = (state.average or state.trainable) | state.frozen | state.statistics
    variables = jax.tree.map(jnp.asarray, processes.everywhere(variables))
    return nnx.merge(graph, checkpoint.nested(variables))


def export(config: TrainConfig, stage: ModuleType, graph: nnx.GraphDef, state: TrainState) -> None:
    """Writes the components that this stage has trained, each with all its variables."""
    model = shown_model(graph, state)
    if processes.is_first():
        _write(config, stage, model, state)
    processes.wait_for_all()


def _write(config: TrainConfig, stage: ModuleType, model: nnx.Module, state: TrainState) -> None:
    variables = flat_variables(model)
    names = trained_components(stage, state)
    extra = stage.finish(config, model) if hasattr(stage, "finish") else {}
    metadata = {"stage": config.stage, "model": to_dict(config.model), **extra}
    for name, path in export_paths(config.export, list(names)).items():
        arrays = {stored: variables[own] for stored, own in names[name].items()}
        checkpoint.save_component(path, arrays, metadata)
    if not config.export.endswith(".safetensors"):
        checkpoint.save_config(config.export, metadata["model"])


def trained_components(stage: ModuleType, state: TrainState) -> dict[str, dict[str, str]]:
    """Names in the file -> paths, of every component of which something is trained."""
    paths = state.trainable.keys() | state.frozen.keys() | state.statistics.keys()
    names = {
        component: checkpoint.stored_names(sorted(paths), regex)
        for component, regex in stage.COMPONENTS.items()
    }
    return {
        component: own
        for component, own in names.items()
        if state.trainable.keys() & set(own.values())
    }


def export_paths(export: str, components: list[str]) -> dict[str, Path]:
    if not export.endswith(".safetensors"):
        return {name: Path(export) / f"{name}.safetensors" for name in components}
    if len(components) != 1:
        raise TrainError(
            f"config.export is one file, but the stage trains {', '.join(components)}; "
            "name a folder instead"
        )
    return {components[0]: Path(export)}
