"""What is known of the entities of a clip: `entities/NAME.json`, described in docs/entity_clips.md.

The form is the request file's, with one entry per frame of the clip where that has a path.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from tora2_jax.conditioning.references import load_references
from tora2_jax.data.clip_files import name_of as clip_name
from tora2_jax.data.kept_findings import KeptFindings
from tora2_jax.media.image_file import load_mask
from tora2_jax.media.video import VideoInfo
from tora2_jax.references.crops import Box, cut_out
from tora2_jax.references.kinds import kind_of_word
from tora2_jax.request.fields import is_number, name_of
from tora2_jax.request.reader import EntityRequest, RequestError, RequestReader, read_json
from tora2_jax.request.reference_fields import read_references
from tora2_jax.types import Kind

_OWN = ("images", "masks", "boxes")  # as in a request: pictures, and what is theirs
_FROM_CLIP = ("trajectory", "frame_masks", "frame_boxes")
_FIELDS = ("word", "kind", *_OWN, *_FROM_CLIP)
_SOLID = 127  # a mask above this belongs to the entity


class Annotation(NamedTuple):
    """One entity of a clip, in the frames and pixels of its file."""

    asked: EntityRequest  # word, kind and references of its own, as in a request
    track: Float[np.ndarray, "file_frames 2"] | None  # (x, y); None: not known
    visible: Bool[np.ndarray, " file_frames"]
    masks: dict[int, Path]  # by frame
    boxes: dict[int, Box]  # by frame; empty if there are masks

    @property
    def seen(self) -> list[int]:
        """The frames out of which the entity can be cut, rising; their masks may be empty."""
        return sorted(self.masks or self.boxes)

    def mask(self, frame: int, height: int, width: int) -> Bool[np.ndarray, "height width"]:
        """The entity's pixels in a frame of the file; none where nothing is annotated.

        Raises:
            ValueError: The file of the mask is damaged.
        """
        if frame in self.masks:
            return load_mask(self.masks[frame]) > _SOLID
        mask = np.zeros((height, width), bool)
        if frame in self.boxes:
            left, top, right, bottom = self.boxes[frame]
            rows = slice(max(0, math.floor(top)), math.ceil(bottom))
            mask[rows, max(0, math.floor(left)) : math.ceil(right)] = True
        return mask

    def own_image(self, index: int) -> UInt8[np.ndarray, "height width 4"]:
        """A reference of its own as RGBA, inside of its box; alpha is its mask.

        Raises:
            ValueError: A file is damaged.
        """
        one = {name: getattr(self.asked, name)[index : index + 1] for name in _OWN}
        (reference,) = load_references(self.asked._replace(**one))
        return reference.image if reference.box is None else cut_out(*reference[:2])

    @property
    def fingerprint(self) -> str:
        """Identifies the content; of a file its name, size and time stand for it."""
        asked = self.asked
        files = [*asked.images, *filter(None, asked.masks), *self.masks.values()]
        known = [asked.word, asked.kind, [mask is None for mask in asked.masks], asked.boxes]
        known += [sorted(self.masks), sorted(self.boxes.items())]
        known += [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        known += [None if self.track is None else self.track.tolist(), self.visible.tolist()]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def box_size(mask: Bool[np.ndarray, "height width"]) -> int:
    """The longer side of the box around a mask; 0 if it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(max(rows[-1] - rows[0], columns[-1] - columns[0])) + 1 if len(rows) else 0


def read_annotations(
    folder: Path,
    path: Path,
    caption: str,
    video: VideoInfo,
    smallest: int,
    kept: KeptFindings | None = None,
) -> tuple[tuple[Annotation, ...], list[str]]:
    """The entities of a clip, and everything that is wrong with them, each with file and field.

    Args:
        folder: Of the clips; the files that `path` names are relative to it.
        path: `entities/NAME.json`.
        caption: In which the words must occur; empty if it is not known.
        video: What the annotations must fit.
        smallest: Pixels of the longer side below which an entity cannot be cut out.
        kept: Of which annotations an earlier start has opened every picture.
    """
    name = clip_name(path)
    if not path.is_file():
        return (), [f"{path}: is missing; it tells the entities of videos/{name}.mp4"]
    try:
        data = read_json(path)
    except RequestError as error:
        return (), error.problems
    if "stretched" in video.changed:
        return (), [
            f"{path}: the pixels of its clip are not square, so that places could mean two things; "
            "encode the clip with `ffmpeg -i IN -vf scale=iw*sar:ih,setsar=1 OUT`"
        ]
    key = None
    if kept is not None:
        trusting = _TrustingReader(folder, path, video, smallest)
        entities = trusting.annotations(data, caption)
        key = None if trusting.problems else _key(entities, caption, video, smallest)
        if key is not None and kept.is_faultless(name, key):
            return entities, []
    reader = _AnnotationReader(folder, path, video, smallest)
    entities = reader.annotations(data, caption)
    if key is not None and not reader.problems:
        kept.keep_faultless(name, key)
    return entities, reader.problems


