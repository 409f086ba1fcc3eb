"""Tora2 (paper, Figure 2): everything that is trained, around the frozen CogVideoX transformer."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from tora2_jax.config import ModelConfig
from tora2_jax.models.binding import Binder, needs_binder
from tora2_jax.models.dit import CogVideoXTransformer, Observer
from tora2_jax.models.motion import TrajectoryExtractor
from tora2_jax.models.personalization import AppearanceExtractor
from tora2_jax.types import BoundConditions, Conditions, ContrastEmbeddings, needed

# Which variables belong to which set of weights, as full matches of their paths.
COMPONENTS = {
    "transformer": r"transformer\.(?!cross_attention\.|blocks\.fuser\.).*",
    "motion": r"trajectory_extractor\..*|transformer\.blocks\.fuser\..*",
    "personalization": r"appearance\..*|binder\..*|transformer\.cross_attention\..*",
}


class Bound(NamedTuple):
    """What the trainable encoders make of the conditions, once per request."""

    conditions: BoundConditions
    contrast: ContrastEmbeddings | None
    metrics: dict[str, Float[Array, ""]]


class Encoded(NamedTuple):
    """References and paths before binding; what a model has no part for is None."""

    personalization: Float[Array, "b e q d"] | None
    personalization_mask: Bool[Array, "b e q"] | None
    motion_map: Float[Array, "b t h w u"] | None


class Tora2(nnx.Module):
    """Noisy latents, timestep and `Conditions` -> velocity.

    Without `config.motion` and `config.personalization` it is CogVideoX; without
    `config.personalization` it is Tora.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        motion, personalization = config.motion, config.personalization
        self.transformer = CogVideoXTransformer(
            config.transformer, motion, personalization, rngs=rngs, dtype=dtype
        )
        self.trajectory_extractor = (
            TrajectoryExtractor(motion, config.transformer, rngs=rngs, dtype=dtype)
            if motion
            else None
        )
        self.appearance = AppearanceExtractor(config, rngs=rngs) if personalization else None
        self.binder = Binder(config, rngs=rngs) if needs_binder(config) else None

    def bind(self, conditions: Conditions) -> Bound:
        """Trajectory extractor, personalization extractor and binding (eqs. 3 to 5).

        And everything else that no timestep enters: the text's projection, and the keys and values
        of each cross-attention. So a sampler binds once, and then only steps.
        """
        maps = has_motion = contrast = keys_values = None
        metrics = {}
        tokens, mask, motion_map = self.encode(conditions)
        if self.binder is not None:  # then there are references and paths, see `needs_binder`
            assert tokens is not None and mask is not None and motion_map is not None
            bound = self.binder(tokens, mask, motion_map, conditions)
            contrast = self.binder.contrast(bound, conditions)
            metrics = bound.metrics
            tokens, motion_map = bound.personalization, bound.motion_map
        if self.trajectory_extractor is not None and motion_map is not None:
            has_motion = jnp.any(conditions.on, (1, 2))
            maps = self.trajectory_extractor.maps(motion_map)
        if tokens is not None and mask is not None:
            mask = rearrange(mask, "b e q -> b (e q)")
            tokens = rearrange(tokens, "b e q d -> b (e q) d")
            keys_values = self.transformer.keys_values(tokens, mask)
        return Bound(
            BoundConditions(
                text=self.transformer.project_text(jnp.asarray(needed(conditions.text, "a text"))),
                motion_maps=maps,
                has_motion=has_motion,
                keys_values=keys_values,
                key_mask=mask,
                image_latents=conditions.image_latents,
            ),
            contrast,
            metrics,
        )

    def encode(self, conditions: Conditions) -> Encoded:
        """What binding is given: personalization tokens and the motion map."""
        tokens = mask = motion_map = None
        if self.trajectory_extractor is not None:
            latents = needed(conditions.motion_latents, "motion latents")
            motion_map = self.trajectory_extractor.embed(latents)
        if self.appearance is not None:
            tokens, mask = self.appearance(conditions)
        return Encoded(tokens, mask, motion_map)

    def __call__(
        self,
        latents: Float[Array, "b t_lat h_lat w_lat latent"],
        timestep: Float[Array, " b"] | Int[Array, " b"],
        bound: BoundConditions,
    ) -> Float[Array, "b t_lat h_lat w_lat latent"]:
        """The velocity that takes noisy latents apart into clean ones and noise."""
        latents, conditions = _with_images(latents, bound)
        return self.transformer(latents, timestep, bound.text, **conditions)

    def observe(
        self,
        observer: Observer,
        latents: Float[Array, "b t_lat h_lat w_lat latent"],
        timestep: Float[Array, " b"] | Int[Array, " b"],
        bound: BoundConditions,
    ) -> tuple[Float[Array, "b t_lat h_lat w_lat latent"], Any]:
        """The velocity, and what an observer says of each cross-attention (`models/dit.py`)."""
        latents, conditions = _with_images(latents, bound)
        return self.transformer.observe(observer, latents, timestep, bound.text, **conditions)


def _with_images(latents: Array, bound: BoundConditions) -> tuple[Array, dict[str, Any]]:
    """Latents with the first frame's beside them (I2V), and what else the transformer takes."""
    if bound.image_latents is not None:
        latents = jnp.concatenate([latents, bound.image_latents], axis=-1)
    names = ("motion_maps", "has_motion", "keys_values", "key_mask")
    return latents, {name: getattr(bound, name) for name in names}
