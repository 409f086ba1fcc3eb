"""A video is the same on every mesh, from a checkpoint folder and a request to frames."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from tests.sampling.test_sampling import TOY, options, write_request
from tests.support import sharded_step
from tests.support.parity import BLOCK_TOLERANCE, PIPELINE_TOLERANCE, relative_error
from tora2_jax import parallel
from tora2_jax.config import ModelConfig
from tora2_jax.models import tora2
from tora2_jax.models.frozen import needed_networks
from tora2_jax.models.layers.basic import flat_variables
from tora2_jax.sampling import command
from tora2_jax.weights import bundle, checkpoint, networks


def tiny_model() -> ModelConfig:
    model = sharded_step.tiny_config().model
    model.text.vocab_size, model.transformer.max_text_length = 256, 21
    return model


def write_bundle(folder: Path, model: ModelConfig) -> None:
    """A checkpoint whose every array is random."""
    rng = np.random.default_rng(0)
    frozen = needed_networks(model)
    made = networks.abstract_networks(model, frozen)
    parts = {
        "text": (made.text, ".*"),
        "transformer": (made.model, tora2.COMPONENTS["transformer"]),
    }
    for name in ("motion", "personalization"):
        if getattr(model, name) is not None:
            parts[name] = (made.model, tora2.COMPONENTS[name])
    parts |= {name: (getattr(made.frozen, name), ".*") for name in frozen}
    for name, (module, pattern) in parts.items():
        shapes = flat_variables(module)
        own = checkpoint.stored_names(shapes, pattern)
        values = {
            stored: sharded_step.random_weights(rng, path, shapes[path])
            for stored, path in own.items()
        }
        checkpoint.save_component(folder / f"{name}.safetensors", values, {}, np.float32)
    checkpoint.save_config(folder, model)
    shutil.copytree(TOY / "tokenizer", folder / "tokenizer")


def sample(folder: Path, mesh: str | None, *requests: Path) -> tuple[np.ndarray, np.ndarray]:
    """Latents and frames of two steps.

    With a guidance of 6 these weights turn one unit in the last place of the first noise into
    1.6e-4 of the video.
    """
    latents, frames = folder / "latents.npz", folder / "frames.npy"
    saved = {"save_latents": latents, "save_frames": frames, "output": folder / "video.mp4"}
    settings = {"scheduler": "ddim", "guidance": 2.0, "mesh": mesh, **saved}
    command.run(options(folder, list(requests), checkpoint=folder, **settings))
    return np.load(latents)["latents"], np.load(frames)


def assert_same(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]):
    assert expected[1].std() > 0.05
    assert relative_error(found[0], expected[0]) < BLOCK_TOLERANCE
    assert relative_error(found[1], expected[1]) < PIPELINE_TOLERANCE


@pytest.mark.long
def test_a_video_is_the_same_on_a_mesh(tmp_path):
    """Of a prompt alone: the rest takes long to compile."""
    model = tiny_model()
    model.motion = model.personalization = None
    write_bundle(tmp_path, model)
    request = write_request(tmp_path, entities=[], height=32, width=48, frames=9)
    expected = sample(tmp_path, None, request)
    assert_same(sample(tmp_path, "sequence=4,tensor=2", request), expected)


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A model with everything, two requests for it, and their videos on one device."""
    folder = tmp_path_factory.mktemp("bundle")
    write_bundle(folder, tiny_model())
    size = {"height": 32, "width": 48, "frames": 9}
    first = write_request(folder, **size).rename(folder / "first.json")
    requests = first, write_request(folder, prompt="A kite and a man.", **size)
    return folder, requests, sample(folder, None, *requests)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mesh", ["sequence=4,tensor=2", "fsdp=2,sequence=2,tensor=2", "fsdp=8"])
def test_references_and_paths_are_the_same_on_a_mesh(complete, mesh):
    folder, requests, expected = complete
    assert_same(sample(folder, mesh, *requests), expected)


@pytest.mark.long
def test_weights_are_read_to_where_they_lie(complete):
    """No device has all of a network, but for what no rule names."""
    mesh = sharded_step.mesh_of(1, 8, 1, 1)
    with parallel.use(mesh):
        _, model, text, frozen, _ = bundle.load_bundle(complete[0])
    for module in (model, text, frozen.dino, frozen.vae, frozen.face, frozen.object):
        arrays = jax.tree.leaves(nnx.state(module))
        assert all(array.sharding.mesh == mesh for array in arrays)
        cut = [array for array in arrays if not array.sharding.is_fully_replicated]
        assert cut and all(array.addressable_shards[0].data.size * 8 == array.size for array in cut)
