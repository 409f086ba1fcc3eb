"""The programs that `plan` compiles, without numbers: a training step and a sampling step."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from tora2_jax import parallel
from tora2_jax.config import ModelConfig
from tora2_jax.config.train import TrainConfig, problems
from tora2_jax.data.pool import input_shapes
from tora2_jax.errors import TrainError
from tora2_jax.hardware import flops
from tora2_jax.models.frozen import needed_networks
from tora2_jax.models.tora2 import COMPONENTS
from tora2_jax.parallel import placement
from tora2_jax.sampling.pipeline import SampleSettings, Tora2Pipeline
from tora2_jax.train.state import abstract_step, find_stage, mesh_of
from tora2_jax.weights.bundle import LoadedModel
from tora2_jax.weights.networks import abstract_networks
from tora2_jax.weights.precision import resting_dtype
from tora2_jax.weights.run_networks import TRAINED


class Program(NamedTuple):
    """What is to be compiled, and what is known of it before."""

    lower: Callable[[], jax.stages.Lowered]
    mesh: Mesh
    arguments: dict[str, int]  # bytes of one device by kind
    beside: dict[str, int]  # bytes that the device holds meanwhile, no argument of the program
    operations: flops.TrainingWork  # of all devices together
    rounds: int  # of the loop over groups of blocks, see `CogVideoXTransformer`
    blocks: int  # of a group
    steps: int = 1  # of the whole run


def training(config: TrainConfig, devices: list[jax.Device]) -> Program:
    """One training step of a config.

    Raises:
        TrainError: the config cannot be used, or does not fit the number of devices.
    """
    stage = find_stage(config)
    if stage.work is None:
        raise TrainError(f"config.stage {config.stage}: only {', '.join(TRAINED)} can be planned")
    mesh = mesh_of(config, stage, devices)
    step = abstract_step(config, stage, mesh)
    state = step.state
    arguments = {
        "frozen": _bytes((state.frozen, state.statistics)),
        "trainable": _bytes(state.trainable),
        "optimizer": _bytes(state.optimizer),
        "average": _bytes(state.average),
        "batch": _bytes(step.batch),
    }
    operations = stage.work(config)
    rounds, blocks = _loop(config.model)
    rounds *= config.accumulate
    return Program(step.lower, mesh, arguments, {}, operations, rounds, blocks, config.steps)


def sampling(config: TrainConfig, devices: list[jax.Device], requests: int) -> Program:
    """One step of sampling with the model, mesh and type of a training config.

    Args:
        config: Of which model, mesh and dtype count.
        devices: See `parallel.make_mesh`.
        requests: How many videos at once; each is two samples, with the caption and without.

    Raises:
        TrainError: the config cannot be used, or does not fit the number of devices.
    """
    if faults := problems(config):
        raise TrainError("\n".join(faults))
    mesh = parallel.make_mesh(config.mesh, devices)
    model, dtype = config.model, jnp.dtype(config.dtype)
    parts = needed_networks(model)
    networks = abstract_networks(model, parts, dtype)
    base = re.compile(rf"{COMPONENTS['transformer']}|vae\..*")
    _rest(networks.model, base, dtype, mesh)
    _rest(networks.text, re.compile(".*"), dtype, mesh)
    _rest(networks.frozen, base, dtype, mesh)
    pipeline = Tora2Pipeline(
        LoadedModel(model, networks.model, networks.text, networks.frozen, tokenizer=None)
    )
    inputs = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((requests, *leaf.shape), leaf.dtype), input_shapes(model)
    )

    def lower() -> jax.stages.Lowered:
        with parallel.use_abstractly(mesh):
            step, arguments = pipeline.abstract_step(inputs, SampleSettings())
            return step.lower(*arguments)

    size = (model.frames, model.height, model.width)
    # With what is made once per request (0.3 % of a step at 5B).
    forward = sum(work.forward for work in flops.forward_work(model, size)) * 2 * requests
    return Program(
        lower,
        mesh,
        {"model": _bytes(nnx.state(networks.model))},
        {
            "text encoder": _bytes(nnx.state(networks.text)),
            "other networks": _bytes(nnx.state(networks.frozen)),
        },
        flops.TrainingWork(forward, forward),
        *_loop(model),
    )


def _loop(model: ModelConfig) -> tuple[int, int]:
    blocks = model.personalization.every_k if model.personalization else 1
    return model.transformer.num_layers // blocks, blocks


def _rest(module: nnx.Module, half: re.Pattern, dtype: DTypeLike, mesh: Mesh) -> None:
    """Types and places of arrays at rest; the paths of `half` are stored in `dtype` as well."""
    found = []
    for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.RngState))):
        leaf, name = variable.get_value(), ".".join(map(str, path))
        stored = dtype if half.fullmatch(name) else leaf.dtype
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            leaf = jax.ShapeDtypeStruct(leaf.shape, resting_dtype(name, stored, dtype))
        found.append((path, variable.replace(leaf)))
    nnx.update(module, nnx.from_flat_state(found))
    placement.plan_at_rest(module, mesh)


def _bytes(tree: Any) -> int:
    """What one device holds of abstract arrays."""

    def one(leaf: Any) -> int:
        sharding = getattr(leaf, "sharding", None)
        shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(map(one, jax.tree.leaves(tree)))
