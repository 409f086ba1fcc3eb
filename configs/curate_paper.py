"""Curation with the paper's thresholds (section 3.3).

python scripts/curate.py run --input DIR --output DIR --config configs/curate_paper.py
Hardware: CPU cores; a second or so for each second of video. The aesthetic filter is off, and named
as such, until its weights are given.
"""

from tora2_jax.config.curate import CurateConfig


def get_config() -> CurateConfig:
    """The paper's thresholds; what it leaves open is ours (docs/curation.md)."""
    return CurateConfig()
