"""Masks of the subjects of a caption in three frames of a clip."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from jaxtyping import Bool

from tora2_jax.data.curate.annotate.motion_masks import moving_masks
from tora2_jax.data.curate.annotate.words import Subject
from tora2_jax.data.curate.looked_at import Look
from tora2_jax.media.image_file import load_mask

Mask = Bool[np.ndarray, "height width"]


class Found(NamedTuple):
    """Masks of one subject.

    Attributes:
        subject: which of those that were asked for, counted from 0.
        masks: as large as the small pictures of a `Look`, by frame of the shot; none is empty.
    """

    subject: int
    masks: Mapping[int, Mask]


class MaskFinder(Protocol):
    """Finds what a caption names."""

    def __call__(self, clip: str, look: Look, subjects: Sequence[Subject]) -> list[Found]:
        """What was found; a subject that is not there is left out.

        Args:
            clip: its name, for finders that look it up.
            look: its pictures.
            subjects: of its caption.
        """
        ...


class FileMasks:
    """Masks that another program has made: `FOLDER/CLIP/SLOT-WORD/FRAME.png`, as large as the clip.

    SLOT counts the subjects of the caption from 0, FRAME the frames of the clip.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def __call__(self, clip: str, look: Look, subjects: Sequence[Subject]) -> list[Found]:
        """See `MaskFinder`."""
        found = []
        for slot in range(len(subjects)):
            masks = {}
            for folder in sorted((self._folder / clip).glob(f"{slot}-*")):
                for mark in look.marks:
                    if (mask := _read(folder, mark, look)) is not None:
                        masks[mark] = mask
            if masks:
                found.append(Found(slot, masks))
        return found


def _read(folder: Path, frame: int, look: Look) -> Mask | None:
    for name in (f"{frame:06d}.png", f"{frame}.png"):
        if (folder / name).is_file():
            mask = load_mask(folder / name)
            high, wide = look.small.shape[1:3]
            small = cv2.resize(mask, (wide, high), interpolation=cv2.INTER_AREA) > 127
            return small if small.any() else None
    return None


class MotionMasks:
    """What moves, in the order of its size, for the subjects in the order of the caption.

    With one subject that is a fair guess; with several, which is which cannot be told, so they are
    left to a finder that reads words.
    """

    def __call__(self, clip: str, look: Look, subjects: Sequence[Subject]) -> list[Found]:
        """See `MaskFinder`."""
        if len(subjects) != 1:
            return []
        moving = moving_masks(look.small, look.marks, 1)
        return [Found(0, moving[0])] if moving else []
