"""Face and object encoders against their PyTorch references, plus batch statistics."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convert import arcface as arcface_table
from convert import object_encoder as object_table
from convert.engine import convert
from tests import weights_rule
from tests.parity import BLOCK_TOLERANCE, insensitive, numpy_state, randomise, relative_error
from tora2_jax.config import ArcFaceConfig, ObjectEncoderConfig
from tora2_jax.models.arcface import ArcFace
from tora2_jax.models.batch_norm import BatchNorm
from tora2_jax.models.layers import assign_variables, flat_variables
from tora2_jax.models.object_encoder import IMAGENET_MEAN, IMAGENET_STD, ObjectEncoder

torch = pytest.importorskip("torch")
GOLDEN = Path(__file__).parent / "golden"
OBJECT = ObjectEncoderConfig(image_size=64, layers=(2, 1, 1, 1), base_width=4, last_stride=1)


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


def test_wrong_sizes_are_refused():
    config = ArcFaceConfig(image_size=16, layers=(1, 1), widths=(4, 8), embedding=4)
    with pytest.raises(ValueError, match="resize them to 16"):
        nnx.eval_shape(lambda: ArcFace(config, rngs=nnx.Rngs(0))(jnp.zeros((1, 24, 24, 3))))


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
