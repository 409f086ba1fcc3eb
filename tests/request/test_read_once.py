"""A request file is parsed once and every picture decoded once, from the check to the overlay."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tests.sampling.test_sampling import options, write_request
from tora2_jax.media import image_file
from tora2_jax.request import reader
from tora2_jax.sampling import command
from tora2_jax.sampling.pipeline import Sample
from tora2_jax.system import limits


def test_the_sampling_command_reads_everything_once(tmp_path, monkeypatch):
    parsed, decoded = Counter(), Counter()
    read_json, rgba = reader.read_json, image_file.to_rgba

    def counting_json(path):
        parsed[path.name] += 1
        return read_json(path)

    def counting_rgba(image):
        decoded[image.filename.rpartition("/")[2]] += 1
        return rgba(image)

    def made(options, job):
        shape = (1, job.requests[0].frames, 96, 96, 3)
        frames, latents = np.zeros(shape, np.float32), np.zeros((1, 5, 24, 24, 8), np.float32)
        return Sample(frames, latents, tuple(job.requests), job.model.config)

    monkeypatch.setattr(reader, "read_json", counting_json)
    monkeypatch.setattr("tora2_jax.request.load.read_json", counting_json, raising=False)
    monkeypatch.setattr(image_file, "to_rgba", counting_rgba)
    monkeypatch.setattr(command, "sample", made)
    Image.new("L", (40, 48), 255).save(tmp_path / "mask.png")
    Image.new("RGB", (40, 48), (200, 30, 30)).save(tmp_path / "photo.png")
    request = write_request(
        tmp_path,
        entities=[
            {
                "word": "kite",
                "kind": "object",
                "images": ["photo.png"],
                "masks": ["mask.png"],
                "trajectory": [[20, 20], [200, 200]],
            }
        ],
    )
    files = command.run(options(tmp_path, request))
    assert [path.name for path in files] == ["out.mp4", "out.png"]
    assert parsed == {request.name: 1}
    assert decoded == {"photo.png": 1, "mask.png": 1}


def test_pictures_are_held_while_the_block_is_open_and_cannot_be_written_into(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 3), (9, 9, 9)).save(path)
    first = image_file.load_image(path)
    first[:] = 0  # its reader's own
    with image_file.decoded_once():
        one, two = image_file.load_image(path), image_file.load_image(path)
        assert one is two and one[0, 0, 0] == 9
        with pytest.raises(ValueError, match="read-only"):
            one[:] = 0
        assert image_file.load_mask(path).shape == (3, 4)  # another reading of the same file
        Image.new("RGB", (5, 3), (7, 7, 7)).save(path)
        assert image_file.load_image(path)[0, 0, 0] == 7
        with pytest.raises(ValueError, match="absent"):
            image_file.load_image(tmp_path / "absent.png")
    assert image_file.load_image(path) is not image_file.load_image(path)


def test_no_more_is_held_than_a_request_may_have(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "REQUEST_PIXELS", 20)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 3)).save(tmp_path / name)
    with image_file.decoded_once():
        held = image_file.load_image(tmp_path / "a.png")
        assert image_file.load_image(tmp_path / "b.png") is not image_file.load_image(
            tmp_path / "b.png"
        )
        assert image_file.load_image(tmp_path / "a.png") is held
