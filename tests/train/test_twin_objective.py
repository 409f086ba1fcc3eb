"""The diffusion stages' objective and its random draws against NumPy, with a stand-in network.

The network is a known function of everything that it is given, so that a loss says exactly which
noise, timesteps, targets and conditions it was computed from.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import twin_entities as twin
from tests.support.parity import BLOCK_TOLERANCE, relative_error
from tests.support.random_conditions import quick_jit
from tora2_jax import config as settings
from tora2_jax.config.train import ClipFolderConfig, DropoutConfig, TrainConfig
from tora2_jax.models.tora2 import Bound
from tora2_jax.train.stages import diffusion as stage
from tora2_jax.types import Conditions, ContrastEmbeddings

BATCH, ENTITIES, REFERENCES, WORDS, LENGTH, WIDTH = 2, 3, 2, 2, 5, 6
LATENT, GRID = (4, 6, 3), (2, 3)  # rows, columns, channels of latents; rows, columns of tokens
RATES = {"caption": 0.5, "references": 0.2, "trajectories": 0.4, "entity_references": 0.1}
SAMPLES = 40_000


def training(**changes) -> TrainConfig:
    model = settings.toy()
    model.text.width, model.text.vocab_size = WIDTH, 11
    model.transformer.max_text_length = LENGTH
    model.transformer.patch_size_t = changes.pop("patch_size_t", None)
    model.null_text = changes.pop("null_text", "empty")
    return TrainConfig(stage="tora2", model=model, **changes)


def random_batch(frames: int, token_frames: int, image_frames: int | None = None) -> dict:
    """What a pool holds, every number random, also of what is absent; no width is a height."""
    rng = np.random.default_rng(0)
    entities, references = (BATCH, ENTITIES), (BATCH, ENTITIES, REFERENCES)
    floats = {
        "latents": (BATCH, frames, *LATENT),
        "motion_latents": (BATCH, token_frames, *LATENT),
        "splat": (*entities, token_frames, *GRID),
        "path": (*entities, token_frames, 4),
        "dino": (*references, 4, WIDTH),
    }
    if image_frames is not None:
        floats["image_latents"] = (BATCH, image_frames, *LATENT)
    masks = {"reference_mask": references, "prior_mask": references, "is_human": entities}
    masks |= {"on": (*entities, token_frames), "word_mask": (*entities, WORDS)}
    batch = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in floats.items()}
    batch |= {name: rng.random(shape) < 0.7 for name, shape in masks.items()}
    batch["token_ids"] = rng.integers(2, 11, (BATCH, LENGTH)).astype(np.int32)
    batch["word_index"] = rng.integers(0, LENGTH, (*entities, WORDS)).astype(np.int32)
    return batch


TABLE = np.random.default_rng(1).standard_normal((11, WIDTH)).astype(np.float32)
EMBEDDINGS = np.random.default_rng(2).standard_normal((2, BATCH, ENTITIES, 4)).astype(np.float32)
EMBEDDINGS /= np.linalg.norm(EMBEDDINGS, axis=-1, keepdims=True)


def reading(c) -> jax.Array | np.ndarray:
    """One number per sample of all that a model may look at, each entry with its own weight."""
    present = c.reference_mask[..., None, None]
    seen = [
        c.text,
        c.words * c.word_mask[..., None],
        c.splat * c.on[..., None, None],
        c.path * c.on[..., None],
        c.dino * present,
        c.prior_mask & c.reference_mask,
        c.motion_latents * c.on.any((1, 2))[:, None, None, None, None],
        c.is_human,
    ]
    seen += [] if c.image_latents is None else [c.image_latents]
    total = 0
    for index, values in enumerate(seen):
        weights = np.cos(index + np.arange(values[0].size)) / values[0].size ** 0.5
        total = total + values.reshape(len(values), -1) @ weights.astype(np.float32)
    return total


def answer(noisy, timestep, seen):
    """The stand-in's velocity."""
    return 0.3 * noisy + (timestep / 700 + 0.4 * seen)[:, None, None, None, None]


class StandIn(stage.DiffusionModel):
    """A diffusion model that looks at everything."""

    def __init__(self):
        self.tora2 = self
        self.text = lambda ids: jnp.asarray(TABLE)[ids]

    def bind(self, conditions: Conditions) -> Bound:
        takes_part = conditions.reference_mask.any(-1) & conditions.on.any(-1)
        contrast = ContrastEmbeddings(*jnp.asarray(EMBEDDINGS), takes_part)
        return Bound(conditions, contrast, {})

    def __call__(self, noisy, timestep, conditions):
        return answer(noisy, timestep, reading(conditions))


def noise_schedule(steps: int = 1000, first: float = 0.00085, last: float = 0.012) -> np.ndarray:
    """CogVideoX's cumulative alphas without an SNR shift, brought to a terminal SNR of 0."""
    beta = (first**0.5 + np.arange(steps) / (steps - 1) * (last**0.5 - first**0.5)) ** 2
    signal = np.sqrt(np.multiply.accumulate(1 - beta))
    return ((signal - signal[-1]) / (signal[0] - signal[-1]) * signal[0]) ** 2


