"""Looks at the transformer at several timesteps of a sampling: its cross-attentions, and what an
entity's references change there."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from tora2_jax import diffusion
from tora2_jax.models.cross_attention import Influence
from tora2_jax.models.tora2 import Tora2
from tora2_jax.sampling.guidance import closed_ways
from tora2_jax.types import BoundConditions, Conditions

WAYS = ("cross_attention", "motion_map", "both")
# Of the way from noise to video: references choose what is drawn at its beginning.
_LOOKED_AT = (0.0, 0.1, 0.3, 0.5, 0.8)


class Passing(NamedTuple):
    """One step: what the cross-attentions do, and what references change."""

    timestep: int
    influence: Influence  # with a leading axis x
    # By the way that is closed to the entity's references: the change of the velocity over the
    # velocity, where the entity is; NaN for an entity without references.
    effect: dict[str, Float[np.ndarray, " e"]]


def looked_at(steps: int) -> list[int]:
    """Which of so many steps are looked at."""
    return sorted({int(share * steps) for share in _LOOKED_AT})


def look_at_steps(
    model: Tora2,
    conditions: Conditions,
    bound: BoundConditions,
    noise: Float[Array, "1 t_lat h_lat w_lat latent"],
    table: diffusion.StepCoefficients,
    places: Sequence[Float[np.ndarray, "t h w"] | None],
) -> list[Passing]:
    """Some steps of DDIM from noise, without guidance.

    Args:
        model: With a personalization path.
        conditions: Of one request.
        bound: The same, bound.
        noise: Where sampling starts.
        table: Of the steps.
        places: How much each entity is at each token; None: it has no references to look for.
    """
    entities = conditions.is_human.shape[1]
    slots = jnp.arange(entities)[None]
    shut = {
        entity: closed_ways(model, conditions, slots != entity)
        for entity, place in enumerate(places)
        if place is not None
    }
    state, found = diffusion.SamplerState(noise, jnp.zeros_like(noise)), []
    wanted = looked_at(len(table.timestep))
    for index in range(wanted[-1] + 1):
        row = diffusion.StepCoefficients(*(np.float32(values[index]) for values in table))
        given = (model, state.latents, jnp.full(1, row.timestep, jnp.float32))
        if index in wanted:
            velocity, influence = observed(*given, bound, entities)
            effect = {way: np.full(len(places), np.nan) for way in WAYS}
            for entity, closed in shut.items():
                for way in WAYS:
                    other = _velocity(*given, closed[way])
                    effect[way][entity] = float(_change(velocity, other, places[entity]))
            time = int(table.timestep[index])
            found.append(Passing(time, jax.device_get(influence), effect))
        else:
            velocity = _velocity(*given, bound)
        state = diffusion.sampler_step(state, velocity.astype(jnp.float32), row, 0.0)
    return found


@functools.partial(nnx.jit, static_argnums=4)
def observed(
    model: Tora2,
    latents: Float[Array, "b t_lat h_lat w_lat latent"],
    timestep: Float[Array, " b"],
    bound: BoundConditions,
    entities: int,
) -> tuple[Float[Array, "b t_lat h_lat w_lat latent"], Influence]:
    """The velocity, and the influence in every cross-attention along a leading axis x."""

    def observe(cross, video, keys_values, key_mask):
        return cross.influence(video, keys_values, key_mask, entities)

    return model.observe(observe, latents, timestep, bound)


@nnx.jit
def _velocity(model: Tora2, latents, timestep, bound: BoundConditions):
    return model(latents, timestep, bound)


@jax.jit
def _change(
    velocity: Float[Array, "1 t_lat h_lat w_lat latent"],
    other: Float[Array, "1 t_lat h_lat w_lat latent"],
    place: Float[Array, "t h w"],
) -> Float[Array, ""]:
    """|change| / |velocity|, both weighted by where the entity is."""

    def squares(values: Array) -> Array:
        by_latent = jnp.square(values[0].astype(jnp.float32)).sum(-1)
        shape = [
            part
            for pair in zip(place.shape, _patch(by_latent, place), strict=True)
            for part in pair
        ]
        return (by_latent.reshape(shape).sum((1, 3, 5)) * place).sum()

    return jnp.sqrt(squares(other - velocity) / squares(velocity))


def _patch(latents: Array, tokens: Array) -> list[int]:
    return [fine // coarse for fine, coarse in zip(latents.shape, tokens.shape, strict=True)]
