"""Bold toy chain, stage base_clips: the base on whole clips.

python -m tora2_jax.train --config configs/bold/base_clips.py --workdir workdirs/bold/base_clips
Hardware: two CPU cores, about 40 minutes. Expected: see docs/toy.md.
"""

from configs.bold.base_stills import base_config, muon, start_from_base
from configs.bold.vae import FOLDER
from tora2_jax.config.train import TrainConfig


def get_config() -> TrainConfig:
    """The settings of this stage."""
    config = base_config(frames=17, seed=212)
    config.steps = 1450
    config.batch_size = 16
    config.data_size = 8000
    config.ema_decay = 0.995
    config.timesteps.shift = 2.0
    start_from_base(config, f"{FOLDER}/stages/base_one")
    config.optim = muon(2e-2, "constant")  # constant, so that the next stage can go on
    return config
