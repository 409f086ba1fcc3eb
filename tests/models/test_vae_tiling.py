"""The bounded-memory VAE against diffusers' slicing and tiling, and what it asks of the device."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from flax import nnx

from convert.engine.rules import convert
from convert.families.cogvideox_vae import rules
from tests.models.test_vae import from_torch, random, to_torch
from tests.support.parity import BLOCK_TOLERANCE, numpy_state, randomize, relative_error
from tora2_jax.config import VAEConfig
from tora2_jax.models.layers.basic import assign_variables, flat_variables
from tora2_jax.models.vae import tiling
from tora2_jax.models.vae.layers import convolve_causally, native_causal
from tora2_jax.models.vae.tiling import Tiles, VAEMemory
from tora2_jax.models.vae.vae import CausalVAE

CONFIG = VAEConfig(
    channels=(8, 12), layers_per_block=1, latent_channels=4, norm_groups=4, temporal_compression=2
)
COMPRESSION = 2
TILES = Tiles(height=8, width=5, overlap_height=0.25, overlap_width=0.2)
LATENTS = (2, 5, 14, 10, CONFIG.latent_channels)  # two chunks, three by three tiles, edges smaller
VIDEO = (2, 17, 14 * COMPRESSION, 10 * COMPRESSION, 3)


@cache
def twins() -> tuple[AutoencoderKLCogVideoX, CausalVAE]:
    levels = len(CONFIG.channels)
    reference = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * levels,
        up_block_types=("CogVideoXUpBlock3D",) * levels,
        block_out_channels=CONFIG.channels,
        latent_channels=CONFIG.latent_channels,
        layers_per_block=CONFIG.layers_per_block,
        norm_num_groups=CONFIG.norm_groups,
        temporal_compression_ratio=CONFIG.temporal_compression,
    )
    randomize(reference, seed=0)
    model = CausalVAE(CONFIG, rngs=nnx.Rngs(0))
    arrays = convert(rules(CONFIG), numpy_state(reference), flat_variables(model))
    assign_variables(model, arrays)
    return reference, model


@pytest.fixture
def reference():
    """Diffusers' VAE, with slicing and tiling off before and after."""
    reference, _ = twins()
    yield reference
    reference.use_slicing = reference.use_tiling = False


def enable_tiling(reference: AutoencoderKLCogVideoX, tiles: Tiles):
    reference.enable_tiling(
        tile_sample_min_height=tiles.height * COMPRESSION,
        tile_sample_min_width=tiles.width * COMPRESSION,
        tile_overlap_factor_height=tiles.overlap_height,
        tile_overlap_factor_width=tiles.overlap_width,
    )


