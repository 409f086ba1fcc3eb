"""The contrastive loss over the global batch: the same on one device and on eight, however cut.

The values themselves are compared with ones by hand in tests/models/test_binding.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.support.parity import relative_error
from tests.support.random_conditions import crowded_conditions, quick_jit, random_module, tiny_model
from tora2_jax.models.binding import Binder
from tora2_jax.models.contrast import contrastive_loss
from tora2_jax.models.layers.basic import flat_variables
from tora2_jax.types import ContrastEmbeddings

TEMPERATURE = 0.07
BATCH, ENTITIES, WIDTH = 16, 4, 8
# Sizes of the mesh, and which of its axes cut samples, entities and channels.
CUTS = {
    "samples over 8": ((8,), ("a",)),
    "samples over 4 x 2": ((4, 2), (("a", "b"),)),
    "samples over 4, copied twice": ((4, 2), ("a",)),
    "samples over 4, entities over 2": ((4, 2), ("a", "b")),
    "samples over 2, channels over 4": ((2, 4), ("a", None, "b")),
}


def placed(tree, cut: str):
    """The arrays of a tree over eight devices; an array of fewer axes is cut along those it has."""
    sizes, axes = CUTS[cut]
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(sizes), ("a", "b")[: len(sizes)])
    return jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes[: x.ndim]))), tree
    )


@pytest.fixture(scope="module")
def embeddings() -> ContrastEmbeddings:
    """Samples 2 to 5 and the last ones have nobody who takes part: whole devices of 8, of 4."""
    generator = np.random.default_rng(0)
    p, m = generator.normal(size=(2, BATCH, ENTITIES, WIDTH)).astype(np.float32)
    part = generator.random((BATCH, ENTITIES)) < 0.6
    part[2:6] = part[-2:] = False
    p, m = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (p, m))
    return ContrastEmbeddings(jnp.asarray(p), jnp.asarray(m), jnp.asarray(part))


@quick_jit
def measured(embeddings):
    """Loss, accuracy, and gradients of the loss."""

    def loss(p, m):
        return contrastive_loss(ContrastEmbeddings(p, m, embeddings.takes_part), TEMPERATURE)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(*embeddings[:2])


def by_hand(embeddings) -> float:
    """Half the sum of two means, in float64, over those who take part."""
    part = np.asarray(embeddings.takes_part).reshape(-1)
    p, m = (np.asarray(x, np.float64).reshape(-1, WIDTH)[part] for x in embeddings[:2])
    logits = p @ m.T / TEMPERATURE
    sides = [np.log(np.exp(table).sum(1)) - np.diag(table) for table in (logits, logits.T)]
    return 0.5 * (sides[0].mean() + sides[1].mean())


@pytest.mark.parametrize("cut", CUTS)
def test_value_and_gradients_are_the_same_however_the_batch_is_cut(cut, embeddings):
    (value, metrics), gradients = measured(embeddings)
    np.testing.assert_allclose(value, by_hand(embeddings), rtol=1e-5)
    spread = placed(embeddings, cut)
    assert len(spread.personalization.sharding.device_set) == 8
    (other, other_metrics), other_gradients = measured(spread)
    np.testing.assert_allclose(other, value, rtol=1e-6)
    np.testing.assert_allclose(
        other_metrics["contrast_accuracy"], metrics["contrast_accuracy"], rtol=1e-6
    )
    for ours, theirs in zip(other_gradients, gradients, strict=True):
        assert relative_error(ours, theirs) < 1e-6
        assert (ours[~np.asarray(embeddings.takes_part)] == 0).all()


def test_no_branch_holds_an_exchange_between_devices(embeddings):
    text = measured.lower(placed(embeddings, "samples over 8")).compile().as_text()
    assert "all-reduce(" in text or "all-gather(" in text
    assert " conditional(" not in text


def test_devices_alone_would_give_another_loss(embeddings):
    """What the test above would not notice if it were the mean over devices."""
    halves = [
        ContrastEmbeddings(*(x[half] for x in embeddings)) for half in np.split(np.r_[:16], 2)
    ]
    alone = np.mean([by_hand(half) for half in halves])
    assert abs(alone - by_hand(embeddings)) > 0.1


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_on_all_devices_together_is_zero(count, embeddings):
    part = jnp.zeros((BATCH, ENTITIES), bool).at[7, 2].set(count == 1)
    (value, _), gradients = measured(placed(embeddings._replace(takes_part=part), "samples over 8"))
    assert value == 0 and all((gradient == 0).all() for gradient in gradients)


def test_two_on_different_devices_are_negatives_of_each_other(embeddings):
    part = jnp.zeros((BATCH, ENTITIES), bool).at[3, 0].set(True).at[12, 1].set(True)
    two = embeddings._replace(takes_part=part)
    (value, _), _ = measured(placed(two, "samples over 8"))
    assert value > 0.01
    np.testing.assert_allclose(value, by_hand(two), rtol=1e-5)


def test_the_binder_learns_the_same_from_a_batch_on_eight_devices():
    model = tiny_model()
    graph, state = nnx.split(random_module(lambda rngs: Binder(model, rngs=rngs)))
    parts = [crowded_conditions(model, seed) for seed in range(4)]
    conditions = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    # Devices 2 and 5 have nobody with a reference.
    mask = conditions.reference_mask.any(-1) & (jnp.arange(8) % 3 != 2)[:, None]
    generator = np.random.default_rng(1)
    p, motion_map = (
        jnp.asarray(generator.normal(size=shape), jnp.float32)
        for shape in ((8, 8, 3, 16), (8, 3, 4, 5, model.motion.width))
    )
    batch = (p, jnp.repeat(mask[..., None], 3, -1), motion_map, conditions)

    @quick_jit
    def learned(state, batch):
        def loss(state):
            binder = nnx.merge(graph, state)
            return contrastive_loss(binder.contrast(binder(*batch), batch[-1]), TEMPERATURE)[0]

        return jax.value_and_grad(loss)(state)

    value, gradient = learned(state, batch)
    other, other_gradient = learned(state, placed(batch, "samples over 8"))
    assert value > 0.1
    np.testing.assert_allclose(other, value, rtol=1e-5)
    ours, theirs = flat_variables(other_gradient), flat_variables(gradient)
    largest = max(np.abs(x).max() for x in theirs.values())
    for path in theirs:  # some are sums that cancel: relative to the whole gradient
        assert np.abs(ours[path] - theirs[path]).max() < 1e-5 * largest, path
