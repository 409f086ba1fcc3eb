"""Is each of two entities of one word where it should be, looking like itself? No network is asked.

The localizer finds words, so it cannot tell two of one word apart. Here pixels around each path are
compared with those of the true clip around both paths and beside them.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt8

from tora2_jax.types import Record

_HALF = 8  # pixels around the path, each way, that are compared
_CELLS = 4  # per side, whose mean colors are compared


def own_looks(
    record: Record, video: UInt8[np.ndarray, "f height width 3"]
) -> Float[np.ndarray, " e"]:
    """1 for each of two entities that is itself in at least half of its visible frames, else 0.

    In a frame, what lies around an entity's path has to be closer to what the true clip shows there
    than to what it shows around the other's path, and than to the background.

    Args:
        record: The true clip, of two entities.
        video: What was generated; or the true clip, for the ceiling.
    """
    background = np.median(record.video.reshape(-1, 3), axis=0)
    right = np.zeros(2)
    for row, (entity, other) in enumerate(zip(record.entities, record.entities[::-1], strict=True)):
        frames = np.flatnonzero(entity.visible)
        same: Bool[np.ndarray, " n"] = np.zeros(len(frames), bool)
        for place, frame in enumerate(frames):
            own = _looks(record.video[frame], entity.track[frame])
            choices = [own, _looks(record.video[frame], other.track[frame])]
            choices.append(np.broadcast_to(background, own.shape))
            shown = _looks(video[frame], entity.track[frame])
            same[place] = np.argmin([np.abs(shown - one).mean() for one in choices]) == 0
        right[row] = float(len(frames) > 0 and same.mean() >= 0.5)
    return right


def _looks(
    frame: UInt8[np.ndarray, "height width 3"], center: Float[np.ndarray, "2"]
) -> Float[np.ndarray, "rows columns 3"]:
    """Mean colors of cells around a point; beyond the frame its border goes on."""
    padded = np.pad(frame, ((2 * _HALF,) * 2, (2 * _HALF,) * 2, (0, 0)), mode="edge")
    size = np.array(frame.shape[1::-1])
    left, top = (np.clip(np.round(center), 0, size).astype(int) + _HALF).tolist()
    patch = padded[top : top + 2 * _HALF, left : left + 2 * _HALF].astype(np.float64)
    side = 2 * _HALF // _CELLS
    return patch.reshape(_CELLS, side, _CELLS, side, 3).mean((1, 3))
