"""What must hold of the whole model: one zero per path, empty sets, inert padding, dropout."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.support.parity import relative_error
from tests.support.random_conditions import changed, of_entities, permuted, spoiled, tiny_model
from tests.support.random_conditions import random_conditions as entity_conditions
from tora2_jax import conditioning, config, diffusion
from tora2_jax.models.contrast import contrastive_loss
from tora2_jax.models.layers.basic import assign_variables, flat_variables
from tora2_jax.models.tora2 import COMPONENTS, Tora2

LATENTS = (2, 3, 8, 10, 16)  # batch, then a token grid of 3 x 4 x 5


@pytest.fixture(scope="module")
def model_config() -> config.ModelConfig:
    model = tiny_model(cross_heads=2, cross_head_dim=4)
    model.transformer = config.TransformerConfig(
        num_layers=2,
        num_heads=2,
        head_dim=16,
        time_embed_dim=8,
        text_embed_dim=12,
        max_text_length=4,
        sample_frames=9,
        sample_height=8,
        sample_width=10,
    )
    model.motion.norm_groups = 8
    return model


def conditions_for(model_config: config.ModelConfig, seed: int = 0):
    rng = np.random.default_rng(seed)
    conditions = entity_conditions(model_config, seed)
    return conditions._replace(
        text=jnp.asarray(rng.standard_normal((2, 4, 12)), jnp.float32),
        motion_latents=jnp.asarray(rng.standard_normal(LATENTS), jnp.float32),
    )


def trained(model_config, names, seed=0) -> Tora2:
    """A model whose components `names` are random everywhere; the others as initialized."""
    model = nnx.jit(lambda: Tora2(model_config, rngs=nnx.Rngs(seed)))()
    rng = np.random.default_rng(seed)
    arrays = flat_variables(model)
    for path, value in arrays.items():
        if not any(re.match(COMPONENTS[name], path) for name in names):
            continue
        fan_in = value.shape[-2] if path.endswith("kernel") else 25
        noise = rng.standard_normal(value.shape).astype(np.float32) / fan_in**0.5
        arrays[path] = jnp.abs(noise) + 0.5 if path.endswith((".var", ".scale")) else noise
    assign_variables(model, arrays)
    return model


@pytest.fixture(scope="module")
def noisy():
    return jnp.asarray(np.random.default_rng(5).standard_normal(LATENTS), jnp.float32)


TIMES = jnp.asarray([999.0, 250.0])


def forward(model, noisy, conditions):
    graph, state = nnx.split(model)

    def run(state, conditions):
        model = nnx.merge(graph, state)
        return model(noisy, TIMES, model.bind(conditions).conditions)

    return jax.jit(run)(state, conditions)


def none_of(conditions):
    """Neither references nor trajectories."""
    conditions = conditioning.keep_references(conditions, jnp.zeros((2, 3), bool))
    return conditioning.keep_trajectories(conditions, jnp.zeros(2, bool))


def base_output(model, noisy, conditions):
    """The same transformer as plain CogVideoX."""
    graph, state = nnx.split(model.transformer)

    @jax.jit
    def run(state):
        transformer = nnx.merge(graph, state)
        return transformer(noisy, TIMES, transformer.project_text(conditions.text))

    return run(state)


@pytest.mark.long
def test_at_the_start_the_model_is_tora_and_without_paths_cogvideox(model_config, noisy):
    conditions = conditions_for(model_config)
    model = trained(model_config, ["transformer", "motion"])
    graph, state = nnx.split(model)

    def tora(state):
        model = nnx.merge(graph, state)
        extractor = model.trajectory_extractor
        maps = extractor.maps(extractor.embed(conditions.motion_latents))
        has_motion = conditions.on.any((1, 2))
        text = model.transformer.project_text(conditions.text)
        return model.transformer(noisy, TIMES, text, motion_maps=maps, has_motion=has_motion)

    full = forward(model, noisy, conditions)
    assert relative_error(full, jax.jit(tora)(state)) < 1e-6
    without_paths = conditioning.keep_trajectories(conditions, jnp.zeros(2, bool))
    expected = base_output(model, noisy, conditions)
    assert relative_error(forward(model, noisy, without_paths), expected) < 1e-6
    assert relative_error(full, expected) > 1e-3  # the paths do something


def test_without_conditions_a_trained_model_is_cogvideox_exactly(model_config, noisy):
    model = trained(model_config, list(COMPONENTS))
    conditions = conditions_for(model_config)
    actual = forward(model, noisy, none_of(conditions))
    expected = base_output(model, noisy, conditions)
    assert relative_error(actual, expected) < 1e-6
    assert relative_error(forward(model, noisy, conditions), expected) > 1e-2


@pytest.mark.long
def test_what_the_masks_hide_reaches_neither_output_nor_gradient(model_config, noisy):
    model = trained(model_config, list(COMPONENTS))
    conditions = conditions_for(model_config)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, conditions):
        model = nnx.merge(graph, params, rest)
        output = model(noisy, TIMES, model.bind(conditions).conditions)
        return jnp.square(output).mean()

    gradient = jax.jit(jax.value_and_grad(loss))
    value, clean = gradient(params, conditions)
    other_value, other = gradient(params, spoiled(conditions))
    assert value == other_value
    for one, two in zip(jax.tree.leaves(clean), jax.tree.leaves(other), strict=True):
        assert np.isfinite(one).all()
        assert (np.asarray(one) == np.asarray(two)).all()


@pytest.mark.long
def test_the_order_of_entities_changes_nothing(model_config, noisy):
    model = trained(model_config, list(COMPONENTS))
    conditions = conditions_for(model_config)
    one = forward(model, noisy, conditions)
    two = forward(model, noisy, permuted(conditions, [2, 0, 1]))
    assert relative_error(two, one) < 1e-5


def test_every_trainable_array_has_a_gradient_at_step_three(model_config, noisy):
    """With the diffusion loss alone; the contrastive heads are the exception."""
    model = trained(model_config, ["transformer"])
    conditions = conditions_for(model_config)
    pattern = re.compile(f"{COMPONENTS['motion']}|{COMPONENTS['personalization']}")
    wanted = nnx.All(nnx.Param, lambda path, _: pattern.match(".".join(map(str, path))) is not None)
    graph, trainable, rest = nnx.split(model, wanted, ...)
    target = diffusion.velocity(noisy, noisy[::-1], jnp.asarray([0.0, 0.5]))

    def loss(trainable):
        model = nnx.merge(graph, trainable, rest)
        output = model(noisy, TIMES, model.bind(conditions).conditions)
        return jnp.square(output - target).mean()

    optimizer = optax.adam(1e-3, eps=1e-12)
    state = optimizer.init(trainable)

    @jax.jit
    def step(trainable, state):
        gradient = jax.grad(loss)(trainable)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(trainable, updates), state, gradient

    for _ in range(3):
        trainable, state, gradient = step(trainable, state)
    silent = [
        ".".join(map(str, path))
        for path, value in nnx.to_flat_state(gradient)
        if not np.abs(value.get_value()).max() > 0
    ]
    assert all("contrast" in path for path in silent), silent


def test_padding_entities_leave_the_contrastive_loss_alone(model_config):
    model = trained(model_config, list(COMPONENTS))
    conditions = conditions_for(model_config)
    graph, state = nnx.split(model)

    @jax.jit
    def loss(conditions):
        bound = nnx.merge(graph, state).bind(conditions)
        return contrastive_loss(bound.contrast, 0.07)[0]

    twice = {
        name: jnp.concatenate([values] * 2, axis=1).at[:, 3:].set(0)
        for name, values in of_entities(conditions).items()
    }
    padded = changed(conditions, twice)
    assert relative_error(loss(padded), loss(conditions)) < 1e-6


@pytest.mark.parametrize("name", list(config.PRESETS))
def test_every_preset_builds_at_full_size_without_memory(name):
    """Tora2's own parts exist for each base, and every variable belongs to one component."""
    model = nnx.eval_shape(lambda: Tora2(config.PRESETS[name](), rngs=nnx.Rngs(0)))
    variables = flat_variables(model)
    owners = {
        path: [part for part, pattern in COMPONENTS.items() if re.match(pattern, path)]
        for path in variables
    }
    assert all(len(parts) == 1 for parts in owners.values())
    sizes = {part: 0 for part in COMPONENTS}
    for path, value in variables.items():
        sizes[owners[path][0]] += int(np.prod(value.shape))
    assert all(sizes.values())
    if name == "cogvideox_5b":  # Tora: 694,352,000 parameters and 2 x 128 statistics per norm
        assert sizes["motion"] == 694_352_000 + 168 * 2 * 128
