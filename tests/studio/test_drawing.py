"""A drawing is a request: checked by the same reader, packed, and unpacked as it was."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.studio.test_shelf import png
from tora2_jax import conditioning
from tora2_jax.config import toy
from tora2_jax.request import RequestError, load_request
from tora2_jax.studio import drawing, guard
from tora2_jax.studio.shelf import Shelf
from tora2_jax.text import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
MODEL, TOKENIZER = toy(), load_tokenizer(ROOT / "checkpoints" / "toy" / "tokenizer")
PATH = [[20, 200, 0.1], [90.5, 120, 0.5], *[None] * 3, [230, 180, 0.9]]


@pytest.fixture
def shelf(tmp_path):
    (tmp_path / "shelf").mkdir()
    return Shelf(tmp_path / "shelf")


def drawn(shelf: Shelf, **changes) -> dict:
    man = {"word": "man", "kind": "object", "images": [shelf.add(png(30, 20))], "trajectory": PATH}
    kite = {"word": "kite", "kind": "auto", "images": [], "trajectory": [[10, 20], [30, 40]]}
    sizes = {"height": 96, "width": 96, "frames": 17, "fps": 8, "canvas": [256, 256]}
    made = {"prompt": "A man and a kite.", "entities": [man, kite], "image": None, "fit": "stretch"}
    return made | sizes | changes


def test_tracks_are_those_that_the_model_sees(shelf):
    found = drawing.check(drawn(shelf), shelf, MODEL, TOKENIZER)
    assert found.problems == [] and found.request is not None
    for entity, track in zip(found.request.entities, found.tracks, strict=True):
        position, visible = conditioning.request_track(entity, found.request, MODEL)
        np.testing.assert_allclose(track["positions"], position / 96, atol=1e-4)
        assert track["visible"] == visible.tolist()
    assert not all(found.tracks[0]["visible"])
    assert found.tracks[1]["positions"][0] == [round(10 / 256, 4), round(20 / 256, 4)]


def test_problems_stand_at_their_fields_and_the_other_paths_are_still_shown(shelf):
    wrong = drawn(shelf, prompt="A man and a kit.")
    wrong["entities"][1]["trajectory"] = [[300, 20]]
    found = drawing.check(wrong, shelf, MODEL, TOKENIZER)
    fields = [problem["field"] for problem in found.problems]
    assert fields == ["entities[1].word", "entities[1].trajectory"]
    assert "outside the canvas" in found.problems[1]["text"]
    assert found.tracks[0] is not None and found.tracks[1] is None


def test_a_drawing_comes_back_from_its_archive(shelf, tmp_path):
    before = drawn(shelf, negative_prompt="a dog")
    (tmp_path / "saved.zip").write_bytes(drawing.pack(before, shelf))
    (tmp_path / "new").mkdir()
    other = Shelf(tmp_path / "new")
    after = drawing.unpack(tmp_path / "saved.zip", other)
    assert after == before
    assert other.path(after["entities"][0]["images"][0]) is not None


def test_an_archive_is_what_the_sampling_command_reads(shelf, tmp_path):
    before = drawn(shelf)
    with zipfile.ZipFile(io.BytesIO(drawing.pack(before, shelf))) as archive:
        archive.extractall(tmp_path / "out")
    request = load_request(tmp_path / "out" / "request.json", MODEL, TOKENIZER)
    checked = drawing.check(before, shelf, MODEL, TOKENIZER).request
    for mine, theirs in zip(checked.entities, request.entities, strict=True):
        assert mine.word == theirs.word and mine.kind == theirs.kind
        np.testing.assert_array_equal(mine.points.position, theirs.points.position)
        np.testing.assert_array_equal(mine.points.time, theirs.points.time)


def test_a_request_by_hand_is_drawn_with_masks_boxes_and_files_of_paths(shelf, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "man.png").write_bytes(png(30, 20))
    mask = np.zeros((30, 20), np.uint8)
    mask[5:20, 3:9] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    (folder / "path.txt").write_text("20,200\n90.5,120\n230,180\n")
    man = {"word": "man", "images": ["man.png"], "masks": ["mask.png"], "trajectory": "path.txt"}
    man |= {"boxes": [[2, 4, 8, 18]]}
    (folder / "own.json").write_text(json.dumps({"prompt": "A man.", "entities": [man]}))
    made = drawing.unpack_file(folder / "own.json", shelf)
    (entity,) = made["entities"]
    assert entity["trajectory"] == [[20, 200], [90.5, 120], [230, 180]]
    picture = np.asarray(Image.open(shelf.path(entity["images"][0])))
    assert picture.shape == (13, 5, 4)  # where mask and box meet
    assert (picture[..., 3] == 255).all()
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"a folder/{file.name}")
    assert drawing.unpack(tmp_path / "mine.zip", shelf) == made


def test_what_the_studio_packs_it_takes_back_through_its_guard(shelf):
    noise = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise[::2, ::2].repeat(2, 0).repeat(2, 1)).save(buffer, "JPEG", quality=60)
    names = [shelf.add(buffer.getvalue())]
    packed = drawing.pack(drawn(shelf) | {"image": names[0]}, shelf)
    assert guard.BODY_BYTES < 2 * len(packed) < guard.UPLOAD_BYTES


def archive_of(tmp_path: Path, members: dict, **attributes) -> Path:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name)
            for key, value in attributes.items():
                setattr(member, key, value)
            archive.writestr(member, content)
    return path


REQUEST = json.dumps({"prompt": "A man.", "entities": []})


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"../request.json": REQUEST}, "no plain file of its folder"),
        ({"/tmp/request.json": REQUEST}, "no plain file"),
        ({"a/../../b.json": REQUEST}, "no plain file"),
        ({"..\\request.json": REQUEST}, "no plain file"),
        ({"C:request.json": REQUEST}, "no plain file"),
        ({"readme.txt": "hello"}, "holds no request.json"),
        ({"request.json": "{"}, "request.json"),
        ({"request.json": "[" * 100_000}, "request.json"),
        ({f"{index}.txt": "" for index in range(301)}, "301 files; give at most 300"),
        ({"request.json": REQUEST, "zeros": bytes(2**28 + 1)}, "more than 256 MiB"),
    ],
)
def test_archives_that_would_write_elsewhere_or_too_much_are_refused(
    shelf, tmp_path, members, told
):
    before = {path for path in tmp_path.rglob("*") if path.name != "bad.zip"}
    with pytest.raises(RequestError) as refused:
        drawing.unpack(archive_of(tmp_path, members), shelf)
    assert told in str(refused.value) and "/tmp/tmp" not in str(refused.value)
    assert {path for path in tmp_path.rglob("*") if path.name != "bad.zip"} == before


def test_a_link_in_an_archive_is_refused(shelf, tmp_path):
    path = archive_of(tmp_path, {"request.json": "/etc/passwd"}, external_attr=0o120777 << 16)
    with pytest.raises(RequestError, match="no plain file"):
        drawing.unpack(path, shelf)


def test_a_request_in_an_archive_names_only_files_of_the_archive(shelf, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(png())
    for name in (str(secret), "../secret.png", "../../../../etc/passwd"):
        man = {"word": "man", "images": [name], "trajectory": name}
        content = json.dumps({"prompt": "A man.", "entities": [man], "image": name})
        path = archive_of(tmp_path, {"request.json": content})
        with pytest.raises(RequestError) as refused:
            drawing.unpack(path, shelf)
        assert str(refused.value).count("is not beside the request") == 3


def test_a_damaged_archive_is_refused(shelf, tmp_path):
    path = tmp_path / "bad.zip"
    content = drawing.pack(drawn(shelf), shelf)
    path.write_bytes(content[:100] + bytes(200) + content[300:])
    with pytest.raises(RequestError, match="cannot be"):
        drawing.unpack(path, shelf)
