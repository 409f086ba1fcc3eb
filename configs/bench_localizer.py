"""Bench: finds every word of the toy world in a frame.

    python -m tora2_jax.train --config configs/bench_localizer.py --workdir workdirs/localizer

Hardware: 2 CPU cores. Minutes: 3. Measured: within 1.3 px of 256; 97.7 % of
visible entities and 99.9 % of absent words right. Goal: 2 px and 98 %.
Shipped as `checkpoints/bench/localizer.safetensors`, whose metadata holds the numbers.
"""

from tora2_jax.config import toy
from tora2_jax.config.train import OptimConfig, TrainConfig
from tora2_jax.config.world import WorldConfig


def get_config() -> TrainConfig:
    """The settings of the run."""
    return TrainConfig(
        stage="localizer",
        seed=7001,
        steps=1400,
        batch_size=16,
        model=toy(),
        world=WorldConfig(seed=7001, frames=2, references=0),
        optim=OptimConfig(
            learning_rate=3e-3, schedule="cosine", warmup_steps=30, clip_norm=1.0, eps=1e-8
        ),
        checkpoint_every=250,
    )
