"""Bold toy chain, stage base_stills: text to image; the transformer and its small T5 on stills.

python -m tora2_jax.train --config configs/bold/base_stills.py --workdir workdirs/bold/base_stills
Hardware: two CPU cores, about 2 hours. Expected: see docs/toy.md.
"""

from configs.bold.vae import FOLDER, bold_world
from tora2_jax.config.train import DropoutConfig, OptimConfig, TrainConfig, WeightsConfig
from tora2_jax.world.model import toy_bold

# The matrices inside of the network.
BLOCKS = r".*\.(blocks|layers|cross_attention)\."


def muon(learning_rate: float, schedule: str, warmup_steps: int = 50) -> OptimConfig:
    """Muon for the blocks' matrices, modulations as six; Adam for all else."""
    return OptimConfig(
        algorithm="muon",
        learning_rate=learning_rate,
        schedule=schedule,
        warmup_steps=warmup_steps,
        betas=(0.9, 0.95),
        clip_norm=1.0,
        muon=BLOCKS,
        fused=r".*_norm\.modulation\.",
    )


def diffusion_config(stage: str, frames: int, seed: int) -> TrainConfig:
    """What the diffusion stages share; clips of fewer frames have the same rate."""
    model = toy_bold()
    model.frames = frames
    return TrainConfig(
        stage=stage,
        seed=seed,
        cache_dir="workdirs/cache",
        tokenizer=f"{FOLDER}/tokenizer",
        model=model,
        weights=WeightsConfig(vae=f"{FOLDER}/vae.safetensors"),
        ema_decay=0.998,
        checkpoint_every=100,
    )


def start_from_base(config: TrainConfig, folder: str) -> None:
    """Takes the transformer and the text encoder that an earlier stage has left in a folder."""
    config.weights.transformer = f"{folder}/transformer.safetensors"
    config.weights.text = f"{folder}/text.safetensors"


def base_config(frames: int, seed: int) -> TrainConfig:
    """Captions only, most of which tell what is to be seen, as those of a real base do."""
    config = diffusion_config("base", frames, seed)
    config.model.motion = None
    config.model.personalization = None
    config.world = bold_world(
        seed, frames=frames, references=0, rich_captions=0.6, repeated_words=0.12
    )
    config.dropout = DropoutConfig(caption=0.1)
    config.coarse_weight = 8.0  # without it no color is read within thousands of steps
    return config


def get_config() -> TrainConfig:
    """The settings of this stage."""
    config = base_config(frames=1, seed=210)
    config.steps = 6000
    config.batch_size = 64
    config.data_size = 40_960
    config.optim = muon(2e-2, "constant")  # constant, so that the next stages can go on
    return config
