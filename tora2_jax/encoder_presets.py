"""Settings of published image encoders, by size: `config.model.dino = dinov2_small()`."""

from tora2_jax.config import DINOv2Config

_GIANT = {"width": 1536, "num_layers": 40, "num_heads": 24, "feed_forward": "swiglu"}


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
    return DINOv2Config(**_GIANT)


def dinov2_giant_registers() -> DINOv2Config:
    """DINOv2 ViT-g/14 with four registers."""
    return DINOv2Config(**_GIANT, num_registers=4)


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
