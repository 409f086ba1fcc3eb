"""Tora's motion stage 2: paths along the flow, blurred, from what stage 1 made.

python -m tora2_jax.train --config configs/motion_stage2.py --workdir workdirs/motion_stage2
Base, clips, hardware: as configs/motion_stage1.py. Settings: docs/motion_training.md.
"""

from configs import motion_stage1
from tora2_jax.config.train import TrainConfig


def get_config(base: str = motion_stage1.BASE) -> TrainConfig:
    """The settings of this stage on a converted base."""
    config = motion_stage1.get_config(base)
    config.seed = 1
    config.clips.motion = "sparse"
    config.clips.draws = 4
    config.optim.learning_rate = 5e-5
    config.weights.motion = "workdirs/motion_stage1/trained"
    return config
