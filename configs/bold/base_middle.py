"""Bold toy chain, stage base_middle: stills of one entity near the middle of the frame.

Where an entity is, is nearly known there, so that what a caption tells of it is most of what is
left to learn where the noise is strongest.

python -m tora2_jax.train --config configs/bold/base_middle.py --workdir workdirs/bold/base_middle
Hardware: two CPU cores, about 20 minutes. Expected: see docs/toy.md.
"""

from configs.bold.base_one import one_entity
from configs.bold.base_stills import start_from_base
from configs.bold.vae import FOLDER
from tora2_jax.config.train import TrainConfig


def get_config() -> TrainConfig:
    """The settings of this stage."""
    config = one_entity(seed=221)
    config.world.spread = 0.15
    config.world.rich_captions = 0.9
    config.steps = 800
    config.data_size = 12_288
    config.timesteps.shift = 6.0
    start_from_base(config, f"{FOLDER}/stages/base_stills")
    return config
