"""Requests built in Python are those that a file with the same content makes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tora2_jax
from tora2_jax import conditioning
from tora2_jax.config import toy
from tora2_jax.media.image_file import Picture, load_image, load_mask
from tora2_jax.request import RequestError, load_request
from tora2_jax.request.build import Entity, make_request
from tora2_jax.text import load_tokenizer
from tora2_jax.trajectory.points import parse_points

TOKENIZER = Path(__file__).resolve().parents[2] / "checkpoints" / "toy" / "tokenizer"
PATH = [[20, 200], [90.5, 120], None, [230, 180]]


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8)


@pytest.fixture
def mask() -> np.ndarray:
    made = np.zeros((48, 40), np.uint8)
    made[10:40, 5:30] = 255
    return made


def test_pictures_and_arrays_do_what_files_do(tmp_path, pixels, mask):
    Image.fromarray(pixels).save(tmp_path / "man.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    (tmp_path / "path.txt").write_text("20,200\n90.5,120\n230,180\n")
    entity = {"word": "man", "kind": "human", "images": ["man.png"], "masks": ["mask.png"]}
    entity |= {"boxes": [[2, 4, 36, 44]], "trajectory": PATH}
    kite = {"word": "kite", "trajectory": "path.txt"}
    content = {"prompt": "A man and a kite.", "entities": [entity, kite], "frames": 9, "fps": 12}
    (tmp_path / "request.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(TOKENIZER)
    expected = conditioning.request_inputs(
        toy(), tokenizer, load_request(tmp_path / "request.json")
    )

    array = np.array([[np.nan] * 2 if point is None else point for point in PATH])
    for image, trajectory in (
        (pixels, array),
        (Image.fromarray(pixels), parse_points(PATH)),
        (pixels / np.float32(255), PATH),
        (str(tmp_path / "man.png"), [tuple(p) if p else None for p in PATH]),
    ):
        request = make_request(
            "A man and a kite.",
            [
                Entity("man", [image], trajectory, "human", [mask > 0], [(2, 4, 36, 44)]),
                Entity("kite", trajectory=tmp_path / "path.txt"),
            ],
            frames=np.int64(9),
            fps=12,
        )
        assert (request.frames, request.fps) == (9, 12)
        made = conditioning.request_inputs(toy(), tokenizer, request)
        for name, value, wanted in zip(made._fields, made, expected, strict=True):
            if value is not None:
                np.testing.assert_array_equal(value, wanted, err_msg=name)


def test_a_picture_is_read_as_its_file(tmp_path, pixels, mask):
    rgba = np.dstack([pixels, mask])
    for array in (pixels, rgba):
        Image.fromarray(array).save(tmp_path / "a.png")
        np.testing.assert_array_equal(load_image(Picture(array)), load_image(tmp_path / "a.png"))
    np.testing.assert_array_equal(load_mask(Picture(mask)), mask)
    nearly_two = np.full((2, 2, 3), 1.6 / 255)
    assert (load_image(Picture(nearly_two))[..., :3] == 2).all()  # rounded, not cut off
    np.testing.assert_array_equal(load_mask(Picture(rgba)), mask)


def test_all_that_is_wrong_is_told_at_once(pixels):
    with pytest.raises(RequestError) as error:
        make_request(
            "A man.",
            [
                Entity("cat", [pixels.astype(np.int32), pixels[..., :2], pixels / 1.0]),
                Entity("man", [3], np.zeros((2, 3, 4)), masks=[None, None]),
            ],
            height=-1,
            image=np.zeros((0, 4, 3), np.uint8),
        )
    told = "\n".join(error.value.problems)
    for line in (
        "image: holds an array without pixels",
        "entities[0].images[0]: holds an array of int32; give bytes, or numbers in [0, 1]",
        "entities[0].images[1]: holds an array [48, 40, 2]; give [height, width], or with 3 or 4",
        "entities[0].images[2]: holds an array of numbers beyond 0 and 1; divide bytes by 255",
        "entities[1].images[0]: must be a file, a Pillow image or an array, not <class 'int'>",
        "entities[1].masks: 2 for 1 images",
        "entities[1].trajectory: ",
        'entities[0].word: "cat" is not in the prompt',
        "height: must be a positive whole number",
    ):
        assert line in told, line


def test_the_package_gives_what_people_need():
    assert tora2_jax.make_request is make_request and tora2_jax.Entity is Entity
    assert {"Tora2Pipeline", "make_request", "Entity", "SampleSettings"} <= set(dir(tora2_jax))
    with pytest.raises(AttributeError, match="no attribute 'Kite'"):
        _ = tora2_jax.Kite
