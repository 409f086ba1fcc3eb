"""Face encoder of the bold toy model: angular margin over a pool of identities.

    python -m tora2_jax.train --config configs/bold/face.py --workdir workdirs/bold/face

Hardware: 2 CPU cores. Expected: see docs/toy.md.
Its result goes to `checkpoints/bold/face.safetensors`; its metadata holds the numbers.
"""

from configs.bold.vae import bold_world
from tora2_jax.config.train import OptimConfig, TrainConfig
from tora2_jax.config.world import RecognitionConfig
from tora2_jax.world.model import toy_bold


def get_config() -> TrainConfig:
    """The settings of the run."""
    return TrainConfig(
        stage="face",
        seed=7103,
        steps=1200,
        batch_size=64,
        model=toy_bold(),
        world=bold_world(7103, frames=4, references=1),
        recognition=RecognitionConfig(local_weight=20.0),
        optim=OptimConfig(
            learning_rate=2e-3, schedule="cosine", warmup_steps=30, clip_norm=1.0, eps=1e-8
        ),
        checkpoint_every=100,
    )
