"""Binding and the contrastive loss: masks, order, empty sets, variants, a loss done by hand."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.support.random_conditions import (
    BATCH,
    ENTITIES,
    GRID,
    crowded_conditions,
    padded,
    permuted,
    quick_jit,
    random_conditions,
    random_module,
    spoiled,
    tiny_model,
)
from tora2_jax.models import binding
from tora2_jax.models.binding import Binder
from tora2_jax.models.contrast import contrastive_loss
from tora2_jax.models.layers.basic import flat_variables
from tora2_jax.types import ContrastEmbeddings

QUERIES = 3


def build(model):
    return random_module(lambda rngs: Binder(model, rngs=rngs))


@nnx.jit
def bind(module, p, p_mask, motion_map, conditions):
    return module(p, p_mask, motion_map, conditions)


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


class Outcome(NamedTuple):
    """Of one forward and backward pass."""

    bound: binding.BoundEntities
    parameters: dict[str, jax.Array]  # gradients
    inputs: dict[str, jax.Array]  # gradients


class Case:
    """One way to bind eight entities, with random weights."""

    def __init__(self, name: str):
        model = tiny_model()
        model.binding.variant, _, gate = name.partition("-")
        model.binding.gate = gate or "sigmoid"
        self.name, self.conditions = name, crowded_conditions(model)
        generator = np.random.default_rng(1)
        self.p_mask = jnp.repeat(self.conditions.reference_mask.any(-1)[..., None], QUERIES, -1)
        p = generator.normal(size=(*self.p_mask.shape, 16)).astype(np.float32)
        self.p = jnp.where(self.p_mask[..., None], p, 0)
        motion_map = generator.normal(size=(2, *GRID, model.motion.width))
        self.motion_map = jnp.asarray(motion_map, jnp.float32)
        self._graph, self._state = nnx.split(build(model))
        self._gradient = quick_jit(jax.grad(self._loss, argnums=(0, 1), has_aux=True))

    def __call__(self, p, p_mask, conditions) -> Outcome:
        inputs = {name: getattr(conditions, name) for name in ("splat", "path", "words")}
        inputs |= {"p": p, "map": self.motion_map}
        gradients, bound = self._gradient(self._state, inputs, p_mask, conditions)
        return Outcome(bound, flat_variables(gradients[0]), gradients[1])

    def _loss(self, state, inputs, p_mask, conditions):
        """Of p, map and contrastive loss, the same for every order of the entities."""
        module = nnx.merge(self._graph, state)
        kept = {name: value for name, value in inputs.items() if name not in ("p", "map")}
        conditions = conditions._replace(**kept)
        bound = module(inputs["p"], p_mask, inputs["map"], conditions)
        loss, _ = contrastive_loss(module.contrast(bound, conditions), 0.07)
        for x in (bound.personalization, bound.motion_map):
            loss += (jnp.sin(x) * jax.random.normal(jax.random.key(1), x.shape[-1:])).sum()
        return loss, bound


@pytest.fixture(scope="module", params=["gated-sigmoid", "gated-tanh", "linear", "none"])
def case(request) -> Case:
    return Case(request.param)


@pytest.fixture(scope="module")
def outcome(case) -> Outcome:
    return case(case.p, case.p_mask, case.conditions)


def assert_close(first, second):
    close = {"rtol": 1e-4, "atol": 1e-4}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), first, second)


def test_absent_inputs_touch_neither_value_nor_gradient(case, outcome):
    bad = spoiled(case.conditions)
    other = case(jnp.where(case.p_mask[..., None], case.p, jnp.nan), case.p_mask, bad)
    jax.tree.map(np.testing.assert_array_equal, other.bound, outcome.bound)
    assert_close(other.parameters, outcome.parameters)
    values = {name: getattr(bad, name) for name in ("splat", "path", "words")}
    values["p"] = jnp.where(case.p_mask[..., None], case.p, jnp.nan)
    for name, value in values.items():
        absent, gradient = jnp.isnan(value), other.inputs[name]
        assert absent.any() and np.isfinite(gradient).all() and (gradient[absent] == 0).all()
        read = name != "words" or case.name != "none"
        assert bool((gradient[~absent] != 0).any()) == read


def test_a_padded_entity_changes_nothing(case, outcome):
    wide = [(0, 0), (0, 1), (0, 0)]
    p, p_mask = jnp.pad(case.p, [*wide, (0, 0)]), jnp.pad(case.p_mask, wide)
    other = case(p, p_mask, padded(case.conditions))
    assert_close(other.bound.motion_map, outcome.bound.motion_map)
    assert_close(other.bound.personalization[:, :8], outcome.bound.personalization)
    assert_close(other.bound.motion_tokens[:, :8], outcome.bound.motion_tokens)
    assert_close(other.bound.metrics, outcome.bound.metrics)
    assert_close(other.parameters, outcome.parameters)
    for name in ("splat", "path", "words", "p"):
        assert_close(other.inputs[name][:, :8], outcome.inputs[name])
        assert (other.inputs[name][:, 8] == 0).all()


def test_the_order_of_entities_does_not_matter(case, outcome):
    order = np.array([5, 2, 7, 0, 1, 6, 4, 3])
    other = case(case.p[:, order], case.p_mask[:, order], permuted(case.conditions, order))
    assert_close(other.bound.motion_map, outcome.bound.motion_map)
    assert_close(other.bound.personalization, outcome.bound.personalization[:, order])
    assert_close(other.bound.motion_tokens, outcome.bound.motion_tokens[:, order])
    assert_close(other.parameters, outcome.parameters)


def test_an_empty_sample_passes_unchanged(case):
    empty = jax.tree.map(jnp.zeros_like, case.conditions)
    other = case(case.p, jnp.zeros_like(case.p_mask), empty)
    np.testing.assert_array_equal(other.bound.motion_map, case.motion_map)
    assert (other.bound.personalization == 0).all() and (other.bound.motion_tokens == 0).all()
    gradients = {**other.parameters, **other.inputs}
    del gradients["map"]
    assert all((value == 0).all() for value in gradients.values())


def test_every_parameter_learns(outcome):
    still = [path for path, value in outcome.parameters.items() if not value.any()]
    # A bias of the keys shifts all logits of a query alike, up to rounding.
    assert [path for path in still if not path.endswith("key.bias")] == []


def test_absent_tokens_stay_zero(module, arguments):
    bound = bind(module, *arguments)
    assert (bound.personalization[~arguments[1]] == 0).all()
    assert (bound.motion_tokens[~arguments[3].on] == 0).all()
    assert (bound.motion_tokens_before[~arguments[3].on] == 0).all()


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


def test_without_the_contrastive_loss_there_are_no_heads(model, module, arguments):
    for variant, binds in (("gated", True), ("none", False)):
        other = tiny_model()
        other.binding.contrast_on, other.binding.variant = "none", variant
        assert binding.needs_binder(other) == binds
    other.binding.variant = "gated"
    headless, whole = (
        nnx.eval_shape(lambda config=config: Binder(config, rngs=nnx.Rngs(0)))
        for config in (other, model)
    )
    paths, all_paths = flat_variables(headless), flat_variables(whole)
    heads = {"contrast_motion.kernel", "contrast_personalization.kernel"}
    assert all_paths.keys() - paths.keys() == heads and paths.keys() < all_paths.keys()
    assert headless.contrast(bind(module, *arguments), arguments[3]) is None
    for part in ("motion", "personalization"):
        alone = tiny_model()
        setattr(alone, part, None)
        assert not binding.needs_binder(alone)


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
