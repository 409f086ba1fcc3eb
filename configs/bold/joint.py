"""Bold toy chain, stage joint: all that the paper trains, on whole clips.

python -m tora2_jax.train --config configs/bold/joint.py --workdir workdirs/bold/joint
Hardware: two CPU cores, about 2 hours. Expected: see docs/toy.md.
"""

from configs.bold.base_stills import muon
from configs.bold.joint_stills import joint_config
from configs.bold.vae import FOLDER
from tora2_jax.config.train import TrainConfig


def get_config() -> TrainConfig:
    """The settings of this stage."""
    config = joint_config(frames=17, seed=215)
    config.steps = 3500
    config.batch_size = 16
    config.data_size = 20_000
    config.weights.motion = f"{FOLDER}/stages/joint_stills/motion.safetensors"
    config.weights.personalization = f"{FOLDER}/stages/joint_stills/personalization.safetensors"
    config.optim = muon(8e-3, "cosine")
    return config
