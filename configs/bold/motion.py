"""Bold toy chain, stage motion: trajectory extractor and motion-guidance fusers, the base frozen.

python -m tora2_jax.train --config configs/bold/motion.py --workdir workdirs/bold/motion
Hardware: two CPU cores, about 40 minutes. Expected: see docs/toy.md.
"""

from configs.bold.base_stills import diffusion_config, muon, start_from_base
from configs.bold.vae import FOLDER, bold_world
from tora2_jax.config.train import DropoutConfig, TrainConfig


def conditioned_config(stage: str, frames: int, seed: int) -> TrainConfig:
    """What the stages on the frozen base share: captions of the words alone, as in the bench.

    So looks can come from references only, and places from paths only.
    """
    config = diffusion_config(stage, frames, seed)
    config.world = bold_world(seed, frames=frames, references=2, repeated_words=0.15)
    start_from_base(config, FOLDER)
    return config


def get_config() -> TrainConfig:
    """The settings of this stage."""
    config = conditioned_config("motion", frames=17, seed=213)
    config.steps = 1500
    config.batch_size = 16
    config.data_size = 10_000
    config.model.personalization = None
    config.world.references = 0
    config.dropout = DropoutConfig(caption=0.1, trajectories=0.1)
    config.optim = muon(1.5e-2, "cosine", warmup_steps=30)
    return config
