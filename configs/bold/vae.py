"""Bold toy chain, stage vae: the causal 3D VAE on small windows of clips and of flow images.

Goes on in configs/bold/vae_fine.py, whose result is the one that the chain uses.

python -m tora2_jax.train --config configs/bold/vae.py --workdir workdirs/bold/vae
Hardware: two CPU cores. Expected: see docs/toy.md.
"""

from tora2_jax.config.train import OptimConfig, TrainConfig
from tora2_jax.config.world import CropConfig, WorldConfig
from tora2_jax.world.model import toy_bold

FOLDER = "checkpoints/bold"  # what the chain makes, and what the later stages start from
FIRST_VAE = f"{FOLDER}/stages/vae.safetensors"  # where the second part starts


def bold_world(seed: int, **settings) -> WorldConfig:
    """The world that all stages of this chain see, each from a seed of its own."""
    return WorldConfig(seed=seed, height=64, width=64, style="bold", **settings)


def get_config() -> TrainConfig:
    """The settings of this stage."""
    return TrainConfig(
        stage="vae",
        seed=101,
        steps=1000,
        batch_size=8,
        model=toy_bold(),
        world=bold_world(101, references=0),
        crops=CropConfig(frames=17, size=32),  # all frames, so that every chunk is trained
        optim=OptimConfig(
            algorithm="muon",
            learning_rate=2e-2,
            schedule="cosine",
            warmup_steps=20,
            betas=(0.9, 0.95),
            clip_norm=1.0,
        ),
        ema_decay=0.995,
        checkpoint_every=50,
    )
