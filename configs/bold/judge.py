"""Bench of the bold toy world: tells which reference an entity of a video is from.

    python -m tora2_jax.train --config configs/bold/judge.py --workdir workdirs/bold/judge

Hardware: 2 CPU cores. Expected: see docs/toy.md.
Its result goes to `checkpoints/bold_bench/judge.safetensors`; its metadata holds the numbers.
"""

from configs.bold.vae import bold_world
from tora2_jax.config.train import OptimConfig, TrainConfig
from tora2_jax.world.model import toy_bold


def get_config() -> TrainConfig:
    """The settings of the run."""
    return TrainConfig(
        stage="judge",
        seed=7102,
        steps=3600,
        batch_size=8,
        model=toy_bold(),
        world=bold_world(7102, frames=4, references=1),
        optim=OptimConfig(
            learning_rate=2e-3, schedule="cosine", warmup_steps=30, clip_norm=1.0, eps=1e-8
        ),
        checkpoint_every=100,
    )
