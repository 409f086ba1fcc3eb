"""A video is the same on every mesh, from a checkpoint folder to frames."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from tests import sharded_step
from tests.parity import PIPELINE_TOLERANCE, relative_error
from tora2_jax import Tora2Pipeline, checkpoint, networks, parallel
from tora2_jax.config import ModelConfig, to_dict
from tora2_jax.data import pool
from tora2_jax.models import tora2
from tora2_jax.models.layers import flat_variables
from tora2_jax.pipeline import SampleSettings
from tora2_jax.types import Inputs

TOKENIZER = Path(__file__).resolve().parent.parent / "checkpoints" / "toy" / "tokenizer"
TWO_STEPS = SampleSettings(steps=2, scheduler="ddim")


@pytest.fixture(autouse=True, scope="module")
def _compile_fast():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def write_bundle(folder: Path, model: ModelConfig) -> None:
    """A checkpoint whose every array is random."""
    rng = np.random.default_rng(0)
    made = networks.abstract_networks(model)
    parts = {name: (made.model, pattern) for name, pattern in tora2.COMPONENTS.items()}
    parts |= {"text": (made.text, ".*")}
    parts |= {name: (getattr(made.frozen, name), ".*") for name in ("vae", "dino", "face", "object")}
    for name, (module, pattern) in parts.items():
        shapes = flat_variables(module)
        own = checkpoint.stored_names(shapes, pattern)
        values = {
            stored: sharded_step.random_weights(rng, path, shapes[path])
            for stored, path in own.items()
        }
        checkpoint.save_component(folder / f"{name}.safetensors", values, {}, np.float32)
    checkpoint.save_config(folder, to_dict(model))
    shutil.copytree(TOKENIZER, folder / "tokenizer")


def random_inputs(model: ModelConfig, batch: int) -> Inputs:
    """Requests with an entity, a reference and a path that are not there."""
    rng = np.random.default_rng(1)

    def fill(leaf):
        shape = (batch, *leaf.shape)
        if leaf.dtype == bool:
            return rng.random(shape) < 0.7
        if np.issubdtype(leaf.dtype, np.integer):
            return rng.integers(0, model.transformer.max_text_length, shape, leaf.dtype)
        return rng.random(shape).astype(leaf.dtype)

    inputs = jax.tree.map(fill, pool._input_shapes(model))
    for name in ("on", "reference_mask", "prior_mask"):
        getattr(inputs, name)[:, -1] = False
    return inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("bundle")
    write_bundle(made, sharded_step.tiny_config().model)
    return made


def sample(folder: Path, batch: int):
    """The pipeline, and two steps of it."""
    pipeline = Tora2Pipeline.from_checkpoint(folder)
    inputs = random_inputs(pipeline.config, batch)
    return pipeline, pipeline.generate_batch(inputs, seeds=list(range(batch)), settings=TWO_STEPS)


@pytest.fixture(scope="module")
def one_device(folder):
    return sample(folder, 1)[1]


def test_a_video_is_the_same_on_a_mesh(folder, one_device):
    """Also: no device has all of a large network."""
    with parallel.use(sharded_step.mesh_of(1, 2, 2, 2)):
        pipeline, found = sample(folder, 1)
    assert relative_error(found.latents, one_device.latents) < PIPELINE_TOLERANCE
    assert relative_error(found.video, one_device.video) < PIPELINE_TOLERANCE
    assert 0.05 < one_device.video.std()
