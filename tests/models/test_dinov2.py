"""DINOv2 through `convert dinov2` against transformers: sizes, registers, SwiGLU, refusals."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from convert.engine.rules import convert as convert_tensors
from convert.families import dinov2 as table
from tests.support import encoder_twins
from tests.support.parity import BLOCK_TOLERANCE, insensitive, numpy_state, relative_error
from tora2_jax.config import DINOv2Config, encoders, from_dict, toy
from tora2_jax.models.encoders.dinov2 import DINOv2, bicubic_matrix
from tora2_jax.models.encoders.object_encoder import IMAGENET_MEAN, IMAGENET_STD
from tora2_jax.models.layers.basic import flat_variables
from tora2_jax.weights import checkpoint
from tora2_jax.weights.networks import misfits
from tora2_jax.weights.settings import setting_differences

# 45 is no multiple of 7: six patches and a rest.
SETTINGS = dict(
    image_size=45, patch_size=7, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
    mlp_ratio=2,
)  # fmt: skip
WANTED = DINOv2Config(
    patch_size=7, position_grid=6, width=24, num_layers=2, num_heads=3, mlp_ratio=2
)
CASES = {
    "plain": ("shards", {}),
    "registers": ("pickle", {"num_register_tokens": 3}),
    "swiglu": ("safetensors", {"use_swiglu_ffn": True}),
    "both": ("safetensors", {"num_register_tokens": 1, "use_swiglu_ffn": True}),
}
# Smaller, larger, as many patches as stored but on another grid, as stored.
SIZES = ((28, 21), (56, 49), (28, 63), (42, 42))


def twin(**changes):
    kind = "Dinov2WithRegisters" if "num_register_tokens" in changes else "Dinov2"
    config = getattr(transformers, f"{kind}Config")(**SETTINGS | changes)
    return getattr(transformers, f"{kind}Model")(config)


@pytest.fixture(scope="module", params=list(CASES))
def case(request, tmp_path_factory):
    """Twin, converted variables and settings of one variant."""
    kind, changes = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    reference = twin(**changes)
    source = encoder_twins.save(reference, folder / "source", kind)
    arrays, settings = encoder_twins.convert("dinov2", source, folder / "made", "dino")
    return reference, arrays, settings, changes


def test_converted_dinov2_equals_transformers(case):
    reference, arrays, settings, changes = case
    registers = changes.get("num_register_tokens", 0)
    config = from_dict(DINOv2Config, settings)
    assert config == dataclasses.replace(
        WANTED,
        num_registers=registers,
        feed_forward="swiglu" if "use_swiglu_ffn" in changes else "gelu",
    )
    forward = encoder_twins.compiled(
        lambda rngs: DINOv2(config, rngs=rngs), lambda module, images: module.features(images)
    )
    generator = np.random.default_rng(0)
    for height, width in SIZES if len(changes) < 2 else SIZES[:1]:
        images = generator.random((2, height, width, 3), np.float32)
        normalized = (images - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
        pixels = torch.tensor(np.moveaxis(normalized, -1, 1), dtype=torch.float32)
        with torch.no_grad():
            expected = reference(pixels).last_hidden_state.numpy()
        class_token, patches = forward(arrays, images)
        assert relative_error(class_token, expected[:, 0]) <= BLOCK_TOLERANCE, (height, width)
        assert relative_error(patches, expected[:, 1 + registers :]) <= BLOCK_TOLERANCE
    unnoticed = insensitive(
        lambda variables: forward(variables, images)[1], arrays, expected[:, 1 + registers :]
    )
    # A bias of the keys shifts all logits of a query alike.
    assert unnoticed == ["blocks.attention.key.bias"]


@pytest.mark.parametrize("antialias", [False, True])
def test_positions_are_resampled_as_by_pytorch(antialias):
    grid = torch.randn(1, 3, 37, 37, generator=torch.Generator().manual_seed(0))
    for rows, columns in ((16, 20), (37, 16), (50, 37), (74, 39), (1, 5)):
        expected = torch.nn.functional.interpolate(
            grid, (rows, columns), mode="bicubic", align_corners=False, antialias=antialias
        )
        vertical, horizontal = (bicubic_matrix(37, n, antialias) for n in (rows, columns))
        actual = np.einsum("hi,wj,bcij->bchw", vertical, horizontal, grid.numpy())
        assert relative_error(actual, expected.numpy()) <= BLOCK_TOLERANCE, (rows, columns)


def test_names_in_memory_and_under_a_classifier_fit_too():
    for changes in ({}, {"use_swiglu_ffn": True}):
        swiglu = "swiglu" if changes else "gelu"
        config = dataclasses.replace(WANTED, feed_forward=swiglu)
        target = flat_variables(nnx.eval_shape(lambda c=config: DINOv2(c, rngs=nnx.Rngs(0))))
        tensors = numpy_state(twin(**changes))  # q_proj, gate_proj: not the names of files
        assert any("gate_proj" in name for name in tensors) == bool(changes)
        plain = convert_tensors(table.rules(config), tensors, target)
        below = {f"dinov2.{name}": tensor for name, tensor in tensors.items()}
        below |= {"classifier.weight": np.zeros((5, 48)), "classifier.bias": np.zeros(5)}
        again = convert_tensors(table.rules(config), below, target)
        assert all(np.array_equal(plain[path], again[path]) for path in target)


def test_config_weights_dino_takes_the_folder(tmp_path, capsys):
    source = encoder_twins.save(twin(), tmp_path / "source")
    arrays, _ = encoder_twins.convert("dinov2", source, tmp_path / "made", "dino")
    told = capsys.readouterr().out
    assert "config.model.dino must have patch_size=7, position_grid=6, width=24" in told
    config = dataclasses.replace(WANTED, image_size=70)
    place = checkpoint.resolve(tmp_path / "made", "dino")
    module = nnx.eval_shape(lambda: DINOv2(config, rngs=nnx.Rngs(0)))
    checkpoint.restore_frozen(module, place)
    restored = flat_variables(module)
    assert all(np.array_equal(restored[path], arrays[path]) for path in arrays)
    model = dataclasses.replace(toy(), dino=config, motion=None, personalization=None)
    assert setting_differences("dino", model, checkpoint.component_metadata(place)) == []
    model.dino = dataclasses.replace(config, norm_eps=1e-5, num_heads=4, width=32)
    found = misfits(model, {"dino": place}, ["dino"])
    for part in (
        "model.dino.norm_eps is 1e-05; the weights want 1e-06",
        "model.dino.num_heads is 4; the weights want 3",
        "misshapen norm.scale: (24,) does not fit (32,)",
    ):
        assert f"config.weights.dino: {part}" in found


def test_everything_wrong_with_a_source_is_told_at_once(tmp_path, capsys):
    source = encoder_twins.save(twin(), tmp_path / "source", "shards")
    encoder_twins.change_config(
        source, hidden_act="relu", patch_size=[7, 14], num_attention_heads=0, layer_norm_eps="x"
    )
    shards = sorted(source.glob("*.safetensors"))
    shards[0].write_bytes(shards[0].read_bytes()[:-8])
    shards[1].unlink()
    told = encoder_twins.refusal(capsys, "dinov2", source, tmp_path / "made")
    for parts in (
        ("hidden_act", "'relu'", "'gelu'"),
        ("patch_size", "[7, 14]"),
        ("num_attention_heads", "0"),
        ("layer_norm_eps", "'x'"),
        (shards[1].name, "is missing"),
    ):
        assert any(all(part in line for part in parts) for line in told), parts
    shards[1].write_bytes(b"no tensors")
    (source / "config.json").write_text('{"model_type": "dinov2", "hidden_')
    told = encoder_twins.refusal(capsys, "dinov2", source, tmp_path / "made")
    assert sum("is not a whole safetensors file" in line for line in told) == 2
    assert any("config.json: cannot be read" in line for line in told)


def test_tensors_that_do_not_fit_are_listed(tmp_path, capsys):
    source = encoder_twins.save(twin(), tmp_path / "source", "pickle")
    file = source / "pytorch_model.bin"
    tensors = torch.load(file, weights_only=True)
    tensors["encoder.layer.1.norm9.weight"] = tensors.pop("encoder.layer.1.norm1.weight")
    tensors["embeddings.cls_token"] = torch.zeros(1, 1, 25)
    torch.save(tensors, file)
    encoder_twins.change_config(source, image_size=35)
    told = "\n".join(encoder_twins.refusal(capsys, "dinov2", file, tmp_path / "made"))
    for part in (
        "extra: encoder.layer.1.norm9.weight (24,)",
        "missing: blocks.norm_attention.scale, layers 1",
        "misshapen: embeddings.cls_token (1, 1, 25) does not fit class_token (1, 24)",
        "misshapen: embeddings.position_embeddings (1, 37, 24) does not fit positions (26, 24)",
    ):
        assert part in told
    torch.save({"model": object()}, file)
    told = encoder_twins.refusal(capsys, "dinov2", file, tmp_path / "made")
    assert any("more than tensors" in line and "was not run" in line for line in told)


def test_other_models_and_places_are_refused(tmp_path, capsys):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text(json.dumps({"model_type": "clip"}))
    told = encoder_twins.refusal(capsys, "dinov2", tmp_path / "clip", tmp_path / "made")
    assert any("model_type is 'clip'" in line and "use `convert clip`" in line for line in told)
    assert any("no weights there" in line for line in told)
    release = tmp_path / "dinov2_vits14_pretrain.pth"
    torch.save({"blocks.0.attn.qkv.weight": torch.zeros(3, 1)}, release)
    told = encoder_twins.refusal(capsys, "dinov2", release, tmp_path / "made")
    assert any("has the names of DINOv2's own release; take the folder" in line for line in told)
    told = encoder_twins.refusal(capsys, "dinov2", tmp_path / "nowhere", tmp_path / "made")
    assert any("there is no such file or folder" in line for line in told)
    (tmp_path / "clip" / "config.json").write_text("{}")
    told = encoder_twins.refusal(capsys, "dinov2", tmp_path / "clip", tmp_path / "made")
    assert any("config.json: is empty" in line for line in told)


@pytest.mark.parametrize(
    ("name", "count"),
    [  # of facebook/dinov2-*, without the mask token of pre-training (one vector)
        ("dinov2_small", 22_056_576 - 384),
        ("dinov2_base", 86_580_480 - 768),
        ("dinov2_large", 304_368_640 - 1024),
        ("dinov2_giant", 1_136_480_768 - 1536),
    ],
)
def test_presets_have_the_published_parameters(name, count):
    def parameters(config: DINOv2Config) -> int:
        arrays = flat_variables(nnx.eval_shape(lambda: DINOv2(config, rngs=nnx.Rngs(0))))
        return sum(int(np.prod(value.shape)) for value in arrays.values())

    config = encoders.DINOV2[name]()
    assert parameters(config) == count
    with_registers = encoders.DINOV2[f"{name}_registers"]()
    assert parameters(with_registers) == count + 4 * config.width


def test_leading_axes_are_free():
    config = dataclasses.replace(WANTED, num_layers=1)

    @nnx.jit
    def both(images):
        module = DINOv2(config, rngs=nnx.Rngs(0))
        return module(images), module(images.reshape(6, 14, 14, 3))

    nested, flat = both(jax.random.uniform(jax.random.key(0), (2, 3, 14, 14, 3)))
    assert nested.shape == (2, 3, 4, 24)
    np.testing.assert_allclose(nested.reshape(flat.shape), flat, atol=1e-5)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="multiples of 7"):
        nnx.eval_shape(lambda: DINOv2(WANTED, rngs=nnx.Rngs(0))(jnp.zeros((1, 20, 21, 3))))