def _key(
    entities: tuple[Annotation, ...], caption: str, video: VideoInfo, smallest: int
) -> str | None:
    """Stands for all that annotations are checked against; None if a file has just gone."""
    try:
        known = [[entity.fingerprint for entity in entities], caption, video, smallest]
    except OSError:
        return None
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]


class _AnnotationReader(RequestReader):
    """Turns JSON into annotations and notes every problem with its file and field."""

    def __init__(self, folder: Path, source: Path, video: VideoInfo, smallest: int):
        super().__init__(folder)
        self._source, self._video, self._smallest = source, video, smallest

    def note(self, field: str, problem: str) -> None:
        super().note(f"{self._source}: {field}", problem.replace("the prompt", "the caption"))

    def annotations(self, data: Any, caption: str) -> tuple[Annotation, ...]:
        if not isinstance(data, dict):
            self.note("content", f'must be an object with "entities", not {name_of(data)}')
            return ()
        self.fields(data, "", ("entities",))
        entities = data.get("entities")
        if not isinstance(entities, list) or not entities:
            self.note("entities", f"must be a list of at least one entity, not {name_of(entities)}")
            return ()
        found = [
            self.annotation(entity, f"entities[{index}]", caption)
            for index, entity in enumerate(entities)
        ]
        read = tuple(entity for entity in found if entity is not None)
        self.same_words(tuple(entity.asked for entity in read))
        return read

    def annotation(self, data: Any, field: str, caption: str) -> Annotation | None:
        if not isinstance(data, dict):
            self.note(field, f"must be an object, not {name_of(data)}")
            return None
        before = len(self.problems)
        self.fields(data, f"{field}.", _FIELDS)
        word, span = self.word(data.get("word"), f"{field}.word", caption)
        kind = data.get("kind", kind_of_word(word))
        if kind not in get_args(Kind):
            self.note(f"{field}.kind", f'must be "human" or "object", not {name_of(kind)}')
        own = read_references(self, {name: data.get(name) for name in _OWN}, field)
        track, visible = self.track(data.get("trajectory"), f"{field}.trajectory")
        masks = self.masks(data.get("frame_masks"), f"{field}.frame_masks")
        boxes = self.boxes(data.get("frame_boxes"), f"{field}.frame_boxes")
        given = [name for name in ("images", *_FROM_CLIP) if data.get(name)]
        if not given:
            names = ", ".join(("images", *_FROM_CLIP))
            self.note(field, f"has none of {names}; give at least one")
        if "frame_masks" in given and "frame_boxes" in given:
            self.note(f"{field}.frame_boxes", "must be left out where there are frame_masks")
        asked = EntityRequest(word, span, kind, **{name: own[name] for name in _OWN})
        found = Annotation(asked, track, visible, masks, boxes)
        if (masks or boxes) and len(self.problems) == before:
            self.can_be_cut(found, f"{field}.{'frame_masks' if masks else 'frame_boxes'}")
        return found

    def track(self, value: Any, field: str) -> tuple[np.ndarray | None, np.ndarray]:
        video = self._video
        nowhere = np.zeros(video.frames, bool)
        if value is None:
            return None, nowhere
        points, _ = self.trajectory(value, field, (video.width, video.height))
        if points is None:
            return None, nowhere
        count = len(points.time)
        if not self.per_frame(count, field):
            return None, nowhere
        if count > 1 and not np.allclose(points.time, np.linspace(0, 1, count), atol=1e-6):
            self.note(field, "holds times; here the entries are the frames of the clip in order")
        return points.position, points.visible

    def per_frame(self, count: int, field: str) -> bool:
        if count != self._video.frames:
            self.note(
                field,
                f"has {count} entries; the clip has {self._video.frames} frames and needs one for "
                "each (null where the entity is out of sight)",
            )
        return count == self._video.frames

    def masks(self, value: Any, field: str) -> dict[int, Path]:
        if value is None:
            return {}
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            self.note(field, f"must be the path of a folder, not {name_of(value)}")
            return {}
        folder = self.directory / value
        if not folder.is_dir():
            self.note(field, f'there is no folder "{value}" in {self.directory}')
            return {}
        files = sorted(
            file
            for file in folder.iterdir()
            if file.suffix.lower() == ".png" and not file.name.startswith(".")
        )
        frames = self._video.frames
        numbered = {int(f.stem): f for f in files if f.stem.isdecimal() and int(f.stem) < frames}
        size = (self._video.width, self._video.height)
        if not files:
            self.note(field, f"{folder} holds no *.png")
        strange = [file for file in files if numbered.get(_number(file)) != file]
        self.files(field, strange, f"not named after one frame of the clip, 0 to {frames - 1}")
        sizes = {file: self.picture_size(file) for file in numbered.values()}
        broken = [file for file, found in sizes.items() if found is None]
        other = [file for file, found in sizes.items() if found not in (None, size)]
        self.files(field, broken, "damaged or no picture")
        self.files(field, other, f"not as large as the clip, {size[0]} x {size[1]}")
        return numbered

    def files(self, field: str, files: Sequence[Path], problem: str) -> None:
        """Notes a problem that some files share."""
        if files:
            more = f" and {len(files) - 1} more" if len(files) > 1 else ""
            self.note(field, f"{files[0]}{more}: {problem}")

    def boxes(self, value: Any, field: str) -> dict[int, Box]:
        if isinstance(value, str):
            path = self.path(value, field)
            if path is None:
                return {}
            try:
                value = read_json(path)
            except RequestError as error:
                self.note(field, error.problems[0])
                return {}
        if value is None:
            return {}
        if not isinstance(value, list):
            self.note(field, f"must be a list or the path of a JSON file, not {name_of(value)}")
            return {}
        self.per_frame(len(value), field)
        faulty = [
            (frame, box)
            for frame, box in enumerate(value)
            if box is not None and not self.is_box(box)
        ]
        if faulty:
            frame, box = faulty[0]
            more = f"; so are {len(faulty) - 1} more" if len(faulty) > 1 else ""
            self.note(
                f"{field}[{frame}]",
                f"is {name_of(box)}{more}; a box is [left, top, right, bottom] in pixels of the "
                f"clip, which is {self._video.width} x {self._video.height}, or null",
            )
            return {}
        found = {frame: tuple(box) for frame, box in enumerate(value) if box is not None}
        if not found:
            self.note(field, "holds no box")
        return found

    def is_box(self, box: Any) -> bool:
        if not isinstance(box, list) or len(box) != 4:
            return False
        if not all(is_number(side) and abs(side) < math.inf for side in box):
            return False
        left, top, right, bottom = box
        overlaps = left < self._video.width and top < self._video.height and min(box[2:]) > 0
        return left < right and top < bottom and overlaps

    def picture_size(self, path: Path) -> tuple[int, int] | None:
        """Width and height by the head of the file; None if it is no picture."""
        try:
            with Image.open(path) as image:
                return image.size
        except (OSError, SyntaxError, ValueError):
            return None

    def can_be_cut(self, entity: Annotation, field: str) -> None:
        """Looks for one frame in which the entity is large enough; mostly the first will do."""
        size = (self._video.height, self._video.width)
        try:
            if any(box_size(entity.mask(n, *size)) >= self._smallest for n in entity.seen):
                return
            self.note(field, f"the entity is nowhere {self._smallest} pixels wide or high")
        except ValueError as error:
            self.note(field, str(error))


class _TrustingReader(_AnnotationReader):
    """Reads what the JSON says and opens no picture: an earlier start may have done so."""

    def image(self, value: Any, field: str, load=None) -> tuple[Path | None, None]:
        return self.path(value, field), None

    def picture_size(self, path: Path) -> tuple[int, int]:
        return self._video.width, self._video.height

    def can_be_cut(self, entity: Annotation, field: str) -> None:
        pass


def _number(file: Path) -> int | None:
    return int(file.stem) if file.stem.isdecimal() else None
