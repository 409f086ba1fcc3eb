"""What references and paths contribute: the loss over entities, with each of them withheld.

Clips of the toy world that no stage has seen are noised to several timesteps; where entities are,
the model's velocity is compared with the true one. Nothing is sampled.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from tora2_jax import diffusion
from tora2_jax.conditioning import inputs_from_records, without_paths
from tora2_jax.evaluation.bench.measure import mean_estimate
from tora2_jax.evaluation.requests import asked, style_of, world_requests
from tora2_jax.models.tora2 import Tora2
from tora2_jax.models.vae.vae import CausalVAE
from tora2_jax.sampling.guidance import closed_ways
from tora2_jax.sampling.pipeline import Tora2Pipeline
from tora2_jax.types import BoundConditions, Conditions, Record

TIMESTEPS = (100, 300, 500, 700, 900, 999)
NAMES = {
    "full": "everything given",
    "cross_attention": "references not in the cross-attention",
    "motion_map": "references not in the motion map",
    "both": "references in neither",
    "exchanged_references": "references of others of the same words",
    "without_paths": "no paths",
    "exchanged_paths": "the two entities' paths exchanged",
}


def measure_conditions(
    pipeline: Tora2Pipeline,
    requests: int,
    seed: int = 0,
    batch_size: int = 16,
    done: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """The mean squared error of the velocity over entities, by condition and timestep.

    Args:
        pipeline: Of a model that was trained in the toy world.
        requests: Clips of two entities.
        seed: Of the clips and of the noise, which is the same for all conditions.
        batch_size: Clips at once.
        done: Told how many more clips are measured.

    Returns:
        Plain JSON data. Of `full` the loss itself; of the others how much larger it is, in percent
        of the mean loss of `full`; each with its standard error over clips.
    """
    records = world_requests(pipeline.config, requests, seed)
    losses: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
    for start in range(0, requests, batch_size):
        rows = range(start, min(start + batch_size, requests))
        for name, values in _batch(pipeline, records, rows, batch_size, seed).items():
            losses[name].append(values)
        done(len(rows))
    table = {name: np.concatenate(values) for name, values in losses.items()}
    settings = {"requests": requests, "seed": seed, "timesteps": list(TIMESTEPS)}
    return {"settings": settings, "conditions": _summed_up(table)}


def _summed_up(losses: dict[str, Float[np.ndarray, "requests k"]]) -> dict[str, list[dict]]:
    full = losses["full"]
    means = full.mean(0)
    told = {"full": _estimates(full)}
    for name, values in losses.items():
        if name != "full":
            told[name] = _estimates(100 * (values - full) / means)
    return told


def _estimates(values: Float[np.ndarray, "requests k"]) -> list[dict]:
    return [mean_estimate(column)._asdict() for column in values.T]


def _batch(
    pipeline: Tora2Pipeline, records: Sequence[Record], rows: range, size: int, seed: int
) -> dict[str, Float[np.ndarray, "rows k"]]:
    """Losses of some clips; the batch is filled up, so that one compiled shape serves all."""
    chosen = [rows[min(place, len(rows) - 1)] for place in range(size)]
    style = style_of(pipeline.config)

    def conditions(condition: str, change: Callable = lambda inputs: inputs) -> Conditions:
        wanted = [asked(records[row], condition, row, style) for row in chosen]
        inputs = inputs_from_records(pipeline.config, pipeline.tokenizer, wanted)
        return pipeline.conditions(change(inputs))

    model = pipeline.model
    full = conditions("full")
    bound = closed_ways(model, full, jnp.zeros(full.is_human.shape, bool))
    bound["full"] = bound.pop("none")
    bound["without_paths"] = _bound(model, conditions("full", without_paths))
    for name in ("exchanged_references", "exchanged_paths"):
        bound[name] = _bound(model, conditions(name))
    videos = np.stack([records[row].video for row in chosen]).astype(np.float32) / 127.5 - 1
    latents = _latents(pipeline.vae, videos)
    weights = np.stack([foreground(records[row], latents.shape[1:4]) for row in chosen])
    keys = jnp.stack([jax.random.key(seed + row) for row in chosen])
    noise = jax.vmap(lambda key: diffusion.step_noise(key, 0, latents.shape[1:]))(keys)
    alphas = diffusion.cumulative_alphas(pipeline.config.diffusion)[list(TIMESTEPS)]
    measured = {}
    for name in NAMES:
        per_timestep = [
            _loss(model, bound[name], latents, noise, weights, np.float32(t), np.float32(alpha))
            for t, alpha in zip(TIMESTEPS, alphas, strict=True)
        ]
        measured[name] = np.stack(per_timestep, axis=-1)[: len(rows)]
    return measured


@nnx.jit
def _bound(model: Tora2, conditions: Conditions) -> BoundConditions:
    return model.bind(conditions).conditions


@nnx.jit
def _latents(
    vae: CausalVAE, videos: Float[Array, "b f height width 3"]
) -> Float[Array, "b t_lat h_lat w_lat latent"]:
    return vae.encode_latents(videos)


def foreground(
    record: Record, grid: tuple[int, int, int]
) -> Float[np.ndarray, "t_lat h_lat w_lat"]:
    """How much of each latent shows entities, 0 to 1: the first frame has a latent frame alone."""
    shown = np.any([entity.mask for entity in record.entities], axis=0)
    t, h, w = grid
    fine = shown.reshape(len(shown), h, shown.shape[1] // h, w, shown.shape[2] // w).mean((2, 4))
    group = (len(shown) - 1) // (t - 1) if t > 1 else 1
    later = fine[1:].reshape(t - 1, group, h, w).max(1)
    return np.concatenate([fine[:1], later]).astype(np.float32)


@nnx.jit
def _loss(
    model: Tora2,
    bound: BoundConditions,
    latents: Float[Array, "b t_lat h_lat w_lat latent"],
    noise: Float[Array, "b t_lat h_lat w_lat latent"],
    weights: Float[Array, "b t_lat h_lat w_lat"],
    timestep: Float[Array, ""],
    alpha: Float[Array, ""],
) -> Float[Array, " b"]:
    """Mean squared error of the velocity, weighted by what shows entities."""
    noisy = diffusion.add_noise(latents, noise, jnp.full(len(latents), alpha))
    target = diffusion.velocity(latents, noise, jnp.full(len(latents), alpha))
    velocity = model(noisy, jnp.full(len(latents), timestep), bound).astype(jnp.float32)
    error = jnp.square(velocity - target).mean(-1)
    return (error * weights).sum((1, 2, 3)) / jnp.maximum(weights.sum((1, 2, 3)), 1e-6)


def table(measured: dict[str, Any]) -> str:
    """The measures as text."""
    times = measured["settings"]["timesteps"]
    wide = max(map(len, NAMES.values())) + 2
    lines = [
        "Loss over entities by timestep; below it, how much larger the loss is, in percent.",
        f"{'':{wide}}" + "".join(f"{f't = {time}':>16}" for time in times),
    ]
    for name, told in NAMES.items():
        digits = 3 if name == "full" else 1
        cells = [
            f"{value['mean']:.{digits}f} ± {value['error']:.{digits}f}"
            for value in measured["conditions"][name]
        ]
        lines.append(f"{told:{wide}}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)
