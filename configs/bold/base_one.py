"""Bold toy chain, stage base_one: stills of one entity, anywhere in the frame.

With several entities a word does not say which of them it means, and reading comes slowly.

python -m tora2_jax.train --config configs/bold/base_one.py --workdir workdirs/bold/base_one
Hardware: two CPU cores, about 1 hour. Expected: see docs/toy.md.
"""

from configs.bold.base_stills import base_config, muon, start_from_base
from configs.bold.vae import FOLDER
from tora2_jax.config.train import TrainConfig


def one_entity(seed: int) -> TrainConfig:
    """What both stages of one entity share."""
    config = base_config(frames=1, seed=seed)
    config.world.max_entities = 1
    config.world.repeated_words = 0.0
    config.batch_size = 64
    config.optim = muon(2e-2, "constant")
    return config


def get_config() -> TrainConfig:
    """The settings of this stage."""
    config = one_entity(seed=220)
    config.steps = 3000
    config.data_size = 30_720
    config.timesteps.shift = 3.0  # a caption matters where there is much noise
    start_from_base(config, f"{FOLDER}/stages/base_middle")
    return config
