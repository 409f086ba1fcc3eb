"""Toy chain, stage tora2: everything that the paper trains, jointly, on the frozen base.

python -m tora2_jax.train --config configs/toy.py --workdir workdirs/tora2
Hardware: two CPU cores, about 16 minutes. Expected: see docs/toy.md.
"""

from configs.toy_base import diffusion_config
from configs.toy_vae import FOLDER
from tora2_jax.config.train import DropoutConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    """The settings of this stage."""
    config = diffusion_config("tora2")
    config.steps = 1300
    config.weights.transformer = f"{FOLDER}/transformer.safetensors"
    config.weights.text = f"{FOLDER}/text.safetensors"
    config.weights.motion = f"{FOLDER}/stages/motion.safetensors"
    # Less than the paper's 50, 33 and 33 %: hundreds of steps have to do what 15k do there.
    config.dropout = DropoutConfig(
        caption=0.25, references=0.2, trajectories=0.15, entity_references=0.05
    )
    config.optim = OptimConfig(
        algorithm="muon",
        learning_rate=5e-3,
        new_lr_scale=3.0,
        schedule="cosine",
        warmup_steps=50,
        betas=(0.9, 0.95),
        clip_norm=1.0,
    )
    config.optim.tora_initialized = r"tora2\.(trajectory_extractor|transformer\.blocks\.fuser)\."
    return config
