"""Toy chain, stage vae: the causal 3D VAE on crops of clips and of flow images; first part.

Goes on in configs/toy_vae_fine.py, whose result is the one that the chain uses.

python -m tora2_jax.train --config configs/toy_vae.py --workdir workdirs/vae
Hardware: two CPU cores, about 14 minutes. Expected: see docs/toy.md.
"""

from tora2_jax.config import toy
from tora2_jax.config.train import OptimConfig, TrainConfig

FIRST_VAE = "workdirs/vae/trained/vae.safetensors"  # where the second part starts
FOLDER = "checkpoints/toy"  # what the chain makes, and what the later stages start from


def get_config() -> TrainConfig:
    """The settings of this stage."""
    return TrainConfig(
        stage="vae",
        seed=1,
        steps=1000,
        batch_size=4,
        model=toy(),
        optim=OptimConfig(
            algorithm="muon",
            learning_rate=2e-2,
            schedule="cosine",
            warmup_steps=20,
            betas=(0.9, 0.95),
            clip_norm=1.0,
        ),
        ema_decay=0.99,
        checkpoint_every=200,
    )
