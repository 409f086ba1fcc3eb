"""The request file: read right, and every problem named at once."""

import json

import numpy as np
import pytest
from PIL import Image

from scripts.make_tokenizer import build, save
from tora2_jax.config import cogvideox_5b, cogvideox_5b_i2v, toy
from tora2_jax.request import (
    Request,
    RequestError,
    load_request,
    load_requests,
    parse_request,
    validate,
    with_defaults,
)
from tora2_jax.text import load_tokenizer

PROMPT = "A man walks on the grass, with a cat leaping beside another man."


@pytest.fixture
def folder(tmp_path):
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / "man.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "man.png").read_bytes()[:60])
    (tmp_path / "man.txt").write_text("10,20\n30,40\n")
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    save(build([PROMPT]), directory)
    return load_tokenizer(directory)


def entity(**fields):
    return {"word": "man", "trajectory": [[1, 2], [3, 4]], **fields}


def problems_of(folder, data, *limits):
    with pytest.raises(RequestError) as error:
        parse_request(data, folder, *limits)
    for problem in error.value.problems:
        assert problem in str(error.value)
    return error.value.problems


def test_reads_every_field(folder):
    data = {
        "prompt": PROMPT,
        "negative_prompt": "dull",
        "height": 480,
        "width": 720,
        "frames": 49,
        "fps": 8,
        "canvas": [256, 128],
        "image": None,
        "entities": [
            {"word": "man#2", "kind": "human", "images": ["man.png"], "trajectory": "man.txt"},
            {"word": "cat", "images": [], "trajectory": [[20, 100], None, [230, 120]]},
            {"word": "grass", "kind": "object", "images": ["man.png"], "trajectory": None},
        ],
    }
    (folder / "request.json").write_text(json.dumps(data))
    request = load_request(folder / "request.json", cogvideox_5b())
    man, cat, grass = request.entities
    assert request[:1] + request[2:] == (
        *(PROMPT, 480, 720, 49, 8, (256, 128), None, "dull"),
        "stretch",
    )
    assert PROMPT[slice(*man.span)] == "man" and man.span[0] > 20
    assert man.images == (folder / "man.png",) and man.kind == "human"
    assert man.points.position.tolist() == [[10, 20], [30, 40]]
    assert cat.kind == "auto" and cat.images == ()
    assert cat.points.visible.tolist() == [True, False, True]
    assert grass.points is None
    validate(request, cogvideox_5b())


def test_sizes_come_from_the_model(folder):
    request = parse_request({"prompt": "A cat", "width": 64}, folder)
    assert request == Request("A cat", width=64)
    filled = with_defaults(request, toy())
    assert (filled.height, filled.width, filled.frames, filled.fps) == (96, 64, 17, 8)
    assert parse_request({"prompt": "A cat", "width": 64}, folder, toy()) == filled


def test_all_problems_at_once(folder):
    data = {
        "prompt": PROMPT,
        "heigth": 480,
        "height": "tall",
        "width": 100,
        "frames": 48,
        "fps": True,
        "canvas": [256],
        "image": "man.png",
        "entities": [
            entity(word="dog", kind="animal"),
            entity(word="man#3", images=["none.png", 7, "https://a.b/c.png", "broken.png"]),
            entity(trajectory=[[1, 2], [999, "a"], [1]]),
            entity(word="MAN#1", trajectory="none.txt"),
            {"word": "cat", "color": "red"},
            "man",
            {"images": "man.png"},
        ],
    }
    found = problems_of(folder, data, toy())
    expected = [
        'heigth: unknown field; did you mean "height"?',
        'height: must be a positive whole number, not "tall"',
        "width: 100 is not a multiple of 16; the nearest is 96",
        "frames: 48 is not a multiple of 8 plus 1; the nearest is 49",
        "fps: must be a positive whole number, not true",
        "canvas: must be [width, height]",
        "image: toy takes no first frame",
        'entities[0].word: "dog" is not in the prompt',
        'entities[0].kind: must be "human"',
        "entities[1].word: ",
        'entities[1].images[0]: there is no file "none.png"',
        "entities[1].images[1]: must be the path of a file, not 7",
        'entities[1].images[2]: "https://a.b/c.png" is not a local path',
        "entities[1].images[3]: ",
        "entities[2].trajectory: point 2",
        "entities[2].trajectory: point 3",
        'entities[3].trajectory: there is no file "none.txt"',
        'entities[3].word: "MAN#1" is the word of entities[2] too',
        "entities[4].color: unknown field",
        "entities[4]: has neither images nor a trajectory",
        'entities[5]: must be an object, not "man"',
        "entities[6].word: is missing",
        'entities[6].images: must be a list of image files, not "man.png"',
        "entities: 7 are too many; toy takes at most 4",
    ]
    for text in expected:
        assert any(problem.startswith(text) for problem in found), (text, found)
    assert len(found) == len(expected)


