"""Guidance and its steps against NumPy, with a stand-in network that says what it was given."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.support.parity import BLOCK_TOLERANCE, relative_error
from tests.train.test_twin_objective import noise_schedule
from tora2_jax.config import toy
from tora2_jax.models.frozen import FrozenNetworks
from tora2_jax.models.tora2 import Tora2
from tora2_jax.models.vae import tiling
from tora2_jax.sampling.pipeline import SampleSettings, Tora2Pipeline
from tora2_jax.types import BoundConditions, Conditions, Inputs, KeysValues
from tora2_jax.weights.bundle import LoadedModel

BATCH, ENTITIES, REFERENCES, FRAMES, STEPS = 2, 3, 2, 3, 4


def velocity(latents, timestep, text, references, motion):
    """No sum of what each condition does alone, so that every combination has its own value."""
    seen = np.tanh if isinstance(text, np.ndarray) else jnp.tanh
    given = seen(text + 0.5 * references) + seen(references * motion - 0.3 * text) + 0.2 * motion
    return 0.4 * latents + (given + timestep / 2000)[:, None, None, None, None]


class StandIn(Tora2):
    """Binds like Tora2, to one number per condition."""

    def __init__(self):
        self.gain = nnx.Param(jnp.ones(()))

    @property
    def transformer(self):
        return self

    def project_text(self, text):
        return self.gain[...] * text

    def bind(self, conditions: Conditions):
        on = conditions.on[..., None, None]
        maps = jnp.where(on, conditions.splat, 0).sum(1)[None, ..., None]
        features = conditions.dino.sum((-1, -2))[None, ..., None]
        mask = conditions.reference_mask.reshape(BATCH, -1)
        features = features.reshape(1, BATCH, -1, 1, 1)
        bound = BoundConditions(
            text=self.project_text(conditions.text),
            motion_maps=maps,
            has_motion=conditions.on.any((1, 2)),
            keys_values=KeysValues(features, features),
            key_mask=mask,
        )
        return bound, None, {}

    def __call__(self, latents, timestep, bound: BoundConditions):
        motion = bound.motion_maps[0].sum((1, 2, 3, 4)) * bound.has_motion
        references = (bound.keys_values.values[0, ..., 0, 0] * bound.key_mask).sum(1)
        return velocity(latents, timestep, bound.text.sum((1, 2)), references, motion)


class Frozen(FrozenNetworks):
    """No network: what they would say is given."""

    def __init__(self):
        self.vae = None


@pytest.fixture(scope="module")
def conditions() -> Conditions:
    """Random numbers everywhere; a text, all references and all paths of a sample sum up to ~1."""
    rng = np.random.default_rng(0)
    entities = (BATCH, ENTITIES)
    floats = {
        "text": (BATCH, 4, 5),
        "words": (*entities, 2, 5),
        "splat": (*entities, FRAMES, 2, 3),
        "path": (*entities, FRAMES, 4),
        "motion_latents": (BATCH, FRAMES, 8, 12, 8),
        "dino": (*entities, REFERENCES, 4, 3),
    }
    masks = {"word_mask": (*entities, 2), "on": (*entities, FRAMES), "is_human": entities}
    masks |= {name: (*entities, REFERENCES) for name in ("reference_mask", "prior_mask")}
    drawn = {
        name: jnp.asarray(rng.standard_normal(shape) / np.prod(shape[1:]) ** 0.5, jnp.float32)
        for name, shape in floats.items()
    }
    drawn |= {name: jnp.asarray(rng.random(shape) < 0.7) for name, shape in masks.items()}
    return Conditions(**drawn)


def twin_sample(c: Conditions, null, start, settings: SampleSettings):
    """DDIM with CogVideoX's dynamic guidance, and the four terms of our guidance."""
    c = Conditions(*(None if x is None else np.asarray(x, float) for x in c))
    both = {True: c.text.sum((1, 2)), False: np.asarray(null, float).sum((1, 2))}
    references = (c.dino.sum((-1, -2)) * c.reference_mask).sum((1, 2))
    motion = (c.splat.sum((-1, -2)) * c.on).sum((1, 2))
    alphas, x = noise_schedule(), np.asarray(start, float)
    for index in range(STEPS):
        time = 999 - index * (1000 // STEPS)

        def v(caption, has_references, has_paths, x=x, time=time):
            seen = (both[caption], references * has_references, motion * has_paths)
            return velocity(x, float(time), *seen)

        scale = settings.guidance
        if settings.dynamic_guidance:
            scale = 1 + scale * (1 - np.cos(np.pi * ((STEPS - time) / STEPS) ** 5)) / 2
        base = v(False, True, True)
        guided = base + scale * (v(True, True, True) - base)
        guided += (settings.reference_guidance - 1) * (base - v(False, False, True))
        guided += (settings.trajectory_guidance - 1) * (base - v(False, True, False))
        alpha, later = alphas[time], 1.0 if index == STEPS - 1 else alphas[time - 1000 // STEPS]
        clean = alpha**0.5 * x - (1 - alpha) ** 0.5 * guided
        noise = alpha**0.5 * guided + (1 - alpha) ** 0.5 * x
        x = later**0.5 * clean + (1 - later) ** 0.5 * noise
    return x


@pytest.mark.parametrize(
    ("references", "trajectories", "dynamic"),
    [(1.0, 1.0, True), (1.7, 1.0, False), (1.0, 2.5, False), (0.4, 1.6, True)],
)
def test_guided_samples(conditions, monkeypatch, references, trajectories, dynamic):
    rng = np.random.default_rng(1)
    null = jnp.asarray(rng.standard_normal((BATCH, 4, 5)) / 5, jnp.float32)
    start = rng.standard_normal((BATCH, FRAMES, 8, 12, 8)).astype(np.float32)
    frames = np.zeros((BATCH, 9, 32, 48, 3), np.float32)
    monkeypatch.setattr(tiling, "decode_latents", lambda *_: frames)
    pipeline = Tora2Pipeline(LoadedModel(toy(), StandIn(), Frozen(), Frozen(), None))
    monkeypatch.setattr(pipeline.programs, "encode", lambda *_: (conditions, null))
    settings = SampleSettings(
        steps=STEPS,
        guidance=3.0,
        dynamic_guidance=dynamic,
        scheduler="ddim",
        reference_guidance=references,
        trajectory_guidance=trajectories,
    )
    inputs = Inputs._make([None] * len(Inputs._fields))._replace(flow_video=frames)
    sample = pipeline.generate_batch(inputs, seeds=[0, 1], settings=settings, initial_latents=start)
    expected = twin_sample(conditions, null, start, settings)
    assert relative_error(sample.latents, expected) <= BLOCK_TOLERANCE
