"""Tora's motion stage 1: the flow of every pixel. Trains extractor and fusers, all else frozen.

python -m tora2_jax.train --config configs/motion_stage1.py --workdir workdirs/motion_stage1
Another base: --config configs/motion_stage1.py:checkpoints/cogvideox_2b
Clips: --config.clips.folder=DIR with videos/NAME.mp4 and labels/NAME.txt
Hardware, hours: see `python -m tora2_jax.plan` (docs/plan.md). Expected numbers: not known.
Float32, unless --config.dtype=bfloat16 --config.frozen_dtype=bfloat16.
Settings and their sources: docs/motion_training.md.
"""

from dataclasses import replace
from pathlib import Path

from tora2_jax.config import ModelConfig, MotionConfig, cogvideox_5b
from tora2_jax.config.train import (
    ClipFolderConfig,
    DropoutConfig,
    OptimConfig,
    TrainConfig,
    WeightsConfig,
)
from tora2_jax.weights.bundle import load_config

BASE = "checkpoints/cogvideox_5b"  # from `python -m convert cogvideox`
CLIPS = "data/clips"


def base_model(base: str) -> ModelConfig:
    """The settings of a converted base, or CogVideoX-5B's where it is not there yet."""
    folder = Path(base)
    model = load_config(folder) if folder.exists() else cogvideox_5b()
    return replace(model, motion=None, personalization=None)


def get_config(base: str = BASE) -> TrainConfig:
    """The settings of this stage on a converted base."""
    model = replace(base_model(base), motion=MotionConfig())
    model.transformer.rematerialize = "full"
    return TrainConfig(
        stage="motion",
        steps=15_000,
        batch_size=8,
        cache_dir="workdirs/cache",
        tokenizer=f"{base}/tokenizer",
        model=model,
        clips=ClipFolderConfig(folder=CLIPS, motion="dense"),
        optim=OptimConfig(learning_rate=1e-4),
        dropout=DropoutConfig(caption=0.1, references=0.0, trajectories=0.0, entity_references=0.0),
        weights=WeightsConfig(transformer=base, vae=base, text=base),
        ema_decay=0.999,
        checkpoint_every=500,
    )
