r"""Table 2, third row: DINOv2, and per class the recognition network, through linear maps.

Off: trajectories, the binder, the contrastive loss; the Q-Former; the adapters'
MLPs, positions and sources.

python -m tora2_jax.train --config configs/ablations/dino_decoupled.py \
    --workdir workdirs/ablations/dino_decoupled
Hardware: two CPU cores. What it is compared with: docs/ablations.md.
"""

from configs.ablations.dpe import get_config as dpe
from tora2_jax.config.train import TrainConfig


def get_config() -> TrainConfig:
    """The settings of this run."""
    config = dpe()
    config.model.personalization.variant = "dino_decoupled"
    return config
