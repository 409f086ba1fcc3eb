"""Toy chain, stage vae_fine: the causal 3D VAE goes on at a fresh learning rate.

python -m tora2_jax.train --config configs/toy_vae_fine.py --workdir workdirs/vae_fine
Hardware: two CPU cores, about 28 minutes. Expected: see docs/toy.md.
"""

from configs.toy_vae import FIRST_VAE
from configs.toy_vae import get_config as first_part
from tora2_jax.config.train import TrainConfig


def get_config() -> TrainConfig:
    """The settings of this stage."""
    config = first_part()
    config.seed = 2  # of the crops
    config.steps = 2600
    config.weights.vae = FIRST_VAE
    config.optim.learning_rate = 1.5e-2
    return config
