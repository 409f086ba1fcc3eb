"""The three diffusion stages: base (captions only), motion, and tora2 (all).

Captions, references and trajectories are dropped independently per sample (paper, 4.1), references
also per entity (our decision), so that every combination of conditions is seen in training.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from tora2_jax import conditioning, diffusion, parallel
from tora2_jax.config import ModelConfig, to_dict
from tora2_jax.data import clip_folder, entity_clips, pool, world_examples
from tora2_jax.data.loader import TRIES, example_or_next
from tora2_jax.errors import CheckpointError, TrainError
from tora2_jax.hardware import flops
from tora2_jax.media import video
from tora2_jax.models import contrast, tora2
from tora2_jax.models.encoders.t5 import T5Encoder
from tora2_jax.models.frozen import FrozenNetworks
from tora2_jax.models.layers.basic import shape_rngs
from tora2_jax.models.vae import tiling
from tora2_jax.parallel import processes
from tora2_jax.references.faces import (
    GET_FACE_MODELS,
    FaceModelError,
    InsightFaceDetector,
    detector_file,
)
from tora2_jax.sampling import pipeline
from tora2_jax.sampling.result import to_uint8
from tora2_jax.system import feedback
from tora2_jax.text import load_tokenizer
from tora2_jax.train import measures
from tora2_jax.train.stage import Stage
from tora2_jax.types import Conditions
from tora2_jax.weights import checkpoint
from tora2_jax.weights.bundle import LoadedModel
from tora2_jax.weights.networks import misfits
from tora2_jax.weights.run_networks import (
    TRAINED,
    frozen_files,
    frozen_networks,
    networks_of,
    trained_model_config,
)
from tora2_jax.world.clips import render_clip

_COMPONENTS = {
    **{name: rf"(?P<prefix>tora2\.)({pattern})" for name, pattern in tora2.COMPONENTS.items()},
    "text": r"(?P<prefix>text\.).*",
}
COARSE = 4  # latents of a side of what `config.coarse_weight` averages
SAMPLED_CLIP = 1 << 40  # far beyond any pool


class DiffusionModel(nnx.Module):
    """Tora2 with its text encoder, which the base stage of the toy model trains as well."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, dtype=jnp.float32):
        self.tora2 = tora2.Tora2(config, rngs=rngs, dtype=dtype)
        self.text = T5Encoder(config.text, rngs=rngs)


def trainable(config) -> str:
    """Paths that the stage trains, as one pattern."""
    patterns = {name: rf"tora2\.({pattern})" for name, pattern in tora2.COMPONENTS.items()}
    patterns["text"] = r"text\..*"
    return "|".join(patterns[name] for name in TRAINED[config.stage])


def build(config, rngs: nnx.Rngs) -> DiffusionModel:
    """A fresh model; the training program gives it the weights that the config names."""
    return DiffusionModel(config.model, rngs, jnp.dtype(config.dtype))


def example_shapes(config) -> dict[str, jax.ShapeDtypeStruct]:
    """What `source` holds of each clip, without encoding one."""
    networks = nnx.eval_shape(
        lambda: FrozenNetworks(config.model, networks_of(config), rngs=shape_rngs())
    )
    return pool.shapes(networks, config.model)


def source(config) -> pool.Pool:
    """Encoded clips of the world or a folder; encodes them where the cache does not hold them.

    All processes must call it together.

    Raises:
        TrainError: lists all that the config does not name, or names and is not there, and all
            problems of the folder.
    """
    # The first process looks through the clips; the others find what it has kept.
    directory, model, examples = processes.first_then_others(lambda: _plan(config))
    devices = parallel.make_mesh(config.mesh).local_devices
    pool.build(directory, model, examples, lambda: frozen_networks(config, model), devices)
    return pool.Pool(directory, examples.describe)


def _plan(config) -> tuple[Path, ModelConfig, pool.Examples]:
    """Where the encoded clips are or go, and what they are made of."""
    files = frozen_files(config)
    found = None if config.clips is None else _look(config, config.model)
    _check(config, files, found)
    model = trained_model_config(config)
    examples = _examples(config, model, found)
    if config.clips is not None:
        examples.warn()
    with feedback.working("looking at the frozen weights", silent=not processes.is_first()):
        key = pool.fingerprint(model, examples, list(files.values()))
    return Path(config.cache_dir) / f"pool-{key}", model, examples


def _look(config, model: ModelConfig, most: int | None = None) -> clip_folder.Findings:
    return clip_folder.look_through(config.clips, model, config.cache_dir, most)


def _check(config, files: dict[str, str | None], found: clip_folder.Findings | None) -> None:
    needed = {f"weights.{name}": path for name, path in files.items()}
    settings = ("cache_dir", "tokenizer", *(["data_size"] if config.clips is None else []))
    needed |= {name: getattr(config, name) for name in settings}
    problems = [f"config.{name}: is needed" for name, value in needed.items() if value is None]
    if config.tokenizer is not None:
        try:
            load_tokenizer(config.tokenizer)
        except (OSError, ValueError) as error:
            problems.append(f"config.tokenizer: {error}")
    problems += _weight_problems(config)
    looks_for_faces = found is None
    if found is not None:
        problems += found.problems(config.clips)
        looks_for_faces = config.model.personalization is not None and found.shows_humans
    if looks_for_faces:
        problems += face_model_problems(config)
    if problems:
        raise TrainError(f"stage {config.stage} cannot start:\n  " + "\n  ".join(problems))


