"""Bench: finds every word of the toy world in a frame.

    python -m tora2_jax.train --config configs/bench_localiser.py --workdir runs/bench_localiser

Hardware: 2 CPU cores. Minutes: ?. Ends in `checkpoints/bench/localiser.safetensors`, whose metadata holds the
numbers on held-out identities; expected: ?.
"""

from tora2_jax.config import WorldConfig, toy
from tora2_jax.train_config import OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    """The settings of the run."""
    return TrainConfig(
        stage="localiser",
        seed=7001,
        steps=800,
        batch_size=16,
        model=toy(),
        world=WorldConfig(seed=7001, frames=2, references=0),
        optim=OptimConfig(
            learning_rate=3e-3, schedule="cosine", warmup_steps=30, clip_norm=1.0, eps=1e-8
        ),
        checkpoint_every=800,
        export="checkpoints/bench/localiser.safetensors",
    )
