"""The motion VAE: a copy of the video VAE, fine-tuned on the flow pictures of real clips.

python -m tora2_jax.train --config configs/motion_vae.py --workdir workdirs/motion_vae
Base and clips: as configs/motion_stage1.py. The stages use it with
--config.weights.motion_vae=workdirs/motion_vae/trained
Hardware, hours, expected numbers: not known; never run at full size.
Settings: docs/motion_training.md.
"""

from configs import motion_stage1
from tora2_jax.config.train import ClipFolderConfig, OptimConfig, TrainConfig, WeightsConfig


def get_config(base: str = motion_stage1.BASE) -> TrainConfig:
    """The settings of this stage on the VAE of a converted base."""
    return TrainConfig(
        stage="motion_vae",
        steps=200_000,
        batch_size=8,
        workers=8,
        cache_dir="workdirs/cache",
        model=motion_stage1.base_model(base),
        clips=ClipFolderConfig(folder=motion_stage1.CLIPS, motion="both"),
        optim=OptimConfig(learning_rate=1e-5, eps=1e-8, clip_norm=1.0),
        weights=WeightsConfig(motion_vae=f"{base}/vae"),
        ema_decay=0.999,
    )
