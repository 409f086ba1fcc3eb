"""Whether a base draws what its captions say: right on true pictures, wrong on others."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tora2_jax.config import toy
from tora2_jax.config.world import WorldConfig
from tora2_jax.evaluation import base, look
from tora2_jax.sampling.pipeline import Tora2Pipeline
from tora2_jax.sampling.settings import SampleSettings
from tora2_jax.text import load_tokenizer
from tora2_jax.world.captions import COLORS, NEUTRAL, color_name
from tora2_jax.world.clips import render_clip, sample_entity
from tora2_jax.world.entities import KINDS

ROOT = Path(__file__).resolve().parents[2]
WORLD = WorldConfig(seed=5, height=64, width=64, frames=1, style="bold", max_entities=1)


class Painter(Tora2Pipeline):
    """Stands in for a pipeline: draws true pictures of what `choose` makes of a caption."""

    def __init__(self, choose):
        self.config, self._choose = toy(), choose
        self.tokenizer = load_tokenizer(ROOT / "checkpoints" / "bold" / "tokenizer")

    def prepare(self, requests, say):
        return requests, [request.prompt for request in requests]

    def generate_batch(self, prompts, seeds, settings):
        videos = [self._draw(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        return SimpleNamespace(video=np.stack(videos) / 255)

    def _draw(self, prompt: str, seed: int) -> np.ndarray:
        told = set(prompt.lower().replace(".", "").split())
        word = self._choose(next(word for word in KINDS if word in told))
        color = next((name for name in COLORS if name in told and KINDS[word] == "object"), None)
        for index in range(500):
            entity = sample_entity((seed, index), word, "bold")
            record = render_clip(WORLD, seed * 1000 + index, entities=[entity])
            seen = record.entities[0].visible[0] and record.entities[0].mask.mean() > 0.06
            if seen and color in (None, color_name(entity.colors[0])):
                return record.video
        raise AssertionError(prompt)


@pytest.fixture(scope="module")
def localizer():
    return look.load_localizer(ROOT / "checkpoints" / "bold_bench" / "localizer.safetensors")


def measure(localizer, choose, **options):
    settings = SampleSettings(steps=2)
    return base.measure_base(Painter(choose), localizer, 27, settings=settings, **options)


def test_true_pictures_pass(localizer):
    told, kept = [], []
    found = measure(
        localizer,
        lambda word: word,
        batch_size=10,
        done=told.append,
        keep=lambda caption, video: kept.append((caption, video)),
    )
    assert told == [10, 10, 7] * 2 and len(kept) == 54
    assert found["word"]["mean"] >= 0.9 and found["color"]["mean"] >= 0.9
    assert base.may_be_frozen(found) and "met" in base.table(found)
    assert base.sheet(kept[:7]).shape[2] == 3


def test_pictures_of_another_word_fail(localizer):
    words = list(KINDS)
    found = measure(localizer, lambda word: words[(words.index(word) + 1) % len(words)])
    assert found["word"]["mean"] == 0 and found["asked"]["mean"] <= 0.1
    assert found["others"]["mean"] <= 0.1
    assert not base.may_be_frozen(found) and "missed" in base.table(found)


def test_a_word_that_few_frames_show_is_not_found(localizer, monkeypatch):
    draw = Painter._draw

    def flickers(self, prompt, seed):
        frame = draw(self, prompt, seed)
        empty = np.full_like(frame, 200)
        return np.concatenate([frame, empty, empty])

    monkeypatch.setattr(Painter, "_draw", flickers)
    found = measure(localizer, lambda word: word)
    assert found["asked"]["mean"] == 0 and found["others"]["mean"] >= 0.9


def test_captions_name_each_word_in_turn_and_one_color():
    plain = base.captions(18, 0, colored=False)
    assert [word for _, word, _ in plain] == list(KINDS) * 2
    assert not any(name in caption for caption, *_ in plain for name in (*COLORS, *NEUTRAL))
    for caption, word, color in base.captions(20, 1, colored=True):
        assert f" {color} {word}" in caption and KINDS[word] == "object"
    assert base.captions(5, 1, True) != base.captions(5, 2, True)


def test_colors_of_what_stands_out_are_counted():
    frame = np.full((1, 64, 64, 3), 200, np.uint8)
    assert base.main_colors(frame) == []
    frame[0, 10:40, 10:40] = (230, 20, 20)
    frame[0, 15:20, 15:20] = (20, 20, 230)
    frame[0, 40:60, 10:60] = (20, 20, 20)  # an outline, or dark trousers
    assert base.main_colors(frame) == ["red", "blue"]
    frame[0, 22:30, 10:40] = (30, 200, 40)
    assert base.main_colors(frame) == ["red", "green"]
