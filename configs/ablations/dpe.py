r"""Table 2, last row: the decoupled personalization extractor alone.

Off: trajectories (extractor and fusers are not there), the binder, the contrastive loss.

python -m tora2_jax.train --config configs/ablations/dpe.py \
    --workdir workdirs/ablations/dpe
Hardware: two CPU cores. What it is compared with: docs/ablations.md.
"""

from configs.ablations.binding_none import get_config as unbound
from tora2_jax.config.train import TrainConfig


def get_config() -> TrainConfig:
    """The settings of this run."""
    config = unbound()
    config.model.motion = config.weights.motion = None
    return config
