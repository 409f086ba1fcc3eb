"""What tokens have to draw, and what linear probes read off features."""

import jax
import jax.numpy as jnp
import numpy as np

from tora2_jax.train.stages import local_appearance, probes
from tora2_jax.world.entities import sample_entity


def test_cells_are_the_means_of_their_pixels():
    images = np.random.default_rng(0).random((2, 24, 16, 3), np.float32)
    cells = np.asarray(local_appearance.cells(jnp.asarray(images), 3, 2))
    assert cells.shape == (2, 6, 48)
    for row, column in ((0, 1), (2, 0)):
        cell = images[1, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        means = [
            cell[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((0, 1))
            for y in range(4)
            for x in range(4)
        ]
        np.testing.assert_allclose(cells[1, 2 * row + column], np.ravel(means), rtol=1e-5)
    square = jnp.asarray(images[:, :16])
    drawn = local_appearance.cells(square, 2, 2)
    assert local_appearance.drawing_loss(drawn, square) == 0
    np.testing.assert_allclose(local_appearance.drawing_loss(drawn + 0.5, square), 0.25, rtol=1e-5)


def test_whole_patches_of_half_of_the_images_become_gray():
    images = jnp.zeros((400, 8, 8, 3))
    masked = np.asarray(local_appearance.mask_patches(images, 4, jax.random.key(0)))
    patches = masked.reshape(400, 2, 4, 2, 4, 3).swapaxes(2, 3).reshape(400, 4, -1)
    assert np.all((patches == 0).all(-1) | (patches == 0.5).all(-1))
    shares = (patches == 0.5).all(-1).mean(1)
    assert 0.15 < shares.mean() < 0.25  # 0.4 of the patches of half of the images
    assert 0.45 < (shares == 0).mean() < 0.68


def test_a_probe_reads_what_is_linear_and_nothing_else():
    def examples(word, count, linear):
        rng = np.random.default_rng(7)
        entities = [sample_entity((1, member), word, "bold") for member in range(count)]
        wanted = np.stack([probes.targets(entity) for entity in entities])
        known = wanted / wanted.std(0) if linear else rng.normal(size=wanted.shape)
        return known @ rng.normal(size=(wanted.shape[1], 20)), entities

    good = probes.probe(["star"], lambda word, count: examples(word, count, True))
    assert good.color_error < 3 and good.shape_r2 > 0.97
    bad = probes.probe(["star"], lambda word, count: examples(word, count, False))
    assert bad.color_error > 50 and bad.shape_r2 < 0.1
    people = probes.probe(["man"], lambda word, count: examples(word, count, True))
    assert people.color_error < 3 and np.isnan(people.shape_r2)


def test_a_feature_that_is_dead_in_the_fitted_examples_does_no_harm():
    rng = np.random.default_rng(5)
    features, others = rng.standard_normal((2, 60, 8))
    features[:, 0] = 0
    features[3, 0] = 1e-5  # nearly dead here, alive in the others
    wanted = features[:, 1:] @ rng.standard_normal((7, 2))
    expected = probes.ridge(features[:, 1:], wanted, others[:, 1:], 1e-3)
    said = probes.ridge(features, wanted, others, 1e-3)
    assert np.abs(said - expected).max() < 0.01 * np.abs(expected).max()
