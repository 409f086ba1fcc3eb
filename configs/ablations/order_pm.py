r"""Table 5, first row (P->M): references enter before motion, first in every block.

Off: nothing; the cross-attention stands elsewhere.

python -m tora2_jax.train --config configs/ablations/order_pm.py \
    --workdir workdirs/ablations/order_pm
Hardware: two CPU cores. What it is compared with: docs/ablations.md.
"""

from configs.toy import get_config as full
from tora2_jax.config.train import TrainConfig


def get_config() -> TrainConfig:
    """The settings of this run."""
    config = full()
    config.model.personalization.order = "personalization_first"
    return config
