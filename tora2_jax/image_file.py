"""Image files of every common kind, upright, as 8-bit arrays."""

import warnings
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageChops, ImageOps

_LONGEST_SIDE = 32766  # OpenCV cannot warp larger pictures
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def load_image(path: str | Path) -> UInt8[np.ndarray, "height width 4"]:
    """Read an image file as RGBA, upright; files without transparency are opaque.

    Colours of 16 bits are scaled to 8; of an animation the first picture is taken; colour profiles
    are not applied.

    Raises:
        ValueError: The file is missing or is no image that can be read.
    """
    return _load(path, to_rgba)


def load_mask(path: str | Path) -> UInt8[np.ndarray, "height width"]:
    """Read the mask of an entity: 255 is the entity, 0 is not.

    The alpha channel if the file has transparency; else, of a palette with colours, every index
    but 0 (label images); else the brightness.

    Raises:
        ValueError: The file is missing or is no image that can be read.
    """
    return _load(path, _to_mask)


def to_rgba(image: Image.Image) -> UInt8[np.ndarray, "height width 4"]:
    """The pixels of a picture that is open, as `load_image` returns them.

    Raises:
        ValueError: Its numbers have no known range, or there are too many of them.
    """
    if max(image.size) > _LONGEST_SIDE:
        raise ValueError(
            f"it has {image.width} x {image.height} pixels; shrink it to {_LONGEST_SIDE} a side"
        )
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


def _load(path: str | Path, convert):
    try:
        with warnings.catch_warnings():
            # Large photos are fine; beyond twice as much Pillow refuses.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return convert(image)
    except _UNREADABLE as error:
        raise ValueError(
            f"cannot read the image {path}: {error}; give a PNG, JPEG or WebP file"
        ) from error


def _from_16_bits(image: Image.Image) -> UInt8[np.ndarray, "height width 4"]:
    """Grey; Pillow would clip it to 8 bits, not scale it."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("it holds 32-bit numbers without a known range")
    grey = (values >> 8).astype(np.uint8)
    alpha = np.where(values == image.info.get("transparency", -1), 0, 255).astype(np.uint8)
    return np.stack([grey, grey, grey, alpha], axis=-1)


def _to_mask(image: Image.Image) -> UInt8[np.ndarray, "height width"]:
    pixels = to_rgba(image)
    if pixels[..., 3].min() < 255:
        return np.ascontiguousarray(pixels[..., 3])
    if image.mode == "P" and np.ptp(pixels[..., :3], axis=-1).any():
        labels = np.asarray(ImageOps.exif_transpose(image))
        return np.where(labels > 0, 255, 0).astype(np.uint8)
    return cv2.cvtColor(pixels, cv2.COLOR_RGBA2GRAY)
