"""Attention, gates and influence that are looked at are those that the model uses."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.support.parity import BLOCK_TOLERANCE, relative_error
from tests.support.random_conditions import random_conditions, random_module, tiny_model
from tora2_jax.models.binding import Binder
from tora2_jax.models.cross_attention import PersonalizationCrossAttention


@pytest.mark.parametrize("gate", ["sigmoid", "tanh"])
def test_attention_and_gates_are_those_that_the_binder_uses(gate):
    model = tiny_model()
    model.binding.gate = gate
    binder = random_module(lambda rngs: Binder(model, rngs=rngs))
    conditions = random_conditions(model)
    generator = np.random.default_rng(2)
    p = jnp.asarray(generator.standard_normal((2, 3, 3, 16)), jnp.float32)
    p_mask = jnp.broadcast_to(conditions.reference_mask.any(-1, keepdims=True), p.shape[:3])
    motion_map = jnp.asarray(generator.standard_normal((2, 3, 4, 5, 6)), jnp.float32)

    @nnx.jit
    def look(binder, *given):
        tokens, _ = binder.binding._tokens(*binder._given(*given))
        value = binder.binding.value(tokens)
        return binder.details(*given), binder(*given), value

    details, bound, value = look(binder, p, p_mask, motion_map, conditions)
    rows = details.attention.sum(-1)
    there = np.asarray(details.mask.any(-1))
    np.testing.assert_allclose(rows, np.broadcast_to(there[..., None, None], rows.shape), atol=1e-6)
    hidden = np.broadcast_to(~details.mask[:, :, None, None], details.attention.shape)
    assert not np.asarray(details.attention)[hidden].any()

    # From the weights, what is added to p must follow: eq. 5 by hand, in float64.
    value = np.asarray(value, np.float64).reshape(2, 3, -1, 2, 4)
    attended = np.einsum("behnk,bekhd->benhd", details.attention, value).reshape(2, 3, -1, 8)
    output = binder.binding.output
    attended = attended @ np.asarray(output.kernel) + np.asarray(output.bias)
    for part, module, delta, mask, opening in (
        (
            slice(0, 3),
            binder.binding.gate_personalization,
            bound.personalization - bound.personalization_before,
            p_mask,
            details.gate_personalization,
        ),
        (
            slice(3, 6),
            binder.binding.gate_motion,
            bound.motion_tokens - bound.motion_tokens_before,
            conditions.on,
            details.gate_motion,
        ),
    ):
        looking = attended[:, :, part]
        if gate == "sigmoid":
            kernel, bias = np.asarray(module.gate.kernel), np.asarray(module.gate.bias)
            factor = 1 / (1 + np.exp(-(looking @ kernel + bias)))
        else:
            factor = np.full(looking.shape, np.tanh(float(module.alpha[...])))
        assert relative_error(opening, factor) < BLOCK_TOLERANCE
        expected = (
            factor * (looking @ np.asarray(module.value.kernel)) * np.asarray(mask)[..., None]
        )
        assert relative_error(delta, expected) < BLOCK_TOLERANCE


def test_influence_is_the_softmax_and_adds_up_to_the_output():
    heads, entities_, queries = 2, 3, 4
    cross = random_module(lambda rngs: PersonalizationCrossAttention(16, 12, heads, 4, rngs=rngs))
    generator = np.random.default_rng(3)
    video = jnp.asarray(generator.standard_normal((2, 7, 16)), jnp.float32)
    tokens = jnp.asarray(generator.standard_normal((2, entities_ * queries, 12)), jnp.float32)
    present = np.array([[1, 0, 1], [0, 0, 0]], bool)
    mask = jnp.asarray(present.repeat(queries, 1))

    @nnx.jit
    def look(cross, video, tokens, mask):
        known = cross.keys_values(tokens, mask)
        query = cross.query_norm(cross.query(cross.token_norm(video)).reshape(2, 7, heads, 4))
        found = cross.influence(video, known, mask, entities_)
        return known, query, found, cross(video, known, mask)

    known, query, found, output = look(cross, video, tokens, mask)
    logits = np.einsum("bnhd,bjhd->bhnj", query, known.keys).astype(np.float64) / 2
    weights = np.where(mask[:, None, None], np.exp(logits), 0)
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    share = weights.reshape(2, heads, 7, entities_, queries).sum(-1).mean(1)
    assert relative_error(found.share, share) < BLOCK_TOLERANCE
    assert not np.asarray(found.share)[1].any() and not np.asarray(found.added)[1].any()

    norm, added = np.linalg.norm(video[0], axis=-1), []
    for entity in range(entities_):
        own = np.arange(entities_ * queries) // queries == entity
        attended = np.einsum("hnj,jhd->nhd", weights[0] * own, known.values[0]).reshape(7, -1)
        added.append(attended @ np.asarray(cross.output.kernel))
    expected = np.linalg.norm(added, axis=-1).T / norm[:, None]
    assert relative_error(found.added[0], expected) < BLOCK_TOLERANCE
    assert relative_error(sum(added), output[0]) < BLOCK_TOLERANCE
