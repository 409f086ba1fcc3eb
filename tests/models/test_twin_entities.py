"""References, binding, contrast and cross-attention against NumPy twins, value by value."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import twin_entities as twin
from tests.support.parity import BLOCK_TOLERANCE, relative_error
from tests.support.random_conditions import crowded_conditions, quick_jit, random_module, tiny_model
from tora2_jax.conditioning import from_arrays, to_arrays
from tora2_jax.config import StoredPriorConfig
from tora2_jax.models.binding import Binder, BoundEntities
from tora2_jax.models.contrast import contrastive_loss
from tora2_jax.models.cross_attention import PersonalizationCrossAttention
from tora2_jax.models.layers.basic import flat_variables
from tora2_jax.models.personalization import AppearanceExtractor
from tora2_jax.types import Conditions, ContrastEmbeddings

HEADS, GRID = 2, (3, 4, 5)  # of random_conditions


def weights_of(module) -> dict[str, np.ndarray]:
    return {path: np.asarray(value, np.float64) for path, value in flat_variables(module).items()}


def full_conditions(model, seed: int = 0) -> Conditions:
    """The crowded conditions, with random numbers also where the masks say that nothing is."""
    rng = np.random.default_rng(seed)

    def filled(name, value):
        if value.dtype == bool:
            return value
        draw = rng.random if name in ("path", "splat") else rng.standard_normal
        return jnp.asarray(draw(value.shape), jnp.float32)

    conditions = crowded_conditions(model)
    arrays = to_arrays(conditions)
    return from_arrays({name: filled(name, value) for name, value in arrays.items()})


def as_numpy(conditions: Conditions) -> Conditions:
    return jax.tree.map(
        lambda x: np.asarray(x, bool if x.dtype == bool else np.float64), conditions
    )


def assert_equal(found, expected):
    assert relative_error(found, expected) <= BLOCK_TOLERANCE


def references_of(c: Conditions, variant: str, b: int, e: int) -> list[dict]:
    """One entity's references as the twin takes them."""
    human = c.is_human[b, e] and variant != "dino_reid"
    name = "face" if human else "object"
    counts = [
        c.object.tokens.shape[3],
        *([] if variant == "dino_reid" else [c.face.tokens.shape[3]]),
    ]
    found = []
    for r, there in enumerate(c.reference_mask[b, e]):
        # The object encoder also describes humans whose face was not found.
        prior = there and (c.prior_mask[b, e, r] or (variant == "dino_reid" and c.is_human[b, e]))
        tokens, vector = (array[b, e, r] for array in getattr(c, name))
        found.append(
            {
                "rows": max(counts),
                "there": there,
                "dino": c.dino[b, e, r],
                "prior": (tokens, vector) if prior else None,
            }
        )
    return found


@pytest.mark.parametrize(
    ("variant", "object_tokens"),
    [("dpe", 16), ("dino_decoupled", 16), ("dino_decoupled", 2), ("dino_reid", 16), ("dino", 16)],
)
def test_personalization_tokens(variant, object_tokens):
    """Of a face the prior has 4 tokens, of an object more, or fewer where files bring them."""
    model = tiny_model(variant=variant)
    conditions = full_conditions(model)
    if object_tokens != 16:
        width = model.object.width
        model.stored_object = StoredPriorConfig(
            tokens=object_tokens, width=width, vector_width=width
        )
        kept = conditions.object.tokens[..., :object_tokens, :]
        conditions = conditions._replace(object=conditions.object._replace(tokens=kept))
    module = random_module(lambda rngs: AppearanceExtractor(model, rngs=rngs))
    tokens, mask = quick_jit(lambda c: module(c))(conditions)
    weights, c = weights_of(module), as_numpy(conditions)
    expected = np.zeros(tokens.shape)
    there = np.zeros(mask.shape, bool)
    for b, e in np.ndindex(c.is_human.shape):
        references = references_of(c, variant, b, e)
        expected[b, e], there[b, e] = twin.appearance(
            weights, variant, HEADS, references, c.is_human[b, e]
        )
    np.testing.assert_array_equal(mask, there)
    assert_equal(tokens, expected)


class Binding(NamedTuple):
    """A binder's inputs and what it and its twin make of them."""

    found: BoundEntities
    contrast: ContrastEmbeddings | None
    expected: dict[str, np.ndarray]


