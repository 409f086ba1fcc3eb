"""Binding and the contrastive loss: masks, order, empty sets, variants, a loss done by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.random_conditions import (
    BATCH,
    ENTITIES,
    GRID,
    permuted,
    random_conditions,
    random_module,
    spoiled,
    tiny_model,
)
from tora2_jax.models import binding
from tora2_jax.models.binding import Binder, contrastive_loss
from tora2_jax.models.layers import flat_variables
from tora2_jax.types import ContrastEmbeddings

QUERIES = 3


def build(model):
    return random_module(lambda rngs: Binder(model, rngs=rngs))


@nnx.jit
def bind(module, p, p_mask, motion_map, conditions):
    return module(p, p_mask, motion_map, conditions)


@nnx.jit
def gradients(module, p, p_mask, motion_map, conditions):
    """Of fixed random projections of p and the map, for parameters, p, map and float inputs."""
    names = ("splat", "path", "words")

    def loss(module, p, motion_map, inputs):
        bound = module(p, p_mask, motion_map, conditions._replace(**inputs))
        outputs = (bound.personalization, bound.motion_map)
        return sum((x * jax.random.normal(jax.random.key(1), x.shape)).sum() for x in outputs)

    inputs = {name: getattr(conditions, name) for name in names}
    return nnx.grad(loss, argnums=(0, 1, 2, 3))(module, p, motion_map, inputs)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def module(model):
    return build(model)


@pytest.fixture(scope="module")
def arguments(model):
    """p, its mask, the motion map and conditions."""
    conditions = random_conditions(model)
    generator = np.random.default_rng(1)
    mask = jnp.broadcast_to(
        conditions.reference_mask.any(-1)[..., None], (BATCH, ENTITIES, QUERIES)
    )
    p = generator.normal(size=(*mask.shape, model.personalization.width)).astype(np.float32)
    motion_map = generator.normal(size=(BATCH, *GRID, model.motion.width)).astype(np.float32)
    return jnp.where(mask[..., None], p, 0), mask, jnp.asarray(motion_map), conditions


def test_absent_inputs_touch_neither_value_nor_gradient(module, arguments):
    p, p_mask, motion_map, conditions = arguments
    bad = jnp.where(p_mask[..., None], p, jnp.nan), p_mask, motion_map, spoiled(conditions)
    for ours, theirs in zip(bind(module, *bad), bind(module, *arguments), strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    clean, *_ = gradients(module, *arguments)
    parameters, p_gradient, _, inputs = gradients(module, *bad)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        flat_variables(parameters),
        flat_variables(clean),
    )
    for name, values in {"p": bad[0], **{key: getattr(bad[3], key) for key in inputs}}.items():
        gradient = p_gradient if name == "p" else inputs[name]
        absent = jnp.isnan(values)
        assert (gradient[absent] == 0).all()
        assert np.isfinite(gradient).all() and (gradient != 0).any()


def test_absent_tokens_stay_zero(module, arguments):
    bound = bind(module, *arguments)
    assert (bound.personalization[~arguments[1]] == 0).all()
    assert (bound.motion_tokens[~arguments[3].on] == 0).all()
    assert (bound.motion_tokens_before[~arguments[3].on] == 0).all()


def test_an_empty_sample_passes_unchanged(module, arguments):
    p, p_mask, motion_map, conditions = arguments
    empty = jax.tree.map(jnp.zeros_like, conditions)
    bound = bind(module, p, jnp.zeros_like(p_mask), motion_map, empty)
    np.testing.assert_array_equal(bound.motion_map, motion_map)
    assert (bound.personalization == 0).all()
    assert (bound.motion_tokens == 0).all()
    parameters, *others = gradients(module, p, jnp.zeros_like(p_mask), motion_map, empty)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((parameters, others)))


def test_the_order_of_entities_does_not_matter(module, arguments):
    p, p_mask, motion_map, conditions = arguments
    order = np.array([2, 0, 1])
    bound = bind(module, *arguments)
    other = bind(module, p[:, order], p_mask[:, order], motion_map, permuted(conditions, order))
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(other.motion_map, bound.motion_map, **close)
    np.testing.assert_allclose(other.personalization, bound.personalization[:, order], **close)
    np.testing.assert_allclose(other.motion_tokens, bound.motion_tokens[:, order], **close)


def test_entities_are_bound_one_by_one(module, arguments):
    p, p_mask, motion_map, conditions = arguments
    bound = bind(module, *arguments)
    words = conditions.words.at[0, 0].add(jnp.arange(conditions.words.shape[-1]))
    other = bind(module, p, p_mask, motion_map, conditions._replace(words=words))
    changed = jnp.abs(other.personalization - bound.personalization).max((-1, -2)) > 1e-5
    np.testing.assert_array_equal(changed, [[True, False, False], [False, False, False]])
    changed = jnp.abs(other.motion_map - bound.motion_map).max((-1, -2, -3)) > 1e-5
    np.testing.assert_array_equal(changed, [[True, True, False], [False, False, False]])


def test_motion_tokens_know_place_and_speed(module, arguments):
    p, p_mask, motion_map, conditions = arguments
    constant = jnp.ones_like(motion_map)
    bound = bind(module, p, p_mask, constant, conditions)
    moved = conditions._replace(path=conditions.path + 0.05)
    other = bind(module, p, p_mask, constant, moved)
    changed = jnp.abs(other.motion_tokens_before - bound.motion_tokens_before).max(-1) > 1e-4
    np.testing.assert_array_equal(changed, conditions.on)


def test_fourier_values_by_hand():
    waves = binding.fourier(jnp.array([0.25, 0.0]), 2)
    half = math.sqrt(0.5)
    np.testing.assert_allclose(waves, [half, 1, half, 0, 0, 0, 1, 1], atol=1e-6)


@pytest.mark.parametrize("gate", ["sigmoid", "tanh"])
def test_one_zero_per_path_at_the_start(gate, arguments):
    model = tiny_model()
    model.binding.gate = gate
    module = nnx.jit(lambda: Binder(model, rngs=nnx.Rngs(0)))()
    bound = bind(module, *arguments)
    np.testing.assert_array_equal(bound.motion_map, arguments[2])
    p_changes = bool((bound.personalization != arguments[0]).any())
    assert p_changes == (gate == "sigmoid")
    assert bool(module.binding.to_map.kernel[...].any()) == (gate == "tanh")


def test_every_parameter_learns(module, arguments):
    parameters, *_ = gradients(module, *arguments)
    still = [path for path, value in flat_variables(parameters).items() if not value.any()]
    assert sorted(still) == ["contrast_motion.kernel", "contrast_personalization.kernel"]


@pytest.mark.parametrize("variant", ["none", "linear"])
def test_variants_leave_the_map_alone(variant, arguments):
    model = tiny_model()
    model.binding.variant = variant
    p, p_mask, motion_map, _ = arguments
    bound = bind(build(model), *arguments)
    np.testing.assert_array_equal(bound.motion_map, motion_map)
    np.testing.assert_array_equal(bound.motion_tokens, bound.motion_tokens_before)
    assert bound.personalization.shape == p.shape
    same = (bound.personalization == p).all(-1)
    np.testing.assert_array_equal(same, ~p_mask if variant == "linear" else True)


def test_contrast_takes_what_the_config_names(module, arguments):
    bound = bind(module, *arguments)
    conditions = arguments[3]
    embeddings = module.contrast(bound, conditions)
    expected = module.contrast_embeddings(
        bound.personalization, arguments[1], bound.motion_tokens, conditions.on
    )
    np.testing.assert_array_equal(embeddings.motion, expected.motion)
    np.testing.assert_array_equal(embeddings.takes_part, [[1, 0, 0], [1, 0, 0]])
    lengths = jnp.linalg.norm(embeddings.personalization[embeddings.takes_part], axis=-1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)


def embeddings_of(p, m, part):
    return ContrastEmbeddings(jnp.array([p], jnp.float32), jnp.array([m], jnp.float32), part)


def test_contrastive_loss_by_hand():
    p, m = [[1, 0], [7, 7], [0, 1]], [[1, 0], [9, 9], [0.6, 0.8]]
    embeddings = embeddings_of(p, m, jnp.array([[True, False, True]]))
    loss, metrics = jax.jit(contrastive_loss)(embeddings, 0.5)
    # Similarities over 0.5: own 2 and 1.6; p_0 m_2 is 1.2, p_2 m_0 is 0.

    def surprise(own, other):
        return math.log1p(math.exp(other - own))

    over_m = (surprise(2, 1.2) + surprise(1.6, 0)) / 2
    over_p = (surprise(2, 0) + surprise(1.6, 1.2)) / 2
    np.testing.assert_allclose(loss, 0.5 * (over_m + over_p), rtol=1e-6)
    assert metrics["contrast_accuracy"] == 1
    swapped = embeddings._replace(motion=embeddings.motion[:, ::-1])
    assert contrastive_loss(swapped, 0.5)[1]["contrast_accuracy"] == 0


def test_contrastive_loss_of_fewer_than_two_is_zero():
    for part in ([True, False], [False, False]):
        embeddings = embeddings_of([[1, 0], [0, 1]], [[0, 1], [1, 0]], jnp.array([part]))

        def loss(p, embeddings=embeddings):
            return contrastive_loss(embeddings._replace(personalization=p), 0.07)[0]

        value, gradient = jax.value_and_grad(loss)(embeddings.personalization)
        assert value == 0 and (gradient == 0).all()
