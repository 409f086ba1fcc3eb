"""Training steps against NumPy: gradients in closed form, AdamW, Muon, averages, parts of a batch.

The model is linear but for one gate, so its gradients can be written down.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.support.parity import BLOCK_TOLERANCE, relative_error
from tests.support.random_conditions import quick_jit
from tora2_jax.config.train import MeshConfig, OptimConfig, TrainConfig
from tora2_jax.models.layers.batch_norm import BatchNorm
from tora2_jax.train import state as train_state
from tora2_jax.train.optim import make_optimizer
from tora2_jax.train.stage import Stage

BATCH, STEPS = 4, 6


class Path(nnx.Module):
    """Normalized inputs times a matrix; `motion` as Tora has it, with stored statistics."""

    def __init__(self):
        self.norm = BatchNorm(3, rngs=nnx.Rngs(0))
        self.kernel, self.bias = nnx.Param(jnp.zeros((3, 5))), nnx.Param(jnp.zeros(5))


class New(nnx.Module):
    """A gated matrix and a table."""

    def __init__(self):
        self.kernel = nnx.Param(jnp.zeros((2, 5)))
        self.embedding = nnx.Param(jnp.zeros((7, 5)))
        self.alpha = nnx.Param(jnp.zeros(()))


class Frozen(nnx.Module):
    def __init__(self):
        self.kernel = nnx.Param(jnp.zeros((3, 5)))


class Model(nnx.Module):
    def __init__(self):
        self.motion, self.new, self.frozen = Path(), New(), Frozen()


def loss(config, model, batch, noise):
    motion, new = model.motion, model.new
    output = motion.norm(batch["x"]) @ motion.kernel[...] + motion.bias[...]
    output = output + jnp.tanh(new.alpha[...]) * (batch["z"] @ new.kernel[...])
    output = output + new.embedding[...][batch["ids"]] + batch["x"] @ model.frozen.kernel[...]
    return jnp.square(output - batch["target"] - noise).mean(), {}


STAGE = Stage(
    build=lambda config, rngs: Model(),
    loss=loss,
    draw=lambda config, batch, key: jax.random.normal(key, (len(batch["x"]), 5), jnp.float32),
    source=lambda config: (),
    components={},
    trainable=lambda config: r"motion\.|new\.",
)


def random_batch(step: int) -> dict[str, np.ndarray]:
    """Of very different sizes, so that some gradients are clipped and some are not."""
    rng = np.random.default_rng((1, step))
    shapes = {"x": (BATCH, 3), "z": (BATCH, 2), "target": (BATCH, 5)}
    batch = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    batch["target"] *= (1.0, 9.0)[step % 2]
    batch = {name: value.astype(np.float32) for name, value in batch.items()}
    return batch | {"ids": rng.integers(0, 7, BATCH).astype(np.int32)}


def twin_gradients(w: dict, batch: dict, noise) -> tuple[float, dict]:
    """Loss and gradients of the trained variables, by the chain rule on paper."""
    x, z, ids = batch["x"].astype(float), batch["z"].astype(float), batch["ids"]
    normal = (x - w["motion.norm.mean"]) / np.sqrt(w["motion.norm.var"] + 1e-5)
    scaled = normal * w["motion.norm.scale"] + w["motion.norm.bias"]
    gate, gated = np.tanh(w["new.alpha"]), z @ w["new.kernel"]
    output = scaled @ w["motion.kernel"] + w["motion.bias"] + gate * gated
    output = output + w["new.embedding"][ids] + x @ w["frozen.kernel"]
    error = output - batch["target"] - noise
    slope = 2 * error / error.size
    table = np.zeros_like(w["new.embedding"])
    np.add.at(table, ids, slope)
    back = slope @ w["motion.kernel"].T
    return (error**2).mean(), {
        "motion.norm.scale": (back * normal).sum(0),
        "motion.norm.bias": back.sum(0),
        "motion.kernel": scaled.T @ slope,
        "motion.bias": slope.sum(0),
        "new.kernel": gate * z.T @ slope,
        "new.embedding": table,
        "new.alpha": (1 - gate**2) * (slope * gated).sum(),
    }


def rate_of(config: OptimConfig, step: int) -> float:
    """The learning rate of a step counted from 0."""
    rate = config.learning_rate * min(1, (step + 1) / config.warmup_steps)
    if config.schedule == "cosine" and step > config.warmup_steps:
        done = (step - config.warmup_steps) / (STEPS - config.warmup_steps)
        rate *= (1 + math.cos(math.pi * done)) / 2
    return rate


def clipped(config: OptimConfig, gradients: dict) -> tuple[float, dict]:
    norm = math.sqrt(sum((value**2).sum() for value in gradients.values()))
    return norm, {path: g * min(1, config.clip_norm / norm) for path, g in gradients.items()}


class TwinAdamW:
    """AdamW with decoupled decay of kernels and tables, and a rate for each group."""

    def __init__(self, config: OptimConfig):
        self.config, self.count = config, 0
        self.first, self.second = {}, {}

    def step(self, weights: dict, gradients: dict) -> dict:
        config, (b1, b2) = self.config, self.config.betas
        self.count += 1
        rate, new = rate_of(config, self.count - 1), {}
        for path, g in gradients.items():
            self.first[path] = b1 * self.first.get(path, 0) + (1 - b1) * g
            self.second[path] = b2 * self.second.get(path, 0) + (1 - b2) * g**2
            m = self.first[path] / (1 - b1**self.count)
            v = self.second[path] / (1 - b2**self.count)
            update = m / (np.sqrt(v) + config.eps)
            if path.endswith(("kernel", "embedding")):
                update = update + config.weight_decay * weights[path]
            group = 1 if path.startswith("motion") else config.new_lr_scale
            group *= config.gate_lr_scale if path.endswith("alpha") else 1
            new[path] = weights[path] - rate * group * update
        return new


def optimizer_config(**changes) -> OptimConfig:
    settings = {"learning_rate": 0.02, "warmup_steps": 2, "schedule": "cosine", "eps": 1e-3}
    settings |= {"betas": (0.8, 0.9), "weight_decay": 0.3, "clip_norm": 15.0, "gate_lr_scale": 4.0}
    return OptimConfig(**settings | {"new_lr_scale": 3.0, "tora_initialized": "motion"} | changes)


@functools.cache
def trained(accumulate: int, schedule: str) -> tuple[list, list, TrainConfig]:
    """The states before and after every step, what the steps told, and the config."""
    config = TrainConfig(
        seed=3, steps=STEPS, batch_size=BATCH, accumulate=accumulate, ema_decay=0.7,
        optim=optimizer_config(schedule=schedule), mesh=MeshConfig(data=1),
    )  # fmt: skip
    graph, state = train_state.init_state(config, STAGE)
    rng = np.random.default_rng(0)

    def random(values):
        drawn = {path: rng.standard_normal(value.shape) for path, value in values.items()}
        drawn |= {path: 0.5 + rng.random(3) for path in values if path.endswith("var")}
        return {path: jnp.asarray(value, jnp.float32) for path, value in drawn.items()}

    state = state._replace(
        trainable=random(state.trainable),
        frozen=random(state.frozen),
        statistics=random(state.statistics),
    )
    state = state._replace(average=jax.tree.map(jnp.copy, state.trainable))
    step = quick_jit(functools.partial(train_state.train_step, config, STAGE, graph))
    states, metrics = [state], []
    for index in range(STEPS):
        state, found = step(states[-1], random_batch(index))
        states.append(state)
        metrics.append(found)
    return states, metrics, config


@pytest.mark.parametrize(("accumulate", "schedule"), [(1, "cosine"), (2, "constant")])
def test_steps(accumulate, schedule):
    states, metrics, config = trained(accumulate, schedule)
    start = states[0].trainable | states[0].frozen | states[0].statistics
    weights = {path: np.asarray(value, float) for path, value in start.items()}
    average = {path: weights[path] for path in states[0].trainable}
    optimizer, norms = TwinAdamW(config.optim), []
    for index in range(STEPS):
        key = jax.random.fold_in(jax.random.key(3), index)
        noise = np.asarray(jax.random.normal(key, (BATCH, 5), jnp.float32), float)
        value, gradients = twin_gradients(weights, random_batch(index), noise)
        norm, gradients = clipped(config.optim, gradients)
        weights |= optimizer.step(weights, gradients)
        average = {path: 0.7 * old + 0.3 * weights[path] for path, old in average.items()}
        norms.append(norm)
        found, told = states[index + 1], metrics[index]
        for path in average:
            assert relative_error(found.trainable[path], weights[path]) <= BLOCK_TOLERANCE, path
            assert relative_error(found.average[path], average[path]) <= BLOCK_TOLERANCE, path
        assert told["loss"] == pytest.approx(value, rel=BLOCK_TOLERANCE)
        assert told["gradient_norm"] == pytest.approx(norm, rel=BLOCK_TOLERANCE)
        rate = rate_of(config.optim, index)
        assert told["learning_rate"] == pytest.approx(rate, rel=BLOCK_TOLERANCE)
    assert min(norms) < config.optim.clip_norm < max(norms)


def test_stored_statistics_and_frozen_weights_stay_bit_for_bit():
    states, _, _ = trained(1, "cosine")
    first, last = states[0], states[-1]
    assert set(first.statistics) == {"motion.norm.mean", "motion.norm.var"}
    for before, after in ((first.statistics, last.statistics), (first.frozen, last.frozen)):
        for path, value in before.items():
            np.testing.assert_array_equal(after[path], value)
    assert all((last.trainable[path] != value).any() for path, value in first.trainable.items())


def test_the_average_begins_at_the_weights():
    config = TrainConfig(ema_decay=0.7, mesh=MeshConfig(data=1))
    _, state = train_state.init_state(config, STAGE)
    assert set(state.average) == set(state.trainable)
    for path, value in state.trainable.items():
        np.testing.assert_array_equal(state.average[path], value)


def newton_schulz(matrix, eps: float):
    """Muon's five quintic iterations, `[inputs, outputs]`; the smaller side first, as published."""
    flip = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if flip else matrix
    x = x / (np.sqrt((x**2).sum()) + eps)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x - 4.7750 * square @ x + 2.0315 * square @ square @ x
    return x.T if flip else x


