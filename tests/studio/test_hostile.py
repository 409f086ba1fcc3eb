"""Whatever the page is sent: an answer with a message, nothing written elsewhere, no crash."""

import base64
import itertools
import json
from pathlib import Path

import pytest

from tests.studio.test_shelf import png
from tora2_jax.config import toy
from tora2_jax.studio.answers import answers
from tora2_jax.studio.shelf import Shelf
from tora2_jax.text import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
MODEL, TOKENIZER = toy(), load_tokenizer(ROOT / "checkpoints" / "toy" / "tokenizer")
NAN, INFINITE = float("nan"), float("inf")


def deep(levels: int):
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


def entity(**changes) -> dict:
    return {"word": "man", "images": [], "trajectory": [[10, 10], [20, 20]]} | changes


def drawing(**changes) -> dict:
    return {"prompt": "A man and a kite.", "entities": [entity()]} | changes


# Nothing of these is a drawing that can be sampled.
DRAWINGS = [
    *(None, True, 3, NAN, "text", [], [[]], {}, deep(500), {"entities": 3}, {"prompt": 3}),
    *(drawing(prompt=value) for value in ("", " ", "\0", 3, None, [], {}, "A man " * 200_000)),
    *(drawing(prompt=value) for value in ("\u202e!", "🪁🪁", "رجل و طائرة", "男人", "\ud800")),
    *(drawing(entities=value) for value in (3, "man", {}, [3], [None], [[]], [entity()] * 65)),
    *(drawing(entities=[entity(word=value)]) for value in ("", "#", "man#9", "man#0", 3, None)),
    *(drawing(entities=[entity(word=value)]) for value in ("x" * 10**6, "\u202e", deep(200))),
    *(drawing(entities=[entity(kind=value)]) for value in ("dog", 3, [], {})),
    *(drawing(entities=[entity(images=value)]) for value in ("man.png", 3, {}, [3], [None])),
    *(
        drawing(entities=[entity(images=[value])])
        for value in (
            *("../../etc/passwd", "/etc/passwd", "~/.ssh/id_rsa", "file:///etc/passwd", "a\0b"),
            *("http://localhost/x.png", "data:image/png;base64,AAAA", "x" * 5000, ".", "", "con"),
            *("a" * 24 + ".png", deep(100)),
        )
    ),
    *(drawing(entities=[entity(images=["a.png"] * count)]) for count in (65, 5000)),
    *(
        drawing(entities=[entity(trajectory=value)])
        for value in (
            *("/etc/passwd", "../x.txt", 3, {}, [], [None], [[]], [[1]], [[1, 2, 3, 4]]),
            *([[NAN, 1]], [[INFINITE, 1]], [[1, -INFINITE]], [["1", "2"]], [[True, False]]),
            *([[-1, 5]], [[5, 257]], [[1e300, 5]], [[10**400, 5]], [[9, 9, 0.5], [9, 9, 0.5]]),
            *([[9, 9, 2]], [[9, 9, 0], [9, 9]], deep(300), [[1, 2]] * 100_001, [{"x": 1}]),
        )
    ),
    *(drawing(canvas=value) for value in (3, [], [1], [0, 5], [-1, 5], [NAN, 5], ["a", "b"])),
    *(drawing(**{name: value}) for name in ("frames", "height", "fps") for value in (-1, 0, "x")),
    *(drawing(frames=value) for value in (10**12, 16, 1.5, NAN, [], deep(50))),
    *(drawing(height=value) for value in (17, 10**9)),
    *(drawing(image=value) for value in ("../x.png", 3, [], "a" * 24 + ".png")),
    *(drawing(fit=value) for value in ("zoom", 3)),
    *(drawing(__proto__={}), drawing(extra=1), drawing(unknown="../..")),
]
PICTURES = [
    *(None, 3, "x", [], {}, {"data": None}, {"data": 3}, {"data": "%%%"}, {"data": ""}),
    {"name": "../../x.png", "data": base64.b64encode(b"no picture").decode()},
    {"name": "\x1b[31m" * 100, "data": base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()},
    {"name": 3, "data": base64.b64encode(png()[:50]).decode()},
    {"name": "x", "data": "A" * 40_000_000},
]
NO_PATHS = (b"", b"\0\1\2", b"PK\x03\x04", b"[[1,2],[3", b"a,b\n", b"nan,1\n", b"[" * 10**6)
PATHS = [
    *(None, 3, [], {}, {"data": "%"}, {"data": 3}),
    *(
        {"name": "../x", "data": base64.b64encode(data).decode(), "canvas": [256, 256]}
        for data in NO_PATHS
    ),
    *(
        {"name": "x", "data": base64.b64encode(b"1,2\n3,4\n").decode(), "canvas": canvas}
        for canvas in (None, [], [0, 1], [NAN, 1], "256", [1, 2, 3])
    ),
]
WRITTEN = [
    *(None, 3, {}, {"drawing": {}, "form": "tora"}, {"drawing": drawing(), "form": "../x"}),
    *({"drawing": drawing(), "form": form} for form in (None, 3, [], {})),
    {"drawing": drawing(entities=[]), "form": "json"},
]
CASES = [
    *(("check", given) for given in DRAWINGS),
    *(("add_picture", given) for given in PICTURES),
    *(("read_paths", given) for given in PATHS),
    *(("write_paths", given) for given in WRITTEN),
]


@pytest.fixture
def page(tmp_path):
    (tmp_path / "shelf").mkdir()
    functions = answers(Shelf(tmp_path / "shelf"), MODEL, TOKENIZER)
    return {function.__name__: function for function in functions}


def test_there_are_a_hundred_of_them():
    assert len(CASES) >= 100


@pytest.mark.parametrize("number", range(0, len(CASES), 10))
def test_hostile_inputs_get_a_message_and_leave_nothing(page, tmp_path, number, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, given in itertools.islice(CASES, number, number + 10):
        told = page[name](given)
        shown = repr(given)[:80]
        assert told["problems"], shown
        text = json.dumps(told)  # what the browser gets
        assert "the studio failed" not in text, (shown, text[:300])
        assert "root:" not in text and str(tmp_path) not in text, (shown, text[:300])
        assert len(text) < 200_000, shown
    assert [path.name for path in tmp_path.rglob("*")] == ["shelf"]


@pytest.mark.parametrize("given", [None, 3, "x", {}, [3, None, "../x"], ["a" * 24 + ".png"]])
def test_pictures_that_are_not_there_are_left_out(page, given):
    assert page["pictures"](given) == {"seen": {}}


def test_ordinary_inputs_are_answered(page):
    given = {"name": "../man.png", "data": base64.b64encode(png()).decode()}
    name = page["add_picture"](given)["name"]
    assert list(page["pictures"]([name])["seen"]) == [name]
    whole = drawing(entities=[entity(images=[name])])
    assert page["check"](whole)["problems"] == []
    (file,) = page["write_paths"]({"drawing": whole, "form": "tora"})["files"]
    assert file == {"name": "paths.txt", "text": "10,10\n20,20\n"}
    sent = {"data": base64.b64encode(file["text"].encode()).decode(), "canvas": [256, 256]}
    assert page["read_paths"](sent) == {"paths": [[[10, 10], [20, 20]]]}
