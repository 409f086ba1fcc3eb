"""DINOv2 against its PyTorch reference; batch statistics; sizes that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convert import dinov2 as dinov2_table
from convert.engine import convert
from tests.parity import (
    BLOCK_TOLERANCE,
    compiled,
    insensitive,
    numpy_state,
    randomise,
    relative_error,
)
from tora2_jax.config import ArcFaceConfig, DINOv2Config
from tora2_jax.models.arcface import ArcFace
from tora2_jax.models.batch_norm import BatchNorm
from tora2_jax.models.dinov2 import DINOv2, bicubic_matrix
from tora2_jax.models.layers import assign_variables, flat_variables
from tora2_jax.models.object_encoder import IMAGENET_MEAN, IMAGENET_STD

torch = pytest.importorskip("torch")
DINO = DINOv2Config(
    image_size=28, patch_size=7, position_grid=5, width=24, num_layers=2, num_heads=3, mlp_ratio=2
)


def build(make, rules, tensors):
    """The module that `make` builds, with converted weights."""
    module = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    arrays = convert(rules, tensors, flat_variables(module))
    assign_variables(module, arrays)
    return module, arrays


def imagenet_input(images):
    """Normalised, channels first, as the PyTorch networks expect it."""
    values = (images - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    return torch.tensor(np.moveaxis(values, -1, -3), dtype=torch.float32)


@pytest.mark.parametrize("registers", [0, 3])
def test_dinov2_equals_the_reference(registers):
    transformers = pytest.importorskip("transformers")
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    settings = dict(
        image_size=35, patch_size=7, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        mlp_ratio=2,
    )  # fmt: skip
    if registers:
        settings["num_register_tokens"] = registers
    twin = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**settings))
    randomise(twin, 2)
    config = DINOv2Config(**{**vars_of(DINO), "num_registers": registers})
    module, arrays = build(
        lambda rngs: DINOv2(config, rngs=rngs), dinov2_table.rules(config), numpy_state(twin)
    )
    forward = compiled(module, lambda copy, images: copy.features(images))
    generator = np.random.default_rng(0)
    for height, width in ((28, 21), (49, 35), (35, 35)):  # smaller, larger, as stored
        images = generator.random((2, height, width, 3), np.float32)
        with torch.no_grad():
            expected = twin(imagenet_input(images)).last_hidden_state.numpy()
        class_token, patches = forward(arrays, images)
        assert relative_error(class_token, expected[:, 0]) <= BLOCK_TOLERANCE
        assert relative_error(patches, expected[:, 1 + registers :]) <= BLOCK_TOLERANCE
    unnoticed = insensitive(
        lambda variables: forward(variables, images)[1], arrays, expected[:, 1 + registers :]
    )
    # A bias of the keys shifts all logits of a query alike.
    assert unnoticed == ["blocks.attention.key.bias"]


def vars_of(config):
    """The fields of a config."""
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def test_published_names_of_dinov2_fit_too():
    names = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
    names["o_proj"] = "output.dense"
    table = dinov2_table.rules(DINO)
    module = nnx.eval_shape(lambda: DINOv2(DINO, rngs=nnx.Rngs(0)))
    transformers = pytest.importorskip("transformers")
    settings = dict(image_size=35, patch_size=7, hidden_size=24, num_hidden_layers=2, mlp_ratio=2)
    twin = transformers.Dinov2Model(transformers.Dinov2Config(num_attention_heads=3, **settings))
    tensors = {}
    for name, value in numpy_state(twin).items():
        for ours, published in names.items():
            name = name.replace(f"attention.{ours}", f"attention.{published}")
        tensors[name] = value
    assert any("attention.attention.query" in name for name in tensors)
    convert(table, tensors, flat_variables(module))


def test_bicubic_matrix_keeps_constants():
    for antialias in (False, True):
        for target in (1, 3, 5, 8):
            np.testing.assert_allclose(bicubic_matrix(5, target, antialias).sum(1), 1, atol=1e-6)


def test_leading_axes_are_free():
    config = DINOv2Config(**{**vars_of(DINO), "num_layers": 1})

    @nnx.jit
    def both(images):
        module = DINOv2(config, rngs=nnx.Rngs(0))
        return module(images), module(images.reshape(6, 14, 14, 3))

    nested, flat = both(jax.random.uniform(jax.random.key(0), (2, 3, 14, 14, 3)))
    assert nested.shape == (2, 3, 4, 24)
    np.testing.assert_allclose(nested.reshape(flat.shape), flat, atol=1e-5)


def test_wrong_sizes_are_refused():
    config = ArcFaceConfig(image_size=16, layers=(1, 1), widths=(4, 8), embedding=4)
    with pytest.raises(ValueError, match="resize them to 16"):
        nnx.eval_shape(lambda: ArcFace(config, rngs=nnx.Rngs(0))(jnp.zeros((1, 24, 24, 3))))
    with pytest.raises(ValueError, match="multiples of 7"):
        nnx.eval_shape(lambda: DINOv2(DINO, rngs=nnx.Rngs(0))(jnp.zeros((1, 20, 21, 3))))


def test_batch_norm_trains_as_the_reference():
    twin = torch.nn.BatchNorm2d(3)
    module = BatchNorm(3, rngs=nnx.Rngs(0))
    train = nnx.jit(lambda module, x: module(x, train=True))
    generator = np.random.default_rng(0)
    for _ in range(3):
        x = generator.normal(2, 3, (2, 4, 5, 3)).astype(np.float32)
        expected = twin(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        np.testing.assert_allclose(train(module, x), expected.detach(), atol=1e-5)
    np.testing.assert_allclose(module.mean[...], twin.running_mean, rtol=1e-5)
    np.testing.assert_allclose(module.var[...], twin.running_var, rtol=1e-5)
    stored = twin.eval()(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(module(x), stored.detach(), atol=1e-5)


def test_encoders_train_with_batch_statistics():
    config = ArcFaceConfig(image_size=16, layers=(1, 1), widths=(4, 8), embedding=4)
    module = nnx.jit(lambda: ArcFace(config, rngs=nnx.Rngs(0)))()
    images = jax.random.uniform(jax.random.key(0), (4, 16, 16, 3))
    before = jnp.array(module.norm_map.var[...])  # the mean of what comes there is zero

    @nnx.jit
    def gradient(module):
        return nnx.grad(lambda module: (module(images, train=True).tokens ** 2).mean())(module)

    gradients = jax.tree.leaves(gradient(module))
    assert all(np.isfinite(value).all() for value in gradients)
    assert not np.allclose(before, module.norm_map.var[...])
