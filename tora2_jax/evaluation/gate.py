"""Whether the bench can be trusted on what a VAE can show."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from tora2_jax.config import ModelConfig
from tora2_jax.evaluation.bench import judge, localizer, measure
from tora2_jax.evaluation.look import Bench
from tora2_jax.models.vae.vae import CausalVAE
from tora2_jax.types import Array, Record
from tora2_jax.weights import checkpoint
from tora2_jax.world.entities import Style

GATE_PIXELS = 3.0  # canvas pixels that the localizer may miss on videos through the VAE
GATE_SHARE = 0.95  # own references that the judge must find there


class Gate(NamedTuple):
    """Whether the bench can be trusted on what the VAE can show."""

    pixels: measure.Estimate  # canvas pixels that the localizer misses
    absent: measure.Estimate  # share of absent words rightly called absent
    present: measure.Estimate  # share of visible entities found
    identified: measure.Estimate  # share of own references found among eight

    @property
    def passed(self) -> bool:
        """Within `GATE_PIXELS` and at least `GATE_SHARE`."""
        return self.pixels.mean <= GATE_PIXELS and self.identified.mean >= GATE_SHARE


def load_vae(model: ModelConfig, path: str | Path) -> CausalVAE:
    """The VAE of a model with weights of a file; raises CheckpointError if they do not fit."""
    vae = CausalVAE(model.vae, rngs=nnx.Rngs(0))
    checkpoint.merge(vae, checkpoint.load_component(path)[0])
    return vae


@nnx.jit
def _through(
    vae: CausalVAE, video: UInt8[Array, "f height width 3"]
) -> UInt8[Array, "f height width 3"]:
    latents = vae.encode_latents(video[None].astype(jnp.float32) / 127.5 - 1.0)
    decoded = jnp.clip(vae.decode_latents(latents)[0], -1.0, 1.0)
    return jnp.round((decoded + 1.0) * 127.5).astype(jnp.uint8)


def gate(
    bench: Bench, vae: CausalVAE, records: Sequence[Record], style: Style = "patterned"
) -> Gate:
    """Accuracy of both networks on true clips encoded and decoded by the VAE."""
    videos = [np.asarray(_through(vae, record.video)) for record in records]
    located = localizer.reliability(bench.localizer, list(records), videos)
    identified = judge.reliability(bench.judge, list(records), videos, style=style)
    return Gate(located.error, located.absent, located.present, identified)
