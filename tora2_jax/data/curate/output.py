"""Kept clips, in the form of `docs/entity_clips.md`: people can look at them and correct them."""

import itertools
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool

from tora2_jax.data.curate.annotate.tracks import Track
from tora2_jax.data.curate.annotate.words import Subject
from tora2_jax.data.curate.shots import Shot
from tora2_jax.media.video import stream_video, write_image
from tora2_jax.system.files import write_text, written_whole

_DIGITS = 2  # of a path in pixels


class Entity(NamedTuple):
    """An entity of a kept clip.

    Attributes:
        subject: its word.
        masks: in small pictures, by frame of the clip.
        track: in small pictures.
    """

    subject: Subject
    masks: Mapping[int, Bool[np.ndarray, "high wide"]]
    track: Track


class Kept(NamedTuple):
    """A clip to be written.

    Attributes:
        id: its name.
        shot: its frames.
        fps: frames per second.
        size: height and width.
        scale: of its pictures per small one, along x and y.
        caption: of the clip.
        entities: with masks and paths.
    """

    id: str
    shot: Shot
    fps: float
    size: tuple[int, int]
    scale: tuple[float, float]
    caption: str
    entities: Sequence[Entity]


def remove(target: Path, key: str) -> None:
    """Removes every clip of a video, and what was left half written of them."""
    for part in ("videos", "labels", "entities"):
        for pattern in (f"{key}_*", f".{key}_*.partial"):
            for path in (target / part).glob(pattern):
                path.unlink(missing_ok=True)
    for folder in (target / "masks").glob(f"{key}_*"):
        shutil.rmtree(folder, ignore_errors=True)


def write_clips(
    target: Path, clips: Sequence[Kept], frames: Iterator[np.ndarray], copied: Path | None
) -> None:
    """Writes videos, captions, entities and masks of a video's clips.

    Args:
        target: folder of all kept clips.
        clips: in the order of their frames.
        frames: of the video, from its first one on; each is held only while it is written.
        copied: the file itself, if the only clip is all of it and training reads it as it is.

    Raises:
        VideoError: something cannot be written.
        OSError: the same.
    """
    place = 0
    for clip in clips:
        video = target / "videos" / f"{clip.id}.mp4"
        if copied is not None:
            with written_whole(video) as aside:
                shutil.copyfile(copied, aside)
        else:
            own = itertools.islice(frames, clip.shot.start - place, clip.shot.end - place)
            stream_video(video, own, clip.size, clip.fps)
            place = clip.shot.end
        _write_annotation(target, clip, padded=copied is None)


def _write_annotation(target: Path, clip: Kept, padded: bool) -> None:
    write_text(target / "labels" / f"{clip.id}.txt", f"{clip.caption}\n")
    rows = [_entity(target, clip, slot, one, padded) for slot, one in enumerate(clip.entities)]
    listed = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
    write_text(target / "entities" / f"{clip.id}.json", f'{{"entities": [\n  {listed}\n]}}\n')


def _entity(target: Path, clip: Kept, slot: int, entity: Entity, padded: bool) -> dict:
    word = re.sub(r"[^\w-]+", "-", entity.subject.word)[:40]
    name = f"masks/{clip.id}/{slot}-{word}"
    height, width = clip.size
    for frame, mask in entity.masks.items():
        large = cv2.resize(mask.astype(np.float32), (width, height)) > 0.5
        if padded:  # as a video with an odd side is
            large = np.pad(large, ((0, height % 2), (0, width % 2)), mode="edge")
        write_image(target / name / f"{frame:06d}.png", large.astype(np.uint8) * 255)
    places = np.round(entity.track.position.astype(float) * clip.scale, _DIGITS)
    places = np.minimum(places, [width, height]).tolist()
    return {
        "word": numbered(clip.caption, entity.subject),
        "kind": entity.subject.kind,
        "trajectory": [
            place if seen else None
            for place, seen in zip(places, entity.track.visible, strict=True)
        ],
        "frame_masks": name,
    }


def numbered(caption: str, subject: Subject) -> str:
    """A word as annotations have it: `man#2` where it is the second of that word."""
    pattern = rf"(?<!\w){re.escape(subject.word)}(?!\w)"
    starts = [one.start() for one in re.finditer(pattern, caption, re.IGNORECASE)]
    place = starts.index(subject.span[0]) + 1
    return subject.word if place == 1 else f"{subject.word}#{place}"
