"""What a request is told of without being refused, and how a picture becomes the first frame."""

import numpy as np
import pytest
from PIL import Image

from scripts.make_tokenizer import build, save
from tora2_jax.conditioning.first_frame import first_frame
from tora2_jax.config import cogvideox_5b_i2v, toy
from tora2_jax.request import Request, RequestError, parse_request, validate, with_defaults
from tora2_jax.request.notes import request_notes
from tora2_jax.text import load_tokenizer

PROMPT = "A man and a kite."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    save(build([PROMPT]), directory)
    return load_tokenizer(directory)


def notes(tokenizer, model=None, **changes):
    return request_notes(Request(PROMPT)._replace(**changes), model or toy(), tokenizer)


def test_an_ordinary_request_has_no_notes(tokenizer):
    assert notes(tokenizer, negative_prompt="a kite") == []


def test_a_prompt_that_is_cut_says_where(tokenizer):
    long = "a man and a kite " * 6 + "and a kite"  # 33 tokens; 23 and the end are read
    (note,) = notes(tokenizer, prompt=long)
    assert note == (
        'prompt: cut off after 23 of its 33 tokens; what follows "a kite a man and" has no effect'
    )
    (note,) = notes(tokenizer, negative_prompt=long)
    assert note.startswith("negative_prompt: cut off after 23 of its 33 tokens")
    assert notes(tokenizer, prompt="a man " * 11 + "and") == []  # 23 tokens


def test_words_that_the_tokenizer_does_not_know_are_named(tokenizer):
    (note,) = notes(tokenizer, prompt="A 男人 and a kite, 草地.")
    assert note.startswith('prompt: the tokenizer does not know "男人", "草地"; to')
    request = {"prompt": "一个男人在草地上走路。"}
    with pytest.raises(RequestError, match="prompt: the tokenizer knows none of its words"):
        parse_request(request, ".", toy(), tokenizer)
    with pytest.raises(RequestError, match="knows none of its words"):
        validate(Request(request["prompt"]), toy(), tokenizer)


def test_words_that_are_only_letters_to_the_model_are_named(tokenizer):
    (note,) = notes(tokenizer, prompt="A Dragon and 20 kites; ox")
    assert note == (
        'prompt: the tokenizer spells "dragon", "ox" letter by letter, so the model hardly knows '
        "what that means; its words are and, kite, man"
    )


def test_sizes_that_the_model_was_not_made_for(tokenizer):
    (note,) = notes(tokenizer, frames=25, width=64)
    assert note == (
        "frames, width: toy was made for 17 frames of 96 x 96; 25 frames of 96 x 64 may come out "
        "worse"
    )


@pytest.fixture
def portrait(tmp_path):
    """A white disc in the middle of 40 x 80 gray pixels, stored lying and marked as turned."""
    rows, columns = np.mgrid[:80, :40]
    pixels = np.full((80, 40, 3), 128, np.uint8)
    pixels[(rows - 39.5) ** 2 + (columns - 19.5) ** 2 < 15**2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn to the right
    lying = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)
    lying.save(tmp_path / "portrait.jpg", quality=100, exif=exif)
    return tmp_path / "portrait.jpg"


@pytest.mark.parametrize(
    ("fit", "told", "disc"),
    [
        ("stretch", "stretched to 4 times its width; --fit crop or pad keep its shape", (30, 120)),
        ("crop", "75% of it is cropped at top and bottom", (80, 120)),
        ("pad", "padded in black at the sides", (30, 30)),
    ],
)
def test_a_portrait_in_a_landscape(tokenizer, portrait, fit, told, disc):
    model = cogvideox_5b_i2v()
    model.height, model.width = 80, 160
    request = {"prompt": PROMPT, "image": portrait.name, "fit": fit}
    request = with_defaults(parse_request(request, portrait.parent), model)
    (note,) = request_notes(request, model, tokenizer)
    assert note == f"image: 40 x 80 pixels for a video of 160 x 80: {told}"
    frame = first_frame(request)[..., 0]
    assert frame.shape == (80, 160)
    white = np.argwhere(frame > 0.5)
    np.testing.assert_allclose(np.ptp(white, axis=0) + 1, disc, atol=3)
    assert (frame[:, :50].max() < -0.95) == (fit == "pad")


def test_a_picture_of_the_same_shape_is_not_mentioned(tokenizer, portrait):
    assert notes(tokenizer, image=portrait, height=192, width=96)[1:] == []
    wrong = {"prompt": PROMPT, "fit": "squeeze"}
    with pytest.raises(RequestError, match='fit: must be one of stretch, crop, pad, not "squeeze"'):
        parse_request(wrong, portrait.parent)
