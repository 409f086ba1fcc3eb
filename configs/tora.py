"""Tora as the two motion stages leave it: a base and the motion weights that belong to it.

python -m convert bundle --config configs/tora.py --dst checkpoints/tora_5b
Another base: --config configs/tora.py:checkpoints/cogvideox_2b
"""

from configs import motion_stage1, motion_stage2
from tora2_jax.train_config import TrainConfig


def get_config(base: str = motion_stage1.BASE) -> TrainConfig:
    """Stage 2's settings with its own result for its start."""
    config = motion_stage2.get_config(base)
    config.weights.motion = config.export
    return config
