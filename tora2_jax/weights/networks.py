"""All networks of a model without numbers, and whether the weights named for them fit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from tora2_jax.config import ModelConfig
from tora2_jax.errors import CheckpointError
from tora2_jax.models import tora2
from tora2_jax.models.encoders.t5 import T5Encoder
from tora2_jax.models.frozen import NETWORKS, FrozenNetworks
from tora2_jax.models.layers.basic import flat_variables, shape_rngs
from tora2_jax.parallel import placement
from tora2_jax.weights import checkpoint
from tora2_jax.weights.settings import setting_differences


class Networks(NamedTuple):
    """Everything that has weights."""

    model: tora2.Tora2
    text: T5Encoder
    frozen: FrozenNetworks


def abstract_networks(model: ModelConfig, parts=NETWORKS, dtype=jnp.float32) -> Networks:
    """All networks without numbers: every one of them comes from a file.

    On a mesh, the arrays say how they are to lie.
    """

    def make() -> Networks:
        rngs = shape_rngs()
        return Networks(
            tora2.Tora2(model, rngs=rngs, dtype=dtype),
            T5Encoder(model.text, rngs=rngs),
            FrozenNetworks(model, parts, rngs=rngs, dtype=dtype),
        )

    networks = nnx.eval_shape(make)
    for module in networks:
        placement.plan_at_rest(module)
    return networks


def misfits(model: ModelConfig, places: Mapping[str, Path], parts: Sequence[str]) -> list[str]:
    """Everything that does not fit the model, in shapes or in settings that no shape shows.

    Args:
        model: What the weights shall serve.
        places: Component to file or weight folder.
        parts: Names of the frozen networks that there are, of `conditioning.NETWORKS`.
    """
    networks = abstract_networks(model, parts)
    problems = []
    for name, path in places.items():
        module, pattern = _mounted(networks, name)
        if module is None:
            problems.append(f"config.weights.{name}: the model has no use for it")
            continue
        try:
            specs, metadata = checkpoint.component_specs(path), checkpoint.component_metadata(path)
        except CheckpointError as error:
            problems.append(f"config.weights.{name}: {error}")
            continue
        found = checkpoint.faults(flat_variables(module), specs, pattern)
        found += setting_differences(name, model, metadata)
        problems += [f"config.weights.{name}: {fault}" for fault in found]
    return problems


def _mounted(networks: Networks, name: str) -> tuple[nnx.Module | None, str | None]:
    if name in tora2.COMPONENTS:
        return networks.model, tora2.COMPONENTS[name]
    if name == "text":
        return networks.text, None
    return getattr(networks.frozen, name, None), None
