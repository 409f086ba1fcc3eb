"""The settings of one training stage. Plain data, so that every field can be set by a flag."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tora2_jax.config.model import ModelConfig, to_dict
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
    learning_rate: float = 3e-6
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 500
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-12  # behind a zero map gradients start 1e4 times smaller
    weight_decay: float = 1e-4  # on kernels and embedding tables only
    clip_norm: float = 0.1  # of the whole gradient
    new_lr_scale: float = 1.0  # for the variables that `tora_initialized` does not match
    tora_initialized: str = ".*"  # regex, matched from the start of a variable's path
    # For the scalars of `binding.gate: tanh`: at 3e-6 x 15,000 steps one could not pass 0.045.
    gate_lr_scale: float = 100.0
    # The same for variables whose leading axis counts layers, which Muon has to know; by default
    # the model says.
    stacked: str | None = None
    # Kernels that Muon makes steps of; the others are left to Adam, as biases and tables are.
    muon: str = r".*"
    # Kernels whose outputs are those of `fused_maps` maps side by side, each a matrix for Muon.
    fused: str = r"(?!)"
    fused_maps: int = 6  # of CogVideoX's modulations


@dataclass(slots=True, kw_only=True)
class TimestepConfig:
    """How a diffusion stage draws its timesteps."""

    # Uniform at 1, as in the paper. Above it noisier ones are drawn more often, as the timestep
    # u of [0, 1) becomes shift u / (1 + (shift - 1) u) (Esser et al., arXiv 2403.03206, eq. 23).
    shift: float = 1.0


@dataclass(slots=True, kw_only=True)
class DropoutConfig:
    """Probabilities with which a condition is withheld, drawn independently per sample."""

    caption: float = 0.5
    references: float = 0.33
    trajectories: float = 0.33
    entity_references: float = 0.1  # per entity, on top of `references`


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

    smallest_cut: int = 32  # pixels: longer side of the smallest entity cut out of a frame


@dataclass(slots=True, kw_only=True)
class ReferenceGuardConfig:
    """What keeps a model from pasting its references into the video (docs/entity_clips.md).

    The ranges are those of Video Alchemist (Chen et al., CVPR 2025), Table 4.
    """

    max_images: int = 3  # 1 to this many are drawn per entity, with replacement
    frame_gap: float = 1.0  # seconds of the clip between a frame shown and one cut from
    smallest: int = 112  # pixels that the longer side keeps at least when shrunk
    blur: float = 0.02  # side of the largest kernel, in longer sides of the picture
    color: float = 0.05  # largest change of each channel, as a share
    brightness: float = 0.1  # of all channels together
    flip: float = 0.5  # probability of a mirrored picture
    shear: float = 0.05  # largest, along x and along y
    rotate: float = 20.0  # degrees, largest, both ways
    crop: float = 0.67  # smallest share of the area that is kept


@dataclass(slots=True, kw_only=True)
class ClipFolderConfig:
    """Clips and captions as Tora's release keeps them; sizes and fps are the model's."""

    folder: str | None = None  # holds videos/NAME.mp4 and labels/NAME.txt
    entities: EntityClipConfig | None = None  # read entities/NAME.json; None: clips have none
    at_most: int | None = None  # only the first so many clips, by name; None: all
    faulty: Literal["refuse", "skip"] = "refuse"  # what becomes of clips with a fault; all are told
    # Flow of every pixel, along some paths, or by even chance one of these.
    motion: Literal["dense", "sparse", "both"] = "sparse"
    # Sets of paths or references (and of noise on a first frame) per clip; each is encoded once.
    draws: int = 1
    skip_frames: int = 3  # at each end of a clip, as far as it is longer than needed
    # MODULE:NAME of a FlowEstimator; training imports and runs it, sampling never does.
    estimator: str = "tora2_jax.optical_flow:DISFlow"
    max_paths: int = 16
    grid: int = 32  # pixels between the places where a path may begin
    # I2V: the first frame gets noise of standard deviation exp(N(mean, deviation)).
    image_noise: tuple[float, float] = (-3.0, 0.5)
    image_dropout: float = 0.05  # I2V: share of examples without their first frame
    crop_frames: int = 9  # stage motion_vae trains on crops
    crop_size: int = 256  # pixels


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
    steps: int = 15_000
    batch_size: int = 32  # global, over all processes
    workers: int = 0  # processes that make examples; 0 is a thread of this one
    data_size: int | None = None  # examples in the pool; None: never the same example twice
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
    accumulate: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"  # in which the diffusion model computes
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"  # of weights that are not trained
    contrast_weight: float = 0.2
    # Of a second diffusion loss, on means of 4 x 4 latents of a frame: what is large and flat, as
    # the color that a caption tells, counts for more beside detail. 0: none, as in the paper.
    coarse_weight: float = 0.0
    ema_decay: float | None = None  # None: no average is kept
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    log_every: int = 10
    sample_every: int = 0  # 0: never
    profile_steps: tuple[int, int] = (0, 0)  # first and last, to DIR/profile; (0, 0): none
    skips_allowed: int = 10  # steps in a row without a finite loss and gradient; one more ends it
    stop_code: int = 75  # exit code of a run that was asked to stop before its last step
    stop_seconds: float = 600.0  # for the step and the save that end such a run
    # NAME.safetensors, or a folder for one file per trained component. None: WORKDIR/trained; "":
    # nothing is exported.
    export: str | None = None


def problems(config: TrainConfig) -> list[str]:
    """What is wrong with the values of a config, one line per field; empty if nothing is."""
    checks = [
        ("steps", config.steps > 0, "must be positive"),
        ("batch_size", config.batch_size > 0, "must be positive"),
        ("accumulate", config.accumulate > 0, "must be positive"),
        ("workers", config.workers >= 0, "must not be negative"),
        ("data_size", config.data_size is None or config.data_size > 0, "must be positive or None"),
        ("checkpoint_every", config.checkpoint_every > 0, "must be positive"),
        ("keep_checkpoints", config.keep_checkpoints > 0, "must be positive"),
        ("log_every", config.log_every > 0, "must be positive"),
        ("sample_every", config.sample_every >= 0, "must not be negative"),
        ("skips_allowed", config.skips_allowed >= 0, "must not be negative"),
        ("stop_code", 2 < config.stop_code < 126, "must be between 3 and 125"),
        ("stop_seconds", config.stop_seconds > 0, "must be positive"),
        (
            "profile_steps",
            _is_pair(config.profile_steps, lambda a, b: a == b == 0 or 0 < a <= b),
            "must be the first and the last step, or (0, 0)",
        ),
        (
            "ema_decay",
            config.ema_decay is None or 0 < config.ema_decay < 1,
            "must be None or between 0 and 1",
        ),
        *(
            (f"crops.{name}", value > 0, "must be positive")
            for name, value in to_dict(config.crops).items()
        ),
        ("timesteps.shift", config.timesteps.shift > 0, "must be positive"),
        ("coarse_weight", config.coarse_weight >= 0, "must not be negative"),
        (
            "recognition.local_weight",
            config.recognition.local_weight >= 0,
            "must not be negative",
        ),
        *_optimizer_checks(config.optim),
    ]
    checks += [
        (f"dropout.{name}", 0 <= value <= 1, "must be between 0 and 1")
        for name, value in to_dict(config.dropout).items()
    ]
    if config.clips is not None:
        checks += _clip_checks(config, config.clips)
    if config.reference_guards is not None:
        checks += _guard_checks(config.reference_guards)
    if config.stage == "motion_vae":
        checks.append(("clips", config.clips is not None, "is needed: this stage has no world"))
    faults = [f"config.{name} {rule}" for name, holds, rule in checks if not holds]
    return faults + _wrong_choices(config, "config") + address_problems(_paths(config))


def _paths(config: TrainConfig) -> dict[str, str | None]:
    """Every place that a config names."""
    named = ("cache_dir", "tokenizer", "face_models", "export")
    paths = {f"config.{name}": getattr(config, name) for name in named}
    paths |= {f"config.weights.{name}": path for name, path in to_dict(config.weights).items()}
    folder = None if config.clips is None else config.clips.folder
    return paths | {"config.clips.folder": folder}


def _optimizer_checks(optim: OptimConfig) -> list[tuple[str, bool, str]]:
    return [
        ("optim.learning_rate", optim.learning_rate > 0, "must be positive"),
        ("optim.warmup_steps", optim.warmup_steps >= 0, "must not be negative"),
        ("optim.clip_norm", optim.clip_norm > 0, "must be positive"),
        ("optim.eps", optim.eps > 0, "must be positive"),
        ("optim.weight_decay", optim.weight_decay >= 0, "must not be negative"),
        (
            "optim.betas",
            _is_pair(optim.betas, lambda a, b: 0 <= a < 1 and 0 <= b < 1),
            "must be two numbers of at least 0 and below 1",
        ),
        *(
            (f"optim.{name}", _is_regex(getattr(optim, name)), "is no regular expression")
            for name in ("tora_initialized", "stacked", "muon", "fused")
        ),
        ("optim.fused_maps", optim.fused_maps > 0, "must be positive"),
    ]


def _is_pair(value: Any, holds: Callable[[Any, Any], bool]) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and holds(*value)


def _is_regex(text: str | None) -> bool:
    if text is None:
        return True
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _clip_checks(config: TrainConfig, clips: ClipFolderConfig) -> list[tuple[str, bool, str]]:
    entities, plain = clips.entities, config.model.personalization is None
    checks = [
        (f"clips.{name}", getattr(clips, name) > 0, "must be positive")
        for name in ("draws", "max_paths", "grid", "crop_frames", "crop_size")
    ]
    if entities is not None:
        checks.append(
            ("clips.entities.smallest_cut", entities.smallest_cut > 0, "must be positive")
        )
    return [
        *checks,
        ("clips", config.stage in CLIP_STAGES, f"serves the stages {', '.join(CLIP_STAGES)} only"),
        ("clips.at_most", clips.at_most is None or clips.at_most > 0, "must be positive or None"),
        ("clips.folder", clips.folder is not None, "must name the folder of the clips"),
        ("clips.skip_frames", clips.skip_frames >= 0, "must not be negative"),
        ("clips.image_dropout", 0 <= clips.image_dropout <= 1, "must be between 0 and 1"),
        ("clips.image_noise", clips.image_noise[1] >= 0, "must have no negative deviation"),
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


def _guard_checks(guards: ReferenceGuardConfig) -> list[tuple[str, bool, str]]:
    shares = [
        (f"reference_guards.{name}", 0 <= getattr(guards, name) < 1, "must be at least 0, below 1")
        for name in ("blur", "color", "brightness", "shear")
    ]
    return [
        *shares,
        ("reference_guards.max_images", guards.max_images > 0, "must be positive"),
        ("reference_guards.frame_gap", guards.frame_gap >= 0, "must not be negative"),
        ("reference_guards.smallest", guards.smallest > 0, "must be positive"),
        ("reference_guards.flip", 0 <= guards.flip <= 1, "must be between 0 and 1"),
        ("reference_guards.rotate", 0 <= guards.rotate <= 180, "must be between 0 and 180"),
        ("reference_guards.crop", 0 < guards.crop <= 1, "must be above 0, at most 1"),
    ]


def _wrong_choices(config: Any, path: str) -> list[str]:
    faults = []
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if is_dataclass(value):
            faults += _wrong_choices(value, f"{path}.{name}")
        elif get_origin(hint) is Literal and value not in get_args(hint):
            faults.append(f"{path}.{name} must be one of {', '.join(get_args(hint))}")
    return faults


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
