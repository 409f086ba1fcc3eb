"""A drawing is a request whose pictures lie on the shelf: checked, packed and unpacked.

The page and `scripts/sample.py` read the same file by the same code: a drawing is `request.json`.
"""

import base64
import io
import json
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tora2_jax import conditioning
from tora2_jax.conditioning.first_frame import first_frame
from tora2_jax.conditioning.references import load_references
from tora2_jax.config.model import ModelConfig
from tora2_jax.media.image_file import load_image
from tora2_jax.references.crops import cut_out
from tora2_jax.request import Request, RequestError, load_request, parse_request
from tora2_jax.request.notes import request_notes
from tora2_jax.request.reader import EntityRequest
from tora2_jax.studio.shelf import Shelf, ShelfError
from tora2_jax.system import limits
from tora2_jax.trajectory.formats import point_list

PACKED_FILES = 300
PACKED_BYTES = 2**28  # uncompressed
_REQUEST = "request.json"
_SIZES = ("canvas", "frames", "height", "width")


class Checked(NamedTuple):
    """What is known of a drawing.

    Attributes:
        request: None if it cannot be sampled.
        problems: each with the field that it stands at.
        notes: what of it is taken otherwise than may be expected.
        tracks: for each entity its places by frame as the model sees them, or None.
    """

    request: Request | None
    problems: list[dict[str, str]]
    notes: list[str]
    tracks: list[dict[str, Any] | None]

    def lines(self) -> list[str]:
        """The problems as lines of text."""
        return [f"{one['field']}: {one['text']}".removeprefix(": ") for one in self.problems]

    def first_frame(self) -> str | None:
        """The picture that the model starts from, as it sees it, as a data URL."""
        if self.request is None or self.request.image is None:
            return None
        buffer = io.BytesIO()
        picture = np.round((first_frame(self.request) + 1) * 127.5).astype(np.uint8)
        Image.fromarray(picture).save(buffer, "PNG")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def check(drawing: Any, shelf: Shelf, model: ModelConfig, tokenizer) -> Checked:
    """Whether a drawing can be sampled, and where it wants its entities."""
    try:
        request = parse_request(drawing, shelf.folder, model, tokenizer, "beside-the-request")
    except RequestError as error:
        problems = [_placed(_without(shelf.folder, problem)) for problem in error.problems]
        return Checked(None, problems, [], _lone_tracks(drawing, shelf, model))
    notes = request_notes(request, model, tokenizer)
    tracks = [_track(entity, request, model) for entity in request.entities]
    return Checked(request, [], notes, tracks)


def _placed(problem: str) -> dict[str, str]:
    """A problem of the request reader, parted into its field and what is wrong."""
    field, colon, text = problem.partition(": ")
    if not colon or " " in field:
        return {"field": "", "text": problem}
    return {"field": field, "text": text}


def _without(folder: Path, problem: str) -> str:
    """A problem without a folder of this machine, which says nothing to whoever draws."""
    return problem.replace(f"{folder}/", "").replace(f" in {folder}", "; give it again")


def _lone_tracks(drawing: Any, shelf: Shelf, model: ModelConfig) -> list[dict[str, Any] | None]:
    """The tracks of those entities whose paths are right, whatever is wrong elsewhere."""
    entities = drawing.get("entities") if isinstance(drawing, dict) else None
    if not isinstance(entities, list):
        return []
    found = []
    for entity in entities[: limits.ENTITIES]:
        known = {"word": "it", "trajectory": None}
        if isinstance(entity, dict):
            known["trajectory"] = entity.get("trajectory")
        sizes = {name: drawing[name] for name in _SIZES if name in drawing}
        try:
            one = {"prompt": "it", "entities": [known], **sizes}
            request = parse_request(one, shelf.folder, model, None, "beside-the-request")
            found.append(_track(request.entities[0], request, model))
        except RequestError:
            found.append(None)
    return found


def _track(entity: EntityRequest, request: Request, model: ModelConfig) -> dict[str, Any] | None:
    """Fractions of the picture."""
    if entity.points is None:
        return None
    track, visible = conditioning.request_track(entity, request, model)
    size = np.array([request.width, request.height])
    return {"positions": np.round(track / size, 4).tolist(), "visible": visible.tolist()}