def _weight_problems(config) -> list[str]:
    """What does not fit, told before hours of encoding; of a training directory later."""
    problems, places = [], {}
    for name, path in to_dict(config.weights).items():
        if path is None:
            continue
        try:
            place = checkpoint.resolve(path, name)
        except CheckpointError as error:
            problems.append(f"config.weights.{name}: {error}")
            continue
        if not place.exists():
            problems.append(f"config.weights.{name}: {path} is not there")
        elif not (place / "checkpoints").is_dir():
            places[name] = place
    try:
        model = trained_model_config(config) if "vae" in places else config.model
    except (TrainError, CheckpointError) as error:
        return [*problems, f"config.weights.vae: {error}"]
    return problems + misfits(model, places, networks_of(config))


def _detector(config) -> InsightFaceDetector | None:
    """Of a model that looks for faces; None if there is none: `_check` says where one is needed."""
    if config.model.face_detector == "mask_top" or face_model_problems(config):
        return None
    return InsightFaceDetector(config.face_models)


def face_model_problems(config) -> list[str]:
    """Why faces cannot be found; the toy world needs no network."""
    if config.model.face_detector == "mask_top":
        return []
    if config.face_models is None:
        return [f"config.face_models: is needed; {GET_FACE_MODELS}"]
    try:
        detector_file(config.face_models)
    except FaceModelError as error:
        return [f"config.face_models: {error}"]
    return []


def _examples(config, model: ModelConfig, found: clip_folder.Findings | None) -> pool.Examples:
    tokenizer = load_tokenizer(config.tokenizer)
    if config.clips is None:
        return world_examples.WorldExamples(
            model,
            tokenizer,
            config.world,
            config.data_size,
            detector=_detector(config),
            guards=config.reference_guards,
            seed=config.seed,
        )
    if config.clips.entities is None:
        return clip_folder.ClipExamples(config, model, tokenizer, found)
    return entity_clips.EntityExamples(config, model, tokenizer, _detector(config), found)


def sample(config, model: DiffusionModel, step: int) -> np.ndarray:
    """What this step would make of a fixed request, `[f, height, width, 3]`.

    Of the world: two held-out entities. Of a folder: the caption and flow of its first clip that
    can be read; the flow is shown on the left.
    """
    del step  # always the same request and noise, so that the videos can be compared
    sizes = trained_model_config(config)
    networks = frozen_networks(config, sizes, jnp.dtype(config.dtype))
    tokenizer = load_tokenizer(config.tokenizer)
    # The run's own state leaves little memory.
    memory = tiling.least_memory(sizes.vae, sizes.spatial_compression)
    loaded = LoadedModel(sizes, model.tora2, model.text, networks, tokenizer)
    sampler = pipeline.Tora2Pipeline(loaded, vae_memory=memory)
    if config.clips is not None:
        found = _look(config, sizes, most=TRIES)
        (inputs, _), _ = example_or_next(_examples(config, sizes, found), 0)
        inputs = conditioning.batch_inputs([inputs])
        frames = sampler.generate_batch(inputs, seeds=[0]).video[0]
        return to_uint8(np.concatenate([inputs.flow_video[0] / 2 + 0.5, frames], axis=2))
    world = dataclasses.replace(config.world, min_entities=2, max_entities=2)
    record = render_clip(world, SAMPLED_CLIP)
    inputs = conditioning.inputs_from_records(sizes, sampler.tokenizer, [record], _detector(config))
    frames = to_uint8(sampler.generate_batch(inputs, seeds=[0]).video[0])
    entities = record.entities
    return video.overlay(
        frames,
        np.stack([entity.track for entity in entities]),
        np.stack([entity.visible for entity in entities]),
        [entity.word for entity in entities],
        [entity.images for entity in entities],
    )


class Draws(NamedTuple):
    """The randomness of one step, one row per sample."""

    timestep: jax.Array
    noise: jax.Array
    keep_caption: jax.Array
    keep_trajectories: jax.Array
    keep_references: jax.Array
    keep_image: jax.Array


def draw(config, batch: dict, key: jax.Array) -> Draws:
    """All randomness of a step."""
    keys = jax.random.split(key, 7)
    dropout = config.dropout
    latents = _latents(config, batch)
    size, entities = batch["on"].shape[:2]
    # Types are named, here and wherever numbers are drawn: the default ones, and with them the
    # draws, depend on JAX_ENABLE_X64.
    sample = _kept(keys[4], dropout.references, (size, 1))
    entity = _kept(keys[5], dropout.entity_references, (size, entities))
    image = 0.0 if config.clips is None else config.clips.image_dropout
    return Draws(
        draw_timesteps(keys[0], size, config.model.diffusion.num_steps, config.timesteps.shift),
        jax.random.normal(keys[1], latents.shape, jnp.float32),
        _kept(keys[2], dropout.caption, (size,)),
        _kept(keys[3], dropout.trajectories, (size,)),
        sample & entity,
        _kept(keys[6], image, (size,)),
    )


