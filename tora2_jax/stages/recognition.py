"""Stages `face`, `object`, `dino` and `judge`: recognition networks of the toy world.

The first three make the frozen encoders that condition the generator; the last makes the bench's
judge, from another seed, with another architecture, so that it does not share their blind spots.
All learn to tell apart identities that one word covers (our decision).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from tora2_jax.bench import measure
from tora2_jax.bench.networks import PRESENT, Judge, crops_around, degrade, white_square
from tora2_jax.data.world import WORDS, render_clip, render_reference, sample_entity
from tora2_jax.models.arcface import ArcFace
from tora2_jax.models.dinov2 import DINOv2
from tora2_jax.models.layers import Linear
from tora2_jax.models.object_encoder import ObjectEncoder
from tora2_jax.references import prepare
from tora2_jax.stages.localiser import HELD_OUT, truth
from tora2_jax.train_config import TrainConfig
from tora2_jax.types import Kind

TRAINABLE = r"(?!.*\.(mean|var)$).*"
FACE_IDENTITIES = 512  # fixed pool: the angular margin needs one class vector per identity
ANGLE_SCALE, ANGLE_MARGIN = 32.0, 0.3  # ArcFace, eq. 3; a smaller margin suits a small network
GROUP = 8  # identities of one word per example; also the number of candidates in a retrieval
TEMPERATURE = 0.1
EMBEDDING = 64
CLIP_ENTITIES = 3  # entities of a clip that the judge's example has room for
STRANGERS = 3  # fresh identities of the same word beside every entity
"""E
true; sed -i '$d' tora2_jax/stages/recognition.py; tail -3 tora2_jax/stages/recognition.py
