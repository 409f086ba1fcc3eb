"""The paper's run: Tora2 on a frozen CogVideoX-5B with the released Tora's motion path.

python -m tora2_jax.train --config configs/tora2_5b.py --workdir workdirs/tora2_5b
Another base: --config configs/tora2_5b.py:checkpoints/tora_1_5_i2v
Clips: --config.clips.folder=DIR with videos, labels and entities (docs/entity_clips.md)
Weights: `python -m convert tora|dinov2|arcface|reid` makes the folders named below, encoders
    beside the base; the settings of those that are there already are read from them.
From PyTorch weights and clips to a checkpoint: scripts/clips_to_checkpoint.sh does it all.
Devices: fsdp takes all of them, 32 at most (a sample each). On more, the rest goes to sequence:
    --config.mesh.fsdp=16 --config.mesh.sequence=4 on 64 (docs/sharding.md).
Hardware: 8 H200s, 16 TPU v7x devices or 64 TPU v6e, by their compilers (docs/plan.md): 44 GiB of
each H200. About 1.7 days there if 40 % of the peak is reached, which is not measured; the paper
does not name its own.
"""

from dataclasses import replace
from pathlib import Path

from tora2_jax.config import ModelConfig, MotionConfig, PersonalizationConfig, cogvideox_5b
from tora2_jax.config.train import (
    ClipFolderConfig,
    EntityClipConfig,
    MeshConfig,
    OptimConfig,
    ReferenceGuardConfig,
    TrainConfig,
    WeightsConfig,
)
from tora2_jax.weights import checkpoint
from tora2_jax.weights.bundle import load_config
from tora2_jax.weights.settings import stored_settings

BASE = "checkpoints/tora_5b"  # from `python -m convert tora`
ENCODERS = {"dino": "dinov2", "face": "arcface", "object": "reid"}  # folders beside the base


def base_model(base: str) -> ModelConfig:
    """The settings of a converted Tora, or of Tora on CogVideoX-5B where it is not there yet."""
    folder = Path(base)
    model = load_config(folder) if folder.exists() else cogvideox_5b()
    return replace(
        model, motion=model.motion or MotionConfig(), personalization=PersonalizationConfig()
    )


def with_encoders(model: ModelConfig, places: dict[str, str]) -> ModelConfig:
    """The model with the settings of the converted encoders, as far as they are there."""
    for name, place in places.items():
        path = checkpoint.resolve(place, name)
        if path.exists():
            metadata = checkpoint.component_metadata(path)
            own = stored_settings(name, getattr(model, name), metadata)
            model = replace(model, **{name: own})
    return model


def get_config(base: str = BASE) -> TrainConfig:
    """The settings of section 4.1; what is ours is in docs/decisions.md."""
    encoders = {name: str(Path(base).parent / own) for name, own in ENCODERS.items()}
    model = with_encoders(base_model(base), encoders)
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
            **encoders,
        ),
        mesh=MeshConfig(data=1, fsdp=-1),
        dtype="bfloat16",
        frozen_dtype="bfloat16",
        checkpoint_every=500,
    )
    config.optim.tora_initialized = r"tora2\.(trajectory_extractor|transformer\.blocks\.fuser)\."
    return config
