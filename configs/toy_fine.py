"""Toy chain, stage joint_fine: the joint stage goes on from its own result at fresh examples.

python -m tora2_jax.train --config configs/toy_fine.py --workdir workdirs/joint_fine
Hardware: two CPU cores, about 18 minutes. Expected: see docs/toy.md.
"""

from configs.toy import get_config as first_part
from configs.toy_vae import FOLDER
from tora2_jax.config.train import TrainConfig


def get_config() -> TrainConfig:
    """The settings of this stage."""
    config = first_part()
    config.seed = 12  # of the order, the noise, the timesteps and what is dropped
    config.steps = 1500
    config.weights.motion = f"{FOLDER}/motion.safetensors"
    config.weights.personalization = f"{FOLDER}/personalization.safetensors"
    config.optim.learning_rate = 4e-3
    return config
