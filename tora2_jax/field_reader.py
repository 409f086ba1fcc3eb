"""Reading of JSON that a person wrote: fields, paths and images, every problem with its field."""

import difflib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from tora2_jax.image_file import load_image


class FieldReader:
    """Notes what is wrong; what is broken becomes None.

    Args:
        directory: Where relative paths start.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.problems: list[str] = []

    def note(self, field: str, problem: str) -> None:
        self.problems.append(f"{field}: {problem}")

    def fields(self, data: dict, prefix: str, known: tuple[str, ...]) -> None:
        """Notes every field that is not known, and those given more than once."""
        for name in data:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f'did you mean "{close[0]}"?' if close else f"known: {', '.join(known)}"
                self.note(prefix + name, f"unknown field; {hint}")
        for name in getattr(data, "repeated", ()):
            self.note(prefix + name, "is given more than once")

    def path(self, value: Any, field: str) -> Path | None:
        """A local path; None, with a problem, if it is none or no file is there."""
        if not isinstance(value, str) or not value.strip():
            self.note(field, f"must be the path of a file, not {name_of(value)}")
        elif re.match(r"data:|[A-Za-z][A-Za-z0-9+.-]+://", value):
            self.note(field, f'"{value[:80]}" is not a local path; download the file first')
        elif "\0" in value or not _is_file(self.directory / value):
            self.note(field, f'there is no file "{value}" in {self.directory}')
        else:
            return self.directory / value
        return None

    def image(
        self, value: Any, field: str, load=load_image
    ) -> tuple[Path | None, UInt8[np.ndarray, "height width *channels"] | None]:
        """The path of an image file and its pixels, as `load` reads them."""
        path = self.path(value, field)
        if path is None:
            return None, None
        try:
            return path, load(path)
        except (OSError, ValueError) as error:
            self.note(field, str(error))
            return path, None


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def name_of(value: Any) -> str:
    """A JSON value as a person would recognise it, short."""
    text = "null" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:37] + "..."


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long
        return False
