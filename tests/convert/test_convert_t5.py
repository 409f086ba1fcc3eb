"""`convert t5`: whole models and encoders, their tokenizers, and what is refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from tests.support import encoder_twins
from tests.support.cogvideox_twins import write_tokenizer
from tests.support.parity import BLOCK_TOLERANCE, insensitive, relative_error
from tora2_jax.config import T5Config, from_dict, toy
from tora2_jax.models.encoders.t5 import T5Encoder
from tora2_jax.text import load_tokenizer
from tora2_jax.weights import checkpoint
from tora2_jax.weights.settings import setting_differences

SETTINGS = dict(
    vocab_size=200, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3,
    feed_forward_proj="gated-gelu",
)  # fmt: skip
WANTED = T5Config(vocab_size=200, width=24, num_layers=2, num_heads=3, head_dim=8, mlp_dim=40)


def twin(kind: str, **changes):
    return getattr(transformers, kind)(transformers.T5Config(**SETTINGS | changes))


@pytest.mark.parametrize(
    ("kind", "files", "tokenizer"),
    [
        ("T5EncoderModel", "shards", "text_encoder_2/../tokenizer_2"),
        ("T5ForConditionalGeneration", "pickle", "text_encoder_2"),
    ],
)
def test_converted_t5_equals_transformers(tmp_path, kind, files, tokenizer, capsys):
    reference = twin(kind)
    source = encoder_twins.save(reference, tmp_path / "text_encoder_2", files)
    ids = write_tokenizer(tmp_path / tokenizer)("An old dog runs.").input_ids
    arrays, settings = encoder_twins.convert("t5", source, tmp_path / "made", "text")
    config = from_dict(T5Config, settings)
    assert config == WANTED
    told = capsys.readouterr().out
    assert "config.model.text must have vocab_size=200, width=24" in told
    assert f"config.tokenizer is {tmp_path / 'made' / 'tokenizer'}" in told
    assert [*load_tokenizer(tmp_path / "made" / "tokenizer").encode("An old dog runs."), 1] == ids
    token_ids = np.random.default_rng(0).integers(0, 200, (2, 20))
    with torch.no_grad():
        encoder = reference.get_encoder()
        expected = encoder(input_ids=torch.tensor(token_ids)).last_hidden_state.numpy()
    forward = encoder_twins.compiled(
        lambda rngs: T5Encoder(config, rngs=rngs), lambda module, ids: module(jnp.asarray(ids))
    )
    assert relative_error(forward(arrays, token_ids), expected) <= BLOCK_TOLERANCE
    assert insensitive(lambda changed: forward(changed, token_ids), arrays, expected) == []
    model = toy()
    model.text = config
    metadata = checkpoint.component_metadata(checkpoint.resolve(tmp_path / "made", "text"))
    assert setting_differences("text", model, metadata) == []
    model.text.relative_max_distance = 64  # shows in no shape
    (told,) = setting_differences("text", model, metadata)
    assert told == "model.text.relative_max_distance is 64; the weights want 128"


def test_everything_wrong_with_a_source_is_told_at_once(tmp_path, capsys):
    source = encoder_twins.save(twin("T5EncoderModel", feed_forward_proj="relu"), tmp_path / "a")
    encoder_twins.change_config(source, d_model="wide")
    told = encoder_twins.refusal(capsys, "t5", source, tmp_path / "made")
    for part in ("'relu'; only 'gated-gelu'", "d_model cannot be 'wide'", "holds no tokenizer"):
        assert any(part in line for line in told), part
    source = encoder_twins.save(twin("T5EncoderModel", vocab_size=50), tmp_path / "b")
    write_tokenizer(source)
    encoder_twins.change_config(source, num_layers=3)
    told = encoder_twins.refusal(capsys, "t5", source, tmp_path / "made")
    for part in ("the text encoder knows 50 tokens", "missing: blocks.mlp.up.kernel, layers 2"):
        assert any(part in line for line in told), part
    (source / "spiece.model").write_bytes(b"no model")
    (source / "config.json").unlink()
    told = encoder_twins.refusal(capsys, "t5", source / "model.safetensors", tmp_path / "made")
    for part in ("config.json: is missing", "the tokenizer in"):
        assert any(part in line for line in told), part


def test_other_models_are_refused(tmp_path, capsys):
    (tmp_path / "umt5").mkdir()
    (tmp_path / "umt5" / "config.json").write_text(json.dumps({"model_type": "umt5"}))
    told = encoder_twins.refusal(capsys, "t5", tmp_path / "umt5", tmp_path / "made")
    assert any("model_type is 'umt5', not 't5'" in line for line in told)
    assert not any("tokenizer" in line for line in told)


def test_nothing_is_replaced(tmp_path, capsys):
    source = encoder_twins.save(twin("T5EncoderModel"), tmp_path / "source")
    write_tokenizer(source)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine.txt").touch()
    told = encoder_twins.refusal(capsys, "t5", source, tmp_path / "made")
    assert told == [f"{tmp_path / 'made'} exists already; remove it or name another folder"]
