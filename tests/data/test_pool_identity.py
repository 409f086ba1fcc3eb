"""A pool is encoded again if anything changes that its examples are made of."""

import numpy as np
import tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from tests.train.test_chain import TOY
from tora2_jax import config
from tora2_jax.conditioning import from_arrays
from tora2_jax.config.train import TrainConfig
from tora2_jax.config.world import WorldConfig
from tora2_jax.data import pool, world_examples
from tora2_jax.references.faces import InsightFaceDetector, detector_identity
from tora2_jax.text import Tokenizer, load_tokenizer
from tora2_jax.train.stages import diffusion
from tora2_jax.world import clips

WORLD = WorldConfig(seed=3, height=64, width=64, frames=9, references=1)


def key(tokenizer=None, world=WORLD, size=5, **sizes) -> str:
    model = config.toy()
    model.height = model.width = 64
    for name, value in sizes.items():
        part = model.transformer if hasattr(model.transformer, name) else model
        setattr(part, name, value)
    tokenizer = load_tokenizer(TOY / "tokenizer") if tokenizer is None else tokenizer
    examples = world_examples.WorldExamples(model, tokenizer, world, size)
    return pool.fingerprint(model, examples, [])


def words(first: int) -> Tokenizer:
    """A tokenizer of ten words, numbered from `first` on."""
    names = ["</s>", "<pad>", "<unk>", "man", "woman", "car", "fish", "on", "the", "grass"]
    vocabulary = {name: index + first * (index > 2) for index, name in enumerate(names)}
    backend = tokenizers.Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    return Tokenizer(backend)


def test_the_key_covers_tokenizer_text_length_and_sizes_of_tokens():
    keys = [
        key(),
        key(words(0)),
        key(words(7)),  # the same words, other numbers
        key(max_text_length=20),
        key(patch_size=2),
        key(patch_size_t=2),
        key(max_entities=3),
        key(size=6),
        key(world=WorldConfig(seed=4, height=64, width=64, frames=9, references=1)),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]
    assert key(rematerialize="full") == keys[0]  # no example depends on it


def test_the_key_covers_what_the_code_draws(monkeypatch):
    before, render = key(), clips.render_clip

    def shifted(world, index):
        record = render(world, index)
        moved = tuple(one._replace(track=one.track + np.float32(1)) for one in record.entities)
        return record._replace(entities=moved)

    monkeypatch.setattr(clips, "render_clip", shifted)
    assert key() != before


def test_the_detectors_file_counts_where_a_network_looks_for_faces(tmp_path):
    path = tmp_path / "det_10g.onnx"
    path.write_bytes(b"one")
    detector = InsightFaceDetector(path)
    first = detector_identity("insightface", detector)
    path.write_bytes(b"two")
    assert detector_identity("insightface", detector) != first
    assert detector_identity("mask_top", detector) is None
    assert detector_identity("insightface", None) is None


def test_the_arrays_of_a_pool_keep_their_names():
    """Those of 2026-11: a pool that was made then is found and read again."""
    priors = ("face_tokens", "face_vector", "object_tokens", "object_vector")
    paths = ("motion_latents", "splat", "path", "on")
    references = ("is_human", "reference_mask", "prior_mask", "dino", *priors)
    words = ("token_ids", "word_index", "word_mask")
    found = diffusion.example_shapes(TrainConfig(stage="tora2", model=config.toy()))
    assert set(found) == {"latents", *paths, *references, *words}
    conditions = from_arrays(found)
    assert conditions.face.vector is found["face_vector"]
    assert conditions.object.tokens is found["object_tokens"]
