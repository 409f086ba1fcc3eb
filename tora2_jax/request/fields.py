"""Reading of JSON that a person wrote: fields, paths and images, every problem with its field."""

import difflib
import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from tora2_jax.media.image_file import ImageSource, Picture, count_pixels, load_image
from tora2_jax.system import limits

Paths = Literal["anything", "beside-the-request"]
_LISTED = 10  # unknown fields that are named
_PATH_CHARACTERS = 1000


class FieldReader:
    """Notes what is wrong; what is broken becomes None.

    Args:
        directory: Where relative paths start.
        paths: Which files may be named: any that the program may read, or only those in
            `directory` and below it, links followed (for requests of strangers).
    """

    def __init__(self, directory: Path, paths: Paths = "anything"):
        self.directory, self.paths = directory, paths
        self.problems: list[str] = []
        self._pixels = 0  # of all pictures so far

    def note(self, field: str, problem: str) -> None:
        self.problems.append(f"{field}: {problem}")

    def fields(self, data: dict, prefix: str, known: tuple[str, ...]) -> None:
        """Notes every field that is not known, and those given more than once."""
        unknown = [name for name in data if name not in known]
        for name in unknown[:_LISTED]:
            close = difflib.get_close_matches(name[:_PATH_CHARACTERS], known, n=1)
            hint = f'did you mean "{close[0]}"?' if close else f"known: {', '.join(known)}"
            self.note(prefix + short(name), f"unknown field; {hint}")
        repeated = getattr(data, "repeated", ())
        for name in repeated[:_LISTED]:
            self.note(prefix + short(name), "is given more than once")
        more = len(unknown[_LISTED:]) + len(repeated[_LISTED:])
        if more:
            self.note(f"{prefix}...", f"{more} more fields are unknown or given more than once")

    def path(self, value: Any, field: str) -> Path | None:
        """A local path; None, with a problem, if it is none, or no file is there."""
        if not isinstance(value, str) or not value.strip():
            self.note(field, f"must be the path of a file, not {name_of(value)}")
        elif re.match(r"data:|[A-Za-z][A-Za-z0-9+.-]+://", value):
            self.note(field, f'"{value[:80]}" is not a local path; download the file first')
        elif self.paths != "anything" and not _is_below(self.directory, value):
            self.note(
                field, f'"{short(value)}" is not beside the request; only such files are read'
            )
        elif len(value) > _PATH_CHARACTERS or not _is_file(self.directory / value):
            self.note(field, f'there is no file "{short(value)}" in {self.directory}')
        else:
            return self.directory / value
        return None

    def file_list(self, value: Any, field: str, kind: str) -> list[Any]:
        """A list of files that may be left out; empty, with a problem, if it is none or too long.

        `kind` is what the files are: "image" or "feature".
        """
        if value is not None and not isinstance(value, list):
            self.note(field, f"must be a list of {kind} files, not {name_of(value)}")
        elif value and len(value) > limits.REFERENCES:
            self.note(field, f"{len(value)} are too many; give at most {limits.REFERENCES}")
        else:
            return value or []
        return []

    def image(
        self, value: Any, field: str, load=load_image
    ) -> tuple[ImageSource | None, UInt8[np.ndarray, "height width *channels"] | None]:
        """The path of an image file and its pixels, as `load` reads them.

        Files are measured before they are decoded, each alone and all of a request together. A
        picture in memory, of requests that are built in Python, is its own path.
        """
        path = value if isinstance(value, Picture) else self.path(value, field)
        if path is None:
            return None, None
        try:
            self._pixels += count_pixels(path)
            if self._pixels > limits.REQUEST_PIXELS:
                most = limits.REQUEST_PIXELS // 10**6
                raise ValueError(f"with it the pictures have more than {most} million pixels")
            return path, load(path)
        except (OSError, ValueError) as error:
            self.note(field, str(error))
            return path, None


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def name_of(value: Any) -> str:
    """A JSON value as a person would recognize it, short."""
    try:
        text = "null" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:  # the parser goes a little deeper than the writer
        text = "something that is nested too deeply"
    return text if len(text) <= 40 else text[:37] + "..."


def short(text: str, most: int = 80) -> str:
    """A text of the request as messages quote it."""
    return text if len(text) <= most else f"{text[:most]}..."


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # such as a name that is too long, or holds a zero
        return False


def _is_below(directory: Path, value: str) -> bool:
    """Whether a path stays in a folder, wherever links lead."""
    try:
        return (directory / value).resolve().is_relative_to(directory.resolve())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: links in a circle
        return False
