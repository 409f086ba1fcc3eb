"""The request file: what it may hold, and its reader, which names every problem at once."""

import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from tora2_jax.errors import MessageError, printable
from tora2_jax.media.image_file import ImageSource
from tora2_jax.references.crops import Box
from tora2_jax.references.faces import FaceChoice
from tora2_jax.request.fields import FieldReader, is_number, name_of
from tora2_jax.request.reference_fields import REFERENCE_FIELDS, read_references
from tora2_jax.system import limits
from tora2_jax.system.unusable_file import why_unusable
from tora2_jax.text import find_word
from tora2_jax.trajectory.files import files_of, load_points, paths_of, split_number
from tora2_jax.trajectory.points import DEFAULT_CANVAS, Points, TrajectoryError, parse_points

RequestedKind = Literal["human", "object", "auto"]
Fit = Literal["stretch", "crop", "pad"]  # how a picture of another shape becomes the first frame
DEFAULT_FIT: Fit = "stretch"  # as diffusers does
_ENTITY_FIELDS = ("word", "kind", *REFERENCE_FIELDS, "trajectory")
SIZES = ("height", "width", "frames", "fps")
_FIELDS = ("prompt", "negative_prompt", *SIZES, "canvas", "image", "fit", "entities")


class EntityRequest(NamedTuple):
    """One entity to place; it has reference images, a path, or both."""

    word: str  # as written in the file, such as "man#2"
    span: tuple[int, int] | None  # its characters in the prompt; a checked request has them
    kind: RequestedKind = "auto"  # auto: by a face, or, where none can be sought, by the word
    images: tuple[ImageSource, ...] = ()  # reference images
    points: Points | None = None  # path in canvas units
    # One for each image, or none at all:
    masks: tuple[ImageSource | None, ...] = ()  # image files, white is the entity
    boxes: tuple[Box | None, ...] = ()  # the entity is inside; pixels of the upright image
    faces: tuple[FaceChoice, ...] = ()  # which face is meant, or its landmarks
    features: tuple[Path, ...] = ()  # files with features of more references
    path_files: tuple[Path, ...] = ()  # files that the points were read from


class Request(NamedTuple):
    """What to generate; a size that is None takes the model's own (`with_defaults`)."""

    prompt: str
    entities: tuple[EntityRequest, ...] = ()
    height: int | None = None  # pixels
    width: int | None = None
    frames: int | None = None
    fps: int | None = None
    canvas: tuple[float, float] = DEFAULT_CANVAS  # width and height of the points' canvas
    image: ImageSource | None = None  # first frame, for an I2V model
    negative_prompt: str | None = None  # instead of the checkpoint's null text
    fit: Fit = DEFAULT_FIT  # of the first frame


class RequestError(MessageError):
    """A request that cannot be used; `problems` lists all that is wrong, each with its field."""

    def __init__(self, problems: list[str]):
        super().__init__("the request cannot be used:\n  " + "\n  ".join(problems))
        self.problems = [printable(problem) for problem in problems]


def read_json(path: Path) -> Any:
    """The content of a request file.

    Raises:
        RequestError: it is no text, or no JSON.
    """
    try:
        text = limits.decode_text(limits.read_bytes(path, limits.JSON_BYTES))
    except FileNotFoundError as error:
        raise RequestError([f"{path}: is not there"]) from error
    except (OSError, ValueError) as error:
        raise RequestError([f"{path}: cannot be read as text ({error})"]) from error
    try:
        return json.loads(
            text,
            object_pairs_hook=_Object,
            parse_constant=_refuse_constant,
            parse_int=limits.whole_number,
        )
    except (ValueError, RecursionError) as error:
        reason = why_unusable(path) if text else None
        raise RequestError([f"{path}: {reason or f'is not valid JSON ({error})'}"]) from error