def twin_muon(path: str, config: OptimConfig, weights, gradients: list):
    """A variable after steps with these gradients; each layer and each map is its own matrix."""
    b, other = config.betas
    momentum = square = 0
    for step, g in enumerate(gradients, 1):
        momentum = b * momentum + (1 - b) * g
        ahead = b * momentum / (1 - b ** (step + 1)) + (1 - b) * g / (1 - b**step)
        rate = rate_of(config, step - 1) * (1 if path.startswith("motion") else 3)
        decay = 0 if path.endswith("bias") else config.weight_decay * weights
        if not path.endswith("kernel") or "left" in path:
            square = other * square + (1 - other) * g**2
            adam = ahead / (np.sqrt(square / (1 - other**step)) + config.eps)
            weights = weights - 0.15 * rate * (adam + decay)
            continue
        update = np.zeros_like(weights)
        for layer in range(len(weights)) if "blocks" in path else [...]:
            maps = np.split(ahead[layer], 3 if "modulation" in path else 1, -1)
            turned = []
            for part in maps:
                matrix = part.reshape(-1, part.shape[-1])
                grow = max(1, matrix.shape[1] / matrix.shape[0]) ** 0.5
                turned.append(grow * newton_schulz(matrix, config.eps).reshape(part.shape))
            update[layer] = np.concatenate(turned, -1)
        weights = weights - rate * (update + decay)
    return weights


