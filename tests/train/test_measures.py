"""What a step tells about its parts."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tora2_jax.config import toy
from tora2_jax.config.train import TrainConfig
from tora2_jax.models.layers.basic import flat_variables
from tora2_jax.train import measures
from tora2_jax.train.runs import log as metric_log
from tora2_jax.train.stages import diffusion


def test_every_trained_variable_belongs_to_one_part():
    config = TrainConfig(stage="tora2", model=toy())
    model = nnx.eval_shape(lambda: diffusion.build(config, nnx.Rngs(0)))
    trained = re.compile(diffusion.trainable(config))
    paths = [path for path in flat_variables(model) if trained.match(path)]
    found = [
        [name for name, pattern in measures.PARTS.items() if re.fullmatch(pattern, path)]
        for path in paths
    ]
    assert all(len(names) == 1 for names in found)
    assert {names[0] for names in found} == set(measures.PARTS)


def test_shares_of_parts_of_a_batch_make_the_mean_over_the_whole():
    values, holds = jnp.array([1.0, 2.0, 4.0, 8.0]), jnp.array([True, False, False, False])
    parts = [measures.share(values[:2], holds[:2]), measures.share(values[2:], holds[2:])]
    averaged = jax.tree.map(lambda *x: sum(x) / 2, *parts)
    settled = measures.settled({"all": averaged, "none": parts[1], "plain": jnp.float32(3)})
    assert settled["all"] == 1 and np.isnan(settled["none"]) and settled["plain"] == 3


def test_log_of_measures_that_not_every_step_has(tmp_path, monkeypatch):
    written = {}
    log = metric_log.MetricLog(tmp_path, 0, speed=lambda seconds: {"speed": 1 / seconds})
    monkeypatch.setattr(
        log._board, "add_scalar", lambda name, value, _: written.update({name: value})
    )
    with log:
        for step, value in enumerate([2.0, float("nan"), 4.0], 1):
            log.add(step, {"loss": 1.0, "some": value, "none": float("nan")})
        log._seconds = {"data": 1.0, "step": 5.0, "save": 100.0}
        log.write()
    assert written["some"] == 3 and "none" not in written
    assert written["speed"] == 0.5  # 2 seconds per step


def test_norms_of_the_parts_make_the_whole_norm():
    rng = np.random.default_rng(0)
    paths = ("tora2.binder.words.kernel", "tora2.binder.words.bias", "tora2.appearance.image.bias")
    gradients = {path: jnp.asarray(rng.normal(size=(3, 4)), jnp.float32) for path in paths}
    norms = measures.gradient_norms(gradients)
    assert set(norms) == {"gradient_norm/binder", "gradient_norm/adapters"}
    whole = sum(float(jnp.square(value).sum()) for value in gradients.values())
    assert sum(float(norm) ** 2 for norm in norms.values()) == pytest.approx(whole, rel=1e-5)


def test_gates():
    variables = {
        "tora2.binder.binding.gate_motion.gate.bias": jnp.asarray([0.0, 1.0]),
        "tora2.binder.binding.gate_motion.gate.kernel": jnp.ones((2, 2)),
        "tora2.binder.binding.gate_personalization.alpha": jnp.asarray(0.5),
    }
    values = measures.gates(variables)
    assert set(values) == {"gate/motion", "gate/personalization"}
    assert values["gate/motion"] == pytest.approx((0.5 + jax.nn.sigmoid(1.0)) / 2)
    assert values["gate/personalization"] == pytest.approx(np.tanh(0.5))
