"""The trajectory extractor and the fuser: the released numbers, and what must always hold."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convert.engine.rules import convert, export
from convert.families import tora_transformer
from tests.support.parity import BLOCK_TOLERANCE, insensitive, relative_error
from tests.support.weights_rule import array, state_dict
from tora2_jax.config import MotionConfig, TransformerConfig
from tora2_jax.models.layers.basic import assign_variables, flat_variables, map_arrays, stack
from tora2_jax.models.layers.stream import Layout
from tora2_jax.models.motion import (
    FrameConvolution,
    MotionGuidanceFuser,
    TrajectoryExtractor,
    patchify,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "tora_transformer.npz"
MOTION = MotionConfig()
LAYERS, WIDTH = 3, 64
TRANSFORMER = TransformerConfig(num_layers=LAYERS, num_heads=4, head_dim=16)


class Additions(nnx.Module):
    """What Tora adds, without the transformer around it."""

    def __init__(self, rngs: nnx.Rngs):
        self.extractor = TrajectoryExtractor(MOTION, TRANSFORMER, rngs=rngs)
        self.fuser = stack(
            lambda fuser_rngs: MotionGuidanceFuser(WIDTH, MOTION.width, rngs=fuser_rngs),
            LAYERS,
            rngs,
        )


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def weights(golden):
    """The golden weights of the additions, by their PyTorch names."""
    everything = state_dict(json.loads(str(golden["shapes"])), int(golden["seed"]))
    return {
        name: value
        for name, value in everything.items()
        if name.startswith(("traj_extractor.", "fuser."))
    }


RULES = tora_transformer.rules(MOTION, "extractor", "fuser")


@pytest.fixture(scope="module")
def converted(weights):
    module = nnx.eval_shape(lambda: Additions(nnx.Rngs(0)))
    return convert(RULES, weights, flat_variables(module))


@pytest.fixture(scope="module")
def forward():
    """All variables -> all maps, and the first fuser's output."""
    latents = array("video_flow", (2, 4, 16, 12, 16), 0).transpose(0, 1, 3, 4, 2)
    tokens = jnp.asarray(array("fuser_input", (8, WIDTH, 6, 8), 0).transpose(0, 2, 3, 1))
    module = nnx.eval_shape(lambda: Additions(nnx.Rngs(0)))
    graph = nnx.graphdef(module)

    @jax.jit
    def run(state):
        module = nnx.merge(graph, state)
        maps = module.extractor.maps(module.extractor.embed(latents))
        first = map_arrays(lambda x: x[0], module.fuser)
        layout = Layout.of(0, maps.shape[2:5])
        fused = first(tokens.reshape(2, -1, WIDTH), maps[0], jnp.ones(2, bool), layout)
        return maps, fused.reshape(tokens.shape)

    def forward(variables):
        assign_variables(module, variables)
        return run(nnx.state(module))

    return forward


def _frames_first(feature: np.ndarray) -> np.ndarray:
    """`[b*t, c, h, w]` -> `[b, t, h, w, c]`."""
    return feature.reshape(2, 4, *feature.shape[1:]).transpose(0, 1, 3, 4, 2)


def test_released_numbers(golden, converted, forward):
    maps, fused = forward(converted)
    assert relative_error(maps[0], _frames_first(golden["feature_0"])) < BLOCK_TOLERANCE
    assert relative_error(maps[2], _frames_first(golden["feature_2"])) < BLOCK_TOLERANCE
    expected = golden["fuser_0"].transpose(0, 2, 3, 1)
    assert relative_error(fused, expected) < BLOCK_TOLERANCE


def test_every_array_matters(golden, converted, forward):
    own = {name: value for name, value in converted.items() if not name.startswith("fuser.")}
    fusers = {name: value for name, value in converted.items() if name.startswith("fuser.")}
    last = _frames_first(golden["feature_2"])
    fused = golden["fuser_0"].transpose(0, 2, 3, 1)
    assert insensitive(lambda x: forward({**converted, **x})[0][2], own, last) == []
    assert insensitive(lambda x: forward({**converted, **x})[1], fusers, fused) == []


def test_export_returns_the_same_weights(weights, converted):
    returned = export(RULES, converted)
    kept = {name for name in weights if not name.endswith("num_batches_tracked")}
    assert returned.keys() == kept
    assert all(np.array_equal(returned[name], weights[name]) for name in kept)


