"""The typed config tree and the size presets. Plain data; nothing here builds a network."""

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints


@dataclass(slots=True, kw_only=True)
class TransformerConfig:
    """CogVideoX's diffusion transformer; defaults are what the published models share."""

    num_layers: int = 42
    num_heads: int = 48
    head_dim: int = 64
    in_channels: int = 16
    out_channels: int = 16
    patch_size: int = 2
    patch_size_t: int | None = None  # 2 in CogVideoX 1.5
    time_embed_dim: int = 512
    ofs_embed_dim: int | None = None  # 512 in CogVideoX 1.5 I2V
    text_embed_dim: int = 4096
    max_text_length: int = 226
    positions: Literal["sincos", "rotary"] = "rotary"
    learned_positions: bool = False  # I2V: a stored table is added to the joint sequence
    add_learned_positions: bool = True  # False: stored but not added (Tora's I2V for SAT)
    sample_frames: int = 49  # pixel frames and latent size of the position tables
    sample_height: int = 60
    sample_width: int = 90
    spatial_interpolation_scale: float = 1.875
    temporal_interpolation_scale: float = 1.0
    temporal_compression: int = 4
    norm_eps: float = 1e-5
    final_norm_eps: float = 1e-5  # SAT checkpoints: 1e-6
    # What the backward pass makes again, see docs/sharding.md.
    rematerialize: Literal["none", "full", "save_attention", "offload"] = "none"
    unroll_layers: bool = False  # no loop over layers: faster on CPU, see docs/sharding.md

    @property
    def width(self) -> int:
        """Channels of the stream (c)."""
        return self.num_heads * self.head_dim


@dataclass(slots=True, kw_only=True)
class VAEConfig:
    """CogVideoX's causal 3D VAE."""

    channels: tuple[int, ...] = (128, 256, 256, 512)
    layers_per_block: int = 3
    latent_channels: int = 16
    norm_groups: int = 32
    norm_eps: float = 1e-6
    temporal_compression: int = 4
    scaling_factor: float = 0.7
    invert_scale_latents: bool = False
    frames_per_encode_chunk: int = 8
    latents_per_decode_chunk: int = 2
    sample_height: int = 480  # pixels; tiled coding takes tiles of half the size
    sample_width: int = 720


@dataclass(slots=True, kw_only=True)
class T5Config:
    """T5 v1.1 encoder; defaults are XXL."""

    vocab_size: int = 32128
    width: int = 4096
    num_layers: int = 24
    num_heads: int = 64
    head_dim: int = 64
    mlp_dim: int = 10240
    relative_buckets: int = 32
    relative_max_distance: int = 128
    norm_eps: float = 1e-6


@dataclass(slots=True, kw_only=True)
class DINOv2Config:
    """DINOv2; defaults are ViT-L/14 at 224 pixels. Stored positions belong to `position_grid`."""

    image_size: int = 224
    patch_size: int = 14
    position_grid: int = 37  # the published models were trained at 518 pixels
    width: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    mlp_ratio: int = 4
    feed_forward: Literal["gelu", "swiglu"] = "gelu"  # swiglu in ViT-g
    num_registers: int = 0
    norm_eps: float = 1e-6


