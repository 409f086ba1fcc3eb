"""Curation of small clips on a laptop: those of the toy world, or of a phone's messages.

python scripts/curate.py run --input DIR --output DIR --config configs/curate_small.py
Hardware: one CPU core.
"""

from tora2_jax.config.curate import CurateConfig


def get_config() -> CurateConfig:
    """Any size, little motion is enough, and the camera may move as it likes."""
    config = CurateConfig()
    config.filters.seconds = 0.5
    config.filters.lines = 64
    config.filters.flow = 0.1
    config.filters.aesthetic = None
    config.filters.zoom = None
    config.filters.angle = None
    return config
