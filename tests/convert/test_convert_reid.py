"""`python -m convert reid`: object encoders of four programs, and what is refused."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.support import recognition_twins as twins
from tests.support.parity import BLOCK_TOLERANCE, insensitive, relative_error
from tests.support.recognition_twins import channels_first, convert, loaded, refused
from tora2_jax.config import ModelConfig, ObjectEncoderConfig
from tora2_jax.models.encoders.object_encoder import ObjectEncoder
from tora2_jax.weights import checkpoint
from tora2_jax.weights.settings import setting_differences

TALL = np.random.default_rng(1).random((2, 72, 40, 3), np.float32)
REID = {
    "torchvision": (twins.Torchvision, ("--size", "72x40"), {}),
    "torchreid": (twins.Torchreid, ("--size", "72x40"), {}),
    "reid-strong-baseline": (twins.StrongBaseline, ("--size", "72x40"), {"last_stride": 1}),
    "fast-reid": (
        twins.FastReid,
        ("--size", "72x40"),
        {"last_stride": 1, "stem_pool": "unpadded", "pooling": "generalized_mean", "neck": True},
    ),
}


def save_reid(name, twin, folder):
    """As the program saves it."""
    state = twin.state_dict()
    if name == "torchvision":
        save_file(state, folder / "resnet50.safetensors")
        return folder / "resnet50.safetensors"
    if name == "torchreid":
        parallel = {f"module.{key}": value for key, value in state.items()}
        torch.save({"state_dict": parallel, "epoch": 60}, folder / "model.pth.tar")
        return folder / "model.pth.tar"
    torch.save({"model": state, "iteration": 7} if name == "fast-reid" else state, folder / "m.pth")
    return folder / "m.pth"


@pytest.mark.parametrize("name", REID)
def test_object_encoders(name, tmp_path, capsys):
    cls, options, wanted = REID[name]
    twin = twins.reid_twin(cls)
    folder = convert("reid", save_reid(name, twin, tmp_path), tmp_path / "object", *options)
    forward, arrays, settings = loaded(folder, "object", ObjectEncoderConfig, ObjectEncoder)
    assert settings.image_shape == (72, 40)
    assert {key: getattr(settings, key) for key in wanted} == wanted
    features = forward(arrays, TALL)
    with torch.no_grad():
        expected, vector = twin.features(channels_first(TALL))
    expected = expected.flatten(2).transpose(1, 2).numpy()
    assert relative_error(features.tokens, expected) <= BLOCK_TOLERANCE
    assert relative_error(features.vector, vector.numpy()) <= BLOCK_TOLERANCE
    told = capsys.readouterr().out
    assert f"taken from {name}'s defaults: last_stride={settings.last_stride}" in told
    if name == "fast-reid":
        unnoticed = [
            set(insensitive(lambda values, part=part: forward(values, TALL)[part], arrays, whole))
            for part, whole in enumerate((expected, vector.numpy()))
        ]
        assert set.intersection(*unnoticed) == set()


def test_settings_that_no_tensor_tells(tmp_path):
    twin = twins.reid_twin(twins.FastReid)
    state = {name: value for name, value in twin.state_dict().items() if "pool_layer" not in name}
    torch.save(state, tmp_path / "m.pth")
    for options, (size, stride, pooling) in {
        (): ((256, 128), 1, "mean"),
        ("--size", "64", "--last-stride", "2", "--pooling", "generalized_mean"): (
            (64, 64), 2, "generalized_mean",
        ),
    }.items():  # fmt: skip
        folder = convert("reid", tmp_path / "m.pth", tmp_path / pooling, *options)
        _, arrays, settings = loaded(folder, "object", ObjectEncoderConfig, ObjectEncoder)
        assert (settings.image_shape, settings.last_stride) == (size, stride)
        assert settings.pooling == pooling
    assert arrays["pool.exponent"] == [3]


def test_other_residual_networks_are_told(tmp_path, capsys):
    def told(cls=twins.FastReid, *options, **changes):
        state = {**twins.reid_twin(cls).state_dict(), **changes}
        kept = {name: value for name, value in state.items() if value is not None}
        torch.save(kept, tmp_path / "m.pth")
        return refused(capsys, "reid", tmp_path / "m.pth", tmp_path, *options)

    one = torch.ones(4)
    message = told(**{"backbone.layer1.0.bn1.IN.weight": one, "backbone.NL_2.0.g.weight": one})
    assert "(IBN), as in backbone.layer1.0.bn1.IN.weight, are not implemented" in message
    assert "non-local blocks, as in backbone.NL_2.0.g.weight" in message
    gray = torch.full((1, 3, 1, 1), 127.5)
    message = told(twins.FastReid, "--pooling", "mean", pixel_mean=gray)
    assert "pixel_mean: is" in message and "--pooling mean: but the file has" in message
    assert "ResNet-18 and -34" in told(**{"backbone.layer1.0.conv3.weight": None})
    reduction = torch.zeros(8, 128, 1, 1)
    assert "shortens the vector" in told(**{"heads.bottleneck.0.weight": reduction})
    assert "missing: neck.bias (128,)" in told(**{"heads.bottleneck.0.bias": None})
    message = told(twins.Torchvision, **{"layer3.0.bn2.bias": None, "conv1.weight": torch.ones(9)})
    assert "missing: stages.2.0.norm_space.bias" in message and "misshapen: conv1" in message
    nothing = dict.fromkeys(twins.Torchvision().state_dict())
    assert "is no ResNet: has none of" in told(twins.Torchvision, other=one, **nothing)
    with pytest.raises(SystemExit):
        told(twins.Torchvision, "--size", "256x128x3")


def test_what_no_shape_shows_is_compared_with_the_model(tmp_path):
    torch.save(twins.reid_twin(twins.Torchvision).state_dict(), tmp_path / "m.pth")
    folder = convert("reid", tmp_path / "m.pth", tmp_path / "object", "--size", "64x32")
    metadata = checkpoint.component_metadata(folder / "object")
    model = ModelConfig()
    model.object = ObjectEncoderConfig(
        image_size=64, image_width=32, base_width=4, layers=(2, 1, 1, 1)
    )
    assert setting_differences("object", model, metadata) == []
    model.object.last_stride, model.object.image_width = 1, None
    assert setting_differences("object", model, metadata) == [
        "model.object.image_width is None; the weights want 32",
        "model.object.last_stride is 1; the weights want 2",
    ]
