"""Bold toy chain, stage base_one: stills of one entity, on which captions are learned to be read.

With several entities a word does not say which of them it means, and reading comes slowly.

python -m tora2_jax.train --config configs/bold/base_one.py --workdir workdirs/bold/base_one
Hardware: two CPU cores, about 1 hour. Expected: see docs/toy.md.
"""

from configs.bold.base_stills import base_config, muon, start_from_base
from configs.bold.vae import FOLDER
from tora2_jax.config.train import TrainConfig


def get_config() -> TrainConfig:
    """The settings of this stage."""
    config = base_config(frames=1, seed=210)
    config.world.max_entities = 1
    config.world.repeated_words = 0.0
    config.steps = 3000
    config.batch_size = 64
    config.data_size = 20_480
    start_from_base(config, f"{FOLDER}/stages/base_stills")
    config.optim = muon(2e-2, "constant")
    return config
