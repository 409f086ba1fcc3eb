"""Face and object encoders and DINOv2 against their PyTorch references, plus batch statistics."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convert import arcface as arcface_table
from convert import dinov2 as dinov2_table
from convert import object_encoder as object_table
from convert.engine import convert
from tests import weights_rule
from tests.parity import BLOCK_TOLERANCE, insensitive, numpy_state, randomise, relative_error
from tora2_jax.config import ArcFaceConfig, DINOv2Config, ObjectEncoderConfig
from tora2_jax.models.arcface import ArcFace
from tora2_jax.models.batch_norm import BatchNorm
from tora2_jax.models.dinov2 import DINOv2, bicubic_matrix
from tora2_jax.models.layers import assign_variables, flat_variables
from tora2_jax.models.object_encoder import IMAGENET_MEAN, IMAGENET_STD, ObjectEncoder

torch = pytest.importorskip("torch")
GOLDEN = Path(__file__).parent / "golden"
OBJECT = ObjectEncoderConfig(image_size=64, layers=(2, 1, 1, 1), base_width=4, last_stride=1)
DINO = DINOv2Config(
    image_size=28, patch_size=7, position_grid=5, width=24, num_layers=2, num_heads=3, mlp_ratio=2
)


def build(make, rules, tensors):
    """The module that `make` builds, with converted weights."""
    module = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    arrays = convert(rules, tensors, flat_variables(module))
    assign_variables(module, arrays)
    return module, arrays


def compiled(module, call):
    """`call(module, images)` as a function of all variables by path."""

    @jax.jit
    def forward(variables, images):
        copy = nnx.clone(module)
        assign_variables(copy, variables)
        return call(copy, images)

    return forward


def imagenet_input(images):
    """Normalised, channels first, as the PyTorch networks expect it."""
    values = (images - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    return torch.tensor(np.moveaxis(values, -1, -3), dtype=torch.float32)


def test_arcface_equals_the_reference():
    golden = np.load(GOLDEN / "arcface_r100.npz")
    seed, shapes = int(golden["seed"]), json.loads(str(golden["shapes"]))
    tensors = {name: weights_rule.tensor(name, tuple(shapes[name]), seed) for name in shapes}
    tensors["features.weight"] = np.ones(512, np.float32)  # the reference keeps this scale at 1
    config = ArcFaceConfig()
    module, _ = build(lambda rngs: ArcFace(config, rngs=rngs), arcface_table.rules(config), tensors)
    images = jnp.asarray(golden["image"] * 0.5 + 0.5)[None]
    features = nnx.jit(lambda module, images: module(images))(module, images)
    expected = golden["feature_map"].reshape(2, 512, 49).swapaxes(1, 2)[None]
    assert relative_error(features.tokens, expected) <= BLOCK_TOLERANCE
    assert relative_error(features.vector, golden["embedding"][None]) <= BLOCK_TOLERANCE


def torch_bottleneck(in_width, width, stride):
    """A residual bottleneck with torchvision's names."""
    nn = torch.nn
    block = nn.Module()
    block.conv1 = nn.Conv2d(in_width, width, 1, bias=False)
    block.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
    block.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
    block.bn1, block.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
    block.bn3 = nn.BatchNorm2d(4 * width)
    if stride > 1 or in_width != 4 * width:
        projection = nn.Conv2d(in_width, 4 * width, 1, stride, bias=False)
        block.downsample = nn.Sequential(projection, nn.BatchNorm2d(4 * width))

    def forward(x):
        shortcut = block.downsample(x) if hasattr(block, "downsample") else x
        x = block.bn1(block.conv1(x)).relu()
        x = block.bn2(block.conv2(x)).relu()
        return (block.bn3(block.conv3(x)) + shortcut).relu()

    block.forward = forward
    return block


def torch_resnet(config):
    """A small ResNet with torchvision's names and an unused classifier."""
    nn = torch.nn
    net = nn.Module()
    net.conv1 = nn.Conv2d(3, config.base_width, 7, 2, 3, bias=False)
    net.bn1 = nn.BatchNorm2d(config.base_width)
    in_width = config.base_width
    for stage, count in enumerate(config.layers):
        width = config.base_width * 2**stage
        stride = (1, 2, 2, config.last_stride)[stage]
        blocks = [torch_bottleneck(in_width, width, stride)]
        blocks += [torch_bottleneck(4 * width, width, 1) for _ in range(count - 1)]
        setattr(net, f"layer{stage + 1}", nn.Sequential(*blocks))
        in_width = 4 * width
    net.fc = nn.Linear(in_width, 5)

    def forward(x):
        x = nn.functional.max_pool2d(net.bn1(net.conv1(x)).relu(), 3, 2, 1)
        return net.layer4(net.layer3(net.layer2(net.layer1(x))))

    net.forward = forward
    return net


@pytest.fixture(scope="module")
def object_twin():
    twin = randomise(torch_resnet(OBJECT), 1)
    module, arrays = build(
        lambda rngs: ObjectEncoder(OBJECT, rngs=rngs), object_table.rules(OBJECT), numpy_state(twin)
    )
    images = np.random.default_rng(0).random((2, 64, 64, 3), np.float32)
    with torch.no_grad():
        expected = twin(imagenet_input(images)).flatten(2).transpose(1, 2).numpy()
    return module, arrays, images, expected


def test_object_encoder_equals_the_reference(object_twin):
    module, _, images, expected = object_twin
    features = nnx.jit(lambda module, images: module(images))(module, images)
    assert features.tokens.shape == (2, 16, OBJECT.width)
    assert relative_error(features.tokens, expected) <= BLOCK_TOLERANCE
    assert relative_error(features.vector, expected.mean(1)) <= BLOCK_TOLERANCE


def test_object_encoder_parity_sees_every_array(object_twin):
    module, arrays, images, expected = object_twin
    forward = compiled(module, lambda copy, images: copy(images).tokens)
    assert insensitive(lambda variables: forward(variables, images), arrays, expected) == []


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
