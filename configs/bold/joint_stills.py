"""Bold toy chain, stage joint_stills: all that the paper trains, on stills with one-point paths.

Extractor, fusers, encoders' adapters and binder begin from nothing, all at once: places and words
are read within minutes, and no stage of motion alone is needed before.

Four times the samples an hour of whole clips, and 60,000 different identities: on 3,000 the
denoiser overfits within four passes.

python -m tora2_jax.train --config configs/bold/joint_stills.py --workdir workdirs/bold/joint_stills
Hardware: two CPU cores, about 2 hours. Expected: see docs/toy.md.
"""

from configs.bold.base_stills import diffusion_config, muon, start_from_base
from configs.bold.vae import FOLDER, bold_world
from tora2_jax.config.train import DropoutConfig, TimestepConfig, TrainConfig

FROZEN = ("dino", "face", "object")


def joint_config(frames: int, seed: int) -> TrainConfig:
    """What both joint stages share: the base frozen, captions of the words alone.

    So looks can come from references only, and places from paths only.
    """
    config = diffusion_config("tora2", frames, seed)
    config.world = bold_world(seed, frames=frames, references=2, repeated_words=0.15)
    start_from_base(config, FOLDER)
    for name in FROZEN:
        setattr(config.weights, name, f"{FOLDER}/{name}.safetensors")
    # Less than the paper's 50, 33 and 33 %: thousands of steps have to do what 15k do there.
    config.dropout = DropoutConfig(
        caption=0.25, references=0.15, trajectories=0.15, entity_references=0.05
    )
    config.timesteps = TimestepConfig(shift=2.0)  # references matter most where there is much noise
    config.coarse_weight = 8.0  # the same kind of signal as colors in captions, see docs/toy.md
    return config


def get_config() -> TrainConfig:
    """The settings of this stage."""
    config = joint_config(frames=1, seed=214)
    config.steps = 5000
    config.batch_size = 48
    config.data_size = 60_000
    config.ema_decay = 0.99
    config.optim = muon(1e-2, "constant")
    return config
