"""Toy chain, stage motion: trajectory extractor and motion-guidance fusers, the base frozen.

python -m tora2_jax.train --config configs/toy_motion.py --workdir workdirs/motion
Hardware: two CPU cores, about 9 minutes. Expected: see docs/toy.md.
"""

from configs.toy_base import diffusion_config
from configs.toy_vae import FOLDER
from tora2_jax.config.train import DropoutConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    """The settings of this stage."""
    config = diffusion_config("motion")
    config.steps = 1000
    config.model.personalization = None
    config.weights.transformer = f"{FOLDER}/transformer.safetensors"
    config.weights.text = f"{FOLDER}/text.safetensors"
    config.dropout = DropoutConfig(caption=0.1, trajectories=0.1)
    config.optim = OptimConfig(
        algorithm="muon",
        learning_rate=1.5e-2,
        schedule="cosine",
        warmup_steps=30,
        betas=(0.9, 0.95),
        clip_norm=1.0,
    )
    return config