def reference_decode(reference: AutoencoderKLCogVideoX, latents: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return from_torch(reference.decode(to_torch(latents)).sample)


def reference_encode(reference: AutoencoderKLCogVideoX, video: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        posterior = reference.encode(to_torch(video)).latent_dist
    return [from_torch(posterior.mean), from_torch(posterior.logvar)]


@pytest.fixture
def shapes(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of the chunks that reach the device."""
    seen, run_chunk = [], tiling.run_chunk

    def record(graph, state, chunk, cache):
        seen.append(chunk.shape)
        return run_chunk(graph, state, chunk, cache)

    monkeypatch.setattr(tiling, "run_chunk", record)
    return seen


def test_tiled_decode(reference, shapes):
    _, model = twins()
    latents = random(*LATENTS)
    enable_tiling(reference, TILES)
    expected = reference_decode(reference, latents)
    actual = tiling.decode(model, latents, "tiled", TILES)
    assert isinstance(actual, np.ndarray)
    assert relative_error(actual, expected) < BLOCK_TOLERANCE
    assert len(shapes) == 2 * 9 * 2
    assert len(set(shapes)) == 4 * 2
    assert np.max(shapes, axis=0).tolist() == [1, 3, 8, 5, CONFIG.latent_channels]


def test_tiled_encode(reference, shapes):
    _, model = twins()
    video = random(*VIDEO)
    enable_tiling(reference, TILES)
    mean, log_variance = reference_encode(reference, video)
    actual = tiling.encode(model, video, "tiled", TILES)
    assert relative_error(actual.mean, mean) < BLOCK_TOLERANCE
    assert relative_error(actual.log_variance, log_variance) < BLOCK_TOLERANCE
    assert np.max(shapes, axis=0).tolist() == [1, 9, 8 * COMPRESSION, 5 * COMPRESSION, 3]


@pytest.mark.parametrize("memory", ["chunked", "whole"])
def test_slicing(reference, shapes, memory):
    """One video at a time there; one video and one chunk at a time here."""
    _, model = twins()
    latents, video = random(2, 5, 4, 6, CONFIG.latent_channels), random(2, 17, 8, 12, 3)
    reference.enable_slicing()
    decoded = tiling.decode(model, latents, memory)
    assert relative_error(decoded, reference_decode(reference, latents)) < BLOCK_TOLERANCE
    encoded = tiling.encode(model, video, memory)
    for actual, expected in zip(encoded, reference_encode(reference, video), strict=True):
        assert relative_error(actual, expected) < BLOCK_TOLERANCE
    scaled = tiling.encode_latents(model, video, memory)
    assert relative_error(scaled, encoded.mean * CONFIG.scaling_factor) < BLOCK_TOLERANCE
    again = tiling.decode_latents(model, latents * CONFIG.scaling_factor, memory)
    assert relative_error(again, decoded) < BLOCK_TOLERANCE
    assert all(shape[:2] in {(1, 3), (1, 2), (1, 9), (1, 8)} for shape in shapes)
    assert bool(shapes) == (memory == "chunked")


def test_what_fits_into_one_tile_is_not_tiled(shapes):
    _, model = twins()
    latents, tiles = random(1, 5, 4, 6, CONFIG.latent_channels), Tiles(height=6, width=10)
    decoded = tiling.decode(model, latents, "tiled", tiles)
    np.testing.assert_array_equal(decoded, tiling.decode(model, latents, "chunked"))
    assert {shape[2:4] for shape in shapes} == {(4, 6)}


@pytest.mark.parametrize(("height", "width"), [(480, 720), (96, 160)])
def test_published_tiles(height, width):
    published = AutoencoderKLCogVideoX(layers_per_block=1, sample_height=height, sample_width=width)
    config = VAEConfig(sample_height=height, sample_width=width)
    tiles = tiling.tiles_of(config, 8)
    assert (tiles.height, tiles.width) == (
        published.tile_latent_min_height,
        published.tile_latent_min_width,
    )
    assert tiles.overlap_height == published.tile_overlap_factor_height
    assert tiles.overlap_width == published.tile_overlap_factor_width


def test_default_tiles():
    assert tiling.tiles_of(VAEConfig(), 8) == tiling.DEFAULT_TILES
    assert tiling.DEFAULT_TILES.strides == (25, 36)


def test_the_least_memory_of_a_vae_without_tiles_is_a_chunk():
    assert tiling.least_memory(VAEConfig(), 8) == "tiled"
    assert tiling.least_memory(VAEConfig(sample_height=48), 8) == "chunked"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 32}, "height 32 with overlap_height 0.166667 would lie 26.6667 latents apart"),
        ({"width": 12}, "overlap_width"),
        ({"width": 0, "overlap_width": 0}, "whole number from 1"),
        ({"height": 30, "overlap_height": 1}, "0 latents apart"),
        ({"height": 30, "overlap_height": -0.1}, "whole number"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Tiles(**settings)


def test_other_refusals():
    _, model = twins()
    with pytest.raises(ValueError, match="'little'; it is one of: whole, chunked, tiled"):
        tiling.decode(model, random(1, 1, 2, 2, 4), "little")
    with pytest.raises(ValueError, match=r"7 x 4 pixels cannot be encoded: .* multiples of 2"):
        tiling.encode(model, random(1, 1, 7, 4, 3))


def device_bytes(memory: VAEMemory) -> int:
    """Of decoding two videos of three chunks, by the compiler's account."""
    _, model = twins()
    graph, state = nnx.split(model.decoder)
    if memory == "whole":
        latents = jnp.zeros((2, 7, 16, 20, CONFIG.latent_channels))
        lowered = tiling.run_whole.lower(graph, state, latents, model.latents_per_chunk)
    else:
        height, width = (16, 20) if memory == "chunked" else (8, 10)
        chunk = jnp.zeros((1, 3, height, width, CONFIG.latent_channels))
        lowered = tiling.run_chunk.lower(graph, state, chunk, None)
    sizes = lowered.compile().memory_analysis()
    return sizes.temp_size_in_bytes + sizes.output_size_in_bytes


def test_settings_bound_the_device_memory():
    whole, chunked, tiled = (device_bytes(memory) for memory in ("whole", "chunked", "tiled"))
    assert chunked < 0.7 * whole
    assert tiled < 0.4 * chunked


def test_causal_convolution_of_accelerators():
    """What GPU and TPU run is what the CPU runs, gradients included."""
    joined, kernel, weight = random(2, 5, 4, 6, 3), random(3, 3, 3, 3, 2), random(2, 3, 4, 6, 2)

    def loss(run):
        return jax.jit(
            jax.value_and_grad(lambda *inputs: (run(*inputs) * weight).sum(), argnums=(0, 1))
        )

    value, gradients = loss(convolve_causally)(joined, kernel)
    native, native_gradients = loss(native_causal)(joined, kernel)
    assert relative_error(value, native) < BLOCK_TOLERANCE
    for actual, expected in zip(gradients, native_gradients, strict=True):
        assert relative_error(actual, expected) < BLOCK_TOLERANCE


@pytest.mark.parametrize("memory", ["whole", "chunked", "tiled"])
def test_decoding_is_reported_part_by_part(memory):
    vae = CausalVAE(CONFIG, rngs=nnx.Rngs(0))
    tiles = tiling.Tiles(height=4, width=4, overlap_height=0.5, overlap_width=0.5)
    told = []
    latents = np.zeros((1, 5, 6, 4, CONFIG.latent_channels), np.float32)
    tiling.decode_latents(vae, latents, memory, tiles, lambda *call: told.append(call))
    total = {"whole": 1, "chunked": 2, "tiled": 2 * 3 * 2}[memory]
    assert told == [(done, total) for done in range(total + 1)]