@dataclass(slots=True, kw_only=True)
class ArcFaceConfig:
    """ArcFace's improved ResNet; defaults are R100 at 112 pixels."""

    image_size: int = 112
    layers: tuple[int, ...] = (3, 13, 30, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    embedding: int = 512


@dataclass(slots=True, kw_only=True)
class ObjectEncoderConfig:
    """ResNet used as object prior (ReID); defaults are ResNet-50 at 224 pixels."""

    image_size: int = 224  # rows of pixels
    image_width: int | None = None  # columns; None: as many as rows
    layers: tuple[int, ...] = (3, 4, 6, 3)
    base_width: int = 64
    last_stride: int = 2
    stem_pool: Literal["padded", "unpadded"] = "padded"  # max pooling; fast-reid does not pad
    pooling: Literal["mean", "generalized_mean"] = "mean"  # of the map, for the vector
    neck: bool = False  # a batch norm behind the pooling

    @property
    def width(self) -> int:
        """Channels of the last map and of the pooled vector."""
        return self.base_width * 8 * 4

    @property
    def image_shape(self) -> tuple[int, int]:
        """Rows and columns of the images that it reads."""
        return self.image_size, self.image_width or self.image_size


@dataclass(slots=True, kw_only=True)
class StoredPriorConfig:
    """An appearance prior that feature files bring, and no network of ours.

    Defaults are one vector as wide as the box features of the tracker that the paper cites.
    """

    tokens: int = 1  # k
    width: int = 1024  # f, of a token
    vector_width: int = 1024


@dataclass(slots=True, kw_only=True)
class MotionConfig:
    """Tora's trajectory extractor and motion-guidance fuser."""

    width: int = 128  # u
    blocks_per_layer: int = 2
    norm_groups: int = 32


@dataclass(slots=True, kw_only=True)
class PersonalizationConfig:
    """Appearance adapters, Q-Former and the cross-attention that injects their tokens."""

    variant: Literal["dino", "dino_reid", "dino_decoupled", "dpe"] = "dpe"  # Table 2
    width: int = 1024  # d
    queries: int = 32  # q
    num_layers: int = 4
    num_heads: int = 16
    head_dim: int = 64
    mlp_ratio: int = 4
    cross_heads: int = 16  # the cross-attention inside the DiT blocks
    cross_head_dim: int = 128
    every_k: int = 1  # blocks 0, k, 2k, ... have a cross-attention
    order: Literal["motion_first", "personalization_first"] = "motion_first"  # Table 5


@dataclass(slots=True, kw_only=True)
class BindingConfig:
    """Binding of reference, word and path."""

    variant: Literal["none", "linear", "gated"] = "gated"  # Table 3
    gate: Literal["sigmoid", "tanh"] = "sigmoid"
    num_heads: int = 16
    head_dim: int = 64
    word_tokens: int = 8  # s
    frequencies: int = 8
    contrast_width: int = 256
    contrast_temperature: float = 0.07
    # Tokens that the contrastive loss compares; "none": no heads for it (Table 4, first row).
    contrast_on: Literal["bound", "unbound", "none"] = "bound"


@dataclass(slots=True, kw_only=True)
class DiffusionConfig:
    """Noise schedule; the same tables for training, DPM and DDIM."""

    num_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    snr_shift: float = 1.0  # 3.0 for 2B
    timestep_spacing: Literal["trailing", "linspace", "leading"] = "trailing"
    steps_offset: int = 0  # added to every timestep of the leading spacing
    scheduler: Literal["dpm", "ddim"] = "dpm"  # how to sample, unless a command says otherwise


@dataclass(slots=True, kw_only=True)
class ModelConfig:
    """Everything that has parameters, and the sizes they were made for."""

    name: str = "cogvideox_5b"
    height: int = 480
    width: int = 720
    frames: int = 49
    fps: int = 8
    max_entities: int = 8
    max_references: int = 4
    null_text: Literal["empty", "zeros"] = "empty"
    face_detector: Literal["insightface", "mask_top"] = "insightface"
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    text: T5Config = field(default_factory=T5Config)
    dino: DINOv2Config = field(default_factory=DINOv2Config)
    face: ArcFaceConfig = field(default_factory=ArcFaceConfig)
    object: ObjectEncoderConfig = field(default_factory=ObjectEncoderConfig)
    stored_face: StoredPriorConfig | None = None  # instead of the network `face`
    stored_object: StoredPriorConfig | None = None  # instead of the network `object`
    motion: MotionConfig | None = field(default_factory=MotionConfig)  # None: plain CogVideoX
    personalization: PersonalizationConfig | None = field(default_factory=PersonalizationConfig)
    binding: BindingConfig = field(default_factory=BindingConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)

    @property
    def spatial_compression(self) -> int:
        """Pixels per latent, along height and width."""
        return 2 ** (len(self.vae.channels) - 1)

    @property
    def spatial_multiple(self) -> int:
        """Height and width of a video are multiples of this (one token)."""
        return self.spatial_compression * self.transformer.patch_size

    @property
    def takes_image(self) -> bool:
        """Whether the transformer is given a first frame beside the noise (I2V)."""
        return self.transformer.in_channels == 2 * self.vae.latent_channels

    def latent_grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent frames, rows and columns of a video of that many pixels."""
        compression = self.spatial_compression
        latent_frames = (frames - 1) // self.vae.temporal_compression + 1
        return latent_frames, height // compression, width // compression

    def token_grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Token frames, rows and columns of a video of that many pixels."""
        t, h, w = self.latent_grid(frames, height, width)
        patch, patch_t = self.transformer.patch_size, self.transformer.patch_size_t or 1
        return -(-t // patch_t), h // patch, w // patch


_version_1_5 = partial(
    TransformerConfig, patch_size_t=2, sample_frames=81, sample_height=300, sample_width=300
)


def toy() -> ModelConfig:
    """The model of the toy world: every part, small.

    Its VAE halves height and width twice, not three times, and the transformer's patches are twice
    as large instead: a token is still 16 x 16 pixels, and the VAE learns within minutes.
    """
    return ModelConfig(
        name="toy",
        height=96,
        width=96,
        frames=17,
        max_entities=4,
        max_references=2,
        face_detector="mask_top",
        transformer=TransformerConfig(
            num_layers=6,
            num_heads=3,
            time_embed_dim=64,
            text_embed_dim=64,
            max_text_length=24,
            in_channels=8,
            out_channels=8,
            patch_size=4,
            sample_frames=17,
            sample_height=24,
            sample_width=24,
        ),
        vae=VAEConfig(channels=(16, 32, 48), layers_per_block=1, norm_groups=4, latent_channels=8),
        text=T5Config(
            vocab_size=256, width=64, num_layers=2, num_heads=4, head_dim=16, mlp_dim=128
        ),
        dino=DINOv2Config(image_size=56, position_grid=4, width=64, num_layers=4, num_heads=4),
        face=ArcFaceConfig(
            image_size=48, layers=(1, 1, 1, 1), widths=(16, 32, 48, 64), embedding=64
        ),
        object=ObjectEncoderConfig(image_size=64, layers=(1, 1, 1, 1), base_width=8, last_stride=1),
        motion=MotionConfig(width=24, blocks_per_layer=1),
        personalization=PersonalizationConfig(
            width=96,
            queries=8,
            num_layers=2,
            num_heads=4,
            head_dim=24,
            mlp_ratio=2,
            cross_heads=3,
            cross_head_dim=64,
        ),
        binding=BindingConfig(num_heads=4, head_dim=24, word_tokens=4, contrast_width=64),
    )


def cogvideox_2b() -> ModelConfig:
    """CogVideoX-2B."""
    return ModelConfig(
        name="cogvideox_2b",
        transformer=TransformerConfig(num_layers=30, num_heads=30, positions="sincos"),
        vae=VAEConfig(scaling_factor=1.15258426),
        diffusion=DiffusionConfig(snr_shift=3.0),
    )


def cogvideox_5b() -> ModelConfig:
    """CogVideoX-5B, the base of Tora and Tora2."""
    return ModelConfig(name="cogvideox_5b")


def cogvideox_5b_i2v() -> ModelConfig:
    """CogVideoX-5B-I2V."""
    return ModelConfig(
        name="cogvideox_5b_i2v",
        transformer=TransformerConfig(in_channels=32, learned_positions=True),
    )


def cogvideox_1_5_5b() -> ModelConfig:
    """CogVideoX1.5-5B."""
    return ModelConfig(
        name="cogvideox_1_5_5b",
        height=768,
        width=1360,
        frames=81,
        fps=16,
        transformer=_version_1_5(),
        vae=VAEConfig(invert_scale_latents=True),
    )


def cogvideox_1_5_5b_i2v() -> ModelConfig:
    """CogVideoX1.5-5B-I2V."""
    return ModelConfig(
        name="cogvideox_1_5_5b_i2v",
        height=768,
        width=1360,
        frames=81,
        fps=16,
        transformer=_version_1_5(in_channels=32, ofs_embed_dim=512),
        vae=VAEConfig(invert_scale_latents=True),
    )


PRESETS = {
    preset.__name__: preset
    for preset in (
        toy,
        cogvideox_2b,
        cogvideox_5b,
        cogvideox_5b_i2v,
        cogvideox_1_5_5b,
        cogvideox_1_5_5b_i2v,
    )
}


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON data."""
    return asdict(config)


def from_dict(cls: type, data: dict[str, Any]) -> Any:
    """The inverse of `to_dict`; raises ValueError that names every unknown field."""
    hints = get_type_hints(cls)
    known = {item.name for item in fields(cls)}
    unknown = sorted(set(data) - known)
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}")
    return cls(**{name: _from_json(hints[name], value) for name, value in data.items()})


def _from_json(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    options = [hint, *get_args(hint)]
    nested = next((item for item in options if isinstance(item, type) and is_dataclass(item)), None)
    if nested is not None:
        return from_dict(nested, value)
    if isinstance(value, bool) and get_origin(hint) is Literal:  # older files switch a policy
        return "full" if value else "none"
    return tuple(value) if isinstance(value, list) else value
