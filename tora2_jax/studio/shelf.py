"""Pictures that the page was given, in a temporary folder; nothing of a file's name is kept."""

import base64
import binascii
import hashlib
import io
import re
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tora2_jax.media.image_file import load_image
from tora2_jax.references.crops import cut_out
from tora2_jax.system import limits
from tora2_jax.system.files import written_whole

PICTURE_BYTES = 24 * 10**6  # of a file
PICTURES = 500  # on a shelf
_NAME = re.compile(r"[0-9a-f]{24}\.png")
_SEEN = 192  # pixels of the longer side of what the page shows


class ShelfError(ValueError):
    """A picture that cannot be taken; the message says why, without a path."""


class Shelf:
    """Pictures by what they hold, so that the same one is kept once.

    Args:
        folder: exists; whoever made it removes it.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def add_text(self, data: object, told: str = "the picture") -> str:
        """Takes a picture in base64; see `add`."""
        if not isinstance(data, str) or len(data) > PICTURE_BYTES * 4 // 3 + 4:
            raise ShelfError(f"{told}: larger than {PICTURE_BYTES // 10**6} MB; make it smaller")
        try:
            return self.add(base64.b64decode(data, validate=True), told)
        except binascii.Error as error:
            raise ShelfError(f"{told}: did not arrive whole; give it again") from error

    def add(self, data: bytes, told: str = "the picture") -> str:
        """Takes the content of an image file.

        Args:
            data: of any common kind.
            told: what messages call it.

        Returns:
            Its name on the shelf, under which a request names it.

        Raises:
            ShelfError: it is none, it is too large, or the shelf is full.
        """
        if len(data) > PICTURE_BYTES:
            raise ShelfError(f"{told}: larger than {PICTURE_BYTES // 10**6} MB; make it smaller")
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".upload") as file:
            file.write(data)
            file.flush()
            try:
                return self.add_pixels(load_image(file.name))
            except ShelfError as error:
                raise ShelfError(str(error).replace("the picture", told, 1)) from error
            except ValueError as error:
                text = str(error).replace(f"cannot read the image {file.name}: ", "")
                raise ShelfError(f"{told}: {text.replace(file.name, 'the picture')}") from error

    def add_pixels(self, pixels: UInt8[np.ndarray, "height width 4"]) -> str:
        """Takes a decoded picture; see `add`."""
        if not pixels[..., 3].any():
            raise ShelfError("the picture is fully transparent: its mask leaves nothing")
        height, width = pixels.shape[:2]
        digest = hashlib.sha256(f"{height} {width} ".encode() + pixels.tobytes()).hexdigest()
        name = f"{digest[:24]}.png"
        if not (self.folder / name).is_file():
            if sum(1 for _ in self.folder.glob("*.png")) >= PICTURES:
                raise ShelfError(f"the studio holds {PICTURES} pictures already; start it again")
            with written_whole(self.folder / name) as aside:
                Image.fromarray(pixels).save(aside, "PNG", compress_level=1)
        return name

    def path(self, name: object) -> Path | None:
        """The file of a name on the shelf; None if there is no such picture."""
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            return None
        path = self.folder / name
        return path if path.is_file() and not path.is_symlink() else None

    def seen(self, name: str) -> str:
        """What the encoders see of a picture, its mask's box on gray, small, as a data URL.

        Raises:
            ShelfError: there is no such picture.
        """
        path = self.path(name)
        if path is None:
            raise ShelfError("a picture is not here any more; give it again")
        picture = Image.fromarray(cut_out(load_image(path)))
        picture.thumbnail((_SEEN, _SEEN))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def decoded(data: object, most: int = limits.PATH_BYTES) -> bytes:
    """The bytes of a file that the page sent in base64.

    Raises:
        ShelfError: it is none, or larger than `most`.
    """
    if not isinstance(data, str) or len(data) > most * 4 // 3 + 4:
        raise ShelfError(f"the file is larger than {most >> 20} MiB")
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise ShelfError("the file did not arrive whole; give it again") from error
