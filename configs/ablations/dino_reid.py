r"""Table 2, second row: DINOv2 and the object network for humans too, through linear maps.

Off: trajectories, the binder, the contrastive loss; the Q-Former; the face network.

python -m tora2_jax.train --config configs/ablations/dino_reid.py \
    --workdir workdirs/ablations/dino_reid
Hardware: two CPU cores. What it is compared with: docs/ablations.md.
"""

from configs.ablations.dpe import get_config as dpe
from tora2_jax.config.train import TrainConfig


def get_config() -> TrainConfig:
    """The settings of this run."""
    config = dpe()
    config.model.personalization.variant = "dino_reid"
    return config
