"""Bold toy chain, stage base_last: detail, while the rate of the base falls to zero.

Timesteps are uniform and the coarse loss is small: what is left to learn is how things look, and
that is where there is little noise.

python -m tora2_jax.train --config configs/bold/base_last.py --workdir workdirs/bold/base_last
Hardware: two CPU cores, about 40 minutes. Expected: see docs/toy.md.
"""

from configs.bold import base_clips
from configs.bold.base_stills import muon, start_from_base
from configs.bold.vae import FOLDER
from tora2_jax.config.train import TrainConfig


def get_config() -> TrainConfig:
    """The settings of this stage."""
    config = base_clips.get_config()
    config.steps = 1340
    config.timesteps.shift = 1.0
    config.coarse_weight = 1.0
    config.ema_decay = 0.99
    start_from_base(config, f"{FOLDER}/stages/base_clips")
    config.optim = muon(2e-2, "cosine")
    return config
