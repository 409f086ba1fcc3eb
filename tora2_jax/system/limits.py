"""What a request and the files that it names may hold at most.

Everything is counted and measured by these bounds before it is decoded or allocated. They are far
above what a model reads, and low enough that a request of a stranger cannot exhaust a machine.
"""

import codecs
import io
import math
from pathlib import Path
from typing import Protocol

import numpy as np

JSON_BYTES = 2**24  # a request or the annotations of a clip
PROMPT_CHARACTERS = 10_000  # a model reads some 1,500
WORD_CHARACTERS = 200
ENTITIES = 64
REFERENCES = 64  # images, and feature files, of one entity
PATH_BYTES = 2**23  # a file of points
POINTS = 100_000  # of one path
PICTURE_PIXELS = 2**26  # 67 million; phones take 12 to 50
REQUEST_PIXELS = 2**29  # all pictures of a request together
FEATURE_BYTES = 2**26  # the arrays of a feature file, uncompressed
SIZE = 10**9  # height, width or frames alone, so that they can be computed with
FPS = 999  # of a file that players show
CANVAS = (1e-3, 1e6)  # a side of it
DIGITS = 1000  # of a whole number
VIDEO_PIXELS = 2**28  # all frames together; 161 of 768 x 1360 are 1.7e8

_HEADER_BYTES = 2**14  # NumPy refuses longer ones, but reads them first
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Readable(Protocol):
    """An open file of bytes; one in memory has no name and no mode, as an `IO` has."""

    def read(self, length: int = ..., /) -> bytes: ...


class TooLargeError(ValueError):
    """A file that holds more than it may."""


def read_bytes(path: str | Path, most: int) -> bytes:
    """The content of a file of at most so many bytes.

    No more than that is read, so that a pipe or a device cannot be read for ever.

    Raises:
        OSError: it cannot be opened.
        TooLargeError: it is larger.
    """
    with Path(path).open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise TooLargeError(f"it is larger than {most >> 20} MiB")
    return data


def whole_number(text: str) -> int:
    """A whole number of a text; Python reads no more than a few thousand digits.

    Raises:
        ValueError: it has more than `DIGITS`.
    """
    if len(text) > DIGITS:
        raise ValueError(f"it holds a number of {len(text)} digits")
    return int(text)


def decode_text(data: bytes) -> str:
    """Text in UTF-8, or in UTF-16 with its byte order mark.

    Raises:
        UnicodeDecodeError: it is neither.
    """
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return data.decode("utf-16" if data.startswith(marks) else "utf-8-sig")


def read_array(file: Readable, most: int) -> np.ndarray:
    """An array in NumPy's format of at most so many bytes, whatever its header claims.

    Raises:
        TooLargeError: it is larger.
        ValueError: it is damaged, or holds Python objects.
    """
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"it has the unknown version {version} of NumPy's format")
    shape, column_major, dtype = _header(file, version)
    size = math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded")
    if size > most:
        raise TooLargeError(f"it is larger than {most >> 20} MiB")
    array = np.frombuffer(file.read(size), dtype, math.prod(shape))
    return array.reshape(shape, order="F" if column_major else "C")


def _header(file: Readable, version: tuple[int, int]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type of an array; the length that a header claims is not believed.

    Raises:
        ValueError: it is none; nothing of it is quoted.
    """
    length = file.read(2 if version == (1, 0) else 4)
    if int.from_bytes(length, "little") > _HEADER_BYTES:
        raise ValueError("its header is too long")
    text = file.read(int.from_bytes(length, "little"))
    try:
        shape, column_major, dtype = _HEADERS[version](io.BytesIO(length + text))
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError("its header is damaged") from error
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError("its header claims an impossible shape")
    return shape, column_major, dtype