def test_patches_are_channel_first_and_filled_with_zeros():
    latents = np.arange(1 * 3 * 3 * 2 * 2, dtype=np.float32).reshape(1, 3, 3, 2, 2) + 1
    patches = np.asarray(patchify(jnp.asarray(latents), (2, 2, 2)))
    assert patches.shape == (1, 2, 2, 1, 16)
    first = latents[0, 0:2, 0:2, 0:2].transpose(3, 0, 1, 2)
    assert np.array_equal(patches[0, 0, 0, 0], first.ravel())
    last = patches[0, 1, 1, 0].reshape(2, 2, 2, 2)
    assert np.array_equal(last[:, 0, 0], latents[0, 2, 2].T)
    assert not last[:, 1].any() and not last[:, :, 1].any()


def _extractor(config: TransformerConfig) -> TrajectoryExtractor:
    return TrajectoryExtractor(MotionConfig(width=8), config, rngs=nnx.Rngs(0))


def test_temporal_patches_have_their_own_frames():
    config = TransformerConfig(num_layers=1, patch_size_t=2)

    def run():
        extractor = _extractor(config)
        motion_map = extractor.embed(jnp.ones((1, 4, 6, 4, 16)))
        return motion_map, extractor.maps(motion_map)

    motion_map, maps = jax.eval_shape(run)
    assert motion_map.shape == (1, 2, 3, 2, 8)
    assert maps.shape == (1, 1, 2, 3, 2, 8)


def test_a_new_chain_passes_its_input_on():
    motion_map = np.random.default_rng(0).standard_normal((1, 2, 3, 4, 8)).astype(np.float32)
    maps = jax.jit(lambda x: _extractor(TRANSFORMER).maps(x))(motion_map)
    assert np.array_equal(maps, np.broadcast_to(motion_map, maps.shape))


def test_a_frame_convolution_is_a_convolution():
    convolution = FrameConvolution(3, 5, rngs=nnx.Rngs(0))
    frames = _normal(2, 2, 4, 6, 3)
    expected = jax.lax.conv_general_dilated(
        frames, convolution.kernel[...], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert relative_error(convolution(jnp.asarray(frames)), expected) < BLOCK_TOLERANCE


def test_statistics_do_not_train():
    extractor = nnx.eval_shape(lambda: _extractor(TRANSFORMER))
    trained = {path[-1] for path, _ in nnx.to_flat_state(nnx.state(extractor, nnx.Param))}
    constant = {path[-1] for path, _ in nnx.to_flat_state(nnx.state(extractor, nnx.BatchStat))}
    assert trained == {"kernel", "bias", "scale"}
    assert constant == {"mean", "var"}


SELECT = np.array([True, True])
LAYOUT = Layout.of(0, (3, 2, 4))


@nnx.jit
def new_fuser():
    return MotionGuidanceFuser(64, 8, norm_groups=4, rngs=nnx.Rngs(0))


@pytest.fixture
def fuser():
    return new_fuser()


@nnx.jit
def fuse(fuser, tokens, motion_map, select):
    return fuser(tokens, motion_map, select, LAYOUT)


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


TOKENS = _normal(0, 2, 3 * 2 * 4, 64)
MOTION_MAP = _normal(1, 2, 3, 2, 4, 8)


def test_a_new_fuser_changes_nothing(fuser):
    assert np.array_equal(fuse(fuser, TOKENS, MOTION_MAP, SELECT), TOKENS)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_samples_not_selected_pass_bit_by_bit(fuser, dtype):
    fuser.norm.scale[...] = np.full(64, np.nan, np.float32)
    tokens = jnp.asarray(TOKENS, dtype)
    fused = fuse(fuser, tokens, MOTION_MAP, np.array([False, True]))
    assert fused.dtype == dtype
    assert np.array_equal(fused[0], tokens[0])
    assert not np.isfinite(np.asarray(fused[1], np.float32)).any()


def test_frames_are_normalized_alone(fuser):
    fuser.gamma_temporal.bias[...] = np.ones(64, np.float32)
    changed = TOKENS.copy()
    changed[:, 8:16] *= np.linspace(1, 3, 64, dtype=np.float32)
    before = np.asarray(fuse(fuser, TOKENS, MOTION_MAP, SELECT))
    after = np.asarray(fuse(fuser, changed, MOTION_MAP, SELECT))
    assert np.array_equal(before[:, :8], after[:, :8])
    assert np.array_equal(before[:, 16:], after[:, 16:])
    assert not np.allclose(before[:, 8:16], after[:, 8:16])


def test_only_the_temporal_convolutions_learn_at_first(fuser):
    given = [jnp.asarray(values) for values in (TOKENS, MOTION_MAP, SELECT)]

    def loss(fuser):
        return jnp.square(fuser(*given, LAYOUT)).sum()

    gradients = nnx.to_flat_state(nnx.jit(nnx.grad(loss))(fuser))
    moving = {".".join(path) for path, value in gradients if np.asarray(value[...]).any()}
    assert moving == {
        f"{name}_temporal.{part}" for name in ("gamma", "beta") for part in ("kernel", "bias")
    }
