"""Bold toy chain, stage vae_fine: the VAE goes on with whole frames, as it will see them.

Group norms take their statistics over a whole chunk, so on crops a frame's brightness comes out a
little different.

python -m tora2_jax.train --config configs/bold/vae_fine.py --workdir workdirs/bold/vae_fine
Hardware: two CPU cores, about 30 minutes. Expected: see docs/toy.md.
"""

from configs.bold.vae import FIRST_VAE
from configs.bold.vae import get_config as first_part
from tora2_jax.config.train import TrainConfig


def get_config() -> TrainConfig:
    """The settings of this stage."""
    config = first_part()
    config.seed = config.world.seed = 102  # of the crops and of the clips
    config.steps = 900
    config.batch_size = 2
    config.crops.size = 64
    config.weights.vae = FIRST_VAE
    config.optim.learning_rate = 1e-2
    return config