def test_muon_takes_every_layer_and_every_fused_map_alone():
    shapes = {
        "motion.blocks.query.kernel": (2, 4, 6),
        "motion.blocks.conv.kernel": (2, 3, 2, 2, 5),
        "new.blocks.modulation.kernel": (2, 4, 3 * 5),
        "new.plain.kernel": (6, 3),
        "new.modulation.kernel": (5, 3 * 4),
        "new.blocks.query.bias": (2, 6),
        "new.left.kernel": (3, 4),
        "new.table.embedding": (5, 4),
    }
    config = optimizer_config(
        algorithm="muon", clip_norm=1e9, betas=(0.9, 0.8), muon="(?!new.left)",
        fused=r".*modulation", fused_maps=3,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    drawn = [{path: rng.standard_normal(shape) for path, shape in shapes.items()} for _ in range(4)]
    start, *gradients = ({path: jnp.float32(x) for path, x in tree.items()} for tree in drawn)
    stacked = [path for path in shapes if ".blocks." in path]
    optimizer = make_optimizer(config, STEPS, stacked)
    update = quick_jit(optimizer.update)
    weights, state = start, optimizer.init(start)
    for gradient in gradients:
        updates, state = update(gradient, state, weights)
        weights = jax.tree.map(jnp.add, weights, updates)
    for path, begin in start.items():
        history = [np.asarray(gradient[path], float) for gradient in gradients]
        expected = twin_muon(path, config, np.asarray(begin, float), history)
        assert relative_error(weights[path], expected) <= BLOCK_TOLERANCE, path
