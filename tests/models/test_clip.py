"""CLIP through `convert clip` against transformers: towers, tokenizer, pictures, refusals."""

import json
import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image
from transformers import CLIPConfig as TorchConfig
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from convert.families import clip as table
from tests.support import encoder_twins
from tests.support.parity import BLOCK_TOLERANCE, insensitive, relative_error
from tora2_jax.config import encoders, from_dict
from tora2_jax.config.encoders import CLIPConfig
from tora2_jax.errors import CheckpointError
from tora2_jax.evaluation import clip
from tora2_jax.models.encoders.clip import CLIP, CLIP_MEAN, CLIP_STD
from tora2_jax.models.layers.basic import flat_variables

END, LENGTH, SIDE = 63, 10, 30
CAPTIONS = ("A cat, a dog.", "a dog and a cat and a cow and a hen.")  # the second is cut
# The id of the end token means the new rule; 2 the old one, the largest id. The side is no multiple
# of the patch: three patches and a rest.
CASES = {
    "legacy": dict(eos_token_id=2, hidden_act="quick_gelu", kind="pickle"),
    "gelu": dict(eos_token_id=END, hidden_act="gelu", kind="shards"),
}


def twin(eos_token_id=END, hidden_act="quick_gelu"):
    shared = dict(num_hidden_layers=2, hidden_act=hidden_act, projection_dim=20)
    text = dict(
        vocab_size=70, max_position_embeddings=LENGTH, hidden_size=24, intermediate_size=40,
        num_attention_heads=3, bos_token_id=62, eos_token_id=eos_token_id,
    )  # fmt: skip
    vision = dict(
        image_size=SIDE, patch_size=8, hidden_size=16, intermediate_size=36, num_attention_heads=2
    )
    config = TorchConfig(
        text_config=shared | text, vision_config=shared | vision, projection_dim=20
    )
    return CLIPModel(config)