@pytest.mark.parametrize("prompt", [None, 3, "", "  "])
def test_prompt(folder, prompt):
    found = problems_of(folder, {"prompt": prompt, "entities": [entity()]})
    assert len(found) == 1 and found[0].startswith("prompt: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"prompt": NaN}', "NaN is not a JSON number"),
        ("[]", "request: must be an object"),
        ('{"prompt": "a", "prompt": "b"}', "prompt: is given more than once"),
        (
            '{"prompt": "a", "entities": [{"word": "a", "word": "a", "trajectory": [[1, 2]]}]}',
            "entities[0].word: is given more than once",
        ),
        ('{"prompt": "a", "entities": {}}', "entities: must be a list"),
        ('{"prompt": "a", "entities": [{"word": "a", "trajectory": [[1e999, 1]]}]}', "finite"),
        ('{"prompt": "a", "height": 1e400}', "height: must be a positive"),
        (r'{"prompt": "a \ud83d"}', r"prompt: holds half a character (\ud83d)"),
        (r'{"prompt": "a", "negative_prompt": "\udc00"}', "negative_prompt: holds half"),
    ],
)
def test_broken_json(tmp_path, text, message):
    (tmp_path / "request.json").write_text(text)
    with pytest.raises(RequestError) as error:
        load_request(tmp_path / "request.json")
    assert message in str(error.value) and len(error.value.problems) == 1


def test_unreadable_file(tmp_path):
    with pytest.raises(RequestError, match=r"none\.json: is not there"):
        load_request(tmp_path / "none.json")
    (tmp_path / "request.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match="cannot be read as text"):
        load_request(tmp_path / "request.json")


def test_what_steers_a_terminal_is_told_as_escapes(tmp_path):
    request = {"prompt": "A man.", "a\x1b[31m\u202eb": 1, "entities": [{"word": "m\x07n"}]}
    (tmp_path / "request.json").write_text(json.dumps(request))
    with pytest.raises(RequestError) as error:
        load_request(tmp_path / "request.json")
    told = str(error.value)
    assert "a\\x1b[31m\\u202eb: unknown field" in told and '"m\\x07n" is not in the prompt' in told
    assert all(problem.isprintable() for problem in error.value.problems)


def test_a_number_of_thousands_of_digits_is_told_short(tmp_path):
    (tmp_path / "request.json").write_text('{"prompt": "A man.", "frames": ' + "9" * 5000 + "}")
    with pytest.raises(RequestError, match="it holds a number of 5000 digits") as error:
        load_request(tmp_path / "request.json")
    assert "sys." not in str(error.value)


def test_first_frame(folder):
    model = cogvideox_5b_i2v()
    assert parse_request({"prompt": "A cat", "image": "man.png"}, folder, model).image
    found = problems_of(folder, {"prompt": "A cat", "width": 704}, model)
    assert found[0].startswith("width: 704 must be 720")
    assert found[1].startswith("image: cogvideox_5b_i2v starts from an image")


def test_too_many_references(folder):
    data = {"prompt": PROMPT, "entities": [entity(images=["man.png"] * 3)]}
    assert problems_of(folder, data, toy()) == [
        "entities[0].images: 3 are too many; toy takes at most 2 per entity"
    ]


def test_plain_base_takes_words_only(folder):
    model = toy()
    model.motion = model.personalization = None
    data = {"prompt": PROMPT, "entities": [entity(images=["man.png"])]}
    found = problems_of(folder, data, model)
    assert [problem.split(":")[0] for problem in found] == [
        "entities[0].images",
        "entities[0].trajectory",
    ]


def test_word_beyond_the_text(folder, tokenizer):
    data = {"prompt": "the " * 23 + "man", "entities": [entity()]}
    found = problems_of(folder, data, toy(), tokenizer)
    assert len(found) == 1 and "after the first 23 tokens" in found[0]
    data["prompt"] = "the " * 22 + "man"
    parse_request(data, folder, toy(), tokenizer)


def test_validate_checks_what_was_made_by_hand():
    with pytest.raises(RequestError) as error:
        validate(Request("", height=95, frames=16), toy())
    assert [problem.split(":")[0] for problem in error.value.problems] == [
        "prompt",
        "height",
        "frames",
    ]


@pytest.mark.parametrize("negative", [None, "", " \n"])
def test_no_negative_prompt(folder, negative):
    assert parse_request({"prompt": "A cat", "negative_prompt": negative}, folder) == Request(
        "A cat"
    )


def test_several_requests_tell_all_their_problems(folder):
    contents = {
        "a": {"prompt": "A cat", "frames": 16, "negative_prompt": 3},
        "b": {"prompt": "A cat", "entities": [entity(word="cat", images=["none.png"])]},
        "c": {"prompt": "A cat", "width": 64},
        "d": {"prompt": "A cat"},
    }
    paths = [folder / f"{name}.json" for name in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        path.write_text(json.dumps(content))
    paths.append(folder / "none.json")
    with pytest.raises(RequestError) as error:
        load_requests([*paths, Request("", height=96)], toy())
    found = error.value.problems
    expected = [
        f"{paths[0]}: negative_prompt: must be text",
        f"{paths[0]}: frames: 16 is not",
        f"{paths[1]}: entities[0].images[0]: there is no file",
        f"{paths[4]}: is not there",
        "requests[5]: prompt: is empty",
        f"requests: those of one batch must have the same height, width and frames, but {paths[2]} "
        f"has 17 frames of 96 x 64, {paths[3]} has 17 frames of 96 x 96",
    ]
    assert len(found) == len(expected)
    for text, problem in zip(expected, found, strict=True):
        assert problem.startswith(text), problem


def test_requests_of_one_size_are_a_batch(folder):
    (folder / "a.json").write_text('{"prompt": "A cat", "fps": 4}')
    first, second = load_requests([folder / "a.json", Request("A dog", width=96)], toy())
    assert first == with_defaults(Request("A cat", fps=4), toy())
    assert second == with_defaults(Request("A dog"), toy())
    with pytest.raises(RequestError, match="there are none"):
        load_requests([], toy())
