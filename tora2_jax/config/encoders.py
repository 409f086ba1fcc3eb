"""Settings of published encoders, by size, and those of CLIP, which no model has in its config.

`config.model.dino = dinov2_small()` in a file of configs/. CLIP's are read from its weights.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from tora2_jax.config.model import DINOv2Config

Activation = Literal["quick_gelu", "gelu"]


@dataclass(slots=True, kw_only=True)
class CLIPVisionConfig:
    """CLIP's vision transformer; defaults are ViT-B/32."""

    image_size: int = 224
    patch_size: int = 32
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    activation: Activation = "quick_gelu"
    norm_eps: float = 1e-5


@dataclass(slots=True, kw_only=True)
class CLIPTextConfig:
    """CLIP's text transformer; defaults are that of ViT-B/32 and ViT-B/16."""

    vocab_size: int = 49408
    max_length: int = 77
    width: int = 512
    num_layers: int = 12
    num_heads: int = 8
    mlp_dim: int = 2048
    activation: Activation = "quick_gelu"
    norm_eps: float = 1e-5
    eos_token_id: int = 49407  # 2 in old configs: the largest id ends a caption


@dataclass(slots=True, kw_only=True)
class CLIPConfig:
    """CLIP; defaults are ViT-B/32."""

    vision: CLIPVisionConfig = field(default_factory=CLIPVisionConfig)
    text: CLIPTextConfig = field(default_factory=CLIPTextConfig)
    embedding: int = 512  # f, of the space that both share


_giant = partial(DINOv2Config, width=1536, num_layers=40, num_heads=24, feed_forward="swiglu")


def dinov2_small() -> DINOv2Config:
    """DINOv2 ViT-S/14."""
    return DINOv2Config(width=384, num_layers=12, num_heads=6)


def dinov2_small_registers() -> DINOv2Config:
    """DINOv2 ViT-S/14 with four registers."""
    return DINOv2Config(width=384, num_layers=12, num_heads=6, num_registers=4)


def dinov2_base() -> DINOv2Config:
    """DINOv2 ViT-B/14."""
    return DINOv2Config(width=768, num_layers=12, num_heads=12)


def dinov2_base_registers() -> DINOv2Config:
    """DINOv2 ViT-B/14 with four registers."""
    return DINOv2Config(width=768, num_layers=12, num_heads=12, num_registers=4)


def dinov2_large() -> DINOv2Config:
    """DINOv2 ViT-L/14, the default of every model but the toy one."""
    return DINOv2Config()


def dinov2_large_registers() -> DINOv2Config:
    """DINOv2 ViT-L/14 with four registers."""
    return DINOv2Config(num_registers=4)


def dinov2_giant() -> DINOv2Config:
    """DINOv2 ViT-g/14."""
    return _giant()


def dinov2_giant_registers() -> DINOv2Config:
    """DINOv2 ViT-g/14 with four registers."""
    return _giant(num_registers=4)


DINOV2 = {
    preset.__name__: preset
    for preset in (
        dinov2_small,
        dinov2_small_registers,
        dinov2_base,
        dinov2_base_registers,
        dinov2_large,
        dinov2_large_registers,
        dinov2_giant,
        dinov2_giant_registers,
    )
}


_large_vision = partial(
    CLIPVisionConfig, patch_size=14, width=1024, num_layers=24, num_heads=16, mlp_dim=4096
)
_large_text = partial(CLIPTextConfig, width=768, num_heads=12, mlp_dim=3072)


def clip_base_32() -> CLIPConfig:
    """CLIP ViT-B/32."""
    return CLIPConfig()


def clip_base_16() -> CLIPConfig:
    """CLIP ViT-B/16."""
    return CLIPConfig(vision=CLIPVisionConfig(patch_size=16))


def clip_large_14() -> CLIPConfig:
    """CLIP ViT-L/14 at 224 pixels."""
    return CLIPConfig(
        vision=_large_vision(),
        text=_large_text(),
        embedding=768,
    )


def clip_large_14_336() -> CLIPConfig:
    """CLIP ViT-L/14 at 336 pixels."""
    return CLIPConfig(
        vision=_large_vision(image_size=336),
        text=_large_text(),
        embedding=768,
    )


CLIP = {
    preset.__name__: preset
    for preset in (clip_base_32, clip_base_16, clip_large_14, clip_large_14_336)
}
