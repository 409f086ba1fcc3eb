"""Files and fields that claim what is not so, or that only a program would have written."""

import io
import struct
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from tora2_jax.config import toy
from tora2_jax.media.image_file import count_pixels, load_image
from tora2_jax.references.feature_files import FeatureFileError, load_features
from tora2_jax.request import RequestError, load_request, parse_request
from tora2_jax.system import limits
from tora2_jax.trajectory import command
from tora2_jax.trajectory.files import load_points
from tora2_jax.trajectory.points import TrajectoryError


def problems_of(folder, **fields):
    with pytest.raises(RequestError) as error:
        parse_request({"prompt": "A cat.", **fields}, folder, toy())
    return error.value.problems


def array_file(header: str, body: bytes = bytes(80)) -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + body


def array_of(shape: str, descr: str = "'<f8'") -> bytes:
    return array_file(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n")


class Endless(io.RawIOBase):
    """A member of an archive that goes on as long as it is read."""

    def __init__(self, start: bytes):
        self._start, self.given = start, 0

    def read(self, size=-1):
        part, self._start = self._start[:size], self._start[size:]
        part += b" " * (size - len(part))
        self.given += len(part)
        return part


def test_the_length_of_a_header_is_not_believed(tmp_path):
    file = Endless(b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1))
    with pytest.raises(ValueError, match="its header is too long"):
        limits.read_array(file, 100)
    assert file.given == 12
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        header = b"\x93NUMPY\2\0" + struct.pack("<I", 2**22) + b" " * 2**22
        archive.writestr("dino.npy", header)
    with pytest.raises(FeatureFileError, match="its header is too long"):
        load_features(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (array_of("(True, 2)"), "its header claims an impossible shape"),
        (array_of("(-1, 2)"), "its header claims an impossible shape"),
        (array_of("(5.0, 2)"), "its header is damaged"),
        (array_of("(5, 2)", "[" * 900 + "]" * 900), "its header is damaged"),
        (array_file("root:x:0:0:root:/root:/bin/bash"), "its header is damaged"),
        (array_of("(0, 2)"), r"holds no point; its shape is \[0, 2\]"),
        (array_of("(5, 0, 2)"), r"holds no point; its shape is \[5, 0, 2\]"),
    ],
)
def test_headers_of_arrays_are_checked_and_not_quoted(tmp_path, capsys, content, told):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(TrajectoryError, match=told) as error:
        load_points(path)
    assert "root:x" not in str(error.value) and len(str(error.value)) < 200 + len(str(path))
    assert command.main([str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_archive_of_features_is_measured_before_it_is_listed(tmp_path):
    with (tmp_path / "long.npz").open("wb") as file:
        file.truncate(limits.FEATURE_BYTES + 2**17)
    with pytest.raises(FeatureFileError, match="cannot be used: it is larger than 64 MiB"):
        load_features(tmp_path / "long.npz")


def test_a_damaged_file_of_visibility_is_named(tmp_path):
    np.save(tmp_path / "a_tracks.npy", np.ones((4, 2, 2)))
    (tmp_path / "a_visibility.npy").write_bytes(b"junk")
    with pytest.raises(TrajectoryError, match=r"a_visibility\.npy beside it cannot be read"):
        load_points(tmp_path / "a_tracks.npy", number=1)


@pytest.mark.parametrize("text", ["['\\d', [1, 2]]", "[1if 2else 3]"])
def test_a_path_that_is_no_list_warns_of_nothing(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(TrajectoryError, match="is not valid JSON"):
            load_points(tmp_path / "a.json")
    assert not seen


@pytest.mark.parametrize("frames", [(3, 1, 2), (5, 5, 5)])
def test_frames_of_a_table_rise(tmp_path, frames):
    rows = [f"{10 * index},20,{frame}" for index, frame in enumerate(frames)]
    (tmp_path / "a.csv").write_text("\n".join(["x,y,frame", *rows]))
    with pytest.raises(TrajectoryError, match="the numbers of its frames must rise; sort"):
        load_points(tmp_path / "a.csv")


def test_an_icon_is_not_decoded(tmp_path):
    picture = io.BytesIO()
    Image.new("L", (600, 600)).save(picture, "PNG")
    body = picture.getvalue()
    entry = struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(body), 22)
    (tmp_path / "a.png").write_bytes(entry + body)  # claims 256 x 256
    for read in (load_image, count_pixels):
        with pytest.raises(ValueError, match="it is an icon; give a PNG"):
            read(tmp_path / "a.png")


def test_damaged_metadata_of_a_photo_is_no_warning(tmp_path):
    Image.new("RGB", (8, 8), "red").save(
        tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(tmp_path / "a.jpg").shape == (8, 8, 4)


def test_sizes_and_canvas_are_bounded_before_they_are_computed_with(tmp_path):
    huge = 10**400 + 1
    assert problems_of(tmp_path, height=huge, frames=huge)[:2] == [
        f"height: {str(huge)[:37]}... is too large; take at most 1000000000",
        f"frames: {str(huge)[:37]}... is too large; take at most 1000000000",
    ]
    assert problems_of(tmp_path, fps=1000) == ["fps: 1000 is too large; take at most 999"]
    for canvas in ([huge, 256], [1e-320, 256], [256, 1e300]):
        (told,) = problems_of(tmp_path, canvas=canvas)
        assert told.endswith("is not between 0.001 and 1,000,000")


def test_a_request_that_is_nested_too_deeply_to_be_quoted(tmp_path):
    value: list = []
    for _ in range(5000):
        value = [value]
    told = problems_of(tmp_path, entities=[{"word": "cat", "kind": value, "trajectory": [[1, 2]]}])
    assert told[0].endswith("not something that is nested too deeply")
    depth = 980
    (tmp_path / "r.json").write_text('{"prompt": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(RequestError):
        load_request(tmp_path / "r.json")
