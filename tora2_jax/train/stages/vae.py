"""Stage `vae`: the toy world's causal VAE, on crops of clips and of flow images."""

import dataclasses
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from tora2_jax.config import to_dict
from tora2_jax.config.train import TrainConfig
from tora2_jax.config.world import CropConfig
from tora2_jax.data.loader import ENDLESS
from tora2_jax.models.vae.vae import CausalVAE
from tora2_jax.train.stage import Stage
from tora2_jax.trajectory.points import color_flow, flow_video
from tora2_jax.types import Record
from tora2_jax.world.clips import render_clip

CROPS_PER_CLIP = 4  # rendering costs more than cropping
_FLOW_SHARE = 0.25  # of the examples: the same network encodes colored paths
_DENSE_SHARE = 0.3  # of the flow examples: of every pixel, not of the paths alone
_ENTITY_SHARE = 0.75  # of the crops: around a pixel of an entity, for details are there
_FOREGROUND_WEIGHT = 4.0  # of a pixel in the loss: what moves stays blurred longest
_CHARBONNIER = 1e-2  # below this an error counts as its square
_WEIGHTS = {"square": 1.0, "edges": 0.5, "hues": 2.0, "kl": 1e-6}
_FIRST_LOG_VARIANCE = -6.0  # little noise at the start, so that the decoder has what to learn from
_SCALE_CLIPS, _SCALE_BATCH_SIZE = 64, 8


def build(config: TrainConfig, rngs: nnx.Rngs) -> CausalVAE:
    """A fresh VAE that does not scale: the factor is measured when training ends."""
    vae = CausalVAE(dataclasses.replace(config.model.vae, scaling_factor=1.0), rngs=rngs)
    bias = vae.encoder.conv_out.bias
    bias[...] = bias[...].at[config.model.vae.latent_channels :].set(_FIRST_LOG_VARIANCE)
    # Group norms forget how bright a plain area is, unless it stands beside a constant.
    for conv in (vae.encoder.conv_in, vae.decoder.conv_in):
        conv.bias[...] = jax.random.normal(rngs.params(), conv.bias[...].shape, jnp.float32)
    return vae


