"""Tora as the two motion stages leave it: a base and the motion weights that belong to it.

python -m convert bundle --config configs/tora.py --dst checkpoints/tora_5b
Another base: --config configs/tora.py:checkpoints/cogvideox_2b
"""

from configs import motion_stage1, motion_stage2
from tora2_jax.config.train import TrainConfig
from tora2_jax.weights import checkpoint


def get_config(base: str = motion_stage1.BASE) -> TrainConfig:
    """Stage 2's settings with its own result for its start."""
    config = motion_stage2.get_config(base)
    config.weights.motion = "workdirs/motion_stage2/trained"
    # Stage 2 may have been told of another null text than the base's.
    trained = checkpoint.resolve(config.weights.motion, "motion")
    if trained.exists():
        metadata = checkpoint.component_metadata(trained)
        config.model.null_text = metadata["model"]["null_text"]
    return config
