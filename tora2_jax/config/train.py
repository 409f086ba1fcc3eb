"""The settings of one training stage. Plain data, so that every field can be set by a flag."""

from dataclasses import dataclass, field
from typing import Any, Literal

from tora2_jax.config.model import ModelConfig, to_dict
from tora2_jax.config.rules import (
    broken_rules,
    checked,
    not_negative,
    pair,
    positive,
    regex,
    share,
)
from tora2_jax.config.world import CropConfig, RecognitionConfig, WorldConfig
from tora2_jax.errors import TrainError  # noqa: F401  its place until 2026-11
from tora2_jax.system.addresses import address_problems

CLIP_STAGES = ("base", "motion", "motion_vae", "tora2")  # can be trained on a folder of clips

# Fields that may differ between a run and its continuation: they do not change a number.
_HARMLESS = {
    "cache_dir",
    "checkpoint_every",
    "clips.faulty",
    "export",
    "keep_checkpoints",
    "log_every",
    "mesh.data",
    "mesh.fsdp",
    "mesh.sequence",
    "mesh.tensor",
    "model.diffusion.scheduler",
    "model.diffusion.steps_offset",
    "model.diffusion.timestep_spacing",
    "model.transformer.rematerialize",
    "model.transformer.unroll_layers",
    "profile_steps",
    "sample_every",
    "skips_allowed",
    "stop_code",
    "stop_seconds",
    "workers",
}


@dataclass(slots=True, kw_only=True)
class OptimConfig:
    """AdamW; defaults are the paper's and Tora's where they say, else our decision."""

    algorithm: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = positive(3e-6)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = not_negative(500)
    betas: tuple[float, float] = pair(
        (0.9, 0.95),
        lambda a, b: 0 <= a < 1 and 0 <= b < 1,
        "must be two numbers of at least 0 and below 1",
    )
    eps: float = positive(1e-12)  # behind a zero map gradients start 1e4 times smaller
    weight_decay: float = not_negative(1e-4)  # on kernels and embedding tables only
    clip_norm: float = positive(0.1)  # of the whole gradient
    new_lr_scale: float = 1.0  # for the variables that `tora_initialized` does not match
    tora_initialized: str = regex(".*")  # regex, matched from the start of a variable's path
    # For the scalars of `binding.gate: tanh`: at 3e-6 x 15,000 steps one could not pass 0.045.
    gate_lr_scale: float = 100.0
    # The same for variables whose leading axis counts layers, which Muon has to know; by default
    # the model says.
    stacked: str | None = regex(None)
    # Kernels that Muon makes steps of; the others are left to Adam, as biases and tables are.
    muon: str = regex(r".*")
    # Kernels whose outputs are those of `fused_maps` maps side by side, each a matrix for Muon.
    fused: str = regex(r"(?!)")
    fused_maps: int = positive(6)  # of CogVideoX's modulations


@dataclass(slots=True, kw_only=True)
class TimestepConfig:
    """How a diffusion stage draws its timesteps."""

    # Uniform at 1, as in the paper. Above it noisier ones are drawn more often, as the timestep
    # u of [0, 1) becomes shift u / (1 + (shift - 1) u) (Esser et al., arXiv 2403.03206, eq. 23).
    shift: float = positive(1.0)


@dataclass(slots=True, kw_only=True)
class DropoutConfig:
    """Probabilities with which a condition is withheld, drawn independently per sample."""

    caption: float = share(0.5)
    references: float = share(0.33)
    trajectories: float = share(0.33)
    entity_references: float = share(0.1)  # per entity, on top of `references`


@dataclass(slots=True, kw_only=True)
class WeightsConfig:
    """Where each component starts from; None is random.

    A component's own file or weight folder, or a converted folder or bundle that has one of its
    name.
    """

    transformer: str | None = None
    motion: str | None = None
    personalization: str | None = None
    vae: str | None = None
    motion_vae: str | None = None
    text: str | None = None
    dino: str | None = None
    face: str | None = None
    object: str | None = None


@dataclass(slots=True, kw_only=True)
class EntityClipConfig:
    """Clips whose entities are annotated (docs/entity_clips.md)."""

    smallest_cut: int = positive(
        32
    )  # pixels: longer side of the smallest entity cut out of a frame


