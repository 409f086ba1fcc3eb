"""Image files of every common kind, and pictures in memory, upright, as 8-bit arrays."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from tora2_jax.system import limits

_LONGEST_SIDE = 32766  # OpenCV cannot warp larger pictures
_GIVE = "give a PNG, JPEG or WebP file"
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_OTHER_FILES = {
    b"version https://git-lfs": "it is a pointer of Git LFS; fetch the file with `git lfs pull`",
    b"<!doctype html": "it is a web page, not the picture on it",
    b"<html": "it is a web page, not the picture on it",
    b"<svg": "it is an SVG drawing",
    b"<?xml": "it is an SVG drawing or another XML file",
    b"%pdf": "it is a PDF document",
    b"\xff\x0a": "it is a JPEG XL picture",
    b"\x00\x00\x00\x0cJXL ": "it is a JPEG XL picture",
    b"\x1a\x45\xdf\xa3": "it is a video",
    b"PK\x03\x04": "it is an archive",
}
_UNREADABLE = (OSError, SyntaxError, ValueError)
_HELD: ContextVar[dict[tuple, np.ndarray] | None] = ContextVar("_HELD", default=None)


class Picture:
    """A picture in memory, in the place of a file, for requests that are built in Python.

    Args:
        pixels: A Pillow image, or an array `[height, width]` (gray or a mask),
            `[height, width, 3]` or `[height, width, 4]`, of bytes, or of numbers in [0, 1].

    Raises:
        ValueError: The array has another shape, type or range.
    """

    name = "picture in memory"  # what messages call it, as a path's last part

    def __init__(self, pixels: Image.Image | np.ndarray):
        self.image = pixels if isinstance(pixels, Image.Image) else _from_array(pixels)

    def __str__(self) -> str:
        return f"{self.name} of {self.image.width} x {self.image.height}"


def _from_array(pixels: np.ndarray) -> Image.Image:
    pixels = np.asarray(pixels)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] not in (3, 4)):
        raise ValueError(
            f"holds an array {list(pixels.shape)}; give [height, width], or with 3 or 4 channels"
        )
    if not pixels.size:
        raise ValueError("holds an array without pixels")
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype.kind == "f":
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError("holds an array of numbers beyond 0 and 1; divide bytes by 255")
        pixels = np.round(255 * pixels).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"holds an array of {pixels.dtype}; give bytes, or numbers in [0, 1]")
    return Image.fromarray(np.ascontiguousarray(pixels))


ImageSource = Path | Picture  # where the pixels of a request's picture are


def load_image(path: str | ImageSource) -> UInt8[np.ndarray, "height width 4"]:
    """Read an image file as RGBA, upright; files without transparency are opaque.

    Colors of 16 bits are scaled to 8; of an animation the first picture is taken; color profiles
    are not applied.

    Raises:
        ValueError: The file is missing or is no image that can be read.
    """
    return _decoded(path, to_rgba)


def load_mask(path: str | ImageSource) -> UInt8[np.ndarray, "height width"]:
    """Read the mask of an entity: 255 is the entity, 0 is not.

    The alpha channel if the file has transparency; else, of a palette with colors, every index
    but 0 (label images); else the brightness.

    Raises:
        ValueError: The file is missing or is no image that can be read.
    """
    return _decoded(path, _to_mask)


@contextmanager
def decoded_once() -> Iterator[None]:
    """Files that are read several times while the block is open are decoded once.

    So a command may check a picture, prepare it and show it. At most `limits.REQUEST_PIXELS` are
    held; what does not fit is decoded again.
    """
    token = _HELD.set({})
    try:
        yield
    finally:
        _HELD.reset(token)


def _decoded(path: str | ImageSource, convert: Callable) -> np.ndarray:
    """A picture, or the one that is held; nobody may write into the latter."""
    held = _HELD.get()
    if held is None or isinstance(path, Picture):
        return _load(path, convert)
    try:
        stat = os.stat(path)
    except OSError:
        return _load(path, convert)  # says what is wrong
    key = (convert, os.path.realpath(path), stat.st_mtime_ns, stat.st_size)
    if key not in held:
        pixels = _load(path, convert)
        pixels.setflags(write=False)
        total = sum(other.shape[0] * other.shape[1] for other in held.values())
        if total + pixels.shape[0] * pixels.shape[1] > limits.REQUEST_PIXELS:
            return pixels
        held[key] = pixels
    return held[key]


def to_rgba(image: Image.Image) -> UInt8[np.ndarray, "height width 4"]:
    """The pixels of a picture that is open, as `load_image` returns them.

    Raises:
        ValueError: Its numbers have no known range, or there are too many of them.
    """
    _check_size(image)
    # Photo software stores inverted CMYK in a JPEG and marks it, and Pillow takes all as inverted.
    plain_cmyk = image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("it holds floating-point numbers without a known range")
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.mode == "CMYK":
        image = (ImageChops.invert(image) if plain_cmyk else image).convert("RGB")
    return np.array(image.convert("RGBA"))


def count_pixels(path: str | ImageSource) -> int:
    """The pixels of a picture, from the head of its file.

    Raises:
        ValueError: The file is missing, is no image that can be read, or has too many pixels.
    """
    return _load(path, lambda image: image.width * image.height)


def _load(path: str | ImageSource, convert):
    if isinstance(path, Picture):
        _check_size(path.image)
        return convert(path.image)
    try:
        with warnings.catch_warnings():
            # Of sizes, for which we have a bound of our own, and of damaged metadata (EXIF).
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                _check_size(image)
                return convert(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"cannot read the image {path}: {_what_it_is(path)}; {_GIVE}") from error
    except Image.DecompressionBombError as error:
        most = limits.PICTURE_PIXELS // 10**6
        raise ValueError(
            f"cannot read the image {path}: shrink it to {most} million pixels"
        ) from error
    except _UNREADABLE as error:
        raise ValueError(f"cannot read the image {path}: {error}; {_GIVE}") from error


def _check_size(image: Image.Image) -> None:
    """Refuses pictures before they are decoded."""
    if image.format == "EPS":
        raise ValueError("it is PostScript, a program that draws")
    if image.format in ("ICO", "ICNS"):  # the pictures inside have other sizes than they claim
        raise ValueError("it is an icon")
    width, height = image.size
    if width * height > limits.PICTURE_PIXELS or max(width, height) > _LONGEST_SIDE:
        raise ValueError(
            f"it has {width} x {height} pixels; shrink it to {_LONGEST_SIDE} a side and "
            f"{limits.PICTURE_PIXELS // 10**6} million in all"
        )


def _what_it_is(path: str | Path) -> str:
    """What kind of file it is that Pillow does not know."""
    with Path(path).open("rb") as file:
        start = file.read(64)
    if not start:
        return "the file is empty"
    if start[4:8] == b"ftyp":
        brand = start[8:12]
        if brand in _HEIF_BRANDS:
            return "it is a HEIC photo, whatever its name says; export it from the photo program"
        return "it is an AVIF picture" if brand in (b"avif", b"avis") else "it is a video"
    begin = (start, start.lstrip().lower())
    known = (name for mark, name in _OTHER_FILES.items() if any(b.startswith(mark) for b in begin))
    return next(known, "it is no picture of a known kind")


def _from_16_bits(image: Image.Image) -> UInt8[np.ndarray, "height width 4"]:
    """Gray; Pillow would clip it to 8 bits, not scale it."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("it holds 32-bit numbers without a known range")
    gray = (values >> 8).astype(np.uint8)
    alpha = np.where(values == image.info.get("transparency", -1), 0, 255).astype(np.uint8)
    return np.stack([gray, gray, gray, alpha], axis=-1)


def _to_mask(image: Image.Image) -> UInt8[np.ndarray, "height width"]:
    pixels = to_rgba(image)
    if pixels[..., 3].min() < 255:
        return np.ascontiguousarray(pixels[..., 3])
    if image.mode == "P" and np.ptp(pixels[..., :3], axis=-1).any():
        labels = np.asarray(ImageOps.exif_transpose(image))
        return np.where(labels > 0, 255, 0).astype(np.uint8)
    return cv2.cvtColor(pixels, cv2.COLOR_RGBA2GRAY)
