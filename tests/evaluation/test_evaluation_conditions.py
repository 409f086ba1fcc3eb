"""What references and paths contribute: measured on entities, one way in at a time."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.inspection.test_inspection import PROMPT, entities, folder, pipeline_of, tiny  # noqa: F401
from tests.support.parity import BLOCK_TOLERANCE, relative_error
from tora2_jax import diffusion
from tora2_jax.config import toy
from tora2_jax.evaluation import conditions as measured
from tora2_jax.models.tora2 import Tora2
from tora2_jax.request import parse_request
from tora2_jax.sampling.guidance import closed_ways
from tora2_jax.sampling.pipeline import Tora2Pipeline
from tora2_jax.types import BoundConditions, EntityRecord, Record

ROOT = Path(__file__).resolve().parents[2]


@nnx.jit
def bind(model, conditions):
    return model.bind(conditions).conditions


def equal(one, other) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(left, right) for left, right in pairs)


def test_one_way_in_is_closed_at_a_time(folder):  # noqa: F811
    pipeline, words = pipeline_of(tiny()), ("kite", "man")
    request = {"prompt": PROMPT, "entities": [entities()[word] for word in words]}
    parsed = parse_request(request, folder, pipeline.config, pipeline.tokenizer)
    model, given = pipeline.model, pipeline.conditions(pipeline.prepare([parsed])[1])
    keep = jnp.ones(given.is_human.shape, bool).at[:, 0].set(False)
    ways = closed_ways(model, given, keep)
    assert set(ways) == {"none", "cross_attention", "motion_map", "both"}
    without = given._replace(
        reference_mask=given.reference_mask & keep[..., None],
        prior_mask=given.prior_mask & keep[..., None],
    )
    for name, expected in (("none", bind(model, given)), ("both", bind(model, without))):
        pairs = zip(jax.tree.leaves(ways[name]), jax.tree.leaves(expected), strict=True)
        assert all(np.allclose(*pair, rtol=1e-4, atol=1e-5) for pair in pairs)
    for name, way, other in (
        ("keys_values", "cross_attention", "motion_map"),
        ("key_mask", "cross_attention", "motion_map"),
        ("motion_maps", "motion_map", "cross_attention"),
    ):
        parts = {key: getattr(bound, name) for key, bound in ways.items()}
        assert equal(parts[way], parts["both"]) and equal(parts[other], parts["none"]), name
        assert not equal(parts["none"], parts["both"]), name


def test_the_loss_is_that_of_the_velocity_where_entities_are():
    rng = np.random.default_rng(0)
    latents, noise, guess = rng.standard_normal((3, 2, 3, 4, 5, 6)).astype(np.float32)
    weights = rng.random((2, 3, 4, 5)).astype(np.float32)
    weights[1, 1:] = 0
    alphas = diffusion.cumulative_alphas(toy().diffusion)
    seen = []
    nothing = BoundConditions._make([None] * len(BoundConditions._fields))
    given = [jnp.asarray(values) for values in (latents, noise, weights)]

    class Model(Tora2):
        def __init__(self):
            pass

        def __call__(self, noisy, timestep, bound):
            seen.append((noisy, timestep))
            return jnp.asarray(guess) + 0 * noisy

    for time in (100, 999):
        alpha = float(alphas[time])
        found = measured._loss.__wrapped__(
            Model(), nothing, *given, jnp.float32(time), jnp.float32(alpha)
        )
        noisy, timestep = seen.pop()
        assert relative_error(noisy, alpha**0.5 * latents + (1 - alpha) ** 0.5 * noise) <= 1e-5
        np.testing.assert_array_equal(timestep, [time, time])
        target = alpha**0.5 * noise - (1 - alpha) ** 0.5 * latents
        expected = [
            np.average(((guess - target)[row] ** 2).mean(-1), weights=weights[row])
            for row in range(2)
        ]
        assert relative_error(found, np.array(expected)) <= BLOCK_TOLERANCE


def test_the_foreground_of_latents_is_what_any_of_their_frames_shows():
    masks = np.zeros((2, 9, 8, 12), bool)
    masks[0, 0, :4, :4] = True  # one latent of 2 x 3
    masks[1, 3, 4:, 4:6] = True  # half of one, in one of the four frames of the second
    masks[0, 5:, 0, 0] = True
    unknown = EntityRecord._make([None] * len(EntityRecord._fields))
    record = Record._make([None] * len(Record._fields))
    record = record._replace(entities=[unknown._replace(mask=mask) for mask in masks])
    expected = np.zeros((3, 2, 3))
    expected[0, 0, 0] = 1
    expected[1, 1, 1] = 0.5
    expected[2, 0, 0] = 1 / 16
    np.testing.assert_allclose(measured.foreground(record, (3, 2, 3)), expected)


@pytest.mark.long
def test_the_toy_models_references_matter_most_where_there_is_most_noise():
    pipeline = Tora2Pipeline.from_checkpoint(ROOT / "checkpoints" / "toy")
    told = []
    found = measured.measure_conditions(pipeline, 5, batch_size=4, done=told.append)
    again = measured.measure_conditions(pipeline, 5, batch_size=5)
    assert told == [4, 1] and set(found["conditions"]) == set(measured.NAMES)
    for name, values in found["conditions"].items():
        pairs = zip(values, again["conditions"][name], strict=True)
        for one, other in pairs:
            assert one["mean"] == pytest.approx(other["mean"], rel=1e-3, abs=1e-2), name
    last = {name: values[-1]["mean"] for name, values in found["conditions"].items()}
    assert last["full"] > 0 and last["both"] > 0 and last["exchanged_paths"] > last["both"]
    assert "references in neither" in measured.table(found)


def test_the_command_refuses_counts_that_are_none():
    command = [sys.executable, str(ROOT / "scripts" / "evaluate.py"), "conditions"]
    done = subprocess.run(
        [*command, "--checkpoint", "checkpoints/toy", "--requests", "0"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2 and done.stderr == "requests must be at least 1\n"
