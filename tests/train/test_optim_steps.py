"""The optimizer's steps: decay, rates of groups and gates, Muon's directions, the schedule."""

import jax
import jax.numpy as jnp
import numpy as np

from tora2_jax.config.train import OptimConfig
from tora2_jax.train import optim


def test_weight_decay_and_groups():
    mask = optim.decay_mask(["a.kernel", "a.bias", "b.scale", "c.embedding", "gate"])
    assert [name for name, decays in mask.items() if decays] == ["a.kernel", "c.embedding"]

    config = OptimConfig(
        learning_rate=0.1, warmup_steps=0, weight_decay=0.5, new_lr_scale=3.0,
        tora_initialized="motion",
    )  # fmt: skip
    variables = {name: jnp.ones((2, 2)) for name in ("motion.kernel", "motion.bias", "new.kernel")}
    optimizer = optim.make_optimizer(config, steps=10)
    gradients = jax.tree.map(jnp.zeros_like, variables)
    updates, _ = optimizer.update(gradients, optimizer.init(variables), variables)
    np.testing.assert_allclose(updates["motion.kernel"], -0.05)
    np.testing.assert_allclose(updates["new.kernel"], -0.15)
    np.testing.assert_array_equal(updates["motion.bias"], 0)


def test_the_scalar_of_a_tanh_gate_learns_faster():
    config = OptimConfig(learning_rate=1e-3, warmup_steps=0, clip_norm=1e9, new_lr_scale=3.0)
    config.tora_initialized = "motion"
    names = (
        "binder.gate_motion.alpha",
        "binder.gate_motion.value.kernel",
        "motion.alpha_conv.bias",
    )
    gradients = {name: jnp.ones((2, 2)) for name in names}
    for algorithm, share in (("adamw", 1.0), ("muon", 0.15)):
        config.algorithm = algorithm
        step = -_first_step(config, gradients)["binder.gate_motion.alpha"]
        config.gate_lr_scale = 1.0
        slow = _first_step(config, gradients)
        config.gate_lr_scale = 100.0
        np.testing.assert_allclose(step, -100 * slow["binder.gate_motion.alpha"], rtol=1e-5)
        assert (step > 0.9 * 3e-3 * 100 * share).all()
        fast = _first_step(config, gradients)
        for name in names[1:]:
            np.testing.assert_array_equal(fast[name], slow[name])


def test_muon_turns_the_gradient_of_a_kernel_into_orthogonal_directions():
    config = OptimConfig(algorithm="muon", learning_rate=0.1, warmup_steps=0, clip_norm=1e9)
    kernel = jnp.zeros((3, 3, 4, 5))
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=kernel.shape), jnp.float32)
    variables = {"conv.kernel": kernel, "conv.bias": jnp.zeros(5)}
    gradients = {"conv.kernel": gradient, "conv.bias": jnp.ones(5)}
    optimizer = optim.make_optimizer(config, steps=10)
    updates, _ = optimizer.update(gradients, optimizer.init(variables), variables)
    values = np.linalg.svd(updates["conv.kernel"].reshape(-1, 5), compute_uv=False)
    assert values.max() < 2 * values.min()  # those of the gradient differ more
    step = -np.asarray(updates["conv.bias"])  # Adam's, with Nesterov's look ahead
    assert (step >= 0.1 * 0.15).all() and (step < 0.1 * 0.3).all()


def test_muon_turns_every_layer_of_a_stacked_kernel_alone():
    config = OptimConfig(algorithm="muon", learning_rate=0.1, warmup_steps=0, clip_norm=1e9)
    config.stacked = r"blocks\."
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5)), jnp.float32)
    whole = _first_step(config, {"blocks.kernel": gradient})["blocks.kernel"]
    layers = _first_step(config, {f"{layer}.kernel": gradient[layer] for layer in range(3)})
    for layer in range(3):
        np.testing.assert_allclose(whole[layer], layers[f"{layer}.kernel"], rtol=1e-3, atol=1e-5)


def _first_step(config, gradients):
    variables = jax.tree.map(jnp.zeros_like, gradients)
    optimizer = optim.make_optimizer(config, steps=10)
    return optimizer.update(gradients, optimizer.init(variables), variables)[0]


def test_learning_rate():
    config = OptimConfig(learning_rate=1.0, warmup_steps=4)
    constant = optim.learning_rate(config, 12)
    np.testing.assert_allclose([constant(s) for s in (0, 3, 4, 11)], [0.25, 1, 1, 1])
    config.schedule = "cosine"
    cosine = optim.learning_rate(config, 12)
    np.testing.assert_allclose([cosine(s) for s in (0, 4, 8, 12)], [0.25, 1, 0.5, 0], atol=1e-7)
