"""The bounded-memory VAE against diffusers' slicing and tiling, and against the plain path."""

from contextlib import contextmanager

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX

from tests.parity import BLOCK_TOLERANCE, relative_error
from tests.test_vae import CONFIG, from_torch, random, to_torch, twins
from tora2_jax.models import vae_tiling
from tora2_jax.models.vae_tiling import Tiles

COMPRESSION = 8
LATENTS = (2, 5, 7, 10, CONFIG.latent_channels)  # two chunks; three by three tiles, edges smaller
VIDEO = (2, 17, 7 * COMPRESSION, 10 * COMPRESSION, 3)
TILES = Tiles(height=4, width=5, overlap_height=0.25, overlap_width=0.2)


@contextmanager
def tiling(reference: AutoencoderKLCogVideoX, tiles: Tiles):
    reference.enable_tiling(
        tile_sample_min_height=tiles.height * COMPRESSION,
        tile_sample_min_width=tiles.width * COMPRESSION,
        tile_overlap_factor_height=tiles.overlap_height,
        tile_overlap_factor_width=tiles.overlap_width,
    )
    yield
    reference.disable_tiling()


def recorded(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of the chunks that reach the device from now on."""
    shapes, run_chunk = [], vae_tiling.run_chunk

    def record(graph, state, chunk, cache):
        shapes.append(chunk.shape)
        return run_chunk(graph, state, chunk, cache)

    monkeypatch.setattr(vae_tiling, "run_chunk", record)
    return shapes


def test_tiled_decode(monkeypatch):
    reference, model = twins()
    latents, shapes = random(*LATENTS), recorded(monkeypatch)
    with tiling(reference, TILES), torch.no_grad():
        expected = from_torch(reference.decode(to_torch(latents)).sample)
    actual = vae_tiling.decode(model, latents, "tiled", TILES)
    assert isinstance(actual, np.ndarray)
    assert relative_error(actual, expected) < BLOCK_TOLERANCE
    assert len(shapes) == 2 * 9 * 2
    assert len(set(shapes)) == 4 * 2
    assert np.max(shapes, axis=0).tolist() == [1, 3, 4, 5, CONFIG.latent_channels]


def test_tiled_encode(monkeypatch):
    reference, model = twins()
    video, shapes = random(*VIDEO), recorded(monkeypatch)
    with tiling(reference, TILES), torch.no_grad():
        expected = reference.encode(to_torch(video)).latent_dist
    actual = vae_tiling.encode(model, video, "tiled", TILES)
    assert relative_error(actual.mean, from_torch(expected.mean)) < BLOCK_TOLERANCE
    assert relative_error(actual.log_variance, from_torch(expected.logvar)) < BLOCK_TOLERANCE
    assert np.max(shapes, axis=0).tolist() == [1, 9, 4 * COMPRESSION, 5 * COMPRESSION, 3]
