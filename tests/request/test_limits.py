"""Bounds before work: what a request names is counted and measured before it is decoded."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import sample
from tora2_jax.config import cogvideox_5b_i2v, toy
from tora2_jax.media.image_file import count_pixels, load_image, load_mask
from tora2_jax.references.feature_files import FeatureFileError, load_features
from tora2_jax.request import RequestError, load_request, parse_request
from tora2_jax.sampling import command as sampling
from tora2_jax.system import limits
from tora2_jax.weights import bundle

TOY = Path(__file__).resolve().parents[2] / "checkpoints" / "toy"


def problems_of(folder, entity=None, paths="anything", **fields):
    entities = [] if entity is None else [{"word": "cat", **entity}]
    data = {"prompt": "A cat.", "entities": entities, **fields}
    with pytest.raises(RequestError) as error:
        parse_request(data, folder, toy(), None, paths)
    return error.value.problems


def png_head(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no picture."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"")


def test_a_picture_is_measured_before_it_is_decoded(tmp_path):
    for name, sides, told in (
        ("beyond.png", (20_000, 20_000), "shrink it to 67 million pixels"),
        ("huge.png", (9000, 9000), "9000 x 9000 pixels; shrink it to 32766 a side and 67 million"),
        ("long.png", (40_000, 10), "40000 x 10 pixels; shrink it to 32766 a side"),
    ):
        (tmp_path / name).write_bytes(png_head(*sides))
        for read in (load_image, load_mask, count_pixels):
            with pytest.raises(ValueError, match=told):
                read(tmp_path / name)
    Image.new("L", (30, 20)).save(tmp_path / "mask.png")
    told = problems_of(tmp_path, {"images": ["huge.png"], "masks": ["huge.png"]})
    assert [problem.split(":")[0] for problem in told] == [
        "entities[0].images[0]",
        "entities[0].masks[0]",
    ]


def test_the_pictures_of_a_request_are_measured_together(tmp_path, monkeypatch):
    Image.new("L", (30, 20), 255).save(tmp_path / "a.png")
    monkeypatch.setattr(limits, "REQUEST_PIXELS", 3 * 600)
    read = []
    monkeypatch.setattr(
        "tora2_jax.request.reference_fields._check_visible", lambda *_: read.append(1)
    )
    entity = {"kind": "object", "images": ["a.png"] * 2, "masks": ["a.png"] * 2}
    told = problems_of(tmp_path, entity)
    assert told == ["entities[0].masks[1]: with it the pictures have more than 0 million pixels"]
    assert len(read) == 1


def test_entities_files_and_characters_are_counted(tmp_path):
    entity = {"word": "cat", "trajectory": [[1, 2]]}
    told = problems_of(tmp_path, entities=[entity] * 20_000)
    assert told == ["entities: 20000 are too many; give at most 64"]
    for name in ("images", "features"):
        told = problems_of(tmp_path, {name: ["none"] * 65})
        assert told[0] == f"entities[0].{name}: 65 are too many; give at most 64"
    told = problems_of(tmp_path, prompt="A cat. " * 2000, negative_prompt="x" * 10_001)
    assert told == [
        "prompt: has 14000 characters; at most 10000 are read, so shorten it",
        "negative_prompt: has 10001 characters; at most 10000 are read, so shorten it",
    ]
    told = problems_of(tmp_path, {"word": "x" * 10**6, "trajectory": [[1, 2]]})
    assert told == ["entities[0].word: has 1000000 characters; name a word of the prompt"]
    told = problems_of(tmp_path, {"trajectory": "x" * 10**6})
    assert len(told) == 1 and len(told[0]) < 300 + len(str(tmp_path))


def test_a_video_is_measured_before_it_is_allocated(tmp_path):
    told = problems_of(tmp_path, frames=8_000_001, height=16_000, width=16_000)
    assert told == [
        "frames, height, width: 8000001 frames of 16000 x 16000 are 2048000256000000 pixels; "
        "take at most 268435456"
    ]


def test_many_unknown_fields_are_a_few_lines(tmp_path):
    names = [f"field{index}" for index in range(20_000)]
    told = problems_of(tmp_path, **dict.fromkeys(names, 1))
    assert len(told) == 11
    assert told[-1] == "...: 19990 more fields are unknown or given more than once"
    pairs = ",".join(f'"{name}": 1' for name in [*names, *names])
    (tmp_path / "request.json").write_text(f'{{"prompt": "A cat.", {pairs}}}')
    with pytest.raises(RequestError) as error:
        load_request(tmp_path / "request.json")
    assert len(error.value.problems) == 21
    assert "39980 more fields" in error.value.problems[-1]


def test_a_request_is_not_read_for_ever(tmp_path):
    for path in ("/dev/zero", tmp_path / "long.json"):
        (tmp_path / "long.json").write_bytes(b" " * (2**24 + 1))
        with pytest.raises(RequestError, match="it is larger than 16 MiB"):
            load_request(path)
    (tmp_path / "windows.json").write_text('{"prompt": "A café."}', "utf-16")
    assert load_request(tmp_path / "windows.json").prompt == "A café."


def test_feature_files_are_measured_before_they_are_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", dino=np.zeros((4500, 4096), np.float32))
    assert (tmp_path / "bomb.npz").stat().st_size < 2**20
    with pytest.raises(FeatureFileError, match=r"bomb.npz cannot be used: it is larger than 64 M"):
        load_features(tmp_path / "bomb.npz")
    half = np.zeros((2300, 4096), np.float32)
    np.savez_compressed(tmp_path / "two.npz", dino=half, prior_tokens=half)
    with pytest.raises(FeatureFileError, match="larger than"):
        load_features(tmp_path / "two.npz")
    np.savez(tmp_path / "many.npz", *[np.zeros(1)] * 5)
    with pytest.raises(FeatureFileError, match="it holds 5 arrays"):
        load_features(tmp_path / "many.npz")
    with (tmp_path / "long.safetensors").open("wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(FeatureFileError, match="larger than"):
        load_features(tmp_path / "long.safetensors")


def test_a_request_of_a_stranger_names_only_files_beside_it(tmp_path, capsys):
    folder = tmp_path / "requests"
    (folder / "inside").mkdir(parents=True)
    for path in (tmp_path / "outside.txt", folder / "inside" / "path.txt"):
        path.write_text("7,8\n9,9\n")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    (folder / "fine.txt").symlink_to(folder / "inside" / "path.txt")
    outside = ["../outside.txt", str(tmp_path / "outside.txt"), "link.txt", "/none.txt", "/a#1"]
    for value in outside:
        told = problems_of(folder, {"trajectory": value}, "beside-the-request")
        assert len(told) == 1 and "is not beside the request; only such files" in told[0]
    for value in outside[:3]:
        parse_request(
            {"prompt": "A cat.", "entities": [{"word": "cat", "trajectory": value}]}, folder
        )
    for value in ("inside/path.txt", "fine.txt", str(folder / "inside/../fine.txt")):
        entity = {"word": "cat", "trajectory": value}
        data = {"prompt": "A cat.", "entities": [entity], "height": 32, "width": 32, "frames": 9}
        parse_request(data, folder, toy(), None, "beside-the-request")
    entity["trajectory"] = "../outside.txt"
    (folder / "request.json").write_text(json.dumps(data))
    command = ["--checkpoint", TOY, "--request", folder / "request.json", "--output", "a.mp4"]
    command = [*map(str, command), "--request-paths", "beside-the-request"]
    assert sample.main(command) == 2
    assert '"../outside.txt" is not beside the request' in capsys.readouterr().err


def test_the_command_line_says_how_pictures_fit(tmp_path, monkeypatch):
    Image.new("RGB", (20, 40)).save(tmp_path / "a.png")
    (tmp_path / "r.json").write_text('{"prompt": "A cat.", "image": "a.png", "fit": "pad"}')
    seen = []

    class Pipeline:
        config = cogvideox_5b_i2v()

        def prepare(self, requests, say, names):
            seen.append((requests[0].fit, names))
            raise RequestError([])

    monkeypatch.setattr(bundle, "load_config", lambda _: cogvideox_5b_i2v())
    monkeypatch.setattr(bundle, "load_bundle_tokenizer", lambda _: None)
    monkeypatch.setattr(sampling.pipeline.Tora2Pipeline, "from_checkpoint", lambda *_: Pipeline())
    for fit in (None, "crop"):
        options = sampling.Options(TOY, tmp_path / "r.json", tmp_path / "out.mp4", fit=fit)
        with pytest.raises(sampling.SamplingError):
            sampling.prepare(options)
    names = [str(tmp_path / "r.json")]
    assert seen == [("pad", names), ("crop", names)]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(3000), "it is a HEIC photo, whatever"),
        (b"\0\0\0\x18ftypisom\0\0\2\0", "it is a video"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html></html>", "it is a web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is an SVG drawing"),
        (b"%PDF-1.7", "it is a PDF document"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "it is a JPEG XL picture"),
        (b"\x1aE\xdf\xa3webm", "it is a video"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "it is PostScript"),
        (b"", "the file is empty"),
        (b"plain text", "it is no picture of a known kind"),
    ],
)
def test_what_is_no_picture_is_recognized(tmp_path, content, told):
    (tmp_path / "IMG_9527.jpg").write_bytes(content)
    with pytest.raises(ValueError, match="give a PNG, JPEG or WebP file") as error:
        load_image(tmp_path / "IMG_9527.jpg")
    assert told in str(error.value)
