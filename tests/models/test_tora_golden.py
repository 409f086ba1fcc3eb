"""The whole released Tora transformer at a tiny size: its weights, converted, give its outputs.

On CogVideoX, CogVideoX 1.5 (patches in time) and CogVideoX I2V (learned positions). Each golden
file holds its config, the shapes of its weights, and what the released code makes of them.
"""

import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convert.checkpoints.diffusers_config import TRANSFORMER
from convert.engine.rules import convert
from convert.families import tora_transformer
from tests.support.parity import BLOCK_TOLERANCE, relative_error
from tests.support.weights_rule import array, state_dict
from tora2_jax.config import ModelConfig, MotionConfig, TransformerConfig
from tora2_jax.models.layers import basic, positions
from tora2_jax.models.layers.basic import assign_variables, flat_variables, map_arrays
from tora2_jax.models.layers.stream import Layout
from tora2_jax.models.tora2 import Tora2

FOLDER = Path(__file__).parents[1] / "golden"
NAMES = ("tora_transformer", "tora_1_5", "tora_i2v")


def _config(golden) -> ModelConfig:
    """The config of the reference, in our words."""
    theirs = json.loads(str(golden["config"]))
    settings = {
        ours: theirs[name] for name, (ours, _) in TRANSFORMER.settings.items() if name in theirs
    }
    settings["positions"] = "rotary" if settings.pop("rotary") else "sincos"
    return ModelConfig(
        transformer=TransformerConfig(**settings), motion=MotionConfig(), personalization=None
    )


def _model(golden, config: ModelConfig) -> Tora2:
    module = nnx.eval_shape(lambda: Tora2(config, rngs=nnx.Rngs(0)))
    weights = state_dict(json.loads(str(golden["shapes"])), int(golden["seed"]))
    rules = tora_transformer.model_rules(config)
    assign_variables(module, convert(rules, weights, flat_variables(module)))
    return module


@pytest.fixture(scope="module", params=NAMES)
def golden(request):
    with np.load(FOLDER / f"{request.param}.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def config(golden):
    return _config(golden)


@pytest.fixture(scope="module")
def model(golden, config):
    return _model(golden, config)


@nnx.jit
def _maps(model, motion_latents):
    extractor = model.trajectory_extractor
    return extractor.maps(extractor.embed(motion_latents))


@nnx.jit
def _fuse(model, tokens, motion_map):
    first = map_arrays(lambda x: x[0], model.transformer.blocks.fuser)
    layout = Layout.of(0, motion_map.shape[1:4])
    return first(tokens, motion_map, jnp.ones(len(tokens), bool), layout)


@nnx.jit
def _run(model, latents, timestep, text, motion_latents, has_motion):
    extractor = model.trajectory_extractor
    maps = extractor.maps(extractor.embed(motion_latents))
    text = model.transformer.project_text(text)
    return model.transformer(latents, timestep, text, motion_maps=maps, has_motion=has_motion)


def _inputs(golden, config):
    """Latents, timestep, text, motion latents."""
    b, t, c, h, w = golden["output"].shape
    transformer = config.transformer

    def video(name, channels):
        return array(name, (b, t, channels, h, w), 0).transpose(0, 1, 3, 4, 2)

    text = (b, transformer.max_text_length, transformer.text_embed_dim)
    return (
        jnp.asarray(video("hidden_states", transformer.in_channels)),
        jnp.asarray(golden["timestep"], jnp.float32),
        jnp.asarray(array("encoder_hidden_states", text, 0)),
        video("video_flow", c),
    )


def _output(golden, name):
    return golden[name].transpose(0, 1, 3, 4, 2)


def _feature(golden, index):
    """`[b*t, u, h, w]` -> `[b, t, h, w, u]`."""
    feature = np.moveaxis(golden[f"feature_{index}"], 1, -1)
    return feature.reshape(len(golden["output"]), -1, *feature.shape[1:])


def test_positions(golden, config):
    _, t, _, h, w = golden["output"].shape
    grid = (t // (config.transformer.patch_size_t or 1), h // 2, w // 2)
    coordinates = positions.rotary_grid(config.transformer, grid)
    cosines, sines = basic.rotary_tables(coordinates, config.transformer.head_dim)
    for ours, theirs in ((cosines, golden["rope_cos"]), (sines, golden["rope_sin"])):
        ours = np.asarray(ours)
        theirs = theirs if ours.shape == theirs.shape else theirs[:, ::2]  # theirs holds each twice
        assert relative_error(ours, theirs) < BLOCK_TOLERANCE


def test_features_and_fuser(golden, config, model):
    maps = _maps(model, _inputs(golden, config)[3])
    last = len(maps) - 1
    assert relative_error(maps[0], _feature(golden, 0)) < BLOCK_TOLERANCE
    assert relative_error(maps[last], _feature(golden, last)) < BLOCK_TOLERANCE
    expected = golden["fuser_0"]
    tokens = np.moveaxis(array("fuser_input", expected.shape, 0), 1, -1)
    tokens = tokens.reshape(maps.shape[1], -1, tokens.shape[-1])
    fused = _fuse(model, tokens, _feature(golden, 0))
    expected = np.moveaxis(expected, 1, -1).reshape(fused.shape)
    assert relative_error(fused, expected) < BLOCK_TOLERANCE


def test_released_output(golden, config, model):
    """With and without flow, and batches that mix both."""
    inputs = _inputs(golden, config)
    batch = len(golden["output"])
    for chosen in {(True,) * batch, (False,) * batch, (True, False)[:batch], (False, True)[:batch]}:
        output = _run(model, *inputs, np.array(chosen))
        expected = [
            _output(golden, "output" if sample else "output_without_flow")[index]
            for index, sample in enumerate(chosen)
        ]
        assert relative_error(output, np.stack(expected)) < BLOCK_TOLERANCE


def test_without_maps_it_is_the_base_model(golden, config, model):
    latents, timestep, text, _ = _inputs(golden, config)
    run = nnx.jit(lambda model: model(latents, timestep, model.project_text(text)))
    expected = _output(golden, "output_without_flow")
    assert relative_error(run(model.transformer), expected) < BLOCK_TOLERANCE


def test_a_table_of_positions_may_be_there_and_not_be_added():
    """As in the release's SAT version of I2V; its diffusers version adds the table."""
    with np.load(FOLDER / "tora_i2v.npz") as stored:
        golden = dict(stored)
    config = _config(golden)
    added = config.transformer
    config.transformer = replace(added, add_learned_positions=False)
    model = _model(golden, config)
    output = _run(model, *_inputs(golden, config), np.array([True]))
    assert relative_error(output, _output(golden, "output_without_positions")) < BLOCK_TOLERANCE
    assert relative_error(output, _output(golden, "output")) > 100 * BLOCK_TOLERANCE
