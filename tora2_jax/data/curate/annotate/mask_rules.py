"""Which masks are kept: the paper removes those that are too large, too small or fragmented.

It gives no numbers; ours are in `MaskConfig`.
"""

import cv2
import numpy as np
from jaxtyping import Bool

from tora2_jax.config.curate import MaskConfig

Mask = Bool[np.ndarray, "height width"]


def mask_problem(mask: Mask, rules: MaskConfig) -> str | None:
    """Why a mask is not kept, or None."""
    share = float(mask.mean())
    if share < rules.smallest:
        return f"too small: {100 * share:.2g} % of the picture, below {100 * rules.smallest:g} %"
    if share > rules.largest:
        return f"too large: {100 * share:.2g} % of the picture, above {100 * rules.largest:g} %"
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    areas = np.sort(stats[1:, cv2.CC_STAT_AREA])[::-1]
    outside = float(1 - areas[0] / areas.sum())
    if outside > rules.fragmented:
        return (
            f"fragmented: {100 * outside:.2g} % lies outside of the largest of {count - 1} pieces, "
            f"above {100 * rules.fragmented:g} %"
        )
    return None