def twin_binder(module, variant, p, p_mask, motion_map, c: Conditions) -> dict[str, np.ndarray]:
    """p, m and map of all entities after binding, and m before it."""
    weights = weights_of(module)
    own, motion = twin.part(weights, "binding"), twin.part(weights, "motion_tokens")
    p = np.where(p_mask[..., None], p, 0)
    m, delta_p = np.zeros((*c.on.shape, p.shape[-1])), np.zeros(p.shape)
    delta_m = np.zeros(m.shape)
    for at in np.ndindex(c.is_human.shape):
        on, known = c.on[at], c.word_mask[at]
        m[at] = twin.motion_tokens(motion, motion_map[at[0]], c.splat[at], c.path[at], on)
        if variant == "none":
            continue
        words = np.where(known[:, None], twin.linear(weights, "words", c.words[at]), 0)
        if variant == "linear":
            delta_p[at] = twin.linear_binding(own, p[at], p_mask[at], m[at], on, words)
        else:
            delta_p[at], delta_m[at] = twin.gated_binding(
                own, HEADS, p[at], p_mask[at], m[at], on, words, known
            )
    if variant == "gated":
        rows = zip(motion_map, c.splat, delta_m, c.on, strict=True)
        motion_map = np.stack([twin.scatter(own, *row) for row in rows])
    return {"p": p + delta_p, "m": m + delta_m, "map": motion_map, "m_before": m, "p_before": p}


@functools.cache
def bound(variant: str, gate: str, contrast_on: str) -> Binding:
    model = tiny_model()
    model.binding.variant, model.binding.gate = variant, gate
    model.binding.contrast_on = contrast_on
    module = random_module(lambda rngs: Binder(model, rngs=rngs))
    conditions = full_conditions(model, seed=1)
    rng = np.random.default_rng(2)
    # Entity 1 of sample 0 has a path and a word only; tokens of one entity may also lack in part.
    p_mask = np.repeat(np.asarray(conditions.reference_mask.any(-1))[..., None], 3, -1)
    p_mask[0, 2, 1] = False
    p = rng.standard_normal((*p_mask.shape, model.personalization.width)).astype(np.float32)
    motion_map = rng.standard_normal((2, *GRID, model.motion.width)).astype(np.float32)

    def run(p, p_mask, motion_map, conditions):
        result = module(p, p_mask, motion_map, conditions)
        return result, module.contrast(result, conditions)

    found, contrast = quick_jit(run)(p, p_mask, motion_map, conditions)
    inputs = (p.astype(float), p_mask, motion_map.astype(float), as_numpy(conditions))
    expected = twin_binder(module, variant, *inputs)
    expected |= {"p_mask": p_mask, "on": inputs[3].on, "weights": weights_of(module)}
    return Binding(found, contrast, expected)


@pytest.mark.parametrize(
    ("variant", "gate"),
    [("gated", "sigmoid"), ("gated", "tanh"), ("linear", "sigmoid"), ("none", "sigmoid")],
)
def test_bound_entities(variant, gate):
    found, _, expected = bound(variant, gate, "bound")
    assert_equal(found.motion_tokens_before, expected["m_before"])
    assert_equal(found.personalization_before, expected["p_before"])
    assert_equal(found.personalization, expected["p"])
    assert_equal(found.motion_tokens, expected["m"])
    assert_equal(found.motion_map, expected["map"])


@pytest.mark.parametrize("which", ["bound", "unbound"])
def test_both_sides_of_the_contrast_and_its_loss(which):
    _, contrast, expected = bound("gated", "sigmoid", which)
    after = "" if which == "bound" else "_before"
    sides = {}
    for side, key, mask in (("personalization", "p", "p_mask"), ("motion", "m", "on")):
        rows = zip(expected[key + after], expected[mask], strict=True)
        sides[side] = np.array(
            [
                [
                    twin.contrast_head(expected["weights"], f"contrast_{side}", *entity)
                    for entity in zip(*sample, strict=True)
                ]
                for sample in rows
            ]
        )
        assert_equal(getattr(contrast, side), sides[side])
    part = expected["p_mask"].any(-1) & expected["on"].any(-1)
    assert 2 < part.sum() < part.size
    np.testing.assert_array_equal(contrast.takes_part, part)
    loss, metrics = quick_jit(contrastive_loss)(contrast, 0.13)
    p, m = sides["personalization"][part], sides["motion"][part]
    assert_equal(loss, twin.contrastive_loss(p, m, 0.13))
    right = [np.mean(table.argmax(1) == np.arange(len(p))) for table in (p @ m.T, m @ p.T)]
    assert metrics["contrast_accuracy"] == pytest.approx(np.mean(right))


def test_personalization_cross_attention():
    heads, width = 3, 10
    module = random_module(
        lambda rngs: PersonalizationCrossAttention(width, 6, heads, 4, rngs=rngs), seed=3
    )
    rng = np.random.default_rng(4)
    video = rng.standard_normal((2, 7, width)).astype(np.float32)
    tokens = rng.standard_normal((2, 5, 6)).astype(np.float32)
    mask = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 1, 1]], bool)

    def run(video, tokens, mask):
        return module(video, module.keys_values(tokens, mask), mask)

    weights = weights_of(module)
    expected = [
        twin.cross_attention(weights, heads, v.astype(float), t[there].astype(float))
        for v, t, there in zip(video, tokens, mask, strict=True)
    ]
    assert_equal(quick_jit(run)(video, tokens, mask), np.stack(expected))