def twin_loss(config: TrainConfig, batch: dict, draws) -> tuple[float, float, np.ndarray]:
    """Eqs. 7 and 8 with our decisions: total, contrastive, and diffusion loss per sample."""
    states = TABLE[batch["token_ids"]].astype(float)
    null = TABLE[[1, *[0] * (LENGTH - 1)]] if config.model.null_text == "empty" else np.zeros(WIDTH)
    names = ("motion_latents", "splat", "path", "dino", "is_human", "word_mask")
    seen = SimpleNamespace(**{name: batch[name] for name in names})
    seen.words = np.stack([rows[at] for rows, at in zip(states, batch["word_index"], strict=True)])
    seen.text = np.where(draws.keep_caption[:, None, None], states, null)
    seen.on = batch["on"] & draws.keep_trajectories[:, None, None]
    seen.reference_mask = batch["reference_mask"] & draws.keep_references[..., None]
    seen.prior_mask, seen.image_latents = batch["prior_mask"], batch.get("image_latents")
    if seen.image_latents is not None:
        seen.image_latents = seen.image_latents * draws.keep_image[:, None, None, None, None]

    clean = batch["latents"].astype(float)
    missing = draws.noise.shape[1] - clean.shape[1]  # frames in front without a loss
    clean = np.concatenate([clean[:, :1]] * missing + [clean], 1)
    alpha = noise_schedule()[draws.timestep][:, None, None, None, None]
    noisy = alpha**0.5 * clean + (1 - alpha) ** 0.5 * draws.noise
    target = alpha**0.5 * draws.noise - (1 - alpha) ** 0.5 * clean
    error = (answer(noisy, draws.timestep, reading(seen)) - target)[:, missing:]
    per_sample = (error**2).reshape(BATCH, -1).mean(1)
    coarse = twin_coarse(error)
    part = seen.reference_mask.any(-1) & seen.on.any(-1)
    sides = (side[part].astype(float) for side in EMBEDDINGS)
    contrastive = twin.contrastive_loss(*sides, config.model.binding.contrast_temperature)
    total = per_sample.mean() + config.contrast_weight * contrastive
    return total + config.coarse_weight * coarse, contrastive, per_sample


def twin_coarse(error: np.ndarray) -> float:
    """Mean square of the means of 4 x 4 latents, block by block."""
    squares = []
    for b, t, c in np.ndindex(*error.shape[:2], error.shape[-1]):
        plane = error[b, t, :, :, c]
        for row in range(0, plane.shape[0], 4):
            for column in range(0, plane.shape[1], 4):
                squares.append((plane[row : row + 4, column : column + 4].sum() / 16) ** 2)
    return float(np.mean(squares))


def draws_of(frames: int, timestep, caption, trajectories, references, image=(1, 1)) -> stage.Draws:
    noise = np.random.default_rng(3).standard_normal((BATCH, frames, *LATENT)).astype(np.float32)
    masks = [np.array(mask, bool) for mask in (caption, trajectories, references, image)]
    return stage.Draws(np.array(timestep, np.int32), noise, *masks)


