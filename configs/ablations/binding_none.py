r"""Table 3, first row: no binding; references and paths enter the transformer alone.

Off: the contrastive loss; the binder with all that it reads: motion tokens, word tokens.

python -m tora2_jax.train --config configs/ablations/binding_none.py \
    --workdir workdirs/ablations/binding_none
Hardware: two CPU cores. What it is compared with: docs/ablations.md.
"""

from configs.ablations.binding_gated import get_config as gated
from tora2_jax.config.train import TrainConfig


def get_config() -> TrainConfig:
    """The settings of this run."""
    config = gated()
    config.model.binding.variant = "none"
    return config
