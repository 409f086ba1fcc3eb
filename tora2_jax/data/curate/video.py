"""One video: cut, measured, judged, annotated, and what is kept of it written.

Everything that is known of it goes into one small record, which is written last and whole: a video
with a record is done, one without is begun anew.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from tora2_jax.config.curate import CurateConfig
from tora2_jax.data.curate import filters, measures, output
from tora2_jax.data.curate.annotate import captions
from tora2_jax.data.curate.annotate.mask_rules import mask_problem
from tora2_jax.data.curate.annotate.words import Subject
from tora2_jax.data.curate.looked_at import Deadline, Look, look_at, neighbors, spread
from tora2_jax.data.curate.shots import Shot, find_shots, shots_of
from tora2_jax.data.curate.tools import Tools
from tora2_jax.media.video_reading import (
    VideoError,
    VideoInfo,
    VideoReadError,
    frames_at,
    video_info,
)

_CAMERA_FRAMES = 25  # neighbors in the middle of a shot
_DIGITS = 4  # of measured values


class Source(NamedTuple):
    """A file of the input.

    Attributes:
        path: where it is.
        name: below the folder of the input, with slashes, in Unicode's composed form.
        key: that names its record and clips: safe in file names, and of no other file.
        alone: whether no other video of the input has its file name without the ending.
    """

    path: Path
    name: str
    key: str
    alone: bool = True


class _Part(NamedTuple):
    """A shot of a video that is worked on."""

    source: Source
    info: VideoInfo
    times: Float[np.ndarray, " edges"]
    shot: Shot
    number: int

    @property
    def id(self) -> str:
        return f"{self.source.key}_{self.number:04d}"

    @property
    def seconds(self) -> float:
        return float(self.times[self.shot.end] - self.times[self.shot.start])


def curate(
    source: Source, target: Path, config: CurateConfig, tools: Tools, deadline: Deadline
) -> dict[str, Any]:
    """The record of a video; its kept clips are written below `target`.

    Raises:
        TooLong: the deadline is over.
        VideoReadError: a disk or network fails; another start may do better.
        LanguageModelError: the service does not answer; the same.
        OSError: the output cannot be written.
    """
    record: dict[str, Any] = {"source": source.name, "problem": None, "clips": []}
    try:
        info = video_info(source.path)
        everything = range(info.frames)
        cuts = find_shots(
            source.name,
            lambda: deadline.over(frames_at(source.path, everything)),
            tools.shots,
            tools.cuts,
        )
    except VideoReadError:
        raise
    except VideoError as error:
        return record | {"problem": f"cannot be decoded: {_told(error, source)}"}
    record |= {"frames": info.frames, "fps": round(info.fps, _DIGITS)}
    record |= {"height": info.height, "width": info.width}
    times = _times(info)
    kept = []
    stream = deadline.over(frames_at(source.path, everything))
    for number, shot in enumerate(shots_of(times, cuts, config.longest), 1):
        row, clip = _clip(_Part(source, info, times, shot, number), stream, config, tools)
        record["clips"].append(row)
        kept += [clip] if clip is not None else []
        deadline.check()
    whole = len(record["clips"]) == 1 and source.path.suffix.lower() == ".mp4"
    # Training refuses pixels that are not square; written anew they are.
    copied = source.path if whole and "stretched" not in info.changed else None
    if kept:
        again = deadline.over(frames_at(source.path, everything))
        output.write_clips(target, kept, again, copied)
    return record


def _times(info: VideoInfo) -> Float[np.ndarray, " edges"]:
    """Seconds at which each frame is shown; the last one as long as one in the mean."""
    if info.times is None:
        return np.arange(info.frames + 1) / info.fps
    return np.append(np.asarray(info.times, float), info.times[-1] + 1 / info.fps)


def _told(error: Exception, source: Source) -> str:
    """Without a path of this machine."""
    return str(error).removeprefix(f"{source.path}: ")


def _clip(
    part: _Part, stream, config: CurateConfig, tools: Tools
) -> tuple[dict[str, Any], output.Kept | None]:
    """The part of the record that says what became of a shot, and the clip if it is kept."""
    row: dict[str, Any] = {"id": part.id, "frames": list(part.shot), "kept": False, "dropped": {}}
    fps = (part.shot.end - part.shot.start) / part.seconds
    try:
        look = look_at(stream, part.shot, fps)
        caption = _caption(part, look, tools)
    except VideoReadError:
        raise
    except VideoError as error:
        return row | {"dropped": {"decodable": _told(error, part.source)}}, None
    except captions.CaptionError as error:
        return row | {"dropped": {"caption": str(error)}}, None
    subjects = tools.words(caption) if caption else []
    values = _values(part, look, subjects, tools)
    row["values"] = {name: _plain(value) for name, value in values.items()}
    row["caption"] = caption
    row["subjects"] = [one._asdict() | {"span": list(one.span)} for one in subjects]
    refused = filters.refusals(values, config.filters, tools.missing)
    dropped = {one.filter: one.reason for one in refused}
    if caption is None:
        dropped.pop("subject", None)
        dropped["caption"] = "it has no caption"
    if dropped:
        return row | {"dropped": dropped}, None
    entities, row["left_out"] = _entities(part, look, subjects, config, tools)
    if not entities:
        return row | {"dropped": {"entities": "no entity was found"}}, None
    row["entities"] = [{"word": one.subject.word, "masks": sorted(one.masks)} for one in entities]
    row["kept"] = True
    made = (part.id, part.shot, fps, look.size, look.scale, caption or "", entities)
    return row, output.Kept(*made)


def _caption(part: _Part, look: Look, tools: Tools) -> str | None:
    if tools.captioner is not None:
        return tools.captioner(spread(look.whole))
    if tools.caption_table is not None:
        return tools.caption_table.of(part.source.name, part.number, part.source.alone)
    return captions.beside(part.source.path)


def _values(part: _Part, look: Look, subjects: list[Subject], tools: Tools) -> dict[str, Any]:
    values: dict[str, Any] = {
        "seconds": part.seconds,
        "lines": min(look.size),
        "subject": [one.word for one in subjects],
        "plural": [one.word for one in subjects if one.plural],
    }
    if tools.text is not None:
        values["text"] = tools.text(spread(look.whole))
    if len(look.small) == 1:  # nothing moves
        return values | {"flow": 0.0, "zoom": 0.5, "angle": math.nan}
    camera = measures.camera_motion(neighbors(look.small, _CAMERA_FRAMES))
    values |= {"flow": measures.flow_score(look.small)}
    return values | {"zoom": camera.zoom, "angle": camera.angle}


def _plain(value: Any) -> Any:
    """As JSON has it: a direction that there is not is null."""
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else round(value, _DIGITS)


def _entities(
    part: _Part, look: Look, subjects: list[Subject], config: CurateConfig, tools: Tools
) -> tuple[list[output.Entity], dict[str, str]]:
    """Those whose masks hold, with their paths; and why the others were left out, by word."""
    found, left_out = [], {}
    for one in tools.masks(part.id, look, subjects):
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