def draw_timesteps(key: jax.Array, size: int, count: int, shift: float) -> jax.Array:
    """Timesteps of 0 to count - 1, `[size]`; `shift` as in `TimestepConfig`."""
    if shift == 1:
        return jax.random.randint(key, (size,), 0, count, jnp.int32)
    share = jax.random.uniform(key, (size,), jnp.float32)
    shifted = shift * share / (1 + (shift - 1) * share)
    return jnp.minimum((shifted * count).astype(jnp.int32), count - 1)


def _kept(key: jax.Array, dropout: float, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.bernoulli(key, jnp.float32(1 - dropout), shape)


def _latents(config, batch: dict) -> jax.Array:
    """CogVideoX 1.5 repeats the first latent in front."""
    return conditioning.pad_front(batch["latents"], config.model.transformer.patch_size_t or 1)


def _keep_images(conditions: Conditions, keep: jax.Array) -> Conditions:
    """Withholds the first frame of some samples (I2V)."""
    images = conditions.image_latents
    if images is None:
        return conditions
    return conditions._replace(image_latents=jnp.where(keep[:, None, None, None, None], images, 0))


def conditions_of(model: DiffusionModel, config, batch: dict) -> Conditions:
    """A cached batch as `Conditions`, before any dropout."""
    tokens = conditioning.Tokens(*(batch[name] for name in conditioning.Tokens._fields))
    text = conditioning.encode_text(model.text, tokens)
    return conditioning.with_text(conditioning.from_arrays(batch), text)


def loss(config, model: DiffusionModel, batch: dict, draws: Draws):
    """L = L_eps + lambda * L_cont (eq. 7), with the conditions dropped at random.

    To these `config.coarse_weight` adds a loss of ours, which is off by default.

    Returns:
        The loss and its parts: diffusion loss overall and by quarter of the timesteps, that of
        coarse means, contrastive loss, retrieval accuracies and the binding's own measures.
    """
    latents = _latents(config, batch)
    padding = latents.shape[1] - batch["latents"].shape[1]  # has no loss
    conditions = _keep_images(conditions_of(model, config, batch), draws.keep_image)
    null = conditioning.null_text(model.text, config.model, latents.shape[0])
    text = jnp.where(draws.keep_caption[:, None, None], conditions.text, null)
    conditions = conditioning.keep_references(
        conditioning.keep_trajectories(conditions, draws.keep_trajectories), draws.keep_references
    )
    bound = model.tora2.bind(conditions._replace(text=text))

    alphas = jnp.asarray(diffusion.cumulative_alphas(config.model.diffusion), jnp.float32)
    alpha = alphas[draws.timestep]
    noisy = diffusion.add_noise(latents, draws.noise, alpha)
    target = diffusion.velocity(latents, draws.noise, alpha)
    prediction = model.tora2(noisy, draws.timestep, bound.conditions)
    error = (prediction.astype(jnp.float32) - target)[:, padding:]
    per_sample = jnp.square(error).mean((1, 2, 3, 4))
    total = per_sample.mean()
    metrics = {"diffusion": total, **bound.metrics, **_by_timestep(config, per_sample, draws)}
    if config.coarse_weight > 0:
        metrics["coarse"] = jnp.square(coarse_means(error)).mean()
        total = total + config.coarse_weight * metrics["coarse"]
    if bound.contrast is not None and config.contrast_weight > 0:
        contrastive, found = contrast.contrastive_loss(
            bound.contrast, config.model.binding.contrast_temperature
        )
        total = total + config.contrast_weight * contrastive
        metrics |= {"contrastive": contrastive, **found}
    return total, metrics


def coarse_means(error: Float[Array, "b t h w c"]) -> Float[Array, "b t h4 w4 c"]:
    """Means over blocks of `COARSE` x `COARSE` latents of a frame; zeros fill incomplete blocks.

    The multiscale loss of simple diffusion (Hoogeboom et al., arXiv 2301.11093), with one scale.
    """
    b, t, h, w, c = error.shape
    filled = jnp.pad(error, [(0, 0), (0, 0), (0, -h % COARSE), (0, -w % COARSE), (0, 0)])
    rows, columns = (size // COARSE for size in filled.shape[2:4])
    return filled.reshape(b, t, rows, COARSE, columns, COARSE, c).mean((3, 5))


def _by_timestep(config, per_sample: jax.Array, draws: Draws) -> dict[str, measures.Share]:
    quarter = draws.timestep * 4 // config.model.diffusion.num_steps
    return {f"diffusion_t{i}": measures.share(per_sample, quarter == i) for i in range(4)}


def work(config) -> flops.TrainingWork:
    """Operations of one step."""
    return flops.step_work(config, TRAINED[config.stage])


STAGE = Stage(
    build=build,
    source=source,
    loss=loss,
    components=_COMPONENTS,
    trainable=trainable,
    draw=draw,
    example_shapes=example_shapes,
    work=work,
    sample=sample,
    exported_model=trained_model_config,
)
