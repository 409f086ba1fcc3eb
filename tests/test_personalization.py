"""The appearance extractor: masks, padding, order, empty sets and the variants of Table 2."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.random_conditions import (
    BATCH,
    ENTITIES,
    permuted,
    random_conditions,
    random_module,
    spoiled,
    tiny_model,
)
from tora2_jax.models.layers import flat_variables
from tora2_jax.models.personalization import AppearanceExtractor

FLOAT_FIELDS = ("dino", "face_tokens", "face_vector", "object_tokens", "object_vector")


def build(model):
    return random_module(lambda rngs: AppearanceExtractor(model, rngs=rngs))


@nnx.jit
def extract(module, conditions):
    return module(conditions)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def module(model):
    return build(model)


@pytest.fixture(scope="module")
def conditions(model):
    return random_conditions(model)


@nnx.jit
def gradients(module, conditions):
    """Of a fixed random projection of p, with respect to parameters and float inputs."""

    def loss(module, inputs):
        tokens, _ = module(conditions._replace(**inputs))
        return (tokens * jax.random.normal(jax.random.key(1), tokens.shape)).sum()

    inputs = {name: getattr(conditions, name) for name in FLOAT_FIELDS}
    return nnx.grad(loss, argnums=(0, 1))(module, inputs)


def test_tokens_are_there_where_a_reference_is(model, module, conditions):
    tokens, mask = extract(module, conditions)
    settings = model.personalization
    assert tokens.shape == (BATCH, ENTITIES, settings.queries, settings.width)
    assert tokens.dtype == jnp.float32
    expected = conditions.reference_mask.any(-1)[..., None]
    np.testing.assert_array_equal(mask, np.broadcast_to(expected, mask.shape))
    assert (tokens[~mask] == 0).all()
    assert (jnp.abs(tokens[mask]).max(-1) > 0).all()


def test_absent_inputs_touch_neither_value_nor_gradient(module, conditions):
    bad = spoiled(conditions)
    np.testing.assert_array_equal(extract(module, bad)[0], extract(module, conditions)[0])
    clean, _ = gradients(module, conditions)
    parameters, inputs = gradients(module, bad)
    for ours, theirs in zip(jax.tree.leaves(parameters), jax.tree.leaves(clean), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    for name in FLOAT_FIELDS:
        absent = jnp.isnan(getattr(bad, name))
        assert (inputs[name][absent] == 0).all()
        present = inputs[name][~absent]
        assert np.isfinite(present).all() and (present != 0).any()


def test_a_padded_entity_or_reference_changes_nothing(module, conditions):
    padded = {}
    for name in (*FLOAT_FIELDS, "reference_mask", "prior_mask"):
        values = getattr(conditions, name)
        padded[name] = jnp.pad(values, ((0, 0), (0, 1), (0, 1)) + ((0, 0),) * (values.ndim - 3))
    padded["is_human"] = jnp.pad(conditions.is_human, ((0, 0), (0, 1)))
    tokens, mask = extract(module, conditions._replace(**padded))
    expected, _ = extract(module, conditions)
    np.testing.assert_allclose(tokens[:, :-1], expected, rtol=1e-5, atol=1e-5)
    assert not mask[:, -1].any() and (tokens[:, -1] == 0).all()


def test_the_order_of_entities_does_not_matter(module, conditions):
    order = [2, 0, 1]
    tokens, _ = extract(module, permuted(conditions, order))
    expected = extract(module, conditions)[0][:, np.array(order)]
    np.testing.assert_allclose(tokens, expected, rtol=1e-5, atol=1e-5)


def test_the_class_chooses_the_network(module, conditions):
    tokens, _ = extract(module, conditions)
    for name, expected in {
        "face_tokens": [[True, False, False], [False, False, False]],
        "object_vector": [[False, False, True], [True, False, False]],
    }.items():
        values = getattr(conditions, name)
        other, _ = extract(
            module, conditions._replace(**{name: values + jnp.arange(values.shape[-1])})
        )
        np.testing.assert_array_equal(jnp.abs(other - tokens).max((-1, -2)) > 1e-5, expected)


def test_every_parameter_learns(module, conditions):
    parameters, _ = gradients(module, conditions)
    still = [path for path, value in flat_variables(parameters).items() if not value.any()]
    # A bias of the keys shifts all logits of a query alike, up to rounding.
    assert [path for path in still if not path.endswith("key.bias")] == []


@pytest.mark.parametrize(
    ("variant", "tokens_per_image"), [("dino", 9), ("dino_reid", 26), ("dino_decoupled", 26)]
)
def test_linear_variants_keep_all_tokens(variant, tokens_per_image):
    model = tiny_model(variant=variant)
    conditions = random_conditions(model)
    tokens, mask = extract(build(model), conditions)
    assert tokens.shape == (BATCH, ENTITIES, 2 * tokens_per_image, 16)
    assert mask.shape == tokens.shape[:-1]
    # Sample 0: a human (4 face tokens), nothing, one of two references of an object.
    human = {"dino": 9, "dino_reid": 26, "dino_decoupled": 4 + 1 + 9}[variant]
    np.testing.assert_array_equal(mask[0].sum(-1), [2 * human, 0, tokens_per_image])
    # Sample 1, entity 1: a human without a face still has DINO, and the object encoder.
    assert mask[1, 1].sum() == (26 if variant == "dino_reid" else 9)
    assert (tokens[~mask] == 0).all() and np.isfinite(tokens).all()
