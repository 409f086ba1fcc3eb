"""Toy chain, stage base: text to video, captions only; the transformer and its small T5.

python -m tora2_jax.train --config configs/toy_base.py --workdir workdirs/base
Hardware: two CPU cores, about 48 minutes, and 6 to encode the pool. Expected: see docs/toy.md.
"""

from configs.toy_vae import FOLDER
from tora2_jax.config import toy
from tora2_jax.config.train import DropoutConfig, OptimConfig, TrainConfig, WeightsConfig
from tora2_jax.config.world import WorldConfig

FIRST_BASE = "workdirs/base/trained"  # where the second part starts
FROZEN = ("vae", "face", "object", "dino")


def diffusion_config(stage: str) -> TrainConfig:
    """What the three diffusion stages share."""
    return TrainConfig(
        stage=stage,
        seed=10,
        batch_size=16,
        data_size=1536,
        cache_dir="workdirs/cache",
        tokenizer=f"{FOLDER}/tokenizer",
        model=toy(),
        world=WorldConfig(seed=10),
        weights=WeightsConfig(**{name: f"{FOLDER}/{name}.safetensors" for name in FROZEN}),
        ema_decay=0.99,
        checkpoint_every=200,
    )


def get_config() -> TrainConfig:
    """The settings of this stage."""
    config = diffusion_config("base")
    config.steps = 6000
    config.model.motion = None
    config.model.personalization = None
    config.dropout = DropoutConfig(caption=0.1)
    config.optim = OptimConfig(
        algorithm="muon",
        learning_rate=2e-2,
        schedule="constant",  # so that a run can go on; toy_base_fine lowers it
        warmup_steps=50,
        betas=(0.9, 0.95),
        clip_norm=1.0,
    )
    return config
