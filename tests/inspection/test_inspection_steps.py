"""What references change, by timestep: measured as a sampler's own steps would show it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.inspection.test_inspection import folder, has, inspect, pipeline_of, texts, tiny  # noqa: F401
from tests.support.parity import BLOCK_TOLERANCE, relative_error
from tora2_jax import diffusion
from tora2_jax.conditioning import keep_references
from tora2_jax.inspection import steps
from tora2_jax.inspection.diagnosis import diagnose


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [0]), (2, [0, 1]), (10, [0, 1, 3, 5, 8]), (50, [0, 5, 15, 25, 40])]
)
def test_more_of_the_beginning_is_looked_at(count, expected):
    assert steps.looked_at(count) == expected


def test_the_change_is_that_of_the_velocity_where_the_entity_is(folder):  # noqa: F811
    pipeline = pipeline_of(tiny())
    found = inspect(pipeline, folder, "kite", "xylophone")
    model = pipeline.model
    inputs = pipeline.prepare([found.request])[1]
    given = pipeline.conditions(inputs)
    shape = pipeline.latent_shape(*inputs.flow_video.shape[:4])
    noise = diffusion.step_noise(jax.random.key(0), 0, shape[1:])[None]
    run = nnx.jit(
        lambda model, given, keep: model(
            noise, jnp.full(1, 999.0), model.bind(keep_references(given, keep)).conditions
        )
    )
    # The kite has a path; the xylophone has none, so all of the video counts.
    for index, word in enumerate(("kite", "xylophone")):
        keep = np.ones((1, pipeline.config.max_entities), bool)
        whole = np.asarray(run(model, given, keep))[0]
        keep[0, index] = False
        without = np.asarray(run(model, given, keep))[0]
        splat = found.entities[index].path.splat
        weights = np.ones(splat.shape) if word == "xylophone" else splat
        fine = weights.repeat(4, 1).repeat(4, 2)[..., None]
        expected = np.sqrt((fine * (without - whole) ** 2).sum() / (fine * whole**2).sum())
        effect = found.entities[index].effect
        assert effect.timesteps[0] == 999 and expected > 1e-3
        assert relative_error(effect.both[0], expected) <= 10 * BLOCK_TOLERANCE
        assert 0 < effect.cross_attention[0] != effect.motion_map[0]


def test_references_that_change_nothing_are_told(folder):  # noqa: F811
    inspection = inspect(pipeline_of(tiny(), untrained=True), folder, "kite")
    assert inspection.entities[0].effect.both.max() < 1e-5
    assert has(
        texts(inspection, 0), "problem", "change the prediction", "little of its looks can arrive"
    )


def test_the_timestep_that_shows_most_is_told(folder):  # noqa: F811
    inspection = inspect(pipeline_of(tiny()), folder, "kite")
    entity = inspection.entities[0]
    for value, level in ((0.19, "fine"), (0.03, "note"), (0.0005, "problem")):
        effect = entity.effect._replace(
            both=np.array([0, value, 0, 0, 0]),
            cross_attention=np.array([9, value / 2, 9, 9, 9]),
            motion_map=np.array([9, value / 4, 9, 9, 9]),
        )
        lines = {
            note.text: note.level for note in diagnose(inspection, entity._replace(effect=effect))
        }
        assert has(lines, level, "timestep 899", "change the prediction")
    assert has(texts(inspection, 0), "fine", "adds at most")
