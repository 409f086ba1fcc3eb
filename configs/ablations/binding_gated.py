r"""Table 3, last row, and Table 4, first row: gated self-attention without the contrastive loss.

Off: the contrastive loss, with its two projection heads.

python -m tora2_jax.train --config configs/ablations/binding_gated.py \
    --workdir workdirs/ablations/binding_gated
Hardware: two CPU cores. What it is compared with: docs/ablations.md.
"""

from configs.toy import get_config as full
from tora2_jax.config.train import TrainConfig


def get_config() -> TrainConfig:
    """The settings of this run."""
    config = full()
    config.model.binding.contrast_on = "none"
    return config
