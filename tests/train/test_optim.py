"""Muon: which kernels it takes, and that fused and stacked ones are taken apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tora2_jax.config.train import OptimConfig, TrainConfig, problems
from tora2_jax.models.layers.basic import stack, stacked_paths
from tora2_jax.train import state as train_state
from tora2_jax.train.optim import after_skipped_step, make_optimizer
from tora2_jax.train.stage import Stage

MAPS, LAYERS = 3, 2
FUSED, PLAIN = "blocks.norm.modulation.kernel", "blocks.query.kernel"


def _config(**settings) -> OptimConfig:
    settings |= {"learning_rate": 0.1, "warmup_steps": 0, "clip_norm": 1e9, "weight_decay": 0.01}
    return OptimConfig(algorithm="muon", **settings)


def _steps(config, params, gradients, count=3):
    stacked = [path for path in params if path.startswith("blocks.")]
    optimizer = make_optimizer(config, 10, stacked)
    state = optimizer.init(params)
    for step in range(count):
        scaled = {path: value * (1 + step) for path, value in gradients.items()}
        updates, state = optimizer.update(scaled, state, params)
        params = {path: value + updates[path] for path, value in params.items()}
    return params, state


def _random(seed, **shapes):
    rng = np.random.default_rng(seed)
    return {
        path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in shapes.items()
    }


def test_a_fused_kernel_steps_as_its_maps_alone():
    shapes = {FUSED: (LAYERS, 4, MAPS * 5)}
    params, gradients = _random(0, **shapes), _random(1, **shapes)
    config = _config(fused=r".*modulation", fused_maps=MAPS)
    together, state = _steps(config, params, gradients)
    for layer in range(LAYERS):
        for part in range(MAPS):
            cut = (layer, slice(None), slice(5 * part, 5 * (part + 1)))
            alone, _ = _steps(
                _config(),
                {"alone.kernel": params[FUSED][cut]},
                {"alone.kernel": gradients[FUSED][cut]},
            )
            np.testing.assert_allclose(together[FUSED][cut], alone["alone.kernel"], atol=1e-5)
    whole, _ = _steps(_config(), params, gradients)
    assert np.abs(whole[FUSED] - together[FUSED]).max() > 1e-2  # taking apart makes a difference
    shapes = {leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim > 1}
    assert shapes == {(LAYERS, 4, MAPS * 5)}  # the state is sharded as the parameters are


def test_kernels_that_muon_leaves_are_adams():
    first, second = "transformer.patch_embedding.kernel", "transformer.blocks.query.kernel"
    shapes = {first: (6, 8), second: (6, 8)}
    params, gradients = _random(2, **shapes), _random(3, **shapes)
    muon, _ = _steps(_config(), params, gradients, count=1)
    blocks, _ = _steps(_config(muon=r".*\.blocks\."), params, gradients, count=1)
    np.testing.assert_allclose(blocks[second], muon[second], rtol=1e-5)
    change = blocks[first] - params[first]
    # The first step of Adam (with Nesterov's momentum) has the gradient's sign and one size, beside
    # the decay that every kernel has.
    size = 0.15 * 0.1 * (1 + 0.9 * 0.1 / (1 - 0.9**2))
    decay = 0.15 * 0.1 * 0.01 * params[first]
    np.testing.assert_allclose(change, -size * np.sign(gradients[first]) - decay, rtol=1e-3)


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_the_rate_follows_the_step_also_after_one_that_is_left_out(algorithm):
    config = OptimConfig(algorithm=algorithm, learning_rate=1.0, warmup_steps=4, weight_decay=0)
    optimizer = make_optimizer(config, 10)
    shapes = {"blocks.query.kernel": (4, 4), "blocks.query.bias": (4,)}
    params, gradients = _random(0, **shapes), _random(1, **shapes)
    state = optimizer.init(params)
    first, moved = optimizer.update(gradients, state, params)  # at a quarter of the rate
    second, _ = optimizer.update(gradients, after_skipped_step(state, moved), params)
    for path in shapes:
        np.testing.assert_allclose(second[path], 2 * first[path], rtol=1e-5)  # at half


@pytest.mark.parametrize("name", ["muon", "fused"])
def test_patterns_are_checked(name):
    config = TrainConfig(optim=OptimConfig(**{name: "("}))
    assert f"config.optim.{name} is no regular expression" in problems(config)


def test_the_model_says_which_of_its_variables_are_stacked():
    """A layer's step depends on that layer alone, though no setting names the layers."""
    stage = Stage(build=_Net, source=lambda config: (), loss=_net_loss, components={})
    config = TrainConfig(stage="base", steps=3, batch_size=4, optim=_config())
    assert stacked_paths(_Net(config, nnx.Rngs(0))) == {"blocks.kernel"}
    graph, state = train_state.init_state(config, stage)
    batch = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)}
    other = {"x": batch["x"].at[:, 0].mul(2)}

    def kernel_after(batch, scale):
        trainable = dict(state.trainable)
        trainable["blocks.kernel"] = state.trainable["blocks.kernel"].at[1].mul(scale)
        start = state._replace(trainable=trainable)
        moved, _ = train_state.train_step(config, stage, graph, start, batch)
        return moved.trainable["blocks.kernel"]

    first, second = kernel_after(batch, 1.0), kernel_after(batch, 3.0)
    np.testing.assert_allclose(first[0], second[0], atol=1e-6)
    assert jnp.abs(first[0] - kernel_after(other, 1.0)[0]).max() > 1e-3


class _Net(nnx.Module):
    """Two layers side by side: no gradient of one depends on the other."""

    def __init__(self, config, rngs):
        self.blocks = stack(lambda own: nnx.Linear(3, 5, use_bias=False, rngs=own), 2, rngs)


def _net_loss(config, model, batch, random):
    return jnp.square(jnp.einsum("bi,lio->blo", batch["x"], model.blocks.kernel[...])).mean(), {}
