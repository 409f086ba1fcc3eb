"""One video: cut, measured, judged, annotated, and what is kept of it written.

Everything that is known of it goes into one small record, which is written last and whole: a video
with a record is done, one without is begun anew.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tora2_jax.config.curate import CurateConfig
from tora2_jax.data.curate import filters, measures, output
from tora2_jax.data.curate.annotate import captions
from tora2_jax.data.curate.annotate.language_model import LanguageModelError
from tora2_jax.data.curate.annotate.mask_rules import mask_problem
from tora2_jax.data.curate.annotate.words import Subject
from tora2_jax.data.curate.looked_at import Look, look_at, neighbors, spread
from tora2_jax.data.curate.shots import Shot, find_shots, shots_of
from tora2_jax.data.curate.tools import Tools
from tora2_jax.media.video_reading import VideoError, VideoInfo, frames_at, video_info

_CAMERA_FRAMES = 25  # neighbors in the middle of a shot
_DIGITS = 4  # of measured values


class Source(NamedTuple):
    """A file of the input.

    Attributes:
        path: where it is.
        name: below the folder of the input, with slashes, in Unicode's composed form.
        key: that names its record and clips: safe in file names, and of no other file.
    """

    path: Path
    name: str
    key: str


def curate(source: Source, target: Path, config: CurateConfig, tools: Tools) -> dict[str, Any]:
    """The record of a video; its kept clips are written below `target`.

    Never raises for what a video or a service does: that is a reason to drop.
    """
    record: dict[str, Any] = {"source": source.name, "problem": None, "clips": []}
    try:
        info = video_info(source.path)
        everything = range(info.frames)
        cuts = find_shots(
            source.name, lambda: frames_at(source.path, everything), tools.shots, tools.cuts
        )
    except VideoError as error:
        told = str(error).removeprefix(f"{source.path}: ")
        return record | {"problem": f"cannot be decoded: {told}"}
    record |= {"frames": info.frames, "fps": round(info.fps, _DIGITS)}
    record |= {"height": info.height, "width": info.width}
    longest = max(1, round(config.longest * info.fps))
    for number, shot in enumerate(shots_of(info.frames, cuts, longest), 1):
        clip = _Clip(source, info, shot, number, target)
        record["clips"].append(_clip(clip, config, tools))
    return record


class _Clip(NamedTuple):
    source: Source
    info: VideoInfo
    shot: Shot
    number: int
    target: Path

    @property
    def id(self) -> str:
        return f"{self.source.key}_{self.number:04d}"

    @property
    def whole(self) -> bool:
        """Whether the video is this one shot."""
        return self.shot == (0, self.info.frames)


def _clip(clip: _Clip, config: CurateConfig, tools: Tools) -> dict[str, Any]:
    """The part of the record that says what became of a shot."""
    row: dict[str, Any] = {"id": clip.id, "frames": list(clip.shot), "kept": False, "dropped": {}}
    try:
        look = look_at(clip.source.path, clip.info, clip.shot)
        caption = _caption(clip, look, tools)
        subjects = tools.words(caption) if caption else []
    except VideoError as error:
        row["dropped"] = {"decodable": str(error).removeprefix(f"{clip.source.path}: ")}
        return row
    except LanguageModelError as error:
        row["dropped"] = {"language_model": str(error)}
        return row
    values = _values(clip, look, subjects, tools)
    row["values"] = {name: _plain(value) for name, value in values.items()}
    row["caption"] = caption
    row["subjects"] = [one._asdict() | {"span": list(one.span)} for one in subjects]
    dropped = {one.filter: one.reason for one in filters.refusals(values, config.filters)}
    if caption is None:
        dropped.pop("subject", None)
        dropped["caption"] = "it has no caption"
    if dropped:
        row["dropped"] = dropped
        return row
    entities, left_out = _entities(clip, look, subjects, config, tools)
    row["left_out"] = left_out
    if not entities:
        row["dropped"] = {"entities": "no entity was found"}
        return row
    path = clip.source.path if clip.whole else None
    output.write_clip(clip.target, clip.id, look, (caption or "", entities), path, clip.source.path)
    row["entities"] = [{"word": one.subject.word, "masks": sorted(one.masks)} for one in entities]
    row["kept"] = True
    return row


def _caption(clip: _Clip, look: Look, tools: Tools) -> str | None:
    if tools.captioner is not None:
        return tools.captioner(spread(look.whole))
    if tools.caption_table is not None:
        return tools.caption_table.of(clip.source.name, clip.number)
    return captions.beside(clip.source.path)


def _values(clip: _Clip, look: Look, subjects: list[Subject], tools: Tools) -> dict[str, Any]:
    count = clip.shot.end - clip.shot.start
    values: dict[str, Any] = {
        "seconds": count / clip.info.fps,
        "lines": min(look.size),
        "subject": [one.word for one in subjects],
        "plural": [one.word for one in subjects if one.plural],
    }
    if tools.text is not None:
        values["text"] = tools.text(spread(look.whole))
    if count > 1:
        camera = measures.camera_motion(neighbors(look.small, _CAMERA_FRAMES))
        values |= {"flow": measures.flow_score(look.small)}
        values |= {"zoom": camera.zoom, "angle": camera.angle}
    return values


def _plain(value: Any) -> Any:
    """As JSON has it: a direction that there is not is null."""
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else round(value, _DIGITS)


def _entities(
    clip: _Clip, look: Look, subjects: list[Subject], config: CurateConfig, tools: Tools
) -> tuple[list[output.Entity], dict[str, str]]:
    """Those whose masks hold, with their paths; and why the others were left out, by word."""
    found, left_out = [], {}
    for one in tools.masks(clip.id, look, subjects):
        subject = subjects[one.subject]
        kept, reasons = {}, []
        for mark, mask in sorted(one.masks.items()):
            problem = mask_problem(mask, config.masks)
            if problem is None:
                kept[mark] = mask
            else:
                reasons.append(f"frame {mark}: {problem}")
        if kept:
            found.append(output.Entity(subject, kept, tools.tracker(look.small, kept)))
        else:
            left_out[subject.word] = "; ".join(reasons)
    names = {entity.subject.word for entity in found} | set(left_out)
    left_out |= {one.word: "no mask was found" for one in subjects if one.word not in names}
    return found, left_out


def sources(folder: Path, names: Iterator[str] | list[str]) -> list[Source]:
    """Files of the input by their names below its folder."""
    return [Source(folder / name, output.composed(name), output.key_of(name)) for name in names]
