"""Records written in the form in which annotated clips are read (docs/entity_clips.md)."""

import json
from pathlib import Path

import numpy as np

from tora2_jax.media.video import write_image, write_video
from tora2_jax.system.files import write_text
from tora2_jax.text import find_word
from tora2_jax.types import EntityRecord, Record

_DECIMALS = 6  # of a path, in pixels: more than float32 holds


def write_record(folder: Path, record: Record) -> None:
    """Writes video, caption, entities, masks and references of a record.

    Args:
        folder: Of the clips; made if needed.
        record: Its sides must be even, as a video's are.

    Raises:
        ValueError: A side is odd, or a picture or the video cannot be written.
        OSError: A text file cannot be written.
    """
    height, width = record.video.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(
            f"a clip of {height} x {width} pixels cannot be written: both must be even"
        )
    write_video(folder / "videos" / f"{record.id}.mp4", record.video, record.fps)
    entities = [
        _entity(folder, record, slot, entity) for slot, entity in enumerate(record.entities)
    ]
    write_text(folder / "labels" / f"{record.id}.txt", f"{record.caption}\n")
    rows = ",\n  ".join(json.dumps(entity, ensure_ascii=False) for entity in entities)
    text = f'{{"entities": [\n  {rows}\n]}}'
    write_text(folder / "entities" / f"{record.id}.json", f"{text}\n")


def _entity(folder: Path, record: Record, slot: int, entity: EntityRecord) -> dict:
    name = f"{slot}-{entity.word.replace(' ', '-')}"
    images = []
    for index, image in enumerate(entity.images):
        images.append(f"references/{record.id}/{name}/{index}.png")
        write_image(folder / images[-1], image)
    fields = {"word": _word(record.caption, entity), "kind": entity.kind, "images": images}
    if entity.has_trajectory and entity.visible.any():
        places = np.round(entity.track.astype(float), _DECIMALS).tolist()
        fields["trajectory"] = [
            place if seen else None for place, seen in zip(places, entity.visible, strict=True)
        ]
    if entity.mask is not None and entity.mask.any():
        fields["frame_masks"] = f"masks/{record.id}/{name}"
        for frame in np.flatnonzero(entity.mask.any((1, 2))):
            path = folder / fields["frame_masks"] / f"{frame:06d}.png"
            write_image(path, entity.mask[frame].astype(np.uint8) * 255)
    return fields


def _word(caption: str, entity: EntityRecord) -> str:
    """The word with the number of its occurrence, if that is not the first."""
    number = 1
    while find_word(caption, f"{entity.word}#{number}") != tuple(entity.span):
        number += 1
    return entity.word if number == 1 else f"{entity.word}#{number}"
