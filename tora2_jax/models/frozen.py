"""The networks that no diffusion stage trains."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from tora2_jax.config.model import ModelConfig
from tora2_jax.models.encoders.dinov2 import DINOv2
from tora2_jax.models.encoders.prior import build_prior, prior_configs, stored_priors
from tora2_jax.models.vae.vae import CausalVAE

NETWORKS = ("vae", "motion_vae", "dino", "face", "object")


def needed_networks(model: ModelConfig) -> tuple[str, ...]:
    """Which frozen networks a model looks through: plain CogVideoX only its VAE."""
    motion = ("motion_vae",) if model.motion else ()
    appearance = ("dino", "face", "object") if model.personalization else ()
    names = ("vae", *motion, *appearance)
    return tuple(name for name in names if name not in stored_priors(model))


def computes_in(name: str, dtype) -> Any:
    """The type in which a frozen network computes, if the others compute in `dtype`."""
    return jnp.float32 if name in ("face", "object") else dtype


class FrozenNetworks(nnx.Module):
    """The networks that no diffusion stage trains; the text encoder, the base stage does.

    Args:
        config: Sizes.
        parts: Which of them to have; the others are None.
        rngs: Source of the initial values.
        dtype: Of the computation; the recognition networks compute in float32.
    """

    def __init__(
        self,
        config: ModelConfig,
        parts: Sequence[str] = NETWORKS,
        *,
        rngs: nnx.Rngs,
        dtype=jnp.float32,
    ):
        def vae() -> CausalVAE:
            return CausalVAE(config.vae, rngs=rngs, dtype=dtype)

        self.vae = vae() if "vae" in parts else None
        self.motion_vae = vae() if "motion_vae" in parts else None
        self.dino = DINOv2(config.dino, rngs=rngs, dtype=dtype) if "dino" in parts else None
        priors = prior_configs(config)
        self.face = build_prior(priors["face"], rngs) if "face" in parts else None
        self.object = build_prior(priors["object"], rngs) if "object" in parts else None
