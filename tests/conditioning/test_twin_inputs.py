"""What a request becomes, and what a pool keeps of a clip, against numbers made by hand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.support.parity import BLOCK_TOLERANCE, relative_error
from tora2_jax import conditioning, config
from tora2_jax.data import pool
from tora2_jax.models.frozen import FrozenNetworks
from tora2_jax.models.vae.vae import CausalVAE, Posterior
from tora2_jax.request import parse_request
from tora2_jax.text import load_tokenizer
from tora2_jax.types import Inputs
from tora2_jax.world.model import toy_bold

TOKENIZER = Path(__file__).resolve().parents[2] / "checkpoints" / "toy" / "tokenizer"
HEIGHT, WIDTH, FRAMES = 32, 48, 9
# ▁a ▁man ▁and ▁a ▁ r e d ▁kite ▁by ▁a ▁man </s>; the toy's tokenizer spells what it does not know.
PROMPT = "A man and a red kite by a man"


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    """Two requests of 9 frames of 48 x 32 pixels: 3 token frames of 2 x 3 tokens."""
    model, tokenizer = config.toy(), load_tokenizer(TOKENIZER)
    size = {"height": HEIGHT, "width": WIDTH, "frames": FRAMES, "canvas": [96, 32]}
    full = [
        {"word": "man#2", "trajectory": [[16, 8], [80, 24]]},
        {"word": "red kite", "trajectory": [[8, 4], None, None, [8, 28]]},
    ]
    still = [{"word": "kite", "trajectory": [[60, 20]]}]
    requests = [
        {"prompt": PROMPT, "entities": full},
        {"prompt": "The kite", "entities": still},
    ]
    parsed = [parse_request(request | size, Path(), model, tokenizer) for request in requests]
    return conditioning.batch_inputs(
        [conditioning.request_inputs(model, tokenizer, request) for request in parsed]
    )


def test_words_of_a_request_are_the_states_of_their_tokens(inputs):
    index, mask = inputs.word_index, inputs.word_mask
    assert index[0, 0][mask[0, 0]].tolist() == [11]
    assert index[0, 1][mask[0, 1]].tolist() == [5, 6, 7, 8]
    assert index[1, 0][mask[1, 0]].tolist() == [1]
    assert mask.sum() == 6 and mask.shape == (2, 4, 4)
    # An encoder whose states are position and id shows which ones are taken.
    found = conditioning.encode_text(_shown, inputs)
    tokenizer = load_tokenizer(TOKENIZER)
    ids = [tokenizer.vocabulary()[piece] for piece in ("▁man", "r", "e", "d", "▁kite")]
    np.testing.assert_array_equal(found.words[0, 0, 0], [11, ids[0]])
    np.testing.assert_array_equal(found.words[0, 1], [[5 + i, ids[1 + i]] for i in range(4)])
    np.testing.assert_array_equal(found.words[1, 0, 0], [1, ids[4]])
    assert not np.asarray(found.words)[~mask].any()
    np.testing.assert_array_equal(found.text[0, 12], [12, 1])  # </s> ends the caption


def _shown(ids):
    places = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    return jnp.stack([places, jnp.asarray(ids)], -1)


def test_paths_of_a_request(inputs):
    """The canvas is twice as wide as the video: x is halved, y stays."""
    # The man goes from (8, 8) to (40, 24): (8 + 4f, 8 + 2f) in frame f. Token frame 1 holds
    # frames 1 to 4, token frame 2 frames 5 to 8.
    means = np.array([[8, 8], [8 + 4 * 2.5, 8 + 2 * 2.5], [8 + 4 * 6.5, 8 + 2 * 6.5]])
    moves = [[0, 0], means[1] - means[0], means[2] - means[1]]
    expected = np.concatenate([means, moves], -1) / [WIDTH, HEIGHT, WIDTH, HEIGHT]
    assert relative_error(inputs.path[0, 0], expected) <= BLOCK_TOLERANCE
    assert inputs.on[0, 0].all()
    # The kite is seen at both ends only. Of four entries the nearest one is the first until frame
    # 1 (1/8 < 1/6) and the last from frame 7 on; it falls 3 pixels per frame, from 4 to 28.
    down = np.array([4, 4 + 3 * 1, 4 + 3 * 7.5])
    kite = np.stack([[4, 4, 4], down, [0, 0, 0], [0, down[1] - 4, down[2] - down[1]]], -1)
    expected = kite / [WIDTH, HEIGHT, WIDTH, HEIGHT]
    assert relative_error(inputs.path[0, 1], expected) <= BLOCK_TOLERANCE
    still = np.tile([30 / WIDTH, 20 / HEIGHT, 0, 0], (3, 1))
    assert relative_error(inputs.path[1, 0], still) <= BLOCK_TOLERANCE
    assert inputs.on.sum() == 9 and not inputs.path[0, 2:].any() and not inputs.path[1, 1:].any()


def test_places_of_a_request_on_the_token_grid(inputs):
    man = {0: [0], 1: [1, 2, 3, 4], 2: [5, 6, 7, 8]}
    kite = {0: [0], 1: [1], 2: [7, 8]}
    for entity, frames, place in (
        (0, man, lambda f: (8 + 4 * f, 8 + 2 * f)),
        (1, kite, lambda f: (4, 4 + 3 * f)),
    ):
        expected = np.zeros((3, 2, 3))
        for k, row, column in np.ndindex(expected.shape):
            # Tokens are 16 pixels wide, and token 0 is centered on pixel 8.
            near = []
            for frame in frames[k]:
                x, y = place(frame)
                distance = (column - (x - 8) / 16) ** 2 + (row - (y - 8) / 16) ** 2
                near.append(np.exp(-distance / 2))
            expected[k, row, column] = max(near)
        assert relative_error(inputs.splat[0, entity], expected) <= BLOCK_TOLERANCE
    assert not inputs.splat[0, 2:].any()
    assert inputs.splat[0, 0, 0, 0, 0] == 1  # the man begins in the middle of the first token


class PlainVAE(CausalVAE):
    """Every fourth frame, row and column, its colors mixed to latent channels."""

    def __init__(self, scaling_factor: float):
        kernel = np.random.default_rng(0).standard_normal((3, 8))
        self.kernel = nnx.Param(jnp.asarray(kernel, jnp.float32))
        self.scaling_factor = scaling_factor

    def encode(self, video):
        mean = video[:, ::4, ::4, ::4] @ self.kernel[...]
        return Posterior(mean, jnp.full_like(mean, 3.0))


class Networks(FrozenNetworks):
    """Frozen networks without recognition."""

    def __init__(self, factor: float):
        self.vae, self.motion_vae = PlainVAE(factor), PlainVAE(2 * factor)
        self.dino = self.face = self.object = None


class Examples:
    """Random clips with random first frames."""

    at_once, identity = 2, {}

    def __init__(self, model):
        self.shapes = pool.input_shapes(model)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        rng = np.random.default_rng(index)

        def random(leaf):
            return (rng.standard_normal(leaf.shape) > 0).astype(leaf.dtype)

        inputs = jax.tree.map(random, self.shapes)
        for name in ("flow_video", "image"):
            values = rng.uniform(-1, 1, getattr(inputs, name).shape).astype(np.float32)
            inputs = inputs._replace(**{name: values})
        return inputs, rng.integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3)).astype(np.uint8)

    def describe(self, index):
        return {}


@pytest.mark.parametrize("inverted", [False, True])
def test_latents_of_a_pool_are_scaled_once(tmp_path, inverted):
    """And those of a first frame, which CogVideoX 1.5 divides by the factor."""
    model = config.toy()
    model.frames, model.height, model.width = FRAMES, HEIGHT, WIDTH
    model.personalization, model.transformer.in_channels = None, 16
    model.vae.scaling_factor, model.vae.invert_scale_latents = 0.37, inverted
    examples = Examples(model)
    pool.build(tmp_path / "pool", model, examples, lambda: Networks(0.37), jax.devices()[:1])
    kept = pool.Pool(tmp_path / "pool")
    kernel = np.random.default_rng(0).standard_normal((3, 8))
    for index in range(2):
        inputs, video = examples[index]
        expected = (video / 127.5 - 1)[::4, ::4, ::4] @ kernel * 0.37
        assert relative_error(kept[index]["latents"], expected) <= BLOCK_TOLERANCE
        expected = inputs.flow_video[::4, ::4, ::4] @ kernel * 0.74
        assert relative_error(kept[index]["motion_latents"], expected) <= BLOCK_TOLERANCE
        expected = np.zeros((3, 8, 12, 8))
        expected[0] = inputs.image[::4, ::4] @ kernel * (1 / 0.37 if inverted else 0.37)
        assert relative_error(kept[index]["image_latents"], expected) <= BLOCK_TOLERANCE


def test_a_pool_is_known_by_its_weights_bytes_sizes_and_examples(tmp_path):
    first, second = tmp_path / "vae.safetensors", tmp_path / "dino.safetensors"
    first.write_bytes(b"weights 1")
    second.write_bytes(b"weights 1")
    model, examples = config.toy(), Examples(toy_bold())

    def key():
        return pool.fingerprint(model, examples, [str(first), str(second)])

    known = [key()]
    assert key() == known[0]
    for path in (first, second):
        path.write_bytes(b"weights 2")
        known.append(key())
    model.vae.scaling_factor = 0.5
    known.append(key())
    model.binding.word_tokens = 3
    known.append(key())
    examples.identity = {"seed": 1}
    known.append(key())
    assert len(set(known)) == len(known)
