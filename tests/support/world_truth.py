"""Where entities of the toy world truly are."""

import numpy as np
from jaxtyping import Float

from tora2_jax.data.curate.annotate.tracks import center_of
from tora2_jax.types import EntityRecord


def middle_of(entity: EntityRecord) -> Float[np.ndarray, "f 2"]:
    """The middle of the whole sprite in each frame, hidden or not.

    Its track is that of another point of it; where the sprite is whole, the mask tells which.
    """
    assert entity.mask is not None
    area = entity.mask.sum((1, 2))
    whole = np.flatnonzero(area >= 0.9 * area.max())
    offsets = [center_of(entity.mask[frame]) - entity.track[frame] for frame in whole]
    return entity.track + np.median(offsets, axis=0)
