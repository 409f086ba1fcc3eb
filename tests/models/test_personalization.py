"""The appearance extractor, of every variant of Table 2: masks, padding, order, empty sets.

Eight entities of up to four references.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.support.random_conditions import (
    FEATURES,
    REFERENCE_FIELDS,
    changed,
    crowded_conditions,
    padded,
    permuted,
    quick_jit,
    random_module,
    spoiled,
    tiny_model,
)
from tora2_jax.conditioning import to_arrays
from tora2_jax.models.layers.basic import flat_variables
from tora2_jax.models.personalization import AppearanceExtractor

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


class Outcome(NamedTuple):
    """Of one forward and backward pass."""

    tokens: jax.Array
    mask: jax.Array
    parameters: dict[str, jax.Array]  # gradients
    inputs: dict[str, jax.Array]  # gradients


class Case:
    """One variant with random weights."""

    def __init__(self, variant: str):
        self.variant, self.model = variant, tiny_model(variant=variant)
        self.conditions = crowded_conditions(self.model)
        module = random_module(lambda rngs: AppearanceExtractor(self.model, rngs=rngs))
        self._graph, self._state = nnx.split(module)
        self._gradient = quick_jit(jax.grad(self._loss, argnums=(0, 1), has_aux=True))

    def __call__(self, conditions) -> Outcome:
        inputs = {name: to_arrays(conditions)[name] for name in FEATURES}
        gradients, outputs = self._gradient(self._state, inputs, conditions)
        return Outcome(*outputs, flat_variables(gradients[0]), gradients[1])

    def _loss(self, state, inputs, conditions):
        """The same for every order of entities and tokens."""
        tokens, mask = nnx.merge(self._graph, state)(changed(conditions, inputs))
        weights = jax.random.normal(jax.random.key(1), tokens.shape[-1:])
        return (jnp.sin(tokens) * weights).sum(), (tokens, mask)


@pytest.fixture(scope="module", params=["dpe", "dino_decoupled", "dino_reid", "dino"])
def case(request) -> Case:
    return Case(request.param)


@pytest.fixture(scope="module")
def outcome(case) -> Outcome:
    return case(case.conditions)


def assert_close(first, second):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), first, second)


def test_tokens_are_there_where_a_reference_is(case, outcome):
    tokens, mask, conditions = outcome.tokens, outcome.mask, case.conditions
    assert tokens.dtype == jnp.float32 and np.isfinite(tokens).all()
    assert (tokens[~mask] == 0).all() and (jnp.abs(tokens[mask]).max(-1) > 0).all()
    present, human = conditions.reference_mask, conditions.is_human[..., None]
    if case.variant == "dpe":
        assert mask.shape == (2, 8, 3)
        np.testing.assert_array_equal(mask, np.repeat(present.any(-1)[..., None], 3, -1))
        return
    # 9 tokens of DINO; 16 and a vector of the object network, 4 and a vector of the face network.
    face = {"dino": 0, "dino_reid": 17, "dino_decoupled": 5}[case.variant]
    found = present if case.variant == "dino_reid" else conditions.prior_mask
    thing = 0 if case.variant == "dino" else 17
    counts = 9 * present + jnp.where(human, face * found, thing * conditions.prior_mask)
    np.testing.assert_array_equal(mask.sum(-1), counts.sum(-1))
    assert mask.shape == (2, 8, 4 * (9 + thing))


def test_absent_inputs_touch_neither_value_nor_gradient(case, outcome):
    bad = spoiled(case.conditions, case.variant)
    other = case(bad)
    np.testing.assert_array_equal(other.tokens, outcome.tokens)
    assert_close(other.parameters, outcome.parameters)
    for name in FEATURES:
        absent = jnp.isnan(to_arrays(bad)[name])
        assert np.isfinite(other.inputs[name]).all()
        assert (other.inputs[name][absent] == 0).all()
        assert (other.inputs[name][~absent] != 0).any() or absent.all()


def test_a_padded_entity_or_reference_changes_nothing(case, outcome):
    other = case(padded(case.conditions))
    count = outcome.tokens.shape[2]
    assert_close(other.tokens[:, :8, :count], outcome.tokens)
    assert not other.mask[:, 8].any() and not other.mask[:, :, count:].any()
    assert (other.tokens[~other.mask] == 0).all()
    assert_close(other.parameters, outcome.parameters)
    for name in FEATURES:
        gradient = other.inputs[name]
        assert_close(gradient[:, :8, :4], outcome.inputs[name])
        assert (gradient[:, 8] == 0).all() and (gradient[:, :, 4] == 0).all()


def test_the_order_of_entities_does_not_matter(case, outcome):
    order = np.array([5, 2, 7, 0, 1, 6, 4, 3])
    other = case(permuted(case.conditions, order))
    assert_close(other.tokens, outcome.tokens[:, order])
    np.testing.assert_array_equal(other.mask, outcome.mask[:, order])
    assert_close(other.parameters, outcome.parameters)
    assert_close(other.inputs, {name: outcome.inputs[name][:, order] for name in FEATURES})


def test_without_references_nothing_has_a_gradient(case):
    empty = case.conditions._replace(
        reference_mask=jnp.zeros((2, 8, 4), bool), prior_mask=jnp.zeros((2, 8, 4), bool)
    )
    other = case(empty)
    assert not other.mask.any() and (other.tokens == 0).all()
    assert all((value == 0).all() for value in jax.tree.leaves((other.parameters, other.inputs)))


def test_the_class_chooses_the_network(case, outcome):
    """Which entities a change of one network's features reaches."""
    conditions = case.conditions
    human, prior = conditions.is_human, conditions.prior_mask.any(-1)
    reaches = {
        "dino": (human & False, human & False),
        "dino_reid": (human & False, conditions.reference_mask.any(-1) & (prior | human)),
    }.get(case.variant, (human & prior, ~human & prior))
    for name, expected in zip(("face_tokens", "object_vector"), reaches, strict=True):
        values = to_arrays(conditions)[name]
        moved = values + jnp.arange(values.shape[-1])
        other = case(changed(conditions, {name: moved}))
        np.testing.assert_array_equal(
            jnp.abs(other.tokens - outcome.tokens).max((-1, -2)) > 1e-5, expected
        )


def test_every_parameter_learns(outcome):
    still = [path for path, value in outcome.parameters.items() if not value.any()]
    # A bias of the keys shifts all logits of a query alike, up to rounding.
    assert [path for path in still if not path.endswith("key.bias")] == []


def test_the_order_of_references_does_not_matter(case, outcome):
    order = np.array([2, 0, 3, 1])
    arrays = to_arrays(case.conditions)
    turned = {name: arrays[name][:, :, order] for name in REFERENCE_FIELDS}
    tokens, expected = case(changed(case.conditions, turned)).tokens, outcome.tokens
    if case.variant != "dpe":  # the linear variants keep the tokens of each reference
        split = (2, 8, 4, -1, expected.shape[-1])
        expected = expected.reshape(split)[:, :, order].reshape(expected.shape)
    assert_close(tokens, expected)
