"""The causal VAE against diffusers' AutoencoderKLCogVideoX, and its training objective."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from flax import nnx

from convert.engine.rules import ConversionError, convert, export
from convert.families.cogvideox_vae import rules
from tests.support.parity import (
    BLOCK_TOLERANCE,
    insensitive,
    numpy_state,
    randomize,
    relative_error,
)
from tora2_jax.config import ModelConfig, VAEConfig
from tora2_jax.config.train import TrainConfig
from tora2_jax.models.layers.basic import assign_variables, flat_variables
from tora2_jax.models.vae.layers import Memory, convolve
from tora2_jax.models.vae.vae import CausalVAE
from tora2_jax.train.stages import vae as stage

CONFIG = VAEConfig(channels=(8, 12, 12, 16), layers_per_block=1, latent_channels=4, norm_groups=4)
HEIGHT, WIDTH = 24, 16


def torch_vae(config: VAEConfig) -> AutoencoderKLCogVideoX:
    return AutoencoderKLCogVideoX(
        block_out_channels=config.channels,
        latent_channels=config.latent_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_groups,
        norm_eps=config.norm_eps,
        scaling_factor=config.scaling_factor,
    )


@cache
def twins() -> tuple[AutoencoderKLCogVideoX, CausalVAE]:
    reference = randomize(torch_vae(CONFIG), seed=0)
    model = CausalVAE(CONFIG, rngs=nnx.Rngs(0))
    arrays = convert(rules(CONFIG), numpy_state(reference), flat_variables(model))
    assign_variables(model, arrays)
    return reference, model


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def to_torch(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def from_torch(x: torch.Tensor) -> np.ndarray:
    return np.moveaxis(x.detach().numpy(), 1, -1)


@pytest.mark.parametrize("frames", [1, 17, 25])
def test_encode(frames):
    reference, model = twins()
    video = random(2, frames, HEIGHT, WIDTH, 3)
    with torch.no_grad():
        expected = reference.encode(to_torch(video)).latent_dist
    posterior = jax.jit(model.encode)(video)
    assert relative_error(posterior.mean, from_torch(expected.mean)) < BLOCK_TOLERANCE
    assert relative_error(posterior.log_variance, from_torch(expected.logvar)) < BLOCK_TOLERANCE


@pytest.mark.parametrize("latent_frames", [1, 5, 7])
def test_decode(latent_frames):
    reference, model = twins()
    latents = random(2, latent_frames, 3, 2, CONFIG.latent_channels)
    with torch.no_grad():
        expected = reference.decode(to_torch(latents)).sample
    assert relative_error(jax.jit(model.decode)(latents), from_torch(expected)) < BLOCK_TOLERANCE


def test_scaled_latents():
    _, model = twins()
    video = random(1, 9, HEIGHT, WIDTH, 3)
    key = jax.random.key(0)

    @jax.jit
    def run(video):
        mean, log_variance = posterior = model.encode(video)
        noise = jax.random.normal(key, mean.shape)
        scaled = model.encode_latents(video), model.sample_latents(video, key)
        decoded = model.decode(mean), model.decode_latents(scaled[0])
        return posterior, mean + jnp.exp(log_variance / 2) * noise, scaled, decoded

    posterior, draw, (mode, sample), (unscaled, rescaled) = run(video)
    assert relative_error(mode, posterior.mean * CONFIG.scaling_factor) < BLOCK_TOLERANCE
    assert relative_error(sample, draw * CONFIG.scaling_factor) < BLOCK_TOLERANCE
    assert relative_error(rescaled, unscaled) < BLOCK_TOLERANCE


BLOCKS = [
    ("encoder.down_blocks.1.resnets.0", (2, 5, 6, 4, 8), None),
    ("encoder.down_blocks.0", (2, 9, 6, 4, 8), None),
    ("encoder.down_blocks.2", (2, 4, 6, 4, 12), None),
    ("decoder.up_blocks.3.resnets.0", (2, 9, 6, 4, 12), (2, 3, 3, 2, 4)),
    ("decoder.up_blocks.0", (2, 3, 6, 4, 16), (2, 3, 6, 4, 4)),
    ("decoder.up_blocks.1", (2, 4, 6, 4, 16), (2, 2, 3, 2, 4)),
]


def submodule(module, path: str):
    for name in path.split("."):
        module = module[int(name)] if name.isdigit() else getattr(module, name)
    return module


@pytest.mark.parametrize(("path", "shape", "latent_shape"), BLOCKS)
def test_block_with_cache(path, shape, latent_shape):
    """One block, twice: without a past, then with what the first call left."""
    ours, theirs = (submodule(twin, path) for twin in reversed(twins()))
    latents = [] if latent_shape is None else [random(*latent_shape, seed=9)]
    past, their_past = None, None

    @jax.jit
    def run(x, past):
        memory = Memory(past)
        return ours(x, memory, *map(jnp.asarray, latents)), memory.for_next_chunk()

    for seed in range(2):
        x = random(*shape, seed=seed)
        actual, past = run(x, past)
        torch_latents = to_torch(latents[0]) if latents else None
        with torch.no_grad():
            expected, their_past = theirs(to_torch(x), None, torch_latents, their_past)
        assert relative_error(actual, from_torch(expected)) < BLOCK_TOLERANCE


@pytest.mark.long
def test_every_tensor_matters():
    """One chunk, both ways; and a change of one per cent in any tensor must show."""
    reference, model = twins()
    video = random(2, 9, HEIGHT, WIDTH, 3)
    latents = random(2, 3, 3, 2, CONFIG.latent_channels, seed=1)
    graph, state = nnx.split(model)

    @jax.jit
    def outputs(state, arrays):
        copy = nnx.merge(graph, state)
        assign_variables(copy, arrays)
        posterior = copy.encode(jnp.asarray(video))
        return posterior.mean, posterior.log_variance, copy.decode(jnp.asarray(latents))

    with torch.no_grad():
        moments = reference.encode(to_torch(video)).latent_dist
        decoded = reference.decode(to_torch(latents)).sample
    expected = [from_torch(x) for x in (moments.mean, moments.logvar, decoded)]

    def joined(arrays):
        pairs = zip(outputs(state, arrays), expected, strict=True)
        return np.concatenate([(np.asarray(x) / np.abs(y).max()).ravel() for x, y in pairs])

    target = np.concatenate([(y / np.abs(y).max()).ravel() for y in expected])
    arrays = {path: np.asarray(value) for path, value in flat_variables(model).items()}
    assert relative_error(joined(arrays), target) < BLOCK_TOLERANCE
    assert insensitive(joined, arrays, target) == []


def test_full_size_table_is_strict_both_ways():
    config = VAEConfig()
    with torch.device("meta"):
        reference = torch_vae(config)
    tensors = {
        name: np.zeros(tensor.shape, np.float16) for name, tensor in reference.state_dict().items()
    }
    model = nnx.eval_shape(lambda: CausalVAE(config, rngs=nnx.Rngs(0)))
    target = flat_variables(model)
    assert sum(int(np.prod(value.shape)) for value in target.values()) == 215_583_907
    arrays = convert(rules(config), tensors, target)
    back = export(rules(config), arrays)
    assert {name: value.shape for name, value in back.items()} == {
        name: value.shape for name, value in tensors.items()
    }
    del tensors["decoder.conv_out.conv.bias"]
    tensors["decoder.surplus"] = np.zeros(1, np.float16)
    with pytest.raises(ConversionError) as error:
        convert(rules(config), tensors, target)
    assert "missing: decoder.conv_out.bias" in str(error.value)
    assert "extra: decoder.surplus" in str(error.value)


def test_gradient_of_the_convolution():
    """The gradient that is written by hand is the one of the plain convolution."""
    x, kernel, weight = random(3, 5, 4, 2), random(3, 3, 2, 6), random(3, 5, 4, 6)

    def plain(x, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)
        return (y * weight).sum()

    def ours(x, kernel):
        return (convolve(x, kernel) * weight).sum()

    expected = jax.grad(plain, argnums=(0, 1))(x, kernel)
    found = jax.grad(ours, argnums=(0, 1))(jnp.asarray(x), jnp.asarray(kernel))
    for actual, gradient in zip(found, expected, strict=True):
        assert relative_error(actual, gradient) < BLOCK_TOLERANCE


def test_stage():
    config = TrainConfig(stage="vae", model=ModelConfig(vae=CONFIG))
    examples = stage.source(config)
    video = np.stack([examples[index]["video"] for index in range(8)])
    assert video.shape == (8, 9, 48, 48, 3)
    assert video.dtype == np.float32
    assert np.abs(video).max() <= 1
    np.testing.assert_array_equal(stage.source(config)[5]["video"], video[5])
    graph, state = nnx.split(stage.build(config, nnx.Rngs(0)))
    state = jax.tree.map(lambda leaf: leaf + 0.05, state)  # kernels that start at zero, too

    @jax.jit
    def step(state, batch):
        def objective(state):
            return stage.loss(config, nnx.merge(graph, state), batch, jax.random.key(0))

        (value, metrics), gradients = jax.value_and_grad(objective, has_aux=True)(state)
        return value, metrics, gradients

    batch = {name: value[None] for name, value in examples[0].items()}
    value, metrics, gradients = step(state, batch)
    assert set(metrics) == {"psnr", "kl"}
    assert np.isfinite(value)
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(gradients))
    assert 0 < batch["foreground"].mean() < 1
    other, _, _ = step(state, batch | {"foreground": ~batch["foreground"]})
    assert other != value


def test_latent_scale_gives_unit_variance():
    _, model = twins()
    batches = [jnp.asarray(random(1, 1, HEIGHT, WIDTH, 3, seed=seed)) for seed in range(3)]
    factor = stage.latent_scale(model, batches)
    latents = np.stack([jax.jit(model.encode)(video).mean for video in batches])
    assert abs((latents * factor).std() - 1) < 1e-4