def compare(config: TrainConfig, batch: dict, draws: stage.Draws) -> None:
    found = quick_jit(lambda batch, draws: stage.loss(config, StandIn(), batch, draws))(
        batch, draws
    )
    total, metrics = jax.tree.map(np.asarray, found)
    expected, contrastive, per_sample = twin_loss(config, batch, draws)
    assert relative_error(total, np.asarray(expected)) <= BLOCK_TOLERANCE
    assert relative_error(metrics["diffusion"], per_sample.mean()) <= BLOCK_TOLERANCE
    for quarter in range(4):
        share = metrics[f"diffusion_t{quarter}"]
        chosen = per_sample[draws.timestep // 250 == quarter]
        assert share.weight == len(chosen) / BATCH
        assert share.total == pytest.approx(chosen.sum() / BATCH, rel=BLOCK_TOLERANCE)
    if config.contrast_weight:
        assert metrics["contrastive"] == pytest.approx(contrastive, rel=BLOCK_TOLERANCE)
        assert contrastive > 0.01


ALL = np.ones((BATCH, ENTITIES))


@pytest.mark.parametrize(
    ("timestep", "kept"),
    [
        ((0, 999), ((1, 1), (1, 1), ALL)),
        ((260, 740), ((0, 1), (1, 1), [[1, 0, 1], [1, 1, 0]])),
        ((600, 30), ((1, 0), (0, 1), ALL)),
    ],
)
def test_loss(timestep, kept):
    config = training(contrast_weight=0.37)
    compare(config, random_batch(3, 3), draws_of(3, timestep, *kept))


def test_loss_of_coarse_means():
    config = training(coarse_weight=5.0)
    compare(config, random_batch(3, 3), draws_of(3, (900, 120), (1, 1), (1, 1), ALL))


def test_loss_without_contrast_and_with_zeros_for_a_dropped_caption():
    config = training(contrast_weight=0.0, null_text="zeros")
    compare(config, random_batch(3, 3), draws_of(3, (410, 995), (0, 0), (1, 1), ALL))


def test_padded_latents_have_no_loss():
    """CogVideoX 1.5: three latents are two token frames; the first latent stands twice."""
    config = training(patch_size_t=2)
    batch = random_batch(3, 2)
    compare(config, batch, draws_of(4, (100, 900), (1, 0), (1, 1), ALL))
    config.clips = ClipFolderConfig()
    drawn = jax.eval_shape(lambda key: stage.draw(config, batch, key), jax.random.key(0))
    assert drawn.noise.shape == (BATCH, 4, *LATENT)


def test_a_dropped_first_frame_is_zeros():
    config = training(clips=ClipFolderConfig())
    draws = draws_of(3, (700, 200), (1, 1), (1, 1), ALL, image=(0, 1))
    compare(config, random_batch(3, 3, image_frames=3), draws)


@pytest.fixture(scope="module")
def drawn() -> stage.Draws:
    """The draws of very many samples, each with a rate of its own."""
    config = training(dropout=DropoutConfig(**RATES), clips=ClipFolderConfig(image_dropout=0.3))
    batch = {
        "latents": jnp.zeros((SAMPLES, 1, 1, 1, 1)),
        "on": jnp.zeros((SAMPLES, ENTITIES, 1), bool),
    }
    draws = quick_jit(lambda key: stage.draw(config, batch, key))(jax.random.key(5))
    return jax.tree.map(np.asarray, draws)


def test_every_condition_is_dropped_at_its_own_rate(drawn):
    close = {"abs": 4.5 * 0.5 / SAMPLES**0.5}  # standard deviations of a share
    assert drawn.keep_caption.mean() == pytest.approx(0.5, **close)
    assert drawn.keep_trajectories.mean() == pytest.approx(0.6, **close)
    assert drawn.keep_image.mean() == pytest.approx(0.7, **close)
    assert drawn.keep_references.shape == (SAMPLES, ENTITIES)
    for entity in drawn.keep_references.T:
        assert entity.mean() == pytest.approx(0.8 * 0.9, **close)
    # Of a sample all or, at random, some: three entities are kept together in 0.8 * 0.9**3.
    assert drawn.keep_references.all(1).mean() == pytest.approx(0.8 * 0.9**3, **close)
    assert drawn.keep_references.any(1).mean() == pytest.approx(0.8 * (1 - 0.1**3), **close)


def test_timesteps_are_uniform_from_0_to_999(drawn):
    times = drawn.timestep
    assert times.min() == 0 and times.max() == 999
    counts = np.bincount(times, minlength=1000)
    expected = SAMPLES / 1000
    spread = ((counts - expected) ** 2 / expected).sum()  # chi-square of 999 degrees of freedom
    assert abs(spread - 999) < 4.5 * (2 * 999) ** 0.5


def test_timesteps_with_a_shift_have_its_distribution():
    times = stage.draw_timesteps(jax.random.key(6), SAMPLES, 1000, 3.0)
    counts = np.bincount(np.asarray(times), minlength=1000)
    edge = np.arange(1001) / 1000
    expected = SAMPLES * np.diff(edge / (3 - 2 * edge))  # where u must lie, the map solved for u
    assert len(counts) == 1000 and counts[0] > 0 and counts[999] > 0
    spread = ((counts - expected) ** 2 / expected).sum()
    assert abs(spread - 999) < 4.5 * (2 * 999 + (1 / expected).sum()) ** 0.5


def test_draws_are_independent(drawn):
    entities = drawn.keep_references
    draws = {
        "timestep": drawn.timestep,
        "noise": drawn.noise.reshape(-1),
        "caption": drawn.keep_caption,
        "trajectories": drawn.keep_trajectories,
        "image": drawn.keep_image,
        "references": entities.any(1),
        # Among samples that keep any, entities are dropped one by one.
        "entity": entities[:, 0],
    }
    names = list(draws)
    table = np.corrcoef(np.stack([draws[name].astype(float) for name in names]))
    limit = 4.5 / SAMPLES**0.5
    dependent = {
        frozenset((names[i], names[j])) for i, j in np.argwhere(np.abs(table) > limit) if i < j
    }
    assert dependent == {frozenset(("references", "entity"))}
    kept = entities[entities.any(1)].astype(float)
    among = np.corrcoef(kept.T)[np.triu_indices(ENTITIES, 1)]
    # Given that one is left: P(both) = 0.81 / 0.999, P(one) = 0.9 / 0.999.
    one, both = 0.9 / 0.999, 0.81 / 0.999
    np.testing.assert_allclose(among, (both - one**2) / (one - one**2), atol=limit * 1.2)


def test_noise_is_standard_normal(drawn):
    noise = np.sort(drawn.noise.reshape(-1))
    assert noise.mean() == pytest.approx(0, abs=4.5 / SAMPLES**0.5)
    assert noise.var() == pytest.approx(1, abs=4.5 * (2 / SAMPLES) ** 0.5)
    assert np.mean(noise < -1) == pytest.approx(0.158655, abs=4.5 * 0.37 / SAMPLES**0.5)
