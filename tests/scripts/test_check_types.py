"""The count of type errors per room, and what is said when it is not the allowed one."""

import json

import pytest

from scripts import check_types
from scripts.check_types import by_room, differences, room_of, verdict

OUTPUT = """\
tora2_jax/text.py:9: error: No such name  [attr-defined]
tora2_jax/models/vae/vae.py:220: error: Too many arguments  [call-arg]
tora2_jax/models/vae/vae.py:220: note: "SpatialNorm" defined here
tora2_jax/models/dit.py:12: error: It says "note: error"  [misc]
scripts/demo.py:1: error: Missing  [import-untyped]
convert/lora/files.py:3: note: See the documentation
""".splitlines()


@pytest.mark.parametrize(
    ("path", "room"),
    [
        ("tora2_jax/models/vae/vae.py", "models"),
        ("tora2_jax/text.py", "text"),
        ("convert/lora/files.py", "convert"),
        ("convert/__main__.py", "convert"),
        ("scripts/demo.py", "scripts"),
    ],
)
def test_rooms_are_folders_and_modules(path, room):
    assert room_of(path) == room


def test_errors_are_counted_and_notes_are_not():
    counts = {room: len(lines) for room, lines in by_room(OUTPUT).items()}
    assert counts == {"text": 1, "models": 2, "scripts": 1}


def test_rooms_that_are_not_named_may_have_none():
    found, allowed = {"text": 1, "models": 2, "data": 5}, {"models": 4, "world": 3, "data": 5}
    assert differences(found, allowed) == {"text": 1, "models": -2, "world": -3}


def test_more_is_refused_with_and_without_write():
    for write in (False, True):
        said = verdict({"text": 1}, write)
        assert said[0] == "text: 1 more than tests/type_errors.json allows"
        assert ("may only be lowered" in said[-1]) == write


def test_fewer_has_to_be_written_down():
    said = verdict({"models": -2}, write=False)
    assert said[0] == "models: 2 fewer than tests/type_errors.json allows"
    assert said[-1].endswith("--write")
    assert verdict({"models": -2}, write=True) == []
    assert verdict({}, write=False) == []


@pytest.mark.parametrize(
    ("allowed", "arguments", "code", "left"),
    [
        ({"text": 1, "models": 2, "scripts": 1}, [], 0, None),
        ({"text": 1, "models": 1, "scripts": 1}, [], 1, None),
        ({"text": 1, "models": 9, "scripts": 1}, [], 0, None),
        ({"text": 1, "models": 9, "world": 1, "scripts": 1}, ["--write"], 0, [1, 2, 1]),
        ({"text": 9, "models": 1, "scripts": 1}, ["--write"], 1, None),
    ],
)
def test_the_file_is_only_ever_lowered(monkeypatch, tmp_path, allowed, arguments, code, left):
    """`left`: what the file says then of text, models and scripts; None: it is as it was."""
    path = tmp_path / "tests" / "type_errors.json"
    path.parent.mkdir()
    path.write_text(json.dumps(allowed))
    monkeypatch.setattr(check_types, "ROOT", tmp_path)
    monkeypatch.setattr(check_types, "ALLOWED", path)
    monkeypatch.setattr(check_types, "run_mypy", lambda: OUTPUT)
    monkeypatch.setattr("sys.argv", ["check_types.py", *arguments])
    assert check_types.main() == code
    names = ("text", "models", "scripts")
    assert json.loads(path.read_text()) == (
        allowed if left is None else dict(zip(names, left, strict=True))
    )


def test_without_mypy_it_is_said_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        check_types.run_mypy()
    assert ended.value.code == 2
    assert "pip install" in capsys.readouterr().err