def _part(default: float) -> Any:
    return checked(default, lambda value: 0 <= value < 1, "must be at least 0, below 1")


@dataclass(slots=True, kw_only=True)
class ReferenceGuardConfig:
    """What keeps a model from pasting its references into the video (docs/entity_clips.md).

    The ranges are those of Video Alchemist (Chen et al., CVPR 2025), Table 4.
    """

    max_images: int = positive(3)  # 1 to this many are drawn per entity, with replacement
    frame_gap: float = not_negative(
        1.0
    )  # seconds of the clip between a frame shown and one cut from
    smallest: int = positive(112)  # pixels that the longer side keeps at least when shrunk
    blur: float = _part(0.02)  # side of the largest kernel, in longer sides of the picture
    color: float = _part(0.05)  # largest change of each channel, as a share
    brightness: float = _part(0.1)  # of all channels together
    flip: float = share(0.5)  # probability of a mirrored picture
    shear: float = _part(0.05)  # largest, along x and along y
    # Degrees, largest, both ways.
    rotate: float = checked(20.0, lambda value: 0 <= value <= 180, "must be between 0 and 180")
    # Smallest share of the area that is kept.
    crop: float = checked(0.67, lambda value: 0 < value <= 1, "must be above 0, at most 1")


@dataclass(slots=True, kw_only=True)
class ClipFolderConfig:
    """Clips and captions as Tora's release keeps them; sizes and fps are the model's."""

    folder: str | None = None  # holds videos/NAME.mp4 and labels/NAME.txt
    entities: EntityClipConfig | None = None  # read entities/NAME.json; None: clips have none
    at_most: int | None = positive(None)  # only the first so many clips, by name; None: all
    faulty: Literal["refuse", "skip"] = "refuse"  # what becomes of clips with a fault; all are told
    # Flow of every pixel, along some paths, or by even chance one of these.
    motion: Literal["dense", "sparse", "both"] = "sparse"
    # Sets of paths or references (and of noise on a first frame) per clip; each is encoded once.
    draws: int = positive(1)
    skip_frames: int = not_negative(3)  # at each end of a clip, as far as it is longer than needed
    # MODULE:NAME of a FlowEstimator; training imports and runs it, sampling never does.
    estimator: str = "tora2_jax.optical_flow:DISFlow"
    max_paths: int = positive(16)
    grid: int = positive(32)  # pixels between the places where a path may begin
    # I2V: the first frame gets noise of standard deviation exp(N(mean, deviation)).
    image_noise: tuple[float, float] = pair(
        (-3.0, 0.5), lambda mean, deviation: deviation >= 0, "must have no negative deviation"
    )
    image_dropout: float = share(0.05)  # I2V: share of examples without their first frame
    crop_frames: int = positive(9)  # stage motion_vae trains on crops
    crop_size: int = positive(256)  # pixels


@dataclass(slots=True, kw_only=True)
class MeshConfig:
    """How many devices share what, see docs/sharding.md; one of the sizes may be -1: the rest."""

    data: int = -1  # samples
    fsdp: int = 1  # samples, and weights at rest
    sequence: int = 1  # positions of the stream
    tensor: int = 1  # heads and hidden channels


