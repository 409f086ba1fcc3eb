"""Bold toy chain, stage base_short: the base goes on with clips of five frames (two latent frames).

python -m tora2_jax.train --config configs/bold/base_short.py --workdir workdirs/bold/base_short
Hardware: two CPU cores, about 1 hour. Expected: see docs/toy.md.
"""

from configs.bold.base_stills import base_config, muon
from configs.bold.vae import FOLDER
from tora2_jax.train_config import TrainConfig


def get_config() -> TrainConfig:
    """The settings of this stage."""
    config = base_config(frames=5, seed=211)
    config.steps = 2500
    config.batch_size = 32
    config.data_size = 30_000
    config.weights.transformer = f"{FOLDER}/stages/base_stills/transformer.safetensors"
    config.weights.text = f"{FOLDER}/stages/base_stills/text.safetensors"
    config.optim = muon(2e-2, "constant")
    config.ema_decay = 0.998
    config.checkpoint_every = 100
    return config
