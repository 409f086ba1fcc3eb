"""Pictures that the page is given: decoded safely, kept by what they hold, inside one folder."""

import base64
import io
import os

import numpy as np
import pytest
from PIL import Image

from tora2_jax.studio import shelf as shelf_module
from tora2_jax.studio.shelf import Shelf, ShelfError, decoded


def png(height: int = 6, width: int = 4, seed: int = 0, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path)


def test_a_picture_is_kept_once_and_as_it_is(shelf):
    name = shelf.add(png())
    assert shelf.add(png()) == name and shelf.add(png(seed=1)) != name
    kept = np.asarray(Image.open(shelf.path(name)).convert("RGB"))
    assert np.array_equal(kept, np.asarray(Image.open(io.BytesIO(png()))))
    assert sorted(os.listdir(shelf.folder)) == sorted([name, shelf.add(png(seed=1))])


def test_shapes_with_the_same_bytes_are_different_pictures(shelf):
    pixels = np.full((4, 6, 4), 255, np.uint8)
    assert shelf.add_pixels(pixels) != shelf.add_pixels(pixels.reshape(6, 4, 4))


def test_what_is_seen_is_the_part_that_the_mask_leaves(shelf):
    pixels = np.zeros((20, 30, 4), np.uint8)
    pixels[5:15, 10:14] = [200, 10, 10, 255]
    seen = shelf.seen(shelf.add_pixels(pixels))
    head, data = seen.split(",")
    assert head == "data:image/png;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert picture.size == (4, 10)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "the file is empty"),
        (b"GIF89a" + bytes(9), "photo.png"),
        (b"<html><body>", "web page"),
        (b"%PDF-1.4 ...", "PDF"),
        (b"\0\0\0\x18ftypheic" + bytes(60), "HEIC"),
        (png()[:60], "photo.png"),
        (bytes(25 * 10**6), "larger than 24 MB"),
    ],
)
def test_what_is_no_picture_is_refused_without_a_path(shelf, data, told):
    with pytest.raises(ShelfError, match=r"photo\.png") as refused:
        shelf.add(data, "photo.png")
    assert told in str(refused.value) and str(shelf.folder) not in str(refused.value)
    assert not os.listdir(shelf.folder)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(shelf):
    huge = Image.new("1", (30_000, 20_000))
    buffer = io.BytesIO()
    huge.save(buffer, "PNG")
    with pytest.raises(ShelfError, match="shrink it to 67 million pixels"):
        shelf.add(buffer.getvalue())


def test_a_full_shelf_takes_no_more(shelf, monkeypatch):
    monkeypatch.setattr(shelf_module, "PICTURES", 1)
    first = shelf.add(png())
    with pytest.raises(ShelfError, match="holds 1 pictures already"):
        shelf.add(png(seed=1))
    assert shelf.add(png()) == first


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "/etc/passwd", "a" * 24 + ".png", "", None, 3, ["x"], "A" * 24 + ".png"],
)
def test_only_names_that_the_shelf_gave_are_known(shelf, name, tmp_path):
    (tmp_path.parent / "secret.png").write_bytes(png())
    assert shelf.path(name) is None


def test_a_link_in_the_place_of_a_picture_is_not_followed(shelf, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    outside.write_bytes(png())
    name = "b" * 24 + ".png"
    (shelf.folder / name).symlink_to(outside)
    assert shelf.path(name) is None
    with pytest.raises(ShelfError, match="not here any more"):
        shelf.seen(name)


def test_base64_that_is_none_or_too_long_is_refused(shelf):
    with pytest.raises(ShelfError, match="did not arrive whole"):
        shelf.add_text("#", "a.png")
    with pytest.raises(ShelfError, match="larger than"):
        shelf.add_text("A" * (33 * 10**6), "a.png")
    assert decoded(base64.b64encode(b"12,30").decode()) == b"12,30"
    with pytest.raises(ShelfError, match="larger than 8 MiB"):
        decoded("A" * (12 * 2**20))
    with pytest.raises(ShelfError):
        decoded(None)


def test_a_picture_of_nothing_is_refused(shelf):
    with pytest.raises(ShelfError, match="fully transparent"):
        shelf.add_pixels(np.zeros((4, 4, 4), np.uint8))
    assert not os.listdir(shelf.folder)
