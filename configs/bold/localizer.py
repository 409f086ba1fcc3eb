"""Bench of the bold toy world: finds every word in a frame.

    python -m tora2_jax.train --config configs/bold/localizer.py --workdir workdirs/bold/localizer

Hardware: 2 CPU cores. Expected: see docs/toy.md.
Its result goes to `checkpoints/bold_bench/localizer.safetensors`; its metadata holds the numbers.
"""

from configs.bold.vae import bold_world
from tora2_jax.config.train import OptimConfig, TrainConfig
from tora2_jax.world.model import toy_bold


def get_config() -> TrainConfig:
    """The settings of the run."""
    return TrainConfig(
        stage="localizer",
        seed=7101,
        steps=4000,
        batch_size=16,
        model=toy_bold(),
        world=bold_world(7101, frames=2, references=0),
        optim=OptimConfig(
            learning_rate=3e-3, schedule="cosine", warmup_steps=30, clip_norm=1.0, eps=1e-8
        ),
        checkpoint_every=100,
    )
