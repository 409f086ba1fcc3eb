"""Captions from files and tables, and from a language model that is shown frames."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tora2_jax.data.curate.annotate import captions
from tora2_jax.data.curate.annotate.captions import CaptionError, CaptionTable, beside
from tora2_jax.data.curate.annotate.language_model import LanguageModel


def test_beside_the_video_or_in_labels(tmp_path):
    video = tmp_path / "videos" / "a.mp4"
    (tmp_path / "labels").mkdir()
    video.parent.mkdir()
    assert beside(video) is None
    (tmp_path / "labels" / "a.txt").write_text("  A dog\n runs. \n")
    assert beside(video) == "A dog runs."
    video.with_suffix(".txt").write_text("\ufeffEin Hund läuft.", encoding="utf-8")
    assert beside(video) == "Ein Hund läuft."
    # Labels belong to a folder of videos, not to any folder beside them.
    assert beside(tmp_path / "holiday" / "a.mp4") is None
    video.with_suffix(".txt").write_bytes("läuft".encode("latin-1"))
    with pytest.raises(CaptionError, match=r"a\.txt is not text in UTF-8"):
        beside(video)


def test_a_table_names_videos_clips_and_stems(tmp_path):
    table = tmp_path / "captions.csv"
    table.write_text(
        'video,caption,other\na.mp4,"A dog, and a cat.",1\nb#2,A second clip.,\nb,All of b.,\n'
        "holiday/c.mp4,On holiday.,\nu\u0308.mp4,Composed.,\nempty.mp4,,\n"
    )
    found = CaptionTable(table)
    assert found.of("a.mp4", 1) == "A dog, and a cat."
    assert [found.of("b.mov", shot) for shot in (1, 2)] == ["All of b.", "A second clip."]
    assert found.of("holiday/c.mp4", 1) == "On holiday." and found.of("ü.mp4", 1) == "Composed."
    assert found.of("empty.mp4", 1) is None and found.of("d.mp4", 1) is None
    # A name without its folders does only if no other video has it.
    assert found.of("x/a.mp4", 1) is None and found.of("x/a.mp4", 1, True) == "A dog, and a cat."


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("file,text\na,b\n", "no column video, caption; its columns: file, text"),
        ("", "no column video, caption; its columns: none"),
        ('video,caption\na,"' + "x" * 200_000 + '"\n', "cannot be read"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path, content, told):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(CaptionError, match=told):
        CaptionTable(tmp_path / "t.csv")


class Answering(LanguageModel):
    """Remembers what it is shown."""

    def __init__(self):
        self.asked: list = []

    def answer(self, messages):
        self.asked = messages
        return " A red\nsquare. "


def test_a_language_model_is_shown_the_frames():
    frames = [np.full((900, 1200, 3), [200, 10 * index, 30], np.uint8) for index in range(3)]
    model = Answering()
    assert captions.LanguageModelCaptions(model)(frames) == "A red square."
    text, *pictures = model.asked[0]["content"]
    assert text["text"] == captions.PROMPT and len(pictures) == 3
    for index, picture in enumerate(pictures):
        head, data = picture["image_url"]["url"].split(",")
        seen = Image.open(io.BytesIO(base64.b64decode(data)))
        assert head == "data:image/jpeg;base64" and seen.size == (512, 384)
        assert np.abs(np.asarray(seen).mean((0, 1)) - [200, 10 * index, 30]).max() < 4
