"""The recognition networks in training: batch statistics; and images of a size that is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tora2_jax.config import ArcFaceConfig, ObjectEncoderConfig
from tora2_jax.models.encoders.arcface import ArcFace
from tora2_jax.models.encoders.object_encoder import ObjectEncoder
from tora2_jax.models.layers.batch_norm import BatchNorm

torch = pytest.importorskip("torch")


def test_wrong_sizes_are_refused():
    config = ArcFaceConfig(image_size=16, layers=(1, 1), widths=(4, 8), embedding=4)
    with pytest.raises(ValueError, match="resize them to 16"):
        nnx.eval_shape(lambda: ArcFace(config, rngs=nnx.Rngs(0))(jnp.zeros((1, 24, 24, 3))))
    config = ObjectEncoderConfig(image_size=64, image_width=32)
    with pytest.raises(ValueError, match="resize them to 64 x 32"):
        nnx.eval_shape(lambda: ObjectEncoder(config, rngs=nnx.Rngs(0))(jnp.zeros((1, 64, 64, 3))))


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
    np.testing.assert_allclose(module(jnp.asarray(x)), stored.detach(), atol=1e-5)


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