@dataclass(slots=True, kw_only=True)
class TrainConfig:
    """Everything that determines a training run."""

    stage: str = "tora2"
    seed: int = 0
    steps: int = positive(15_000)
    batch_size: int = positive(32)  # global, over all processes
    workers: int = not_negative(0)  # processes that make examples; 0 is a thread of this one
    data_size: int | None = positive(
        None
    )  # examples in the pool; None: never the same example twice
    cache_dir: str | None = None  # folder for computed features of the pool
    tokenizer: str | None = None  # folder of the text encoder's tokenizer
    face_models: str | None = None  # folder of a face detector, for models that look for faces
    model: ModelConfig = field(default_factory=ModelConfig)
    world: WorldConfig = field(default_factory=WorldConfig)
    crops: CropConfig = field(default_factory=CropConfig)
    recognition: RecognitionConfig = field(default_factory=RecognitionConfig)
    clips: ClipFolderConfig | None = None  # where examples come from; None: the toy world
    reference_guards: ReferenceGuardConfig | None = None  # None: references stay as they are
    optim: OptimConfig = field(default_factory=OptimConfig)
    dropout: DropoutConfig = field(default_factory=DropoutConfig)
    timesteps: TimestepConfig = field(default_factory=TimestepConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    # In how many parts, one after another, a batch goes through the model. The contrastive loss
    # has its negatives in one part.
    accumulate: int = positive(1)
    dtype: Literal["float32", "bfloat16"] = "float32"  # in which the diffusion model computes
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"  # of weights that are not trained
    contrast_weight: float = 0.2
    # Of a second diffusion loss, on means of 4 x 4 latents of a frame: what is large and flat, as
    # the color that a caption tells, counts for more beside detail. 0: none, as in the paper.
    coarse_weight: float = not_negative(0.0)
    # None: no average is kept.
    ema_decay: float | None = checked(None, lambda decay: 0 < decay < 1, "must be between 0 and 1")
    checkpoint_every: int = positive(1000)
    keep_checkpoints: int = positive(2)
    log_every: int = positive(10)
    sample_every: int = not_negative(0)  # 0: never
    # First and last, to DIR/profile; (0, 0): none.
    profile_steps: tuple[int, int] = pair(
        (0, 0),
        lambda first, last: first == last == 0 or 0 < first <= last,
        "must be the first and the last step, or (0, 0)",
    )
    # Steps in a row without a finite loss and gradient; one more ends it.
    skips_allowed: int = not_negative(10)
    # Exit code of a run that was asked to stop before its last step.
    stop_code: int = checked(75, lambda code: 2 < code < 126, "must be between 3 and 125")
    stop_seconds: float = positive(600.0)  # for the step and the save that end such a run
    # NAME.safetensors, or a folder for one file per trained component. None: WORKDIR/trained; "":
    # nothing is exported.
    export: str | None = None


def problems(config: TrainConfig) -> list[str]:
    """What is wrong with the values of a config, one line per field; empty if nothing is."""
    faults = list(broken_rules(config))
    if config.clips is not None:
        faults += _clip_problems(config, config.clips)
    if config.stage == "motion_vae" and config.clips is None:
        faults.append("config.clips is needed: this stage has no world")
    return faults + address_problems(_paths(config))


def _paths(config: TrainConfig) -> dict[str, str | None]:
    """Every place that a config names."""
    named = ("cache_dir", "tokenizer", "face_models", "export")
    paths = {f"config.{name}": getattr(config, name) for name in named}
    paths |= {f"config.weights.{name}": path for name, path in to_dict(config.weights).items()}
    folder = None if config.clips is None else config.clips.folder
    return paths | {"config.clips.folder": folder}


def _clip_problems(config: TrainConfig, clips: ClipFolderConfig) -> list[str]:
    """What does not go together where examples come from a folder of clips."""
    entities, plain = clips.entities, config.model.personalization is None
    checks = [
        ("clips", config.stage in CLIP_STAGES, f"serves the stages {', '.join(CLIP_STAGES)} only"),
        ("clips.folder", clips.folder is not None, "must name the folder of the clips"),
        ("data_size", config.data_size is None, "must be None: the folder of clips has a size"),
        (
            "clips.entities",
            config.stage != "tora2" or entities is not None,
            "is needed: stage tora2 trains on annotated clips (docs/entity_clips.md)",
        ),
        (
            "model.personalization",
            plain or entities is not None,
            "must be None: without config.clips.entities clips have no references",
        ),
    ]
    return [f"config.{name} {rule}" for name, holds, rule in checks if not holds]


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Fields in which two configs (`to_dict`) would give different numbers, one line each.

    The number of steps counts only where the schedule of the learning rate depends on it.
    """
    before, after = _leaves(old), _leaves(new)
    # A config of an earlier version lacks what was not there to be set.
    before = {
        **{name: value for name, value in _leaves(to_dict(TrainConfig())).items() if name in after},
        **before,
    }
    harmless = set(_HARMLESS)
    if before.get("optim.schedule") == after.get("optim.schedule") == "constant":
        harmless.add("steps")
    return [
        f"config.{name}: {before.get(name)!r} -> {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if name not in harmless and before.get(name) != after.get(name)
    ]


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = list(value) if isinstance(value, tuple) else value
    return leaves
