"""The paper's run: Tora2 on a frozen CogVideoX-5B with the released Tora's motion path.

python -m tora2_jax.train --config configs/tora2_5b.py --workdir workdirs/tora2_5b
Another base: --config configs/tora2_5b.py:checkpoints/tora_1_5_i2v
Clips: --config.clips.folder=DIR with videos, labels and entities (docs/entity_clips.md)
Weights: `python -m convert tora|dinov2|arcface|reid` makes the folders named below.
Devices: --config.mesh.fsdp=8 and so on (docs/sharding.md).
Hardware, memory, hours: not measured; the paper does not name its own.
"""

from dataclasses import replace
from pathlib import Path

from tora2_jax.bundle import load_config
from tora2_jax.config import ModelConfig, MotionConfig, PersonalizationConfig, cogvideox_5b
from tora2_jax.train_config import (
    ClipFolderConfig,
    EntityClipConfig,
    MeshConfig,
    OptimConfig,
    ReferenceGuardConfig,
    TrainConfig,
    WeightsConfig,
)

BASE = "checkpoints/tora_5b"  # from `python -m convert tora`


def base_model(base: str) -> ModelConfig:
    """The settings of a converted Tora, or of Tora on CogVideoX-5B where it is not there yet."""
    folder = Path(base)
    model = load_config(folder) if folder.exists() else cogvideox_5b()
    return replace(
        model, motion=model.motion or MotionConfig(), personalization=PersonalizationConfig()
    )


def get_config(base: str = BASE) -> TrainConfig:
    """The settings of section 4.1; what is ours is in docs/decisions.md."""
    model = base_model(base)
    model.transformer.rematerialize = "full"
    config = TrainConfig(
        stage="tora2",
        steps=15_000,
        batch_size=32,
        cache_dir="workdirs/cache",
        tokenizer=f"{base}/tokenizer",
        face_models="checkpoints/face_models",
        model=model,
        clips=ClipFolderConfig(folder="data/clips", entities=EntityClipConfig(), draws=4),
        reference_guards=ReferenceGuardConfig(),
        optim=OptimConfig(learning_rate=3e-6),
        weights=WeightsConfig(
            transformer=base,
            motion=base,
            vae=base,
            text=base,
            dino="checkpoints/dinov2",
            face="checkpoints/arcface",
            object="checkpoints/reid",
        ),
        mesh=MeshConfig(data=1, fsdp=-1),
        dtype="bfloat16",
        frozen_dtype="bfloat16",
        checkpoint_every=500,
        export="checkpoints/tora2_5b",
    )
    config.optim.tora_initialised = r"tora2\.(trajectory_extractor|transformer\.blocks\.fuser)\."
    return config
