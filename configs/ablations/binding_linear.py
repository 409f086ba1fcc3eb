r"""Table 3, second row: binding by a linear map, as in Video Alchemist.

Off: the contrastive loss; the gated self-attention. The personalization tokens are extended by
word and path, the motion map is not changed.

python -m tora2_jax.train --config configs/ablations/binding_linear.py \
    --workdir workdirs/ablations/binding_linear
Hardware: two CPU cores. What it is compared with: docs/ablations.md.
"""

from configs.ablations.binding_gated import get_config as gated
from tora2_jax.config.train import TrainConfig


def get_config() -> TrainConfig:
    """The settings of this run."""
    config = gated()
    config.model.binding.variant = "linear"
    return config
