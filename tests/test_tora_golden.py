"""The whole released Tora transformer at a tiny size: its weights, converted, give its outputs."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convert import tora
from convert.engine import convert
from tests.parity import BLOCK_TOLERANCE, relative_error
from tests.weights_rule import array, state_dict
from tora2_jax.config import ModelConfig, MotionConfig, TransformerConfig
from tora2_jax.models.dit import CogVideoXTransformer
from tora2_jax.models.layers import assign_variables, flat_variables
from tora2_jax.models.motion import TrajectoryExtractor

GOLDEN = Path(__file__).parent / "golden" / "tora_transformer.npz"


class Tora(nnx.Module):
    """The parts of the model that Tora has."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.transformer = CogVideoXTransformer(config.transformer, config.motion, rngs=rngs)
        self.trajectory_extractor = TrajectoryExtractor(
            config.motion, config.transformer, rngs=rngs
        )


def _config(golden) -> ModelConfig:
    """The config of the reference, in our words."""
    theirs = json.loads(str(golden["config"]))
    transformer = TransformerConfig(
        num_layers=theirs["num_layers"],
        num_heads=theirs["num_attention_heads"],
        head_dim=theirs["attention_head_dim"],
        time_embed_dim=theirs["time_embed_dim"],
        text_embed_dim=theirs["text_embed_dim"],
        max_text_length=theirs["max_text_seq_length"],
        sample_frames=theirs["sample_frames"],
        sample_height=theirs["sample_height"],
        sample_width=theirs["sample_width"],
    )
    return ModelConfig(transformer=transformer, motion=MotionConfig())


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def model(golden):
    config = _config(golden)
    module = nnx.eval_shape(lambda: Tora(config, nnx.Rngs(0)))
    weights = state_dict(json.loads(str(golden["shapes"])), int(golden["seed"]))
    assign_variables(module, convert(tora.model_rules(config), weights, flat_variables(module)))
    return module


@nnx.jit
def _run(model, latents, timestep, text, motion_latents, has_motion):
    extractor = model.trajectory_extractor
    maps = extractor.maps(extractor.embed(motion_latents))
    text = model.transformer.project_text(text)
    return model.transformer(latents, timestep, text, motion_maps=maps, has_motion=has_motion)


def _inputs(golden):
    shape, order = (2, 4, 16, 12, 16), (0, 1, 3, 4, 2)
    return (
        array("hidden_states", shape, 0).transpose(order),
        jnp.asarray(golden["timestep"], jnp.float32),
        array("encoder_hidden_states", (2, 8, 48), 0),
        array("video_flow", shape, 0).transpose(order),
    )


@pytest.mark.parametrize("chosen", [(True, True), (False, False), (True, False), (False, True)])
def test_released_output(golden, model, chosen):
    """With and without flow, and a batch that mixes both."""
    output = _run(model, *_inputs(golden), np.array(chosen))
    expected = np.stack(
        [
            golden["output" if sample else "output_without_flow"][index]
            for index, sample in enumerate(chosen)
        ]
    )
    assert relative_error(output, expected.transpose(0, 1, 3, 4, 2)) < BLOCK_TOLERANCE


def test_without_maps_it_is_the_base_model(golden, model):
    latents, timestep, text, _ = _inputs(golden)
    transformer = nnx.merge(*nnx.split(model.transformer))
    text = transformer.project_text(text)
    output = jax.jit(transformer)(latents, timestep, text)
    expected = golden["output_without_flow"].transpose(0, 1, 3, 4, 2)
    assert relative_error(output, expected) < BLOCK_TOLERANCE
