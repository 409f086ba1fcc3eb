"""Kept clips, in the form of `docs/entity_clips.md`: people can look at them and correct them."""

import hashlib
import json
import re
import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool

from tora2_jax.data.curate.annotate.tracks import Track
from tora2_jax.data.curate.annotate.words import Subject
from tora2_jax.data.curate.looked_at import Look, frames_of
from tora2_jax.media.video import write_image, write_video
from tora2_jax.system.files import write_text, written_whole

_NAME_CHARACTERS = 60
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


def composed(name: str) -> str:
    """A name as it is compared: in Unicode's composed form, with slashes."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def key_of(name: str) -> str:
    """A name for files that belong to a video: readable, safe, and of no other video."""
    stem = re.sub(r"\.[^./]*$", "", composed(name))
    safe = re.sub(r"[^\w.-]+", "-", stem).strip("-.")[:_NAME_CHARACTERS] or "video"
    return f"{safe}-{hashlib.sha256(composed(name).encode()).hexdigest()[:10]}"


def write_clip(
    target: Path,
    clip: str,
    look: Look,
    content: tuple[str, Sequence[Entity]],
    whole: Path | None,
    source: Path,
) -> None:
    """Writes video, caption, entities and masks; what was there before is replaced.

    Args:
        target: folder of all kept clips.
        clip: its name.
        look: its pictures.
        content: caption and entities.
        whole: the file, if the clip is all of it and is an mp4: it is copied as it is.
        source: the file that it is cut from.
    """
    caption, entities = content
    video = target / "videos" / f"{clip}.mp4"
    if whole is not None and whole.suffix.lower() == ".mp4":
        with written_whole(video) as aside:
            shutil.copyfile(whole, aside)
    else:
        write_video(video, np.stack(list(frames_of(source, look.shot))), look.fps)
    write_text(target / "labels" / f"{clip}.txt", f"{caption}\n")
    shutil.rmtree(target / "masks" / clip, ignore_errors=True)
    rows = [
        _entity(target, clip, look, caption, slot, entity) for slot, entity in enumerate(entities)
    ]
    listed = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
    write_text(target / "entities" / f"{clip}.json", f'{{"entities": [\n  {listed}\n]}}\n')


def _entity(target: Path, clip: str, look: Look, caption: str, slot: int, entity: Entity) -> dict:
    word = re.sub(r"[^\w-]+", "-", entity.subject.word)[:40]
    name = f"masks/{clip}/{slot}-{word}"
    height, width = look.size
    for frame, mask in entity.masks.items():
        large = cv2.resize(mask.astype(np.float32), (width, height)) > 0.5
        write_image(target / name / f"{frame:06d}.png", large.astype(np.uint8) * 255)
    places = np.round(entity.track.position.astype(float) / look.scale, _DIGITS).tolist()
    return {
        "word": numbered(caption, entity.subject),
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
