"""The VAE on a mesh: the same picture, of which every device has a part."""

import jax
import numpy as np
import pytest
from flax import nnx

from tests.support import sharded_step
from tests.support.parity import BLOCK_TOLERANCE, relative_error
from tora2_jax import parallel
from tora2_jax.config import VAEConfig
from tora2_jax.config.train import TrainConfig
from tora2_jax.hardware.collectives import collectives
from tora2_jax.models.layers.basic import flat_variables, update_variables
from tora2_jax.models.vae import tiling
from tora2_jax.models.vae.vae import CausalVAE
from tora2_jax.train.stages import vae as stage

CONFIG = VAEConfig(channels=(8, 16, 16), layers_per_block=1, latent_channels=4, norm_groups=4)
WIDTH = 6  # of the latents


@pytest.fixture(scope="module")
def vae() -> CausalVAE:
    """Every array random: the first ones have zeros, which would hide what is in the padding.

    Scales of norms are near 1: with wild ones, gradients turn one unit in the last place of the
    video into 1.5e-5 of themselves.
    """
    made = nnx.eval_shape(lambda: CausalVAE(CONFIG, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    shapes = flat_variables(made)
    arrays = {path: sharded_step.random_weights(rng, path, x) for path, x in shapes.items()}
    for path in arrays:
        if ".to_scale." in path:
            arrays[path] = arrays[path] / 10 + path.endswith("bias")
    update_variables(made, arrays)
    return made


def inputs(name: str, batch: int, rows: int) -> np.ndarray:
    """Three chunks of latents or of a video; the last two are alike."""
    shape = (7, rows, WIDTH, 4) if name == "decoder" else (25, 4 * rows, 4 * WIDTH, 3)
    return np.random.default_rng(1).standard_normal((batch, *shape), dtype=np.float32)


def program(vae: CausalVAE, name: str, x: np.ndarray):
    """All chunks: compiled, and what it makes."""
    graph, state = nnx.split(getattr(vae, name))
    size = vae.latents_per_chunk if name == "decoder" else vae.frames_per_chunk
    made = tiling.run_whole.lower(graph, state, x, size).compile()
    return made, np.asarray(made(*jax.device_put((state, x), made.input_shardings[0])))


def assert_cut(vae: CausalVAE, name: str, mesh: tuple[int, ...], batch: int, rows: int) -> None:
    """The numbers of one device, in a part of its memory; of the parts only the edges are sent."""
    x = inputs(name, batch, rows)
    whole, expected = program(vae, name, x)
    with parallel.use(sharded_step.mesh_of(*mesh)):
        cut, found = program(vae, name, x)
    assert relative_error(found, expected) < BLOCK_TOLERANCE
    with parallel.use(sharded_step.mesh_of(*mesh)):
        parts = parallel.row_parts(batch)
    used = rows / (rows + -rows % parts)  # the rest is padding
    memory = [made.memory_analysis().temp_size_in_bytes for made in (whole, cut)]
    assert memory[1] < memory[0] / (0.45 * np.prod(mesh) * used)
    # A row of pixels of a chunk's 9 frames, with three frames of 16 channels for a convolution.
    edge = batch * 9 * 4 * WIDTH * 3 * 16 * 4
    for exchange in collectives(cut.as_text()):
        # What comes out has to lose its padding, and is gathered for that.
        gathered = exchange.kind == "all-gather"
        assert exchange.size <= (expected.nbytes / used if gathered else edge), exchange
        assert not gathered or used < 1


def test_the_decoder_is_cut_into_parts_that_do_not_divide_the_picture(vae):
    assert_cut(vae, "decoder", (1, 1, 4, 1), batch=1, rows=15)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["encoder", "decoder"])
@pytest.mark.parametrize(
    ("mesh", "batch", "rows"),
    [
        ((1, 1, 8, 1), 1, 16),
        ((1, 1, 8, 1), 1, 15),
        ((1, 2, 2, 2), 2, 10),  # a sample each on half of the devices
        ((2, 1, 2, 2), 1, 12),  # one sample on all of them
        ((1, 1, 8, 1), 2, 3),  # less rows than devices
    ],
)
def test_networks_are_cut_on_other_meshes(vae, name, mesh, batch, rows):
    assert_cut(vae, name, mesh, batch, rows)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("memory", ["chunked", "tiled"])
def test_chunks_and_tiles_are_cut_too(vae, memory):
    tiles = tiling.Tiles(height=10, width=4, overlap_height=0.2, overlap_width=0.25)
    latents, video = inputs("decoder", 2, 15), inputs("encoder", 1, 7)

    def run() -> list[np.ndarray]:
        given = {"memory": memory, "tiles": tiles}
        return [tiling.decode(vae, latents, **given), *tiling.encode(vae, video, **given)]

    expected = run()
    with parallel.use(sharded_step.mesh_of(1, 1, 4, 2)):
        found = run()
    for one, two in zip(found, expected, strict=True):
        assert relative_error(one, two) < BLOCK_TOLERANCE


@pytest.mark.long
@pytest.mark.timeout(600)
def test_gradients_are_the_same_in_parts(vae):
    """Of the VAE's own training, which may have a mesh as well."""
    graph, state = nnx.split(vae)
    rng = np.random.default_rng(2)
    batch = {
        "video": rng.uniform(-1, 1, (2, 9, 24, 16, 3)).astype(np.float32),
        "foreground": rng.random((2, 9, 24, 16, 1)) < 0.5,
    }

    @jax.jit
    def gradients(state, batch):
        def loss(state):
            return stage.loss(TrainConfig(), nnx.merge(graph, state), batch, jax.random.key(0))[0]

        return jax.grad(loss)(state)

    def run() -> dict[str, np.ndarray]:
        found = nnx.to_flat_state(gradients(state, batch))
        return {".".join(map(str, path)): np.asarray(x.get_value()) for path, x in found}

    expected = run()
    with parallel.use(sharded_step.mesh_of(2, 1, 4, 1)):  # 4 parts of 6 rows of latents
        found = run()
    assert sharded_step.differences(found, expected)[0] < (1e-5,)