def write_tokenizer(folder, fast=False, added=()):
    """CLIP's form of tokenizer with 64 tokens, as two files or as one."""
    letters = [*string.ascii_lowercase, *".,'"]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "ca", "cat</w>", "do", "dog</w>"]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(exist_ok=True)
    vocab = {piece: number for number, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\nd o\ndo g</w>\n")
    tokenizer = CLIPTokenizer.from_pretrained(str(folder))
    tokenizer.add_tokens(list(added))
    if fast:
        (folder / "vocab.json").unlink()
        (folder / "merges.txt").unlink()
        tokenizer.save_pretrained(folder)
    return tokenizer


def write_preprocessor(folder, **changes):
    settings = {
        "size": {"shortest_edge": SIDE}, "crop_size": SIDE, "resample": 3, "do_resize": True,
        "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | changes))


@pytest.fixture(scope="module", params=list(CASES))
def case(request, tmp_path_factory):
    """Twin, its tokenizer, and the folder that the command made of them."""
    folder, settings = tmp_path_factory.mktemp(request.param), dict(CASES[request.param])
    kind = settings.pop("kind")
    reference = twin(**settings)
    half = torch.float16 if kind == "shards" else torch.float32
    source = encoder_twins.save(reference, folder / "source", kind, half)
    if kind == "pickle":  # older files count their positions
        file = source / "pytorch_model.bin"
        counted = {"text_model.embeddings.position_ids": torch.arange(LENGTH)[None]}
        torch.save(torch.load(file) | counted, file)
    new = ["zebra"] if kind == "shards" else []
    tokenizer = write_tokenizer(source, fast=kind == "shards", added=new)
    write_preprocessor(source)
    arrays, stored = encoder_twins.convert("clip", source, folder / "made", "clip")
    return reference, tokenizer, folder / "made", arrays, from_dict(CLIPConfig, stored)


def test_vision_tower_equals_transformers(case):
    reference, _, _, arrays, config = case
    images = np.random.default_rng(0).random((2, SIDE, SIDE, 3), np.float32)
    normalized = (images - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    pixels = torch.tensor(np.moveaxis(normalized, -1, 1), dtype=torch.float32)
    with torch.no_grad():
        hidden = reference.vision_model(pixels).last_hidden_state.numpy()
        embedding = reference.get_image_features(pixels).pooler_output.numpy()
    forward = encoder_twins.compiled(
        lambda rngs: CLIP(config, rngs=rngs), lambda module, images: module.encode_images(images)
    )
    features = forward(arrays, images)
    assert features.patches.shape == (2, 9, 16)
    assert relative_error(features.class_token, hidden[:, 0]) <= BLOCK_TOLERANCE
    assert relative_error(features.patches, hidden[:, 1:]) <= BLOCK_TOLERANCE
    assert relative_error(features.embedding, embedding) <= BLOCK_TOLERANCE
    own = {path: value for path, value in arrays.items() if path.startswith("vision")}
    unnoticed = insensitive(
        lambda changed: forward(arrays | changed, images).embedding, own, embedding
    )
    # A bias of the keys shifts all logits of a query alike.
    assert unnoticed == ["vision.blocks.attention.key.bias"]


def test_text_tower_equals_transformers(case):
    reference, tokenizer, _, arrays, config = case
    captions = [*CAPTIONS, "Zebra, cat"]
    token_ids = clip.tokenize(tokenizer, captions, LENGTH)
    theirs = tokenizer(captions, padding="max_length", truncation=True, max_length=LENGTH)
    assert token_ids.tolist() == theirs.input_ids and token_ids.shape == (3, LENGTH)
    # Where the two rules for the end of a caption differ.
    token_ids = np.concatenate([token_ids, [[62, 3, 69, 7, END, 9, END, 69, 1, 0]]])
    with torch.no_grad():
        outputs = reference.text_model(torch.tensor(token_ids))
        embedding = reference.text_projection(outputs.pooler_output).numpy()
    forward = encoder_twins.compiled(
        lambda rngs: CLIP(config, rngs=rngs), lambda module, ids: module.encode_texts(ids)
    )
    features = forward(arrays, token_ids)
    hidden = outputs.last_hidden_state.numpy()
    assert relative_error(features.tokens, hidden) <= BLOCK_TOLERANCE
    assert relative_error(features.embedding, embedding) <= BLOCK_TOLERANCE
    own = {path: value for path, value in arrays.items() if path.startswith("text")}
    unnoticed = insensitive(
        lambda changed: forward(arrays | changed, token_ids).embedding, own, embedding
    )
    assert unnoticed == ["text.blocks.attention.key.bias"]


def test_a_converted_folder_compares_pictures_with_captions(case):
    """Pictures and captions to logits, all from the folder, against transformers' whole model."""
    reference, tokenizer, folder, arrays, _ = case
    model, own_tokenizer = clip.load_clip(folder)
    pictures = np.random.default_rng(1).integers(0, 256, (2, 40, 50, 3), np.uint8)
    images = np.stack([clip.preprocess(picture, SIDE) for picture in pictures])
    token_ids = clip.tokenize(own_tokenizer, CAPTIONS, LENGTH)

    @nnx.jit
    def logits(model, images, token_ids):
        seen, read = model.encode_images(images), model.encode_texts(token_ids)
        assert seen.embedding.shape == (1, 2, 20) and seen.patches.shape == (1, 2, 9, 16)
        return model.logits(seen.embedding[0], read.embedding)

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    inputs = processor(images=list(pictures), return_tensors="pt")
    inputs |= tokenizer(
        list(CAPTIONS), padding="max_length", truncation=True, max_length=LENGTH,
        return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        expected = reference(**inputs).logits_per_image.numpy()
    assert relative_error(logits(model, images[None], token_ids), expected) <= BLOCK_TOLERANCE
    model.log_scale[...] = arrays["log_scale"] * 1.01
    assert relative_error(logits(model, images[None], token_ids), expected) > BLOCK_TOLERANCE


def test_pictures_are_prepared_as_by_transformers():
    generator = np.random.default_rng(0)
    for side in (24, 27):
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
        for size in ((50, 31), (31, 50), (24, 24), (7, 100), (25, 26), (12, 9)):
            for mode, channels in (("RGB", 3), ("RGBA", 4), ("L", 1)):
                values = generator.integers(0, 256, (*size, channels), np.uint8)
                picture = Image.fromarray(values.squeeze(), mode)
                if mode == "L":
                    picture = picture.convert("P")
                    picture.info["transparency"] = 7
                expected = processor(images=picture, return_tensors="np").pixel_values[0]
                expected = expected.transpose(1, 2, 0) * np.array(CLIP_STD) + np.array(CLIP_MEAN)
                actual = clip.preprocess(picture, side)
                assert actual.dtype == np.float32 and actual.shape == (side, side, 3)
                assert np.array_equal(np.round(actual * 255), np.round(expected * 255)), size
    array = generator.integers(0, 256, (30, 40, 3), np.uint8)
    assert np.array_equal(clip.preprocess(array, 24), clip.preprocess(Image.fromarray(array), 24))


@pytest.mark.parametrize("doubled", [None, {}, {"hidden_size": 48, "num_attention_heads": 12}])
def test_old_configs_are_read_as_by_transformers(doubled):
    """Older files hold the settings of a tower twice; the second wins, with its defaults."""
    data = {
        "model_type": "clip", "projection_dim": 20,
        "text_config": {"hidden_size": 24, "eos_token_id": 2, "num_attention_heads": 3},
        "vision_config": {"hidden_size": 16, "num_attention_heads": 2, "hidden_act": "gelu"},
        "text_config_dict": doubled, "vision_config_dict": doubled,
    }  # fmt: skip
    problems = []
    ours, theirs = table.read_settings(data, problems), TorchConfig.from_dict(dict(data))
    assert problems == []
    for name, part in (("vision", theirs.vision_config), ("text", theirs.text_config)):
        own = getattr(ours, name)
        assert (own.width, own.num_heads) == (part.hidden_size, part.num_attention_heads)
        assert (own.activation, own.mlp_dim) == (part.hidden_act, part.intermediate_size)
    assert ours.text.eos_token_id == theirs.text_config.eos_token_id


def test_everything_wrong_with_a_source_is_told_at_once(tmp_path, capsys):
    source = encoder_twins.save(twin(), tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config["text_config"] |= {"eos_token_id": [63], "hidden_act": "relu"}
    config["vision_config"] |= {"num_attention_heads": 3}
    encoder_twins.change_config(source, **config | {"projection_dim": "x"})
    write_preprocessor(source, image_mean=[0.5, 0.5, 0.5], crop_size=24, do_resize=False)
    weights = source / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    told = encoder_twins.refusal(capsys, "clip", source, tmp_path / "made")
    for parts in (
        ("text_config: eos_token_id", "[63]"),
        ("text_config: hidden_act", "'relu'", "quick_gelu or gelu"),
        ("vision_config: num_attention_heads 3 must divide hidden_size 16",),
        ("projection_dim", "'x'"),
        ("no tokenizer of CLIP", "tokenizer.json"),
        ("preprocessor_config.json: image_mean", "[0.5, 0.5, 0.5]"),
        ("preprocessor_config.json: do_resize",),
        ("is not a whole safetensors file",),
    ):
        assert any(all(part in line for part in parts) for line in told), parts


def test_tensors_tokenizers_and_sizes_that_do_not_fit(tmp_path, capsys):
    source = encoder_twins.save(twin(eos_token_id=2), tmp_path / "source")
    write_tokenizer(source, fast=True, added=[f"word{number}" for number in range(9)])
    write_preprocessor(source, crop_size={"height": 24, "width": 24})
    config = json.loads((source / "config.json").read_text())
    config["vision_config"] |= {"image_size": 24, "num_hidden_layers": 3}
    encoder_twins.change_config(source, **config)
    told = "\n".join(encoder_twins.refusal(capsys, "clip", source, tmp_path / "made"))
    for part in (
        "has ids up to 72, but the text encoder knows 70 tokens",
        "the end token has the id 63, but with eos_token_id 2",
        "missing: vision.blocks.mlp_in.kernel, layers 2",
        "size is {'shortest_edge': 30}; the network takes 24 pixels",
    ):
        assert part in told, part
    config["text_config"] |= {"eos_token_id": 7}
    encoder_twins.change_config(source, **config)
    told = "\n".join(encoder_twins.refusal(capsys, "clip", source, tmp_path / "made"))
    assert "the end token has the id 63, but eos_token_id in config.json is 7" in told


def test_other_models_are_refused(tmp_path, capsys):
    for kind, part in (
        ("dinov2", "use `convert dinov2`"),
        ("clip_text_model", "it is one tower; a whole CLIP"),
        ("siglip", "model_type is 'siglip', not 'clip'"),
    ):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.json").write_text(json.dumps({"model_type": kind}))
        told = encoder_twins.refusal(capsys, "clip", tmp_path / kind, tmp_path / "made")
        assert any(part in line for line in told)
        assert not any("tokenizer" in line for line in told)
    (tmp_path / "siglip" / "config.json").write_text('{"model_type": "clip", "text_config": 3}')
    told = encoder_twins.refusal(capsys, "clip", tmp_path / "siglip", tmp_path / "made")
    for name in ("text_config", "vision_config"):
        assert any(f"{name} is missing or no object" in line for line in told)


def test_folders_without_clip_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="convert clip"):
        clip.load_clip(tmp_path)
    (tmp_path / "clip").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        clip.load_clip(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        clip.load_clip_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "count"),
    [  # of openai/clip-vit-*
        ("clip_base_32", 151_277_313),
        ("clip_base_16", 149_620_737),
        ("clip_large_14", 427_616_513),
        ("clip_large_14_336", 427_944_193),
    ],
)
def test_presets_have_the_published_parameters(name, count):
    config = encoders.CLIP[name]()
    arrays = flat_variables(nnx.eval_shape(lambda: CLIP(config, rngs=nnx.Rngs(0))))
    assert sum(int(np.prod(value.shape)) for value in arrays.values()) == count


def test_full_precision_is_asked_for_on_every_device():
    config = table.read_settings(twin().config.to_dict(), [])
    graph, state = nnx.split(nnx.eval_shape(lambda: CLIP(config, rngs=nnx.Rngs(0))))

    def logits(state):
        model = nnx.merge(graph, state)
        seen = model.encode_images(jnp.zeros((1, SIDE, SIDE, 3)))
        read = model.encode_texts(jnp.zeros((1, LENGTH), jnp.int32))
        return model.logits(seen.embedding, read.embedding)

    with jax.default_matmul_precision("bfloat16"):
        text = str(jax.make_jaxpr(logits)(state))
    assert text.count("dot_general[") == text.count("Precision.HIGHEST, Precision.HIGHEST") > 0


def test_wrong_sizes_are_refused():
    config = table.read_settings(twin().config.to_dict(), [])
    with pytest.raises(ValueError, match=r"30 x 30 pixels and got \(32, 30, 3\)"):
        nnx.eval_shape(
            lambda: CLIP(config, rngs=nnx.Rngs(0)).encode_images(jnp.zeros((1, 32, 30, 3)))
        )
    with pytest.raises(ValueError, match="10 tokens at most and got 11"):
        nnx.eval_shape(
            lambda: CLIP(config, rngs=nnx.Rngs(0)).encode_texts(jnp.zeros((1, 11), jnp.int32))
        )
