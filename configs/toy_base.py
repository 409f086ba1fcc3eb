"""Toy chain, stage base: text to video, captions only; the transformer and its small T5.

python -m tora2_jax.train --config configs/toy_base.py --workdir workdirs/base
Hardware: two CPU cores, about 20 minutes, and 6 to encode the pool. Expected: see docs/toy.md.
"""

from configs.toy_vae import FOLDER
from tora2_jax.config import WorldConfig, toy
from tora2_jax.train_config import DropoutConfig, OptimConfig, TrainConfig, WeightsConfig

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
        export=FOLDER,
    )


def get_config() -> TrainConfig:
    """The settings of this stage."""
    config = diffusion_config("base")
    config.steps = 1300
    config.model.motion = None
    config.model.personalization = None
    config.dropout = DropoutConfig(caption=0.1)
    config.optim = OptimConfig(
        learning_rate=1e-3, schedule="cosine", warmup_steps=100, eps=1e-8, clip_norm=1.0
    )
    return config
