"""The parts of a CogVideoX folder: which network each is, and its conversion table."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from convert import cogvideox_transformer, cogvideox_vae, t5
from convert.engine import Rule
from tora2_jax.config import ModelConfig
from tora2_jax.models.dit import CogVideoXTransformer
from tora2_jax.models.layers import flat_variables
from tora2_jax.models.t5 import T5Encoder
from tora2_jax.models.vae import CausalVAE


class Component(NamedTuple):
    """One set of weights.

    Attributes:
        folder: Where it lies in a diffusers folder.
        stem: How its files are called there.
        build: The network, for `nnx.eval_shape`.
        rules: Its table, for the paths that its network has.
        prefix: What is put before these paths in our checkpoints.
    """

    folder: str
    stem: str
    build: Callable[[ModelConfig], nnx.Module]
    rules: Callable[[ModelConfig], list[Rule]]
    prefix: str = ""


COMPONENTS = {
    "transformer": Component(
        "transformer",
        "diffusion_pytorch_model",
        lambda model: CogVideoXTransformer(model.transformer, rngs=nnx.Rngs(0)),
        lambda model: cogvideox_transformer.rules(model.transformer),
        prefix="transformer.",
    ),
    "vae": Component(
        "vae",
        "diffusion_pytorch_model",
        lambda model: CausalVAE(model.vae, rngs=nnx.Rngs(0)),
        lambda model: cogvideox_vae.rules(model.vae),
    ),
    "text": Component(
        "text_encoder",
        "model",
        lambda model: T5Encoder(model.text, rngs=nnx.Rngs(0)),
        lambda model: t5.rules(model.text),
    ),
}


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
