"""Toy chain, stage base_fine: the base goes on while its learning rate falls to zero.

python -m tora2_jax.train --config configs/toy_base_fine.py --workdir workdirs/base_fine
Hardware: two CPU cores, about 4 minutes. Expected: see docs/toy.md.
"""

from configs.toy_base import FIRST_BASE
from configs.toy_base import get_config as first_part
from tora2_jax.config.train import TrainConfig


def get_config() -> TrainConfig:
    """The settings of this stage."""
    config = first_part()
    config.seed = 11  # of the order, the noise and the timesteps
    config.steps = 400
    config.weights.transformer = f"{FIRST_BASE}/transformer.safetensors"
    config.weights.text = f"{FIRST_BASE}/text.safetensors"
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 10
    return config
