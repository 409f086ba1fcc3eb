"""Moving pictures of the documentation."""

import sys

import numpy as np
import pytest
from PIL import Image

from scripts import make_gallery
from tora2_jax.evaluation.look import EntityReport, told
from tora2_jax.media.animation import request_row, stacked, write_animation
from tora2_jax.media.video import VideoError
from tora2_jax.sampling import command as sampling


def _row(frames=3, words=("man",)):
    video = np.random.default_rng(0).integers(0, 255, (frames, 64, 48, 3), np.uint8)
    tracks = np.full((len(words), frames, 2), 20.0)
    visible = np.ones((len(words), frames), bool)
    references = [[np.zeros((8, 8, 3), np.uint8)] for _ in words]
    return video, request_row(video, tracks, visible, words, references)


def test_a_row_ends_in_the_video_enlarged_by_a_whole_factor():
    video, row = _row()
    factor, rest = divmod(row.shape[1], 64)
    assert rest == 0 and row.shape[1] >= 256
    made = row[:, :, -48 * factor :]
    np.testing.assert_array_equal(made[:, ::factor, ::factor], video)
    np.testing.assert_array_equal(made, video.repeat(factor, 1).repeat(factor, 2))


def test_rows_are_stacked_and_written_as_they_are(tmp_path):
    _, one = _row()
    _, two = _row(words=("man", "kite"))
    both = stacked([one, two])
    assert both.shape[1] == one.shape[1] + two.shape[1] + 8
    write_animation(tmp_path / "both.webp", both, fps=10)
    with Image.open(tmp_path / "both.webp") as opened:
        assert opened.n_frames == 3
        opened.seek(2)
        np.testing.assert_array_equal(np.asarray(opened.convert("RGB")), both[2])
    with pytest.raises(VideoError, match=r"\[2, 3\]"):
        stacked([one, _row(frames=2)[1]])
    with pytest.raises(VideoError, match=r"\.webp or \.gif"):
        write_animation(tmp_path / "both.png", both)


def test_what_is_told_of_an_entity():
    seen = EntityReport(found=8, frames=17, distance=4.2, place=2, candidates=8)
    assert told(seen) == (
        "found in 8 of 17 frames, there 4 px from its path (median, of 256); its own reference "
        "comes 2nd of 8 of that word"
    )
    unseen = seen._replace(found=0, distance=float("nan"), place=None)
    assert told(unseen) == "found in 0 of 17 frames; the bench does not recognize it"


@pytest.mark.parametrize(("form", "output"), [("page", "gallery.md"), ("rows", "demo.webp")])
def test_the_gallery_asks_for_nothing_that_sampling_refuses(tmp_path, monkeypatch, form, output):
    asked = []

    def prepare(options):
        asked.append(options)
        raise sampling.SamplingError(["enough"])

    command = ["make_gallery.py", form, "a.json", "--output", str(tmp_path / output)]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(sampling, "prepare", prepare)
    assert make_gallery.main() == 2
    assert sampling._option_problems(asked[0]) == []
