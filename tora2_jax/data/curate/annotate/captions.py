"""Captions of clips: from files, from a table, or from a language model that sees frames."""

import base64
import csv
import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
from PIL import Image

from tora2_jax.data.curate.annotate.language_model import LanguageModel
from tora2_jax.data.curate.names import composed
from tora2_jax.errors import MessageError
from tora2_jax.system import limits

_SHOWN = 512  # pixels of the longer side of pictures that are sent
PROMPT = """Describe this video in one or two plain sentences: who or what is in it, what they look
like, what they do, and where. Name each person, animal and thing with its own noun, in the singular
if there is one of it. Do not mention the camera, the video or the frames."""


class CaptionError(MessageError):
    """A table or a file that cannot be read."""


class Captioner(Protocol):
    """Writes the caption of a shot."""

    def __call__(self, frames: Sequence[np.ndarray]) -> str:
        """One line.

        Raises:
            LanguageModelError: the service does not answer as it should.
        """
        ...


class CaptionTable:
    """Captions from a CSV table with a column of videos or clips and one of captions.

    Args:
        path: its first line names the columns.
        video: the column with names of files of the input, or of clips (`NAME#2`, the second shot);
            a name without its folders does if no other video has it.
        caption: the column with the captions.

    Raises:
        CaptionError: it cannot be read, or has no such columns.
    """

    def __init__(self, path: Path, video: str = "video", caption: str = "caption"):
        try:
            text = limits.decode_text(path.read_bytes())
            rows = csv.DictReader(io.StringIO(text))
            columns, listed = rows.fieldnames or [], list(rows)
        except (OSError, ValueError, csv.Error) as error:
            raise CaptionError(f"{path}: cannot be read ({error})") from error
        missing = [name for name in (video, caption) if name not in columns]
        if missing:
            known = ", ".join(columns) or "none"
            raise CaptionError(f"{path}: has no column {', '.join(missing)}; its columns: {known}")
        self._captions = {
            composed(row[video].strip()): line(row[caption])
            for row in listed
            if row[video] and row[caption]
        }

    def of(self, name: str, shot: int, alone: bool = False) -> str | None:
        """The caption of a shot (counted from 1), or of its video; None if there is none.

        Args:
            name: of the video below the folder of the input.
            shot: its number.
            alone: whether no other video of the input has this file name without its ending.
        """
        stem, last = str(PurePosixPath(name).with_suffix("")), PurePosixPath(name)
        keys = [f"{name}#{shot}", f"{stem}#{shot}", name, stem]
        if alone:
            keys += [f"{last.name}#{shot}", f"{last.stem}#{shot}", last.name, last.stem]
        return next((self._captions[key] for key in keys if self._captions.get(key)), None)


def beside(video: Path) -> str | None:
    """The caption in `NAME.txt` beside a video, or in `labels/NAME.txt` beside `videos/`.

    Raises:
        CaptionError: there is such a file, and it cannot be read.
    """
    places = [video.with_suffix(".txt")]
    if video.parent.name == "videos":
        places.append(video.parent.parent / "labels" / f"{video.stem}.txt")
    for path in places:
        try:
            text = line(limits.decode_text(limits.read_bytes(path, limits.JSON_BYTES)))
        except FileNotFoundError:
            continue
        except UnicodeDecodeError as error:
            raise CaptionError(f"{path.name} is not text in UTF-8") from error
        except (OSError, ValueError) as error:
            raise CaptionError(f"{path.name} cannot be read ({error})") from error
        if text:
            return text
    return None


def line(text: str) -> str:
    """A caption as one line, without white space around it."""
    return " ".join(text.split())


class LanguageModelCaptions:
    """Shows frames to a language model that sees pictures.

    Args:
        model: that is asked.
    """

    def __init__(self, model: LanguageModel):
        self._model = model

    def __call__(self, frames: Sequence[np.ndarray]) -> str:
        """See `Captioner`."""
        pictures = [
            {"type": "image_url", "image_url": {"url": _data_url(frame)}} for frame in frames
        ]
        content = [{"type": "text", "text": PROMPT}, *pictures]
        return line(self._model.answer([{"role": "user", "content": content}]))


def _data_url(frame: np.ndarray) -> str:
    picture = Image.fromarray(frame)
    picture.thumbnail((_SHOWN, _SHOWN))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