def pack(drawing: dict[str, Any], shelf: Shelf) -> bytes:
    """A drawing and its pictures as an archive, which `scripts/sample.py` reads once unpacked.

    Args:
        drawing: that `check` had nothing against.
        shelf: holds its pictures.
    """
    used = [name for entity in drawing["entities"] for name in entity.get("images", [])]
    used += [drawing["image"]] if drawing.get("image") else []
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_REQUEST, json.dumps(drawing, indent=1, ensure_ascii=False) + "\n")
        for name in dict.fromkeys(used):
            if path := shelf.path(name):
                archive.write(path, name)
    return buffer.getvalue()


def unpack_file(path: Path, shelf: Shelf) -> dict[str, Any]:
    """The drawing of a request file of the user's own, whose pictures may lie anywhere.

    Raises:
        RequestError: lists everything that is wrong.
    """
    return _drawing_of(load_request(path), shelf)


def unpack(path: Path, shelf: Shelf) -> dict[str, Any]:
    """The drawing in an archive of `pack`, or in a lone request file without pictures.

    Files that the request names are read from the archive alone.

    Raises:
        RequestError: lists everything that is wrong.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if zipfile.is_zipfile(path):
            file = _extract(path, folder)
        else:
            try:
                (folder / _REQUEST).write_bytes(limits.read_bytes(path, limits.JSON_BYTES))
            except (OSError, ValueError) as error:
                raise RequestError([f"the file cannot be read: {error}"]) from error
            file = folder / _REQUEST
        try:
            return _drawing_of(load_request(file, paths="beside-the-request"), shelf)
        except RequestError as error:
            raise RequestError([_without(folder, one) for one in error.problems]) from error


def _extract(path: Path, folder: Path) -> Path:
    """Writes the regular files of an archive below a folder; its request file."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if problem := _archive_problem(members):
                raise RequestError([problem])
            for member in members:
                target = folder / PurePosixPath(member.filename)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source:
                    # What a member claims to hold is not believed.
                    data = source.read(member.file_size + 1)
                target.write_bytes(data[: member.file_size])
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise RequestError([f"the archive cannot be read: {error}"]) from error
    except RuntimeError as error:  # a password
        raise RequestError(["the archive is encrypted; save it without a password"]) from error
    found = sorted(folder.rglob("*.json"), key=lambda one: (one.name != _REQUEST, len(one.parts)))
    if not found:
        raise RequestError([f"the archive holds no {_REQUEST}"])
    return found[0]


def _archive_problem(members: list[zipfile.ZipInfo]) -> str | None:
    if len(members) > PACKED_FILES:
        return f"the archive holds {len(members)} files; give at most {PACKED_FILES}"
    if sum(member.file_size for member in members) > PACKED_BYTES:
        return f"the archive holds more than {PACKED_BYTES >> 20} MiB"
    for member in members:
        name = member.filename
        parts = PurePosixPath(name).parts
        kind = stat.S_IFMT(member.external_attr >> 16)
        if (
            not parts
            or name.startswith("/")
            or ".." in parts
            or any(sign in name for sign in "\\:\0")
            or kind not in (0, stat.S_IFREG)
        ):
            return f"the archive holds {name[:80]!r}, which is no plain file of its folder"
    return None


def _drawing_of(request: Request, shelf: Shelf) -> dict[str, Any]:
    """A request as the page draws it: pictures on the shelf, points in the place of path files."""
    problems: list[str] = []
    entities = []
    for index, entity in enumerate(request.entities):
        images = []
        for place, reference in enumerate(load_references(entity)):
            cut = cut_out(reference.image, reference.box) if reference.box else reference.image
            try:
                images.append(shelf.add_pixels(cut))
            except ShelfError as error:
                problems.append(f"entities[{index}].images[{place}]: {error}")
        if entity.features:
            problems.append(f"entities[{index}].features: the studio takes images only")
        trajectory = None if entity.points is None else point_list(entity.points)
        entities.append(
            {
                "word": entity.word,
                "kind": entity.kind,
                "images": images,
                "trajectory": trajectory,
            }
        )
    if problems:
        raise RequestError(problems)
    drawing = {name: value for name, value in _plain_fields(request).items() if value is not None}
    image = None if request.image is None else shelf.add_pixels(load_image(request.image))
    return drawing | {"image": image, "entities": entities}


def _plain_fields(request: Request) -> dict[str, Any]:
    names = ("prompt", "negative_prompt", "height", "width", "frames", "fps", "fit")
    fields = {name: getattr(request, name) for name in names}
    return fields | {"canvas": list(request.canvas)}