class _Object(dict):
    """A JSON object that remembers which of its fields were given more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        counts = Counter(name for name, _ in pairs)
        self.repeated = sorted(name for name, count in counts.items() if count > 1)


def _refuse_constant(name: str):
    raise ValueError(f"{name} is not a JSON number")


class RequestReader(FieldReader):
    """Turns JSON into a `Request` and notes every problem; what is broken becomes empty."""

    def request(self, data: Any) -> Request:
        if not isinstance(data, dict):
            self.note("request", f"must be an object, not {name_of(data)}")
            return Request("")
        self.fields(data, "", _FIELDS)
        prompt = self.prompt(data)
        canvas = self.canvas(data.get("canvas"))
        entities = data.get("entities", [])
        if not isinstance(entities, list):
            self.note("entities", f"must be a list, not {name_of(entities)}")
            entities = []
        elif len(entities) > limits.ENTITIES:
            most = limits.ENTITIES
            self.note("entities", f"{len(entities)} are too many; give at most {most}")
            entities = []
        parsed = tuple(
            self.entity(entity, f"entities[{index}]", prompt, canvas)
            for index, entity in enumerate(entities)
        )
        self.same_words(parsed)
        image, negative = data.get("image"), data.get("negative_prompt")
        if negative is not None:
            negative = self.text(negative, "negative_prompt")
        return Request(
            prompt,
            parsed,
            **{name: self.size(data.get(name), name) for name in SIZES},
            canvas=canvas,
            image=None if image is None else self.image(image, "image")[0],
            fit=self.fit(data.get("fit")),
            negative_prompt=negative if negative and negative.strip() else None,
        )

    def prompt(self, data: dict) -> str:
        if "prompt" not in data:
            self.note("prompt", "is missing; describe the video")
            return ""
        prompt = self.text(data["prompt"], "prompt")
        if prompt is not None and not prompt.strip():
            self.note("prompt", "is empty; describe the video")
            return ""
        return prompt or ""

    def text(self, value: Any, field: str) -> str | None:
        """Text in Unicode's composed form; None, with a problem, if a tokenizer cannot read it."""
        if not isinstance(value, str):
            self.note(field, f"must be text, not {name_of(value)}")
            return None
        try:
            value.encode()
        except UnicodeEncodeError as error:
            escape = ascii(value[error.start])[1:-1]
            self.note(field, f"holds half a character ({escape}); write the whole one")
            return None
        if len(value) > limits.PROMPT_CHARACTERS:
            most = limits.PROMPT_CHARACTERS
            self.note(field, f"has {len(value)} characters; at most {most} are read, so shorten it")
            return None
        return unicodedata.normalize("NFC", value)

    def fit(self, value: Any) -> Fit:
        if value is None or value in get_args(Fit):
            return value or DEFAULT_FIT
        self.note("fit", f"must be one of {', '.join(get_args(Fit))}, not {name_of(value)}")
        return DEFAULT_FIT

    def size(self, value: Any, name: str) -> int | None:
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.note(name, f"must be a positive whole number, not {name_of(value)}")
            return None
        most = limits.FPS if name == "fps" else limits.SIZE
        if value > most:
            self.note(name, f"{name_of(value)} is too large; take at most {most}")
            return None
        return value

    def canvas(self, value: Any) -> tuple[float, float]:
        if value is None:
            return DEFAULT_CANVAS
        if (
            not isinstance(value, list)
            or len(value) != 2
            or not all(is_number(side) and side > 0 for side in value)
        ):
            self.note(
                "canvas", f"must be [width, height], two positive numbers, not {name_of(value)}"
            )
            return DEFAULT_CANVAS
        least, most = limits.CANVAS
        if not all(least <= side <= most for side in value):
            self.note("canvas", f"{name_of(value)} is not between {least:g} and {most:,.0f}")
            return DEFAULT_CANVAS
        return value[0], value[1]

    def entity(self, data: Any, field: str, prompt: str, canvas) -> EntityRequest:
        if not isinstance(data, dict):
            self.note(field, f"must be an object, not {name_of(data)}")
            return EntityRequest("", None)
        self.fields(data, f"{field}.", _ENTITY_FIELDS)
        word, span = self.word(data.get("word"), f"{field}.word", prompt)
        kind = data.get("kind", "auto")
        if kind not in get_args(RequestedKind):
            self.note(f"{field}.kind", f'must be "human", "object" or "auto", not {name_of(kind)}')
            kind = "auto"
        trajectory = data.get("trajectory")
        references = read_references(self, data, field)
        if not data.get("images") and not data.get("features") and trajectory is None:
            self.note(field, "has neither images nor a trajectory nor features; give at least one")
        kind = self.stored_kind(kind, references.pop("kinds"), field)
        points: Points | None = None
        files: tuple[Path, ...] = ()
        if trajectory is not None:
            points, files = self.trajectory(trajectory, f"{field}.trajectory", canvas)
        if kind == "object" and references["faces"]:
            self.note(f"{field}.faces", 'an object has no face; remove it, or write "human"')
        return EntityRequest(word, span, kind, points=points, path_files=files, **references)

    def stored_kind(self, kind: RequestedKind, stored: tuple, field: str) -> RequestedKind:
        """The kind of an entity, where its feature files say it and the request does not."""
        said = set(stored) - {None}
        if kind != "auto" or not stored:
            return kind  # whether the files agree is checked with their sizes
        if len(said) > 1:
            self.note(f"{field}.features", "are of entities of several kinds; name those of one")
        elif said:
            return said.pop()
        return kind

    def word(self, word: Any, field: str, prompt: str) -> tuple[str, tuple[int, int] | None]:
        if not isinstance(word, str):
            self.note(field, "is missing" if word is None else f"must be text, not {name_of(word)}")
            return "", None
        if len(word) > limits.WORD_CHARACTERS:
            self.note(field, f"has {len(word)} characters; name a word of the prompt")
            return "", None
        word = unicodedata.normalize("NFC", word)
        if not prompt:
            return word, None
        try:
            return word, find_word(prompt, word)
        except ValueError as error:
            self.note(field, str(error))
            return word, None

    def same_words(self, entities: tuple[EntityRequest, ...]) -> None:
        first: dict[tuple[int, int], int] = {}
        for index, entity in enumerate(entities):
            if entity.span is None:
                continue
            earlier = first.setdefault(entity.span, index)
            if earlier != index:
                self.note(
                    f"entities[{index}].word",
                    f'"{entity.word}" is the word of entities[{earlier}] too; name another '
                    f'occurrence, such as "{entity.word.partition("#")[0]}#2"',
                )

    def trajectory(self, value: Any, field: str, canvas) -> tuple[Points | None, tuple[Path, ...]]:
        """The points, and the files that they were read from."""
        try:
            if isinstance(value, list):
                return parse_points(self.only_path(value), canvas), ()
            number = None
            if isinstance(value, str):
                _, number = split_number(value, self.directory)
                value = value[: value.rindex("#")] if number is not None else value
            if (path := self.path(value, field)) is None:
                return None, ()
            return load_points(path, canvas, number), files_of(path)
        except TrajectoryError as error:
            for problem in error.problems:
                self.note(field, problem)
        except OverflowError:
            self.note(field, "holds a number that is too large")
        return None, ()

    def only_path(self, value: list) -> Any:
        """The points of a list, which may hold them as the only path of several possible."""
        paths = paths_of(value)
        if len(paths) > 1:
            raise TrajectoryError([f"holds {len(paths)} paths; an entity has one."])
        return paths[0]
