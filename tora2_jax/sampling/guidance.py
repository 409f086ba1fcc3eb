"""Guidance: which evaluations of the transformer a step needs, and how they are weighed."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool

from tora2_jax import conditioning
from tora2_jax.models.tora2 import Tora2
from tora2_jax.sampling.settings import SampleSettings
from tora2_jax.types import BoundConditions, Conditions


class Branch(NamedTuple):
    """One evaluation of the transformer: which conditions it sees."""

    caption: bool
    references: bool
    trajectories: bool


def branches_of(settings: SampleSettings) -> tuple[list[Branch], Callable[[float], np.ndarray]]:
    """All evaluations of a step, and their weights for a guidance scale.

    v = v(0,R,T) + g [v(C,R,T) - v(0,R,T)] + (g_R - 1) [v(0,R,T) - v(0,0,T)]
        + (g_T - 1) [v(0,R,T) - v(0,R,0)]
    """
    references, trajectories = settings.reference_guidance, settings.trajectory_guidance
    branches = [Branch(False, True, True), Branch(True, True, True)]
    extra = []
    if references != 1:
        branches.append(Branch(False, False, True))
        extra.append(references - 1)
    if trajectories != 1:
        branches.append(Branch(False, True, False))
        extra.append(trajectories - 1)

    def weights(guidance: float) -> np.ndarray:
        unconditional = 1 - guidance + sum(extra)
        return np.array([unconditional, guidance, *(-value for value in extra)], np.float32)

    return branches, weights


def withhold(conditions: Conditions, references: bool, trajectories: bool) -> Conditions:
    """The conditions without references, or without trajectories, where these are False."""
    if not references:
        none = jnp.zeros(conditions.is_human.shape, bool)
        conditions = conditioning.keep_references(conditions, none)
    if not trajectories:
        none = jnp.zeros(conditions.is_human.shape[:1], bool)
        conditions = conditioning.keep_trajectories(conditions, none)
    return conditions


def concatenate(bound: list[BoundConditions]) -> BoundConditions:
    """Along the batch, which is the second axis of what every layer has its own of."""

    def join(name: str):
        axis = 1 if name in ("motion_maps", "keys_values") else 0
        parts = (getattr(item, name) for item in bound)
        return jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis), *parts)

    return BoundConditions(*(join(name) for name in BoundConditions._fields))


@nnx.jit
def closed_ways(
    model: Tora2, conditions: Conditions, keep: Bool[Array, "b e"]
) -> dict[str, BoundConditions]:
    """What the transformer is given when references that are not kept do not get in by a way.

    References reach a video by two ways: the cross-attentions read their tokens, and binding lets
    them change the motion map.

    Returns:
        The conditions by the way that is closed: `none`, `cross_attention`, `motion_map`, `both`.
    """
    open_ways = model.bind(conditions).conditions
    closed = model.bind(conditioning.keep_references(conditions, keep)).conditions
    return {
        "none": open_ways,
        "cross_attention": open_ways._replace(
            keys_values=closed.keys_values, key_mask=closed.key_mask
        ),
        "motion_map": open_ways._replace(motion_maps=closed.motion_maps),
        "both": closed,
    }
