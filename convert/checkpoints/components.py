"""The parts of a diffusers folder: which network each is, and its conversion table."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert.engine.rules import Rule
from convert.families import cogvideox_transformer, cogvideox_vae, t5, tora_transformer
from tora2_jax.config import ModelConfig
from tora2_jax.models import tora2
from tora2_jax.models.dit import CogVideoXTransformer
from tora2_jax.models.encoders.t5 import T5Encoder
from tora2_jax.models.layers.basic import flat_variables, shape_rngs
from tora2_jax.models.vae.vae import CausalVAE
from tora2_jax.weights import checkpoint


def _nothing(model: ModelConfig) -> dict[str, np.ndarray]:
    del model
    return {}


class Component(NamedTuple):
    """One set of weights of a diffusers folder.

    Attributes:
        folder: Where it lies in a diffusers folder.
        stem: How its files are called there.
        build: The network, for `nnx.eval_shape`.
        rules: Its table, for the paths that its network has.
        prefix: What is put before these paths in our checkpoints.
        parts: The components of our checkpoints that it becomes.
        constants: Tensors that are always the same there and that we do not keep.
    """

    folder: str
    stem: str
    build: Callable[[ModelConfig], nnx.Module]
    rules: Callable[[ModelConfig], list[Rule]]
    parts: tuple[str, ...]
    prefix: str = ""
    constants: Callable[[ModelConfig], dict[str, np.ndarray]] = _nothing

    def part(self, path: str) -> str:
        """The component of ours that a path with its prefix belongs to."""
        if len(self.parts) == 1:
            return self.parts[0]
        return next(name for name in self.parts if re.match(tora2.COMPONENTS[name], path))


COMPONENTS = {
    "transformer": Component(
        "transformer",
        "diffusion_pytorch_model",
        lambda model: CogVideoXTransformer(model.transformer, rngs=shape_rngs()),
        lambda model: cogvideox_transformer.rules(model.transformer),
        ("transformer",),
        prefix="transformer.",
    ),
    "vae": Component(
        "vae",
        "diffusion_pytorch_model",
        lambda model: CausalVAE(model.vae, rngs=shape_rngs()),
        lambda model: cogvideox_vae.rules(model.vae),
        ("vae",),
    ),
    "text": Component(
        "text_encoder",
        "model",
        lambda model: T5Encoder(model.text, rngs=shape_rngs()),
        lambda model: t5.rules(model.text),
        ("text",),
    ),
}
TORA = Component(
    "transformer",
    "diffusion_pytorch_model",
    lambda model: tora2.Tora2(replace(model, personalization=None), rngs=shape_rngs()),
    tora_transformer.model_rules,
    ("transformer", "motion"),
    constants=tora_transformer.counters,
)


def components(model: ModelConfig) -> dict[str, Component]:
    """The parts of the folder of a model, with Tora's transformer if it has a motion path."""
    return COMPONENTS if model.motion is None else COMPONENTS | {"transformer": TORA}


class Shape(NamedTuple):
    """Shape and type of a parameter that is not there yet."""

    shape: tuple[int, ...]
    dtype: jnp.dtype


def target(component: Component, model: ModelConfig) -> dict[str, Shape]:
    """Every array of a component by its own path, without its prefix."""
    network = nnx.eval_shape(lambda: component.build(model))
    return {
        path: Shape(tuple(value.shape), value.dtype)
        for path, value in flat_variables(network).items()
    }


def misfits(
    component: Component,
    model: ModelConfig,
    places: Sequence[Path],
    unused: Collection[str] = (),
) -> list[str]:
    """What our weights have too many, too few, or of another shape, for a component.

    Args:
        component: What they are to become.
        model: Whose.
        places: Where the component's parts are; raises CheckpointError if one cannot be read.
        unused: Paths that may be there all the same.
    """
    found = {}
    for place in places:
        found |= checkpoint.component_specs(place)
    expected = {component.prefix + path: spec for path, spec in target(component, model).items()}
    found = {path: spec for path, spec in found.items() if path not in unused}
    return [f"{component.folder}: {fault}" for fault in checkpoint.faults(expected, found)]
