"""Bold toy chain, stage base_short: the base goes on with clips of five frames (two latent frames).

python -m tora2_jax.train --config configs/bold/base_short.py --workdir workdirs/bold/base_short
Hardware: two CPU cores, about 1 hour. Expected: see docs/toy.md.
"""

from configs.bold.base_stills import base_config, muon, start_from_base
from configs.bold.vae import FOLDER
from tora2_jax.config.train import TrainConfig


def get_config() -> TrainConfig:
    """The settings of this stage."""
    config = base_config(frames=5, seed=211)
    config.steps = 2500
    config.batch_size = 32
    config.data_size = 30_000
    start_from_base(config, f"{FOLDER}/stages/base_one")
    config.optim = muon(2e-2, "constant")
    return config
