r"""Table 2, first row: DINOv2's patch tokens through a linear map.

Off: trajectories, the binder, the contrastive loss; the Q-Former; both recognition networks.

python -m tora2_jax.train --config configs/ablations/dino.py \
    --workdir workdirs/ablations/dino
Hardware: two CPU cores. What it is compared with: docs/ablations.md.
"""

from configs.ablations.dpe import get_config as dpe
from tora2_jax.config.train import TrainConfig


def get_config() -> TrainConfig:
    """The settings of this run."""
    config = dpe()
    config.model.personalization.variant = "dino"
    return config