class _Crops:
    """Several crops of each clip in a row."""

    def __init__(self, config: TrainConfig):
        self.config = config

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        rng = np.random.Generator(np.random.Philox(key=[self.config.seed, index]))
        # Not all of a dataclass can be hashed; the clip's number and its world's fields can.
        world = tuple(sorted(dataclasses.asdict(self.config.world).items()))
        record = _clip(type(self.config.world), world, index // CROPS_PER_CLIP)
        time, rows, columns = _window(record, self.config.crops, rng)
        video = _picture(record, rng)[time, rows, columns]
        masks = np.any([entity.mask[time, rows, columns] for entity in record.entities], axis=0)
        return {"video": np.ascontiguousarray(video, np.float32), "foreground": masks[..., None]}


@lru_cache(maxsize=2)
def _clip(world: type, settings: tuple[tuple[str, Any], ...], index: int) -> Record:
    return render_clip(world(**dict(settings)), index)


def _window(
    record: Record, crops: CropConfig, rng: np.random.Generator
) -> tuple[slice, slice, slice]:
    """Where to cut a crop out of a clip; often around a visible pixel of an entity."""
    frames, height, width = record.video.shape[:3]
    size = crops.size
    start = int(rng.integers(frames - crops.frames + 1))
    corner = rng.integers(0, (height - size + 1, width - size + 1))
    mask = record.entities[rng.integers(len(record.entities))].mask[start + crops.frames // 2]
    pixels = np.argwhere(mask)
    if len(pixels) and rng.random() < _ENTITY_SHARE:
        shift = rng.integers(size // 4, size * 3 // 4, 2)
        corner = pixels[rng.integers(len(pixels))] - shift
    top, left = np.clip(corner, 0, (height - size, width - size))
    time = slice(start, start + crops.frames)
    return time, slice(top, top + size), slice(left, left + size)


def _picture(record: Record, rng: np.random.Generator) -> Float[np.ndarray, "f height width 3"]:
    """The clip or its flow in colors, in [-1, 1]."""
    if rng.random() >= _FLOW_SHARE:
        return record.video / np.float32(127.5) - 1
    if rng.random() < _DENSE_SHARE:
        return color_flow(record.flow)
    tracks = np.stack([entity.track for entity in record.entities])
    visible = np.stack([entity.visible for entity in record.entities])
    return flow_video(tracks, visible, *record.video.shape[1:3])


def source(config: TrainConfig) -> _Crops:
    """Examples: `video [f, size, size, 3]` in [-1, 1], `foreground [f, size, size, 1]` of entities.

    `f` and `size` are those of `config.crops`.

    Raises:
        ValueError: if the world is smaller than a crop.
    """
    world, crops = config.world, config.crops
    if world.frames < crops.frames or min(world.height, world.width) < crops.size:
        raise ValueError(
            f"config.world: clips of {world.frames} frames of {world.height} x {world.width} "
            f"pixels are smaller than config.crops ({crops.frames} frames of {crops.size} x "
            f"{crops.size})"
        )
    return _Crops(config)


def _charbonnier(difference: Array, weight: Array) -> Array:
    size = jnp.sqrt(jnp.square(difference) + _CHARBONNIER**2) - _CHARBONNIER
    return (weight * size).mean()


def loss(
    config: TrainConfig, model: CausalVAE, batch: dict[str, Array], key: Array
) -> tuple[Array, dict[str, Array]]:
    """Errors of pixels, edges and hues, and a faint pull of the latents to a unit Gaussian."""
    video = batch["video"]
    mean, log_variance = model.encode(video)
    noise = jax.random.normal(key, mean.shape, mean.dtype)
    error = model.decode(mean + jnp.exp(0.5 * log_variance) * noise) - video
    weight = jnp.where(batch["foreground"], _FOREGROUND_WEIGHT, 1.0)
    weight = weight / weight.mean()
    edges = sum(
        _charbonnier(jnp.diff(error, axis=axis), jnp.delete(weight, 0, axis)) for axis in (2, 3)
    )
    kl = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).mean()
    total = _charbonnier(error, weight)
    total = total + _WEIGHTS["square"] * (weight * jnp.square(error)).mean()
    # Brightness varies most and is learned first; without this term colors come much later.
    hues = _charbonnier(jnp.diff(error, axis=-1), weight)
    total = total + _WEIGHTS["edges"] * edges + _WEIGHTS["hues"] * hues + _WEIGHTS["kl"] * kl
    psnr = 10 * jnp.log10(4 / jnp.square(error).mean())  # the values span 2
    return total, {"psnr": psnr, "kl": kl}


def latent_scale(model: CausalVAE, batches: Iterable[Float[Array, "b f height width 3"]]) -> float:
    """The factor that gives the latents of these videos, all channels together, unit variance."""

    @jax.jit
    def moments(video: Array) -> tuple[Array, Array]:
        latents = model.encode(video).mean
        return latents.mean(), jnp.square(latents).mean()

    means, squares = zip(*(moments(video) for video in batches), strict=True)
    return float((np.mean(squares) - np.mean(means) ** 2) ** -0.5)


def finish(config: TrainConfig, model: CausalVAE) -> dict[str, Any]:
    """The model's settings with the scaling factor, measured on whole clips of the world."""
    factor = latent_scale(model, _whole_clips(config))
    vae = dataclasses.replace(config.model.vae, scaling_factor=factor)
    return {"model": to_dict(dataclasses.replace(config.model, vae=vae))}


def _whole_clips(config: TrainConfig) -> Iterable[Float[np.ndarray, "b f height width 3"]]:
    for first in range(0, _SCALE_CLIPS, _SCALE_BATCH_SIZE):
        rows = range(first, first + _SCALE_BATCH_SIZE)
        videos = np.stack([render_clip(config.world, row).video for row in rows])
        yield videos / np.float32(127.5) - 1


STAGE = Stage(
    build=build,
    source=source,
    loss=loss,
    components={"vae": ".*"},
    finish=finish,
    measured=("scaling_factor",),
)
