"""What the diffusion stages train, and the frozen networks that a run's config names."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from tora2_jax.config.model import ModelConfig
from tora2_jax.errors import CheckpointError, TrainError
from tora2_jax.models.encoders.prior import stored_priors
from tora2_jax.models.frozen import NETWORKS, FrozenNetworks, computes_in, needed_networks
from tora2_jax.models.layers.basic import shape_rngs
from tora2_jax.parallel import placement
from tora2_jax.weights import checkpoint

TRAINED = {
    "base": ("transformer", "text"),
    "motion": ("motion",),
    "tora2": ("motion", "personalization"),
}


def networks_of(config) -> tuple[str, ...]:
    """The frozen networks of a run.

    Stages of the toy world that name encoders share one pool, which holds all features.
    """
    named = any(getattr(config.weights, name) for name in ("dino", "face", "object"))
    if config.clips is not None or not named:
        return needed_networks(config.model)
    return tuple(name for name in NETWORKS if name not in stored_priors(config.model))


def frozen_files(config) -> dict[str, str | None]:
    """Where the config takes each frozen network from; the motion VAE is by default a copy."""
    files: dict[str, str | None] = {}
    for name in networks_of(config):
        copied = name == "motion_vae" and config.weights.motion_vae is None
        component = "vae" if copied else name
        path = getattr(config.weights, component)
        files[name] = path and str(checkpoint.resolve(path, component))
    return files


def frozen_networks(config, model: ModelConfig, dtype=jnp.float32) -> FrozenNetworks:
    """The frozen networks that the config names.

    Raises:
        CheckpointError: it names none of one that is needed, or they do not fit.
    """
    networks = nnx.eval_shape(
        lambda: FrozenNetworks(model, networks_of(config), rngs=shape_rngs(), dtype=dtype)
    )
    placement.plan_at_rest(networks)
    for name, path in frozen_files(config).items():
        if path is None:
            raise CheckpointError(f"config.weights.{name}: is needed")
        own_dtype = computes_in(name, dtype)
        checkpoint.restore_frozen(getattr(networks, name), path, dtype=own_dtype)
    return networks


def trained_model_config(config) -> ModelConfig:
    """The model config with the scaling factor that the VAE's weights came with.

    Raises:
        TrainError: the weights say nothing of their settings.
    """
    path = checkpoint.resolve(config.weights.vae, "vae")
    stored = checkpoint.component_metadata(path).get("model", {}).get("vae", {})
    if "scaling_factor" not in stored:
        raise TrainError(f"{path} says nothing of its settings; `python -m convert` writes them")
    vae = dataclasses.replace(config.model.vae, scaling_factor=stored["scaling_factor"])
    return dataclasses.replace(config.model, vae=vae)
