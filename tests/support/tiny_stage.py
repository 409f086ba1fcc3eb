"""A training stage of a few hundred numbers, and what starts its runs and reads what they leave."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tora2_jax.config.train import MeshConfig, OptimConfig, TrainConfig
from tora2_jax.data.loader import ENDLESS
from tora2_jax.train.stage import Stage

_PROGRAM = """
import sys
sys.path[:0] = [{root!r}]
from tora2_jax.train import loop, state
state.STAGES["base"] = "tests.support.tiny_stage"
loop.run(sys.argv)
"""
_CONFIG = """
from tora2_jax.config.train import MeshConfig, OptimConfig, TrainConfig

def get_config():
    return TrainConfig(
        stage="base", steps=100_000, batch_size=4, checkpoint_every=2, ema_decay=0.9,
        optim=OptimConfig(learning_rate=0.01, warmup_steps=2), mesh=MeshConfig(data=1),
    )
"""


class _Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.body = nnx.Linear(3, 8, rngs=rngs)
        self.head = nnx.List([nnx.BatchNorm(8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)])


class _Source:
    def __init__(self, seed: int):
        self._seed = seed

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        random = np.random.default_rng((self._seed, index))
        return {"inputs": random.normal(size=3).astype(np.float32)}

    def describe(self, index: int) -> dict[str, str]:
        return {"clip": f"clip{index}"}


def build(config, rngs):
    return _Model(rngs)


def source(config):
    return _Source(config.seed)


def loss(config, model, batch, key):
    hidden = model.head[0](model.body(batch["inputs"]))
    noise = jax.random.normal(key, (hidden.shape[0], 2))
    value = jnp.mean((model.head[1](hidden) - noise) ** 2)
    return value, {"noise": jnp.mean(noise)}


def finish(config, model):
    return {"answer": 42}


STAGE = Stage(
    build=build,
    source=source,
    loss=loss,
    components={"transformer": r"(?P<prefix>body\.)", "motion": r"(?P<prefix>head\.)"},
    trainable=lambda config: r"head\.",
    finish=finish,
)


def change_stage(monkeypatch, **changes):
    """Other functions of this module's stage, until the test ends."""
    module = sys.modules[__name__]
    monkeypatch.setattr(module, "STAGE", dataclasses.replace(module.STAGE, **changes))


def _config(**changes) -> TrainConfig:
    """Of four steps on one device, with a checkpoint after every second."""
    settings = {"stage": "base", "steps": 4, "batch_size": 4, "checkpoint_every": 2}
    settings |= {"optim": OptimConfig(learning_rate=0.01, warmup_steps=2), "ema_decay": 0.9}
    settings |= {"mesh": MeshConfig(data=1)}
    return TrainConfig(**(settings | changes))


def environment(devices: int = 1) -> dict[str, str]:
    """Of a program of its own, with so many devices instead of the eight of the tests."""
    return os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", f"count={devices}")
    }


def _command(folder: Path, workdir: Path) -> list[str]:
    """Of the training program on the tiny stage, with `config.py` of a folder."""
    program = _PROGRAM.format(root=str(Path(__file__).resolve().parents[2]))
    config = f"--config={folder / 'config.py'}"
    return [sys.executable, "-c", program, config, f"--workdir={workdir}"]


def _losses(workdir: Path) -> list[dict]:
    """What the run has written of each step."""
    return [json.loads(row) for row in (workdir / "metrics/losses.jsonl").read_text().splitlines()]


def _checkpoints(workdir: Path) -> list[str]:
    """Steps of the checkpoints that are whole."""
    names = (entry.name for entry in (workdir / "checkpoints").iterdir())
    return sorted(name for name in names if name.isdigit())


def _assert_equal(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for left, right in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(left, right)
