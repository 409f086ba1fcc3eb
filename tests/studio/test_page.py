"""What the page's buttons do, without a browser and without a model."""

from pathlib import Path

import gradio as gr
import jax.numpy as jnp
import numpy as np
import pytest

from tests.studio.test_drawing import MODEL, TOKENIZER, drawn
from tora2_jax.request.build import make_request
from tora2_jax.sampling.pipeline import Tora2Pipeline
from tora2_jax.sampling.result import Sample, watcher
from tora2_jax.sampling.settings import DEFAULTS, SEEDS
from tora2_jax.studio import page
from tora2_jax.studio.shelf import Shelf


class Fake(Tora2Pipeline):
    """A sampler without a model, which remembers what it was asked for."""

    def __init__(self):
        self.config, self.tokenizer, self.settings, self.asked = MODEL, TOKENIZER, DEFAULTS, []

    def generate(self, request, *, seed=0, settings, callback, **others) -> Sample:
        self.asked.append((request, seed, settings))
        shape = (1, request.frames, request.height, request.width, 3)
        after = watcher(callback, settings.steps, lambda clean: np.zeros(shape))
        for step in range(1, settings.steps + 1):
            after(step, jnp.zeros((1, 1, 1, 1, 1)))
        return Sample(np.zeros(shape, np.float32), np.zeros(shape), (request,), MODEL)


@pytest.fixture
def studio(tmp_path) -> page.Studio:
    return page.Studio(Fake(), "toy", Shelf(tmp_path), {}, DEFAULTS._replace(steps=3))


def press_generate(studio: page.Studio, drawing, visit: page.Visit, **changes) -> list:
    numbers = {"steps": 4, "guidance": 5.5, "reference_guidance": 1.5, "trajectory_guidance": 2.0}
    given = DEFAULTS._replace(**numbers, scheduler="ddim")._asdict() | {"seed": 7, "every": 2}
    return list(page._generate(studio, drawing, *(given | changes).values(), visit))


def visit() -> page.Visit:
    return page.Visit()


def test_the_request_and_the_settings_reach_the_model(studio):
    mine = visit()
    *steps, last = press_generate(studio, drawn(studio.shelf), mine)
    ((request, seed, settings),) = studio.pipeline.asked
    assert [entity.word for entity in request.entities] == ["man", "kite"] and seed == 7
    assert settings == DEFAULTS._replace(
        steps=4,
        guidance=5.5,
        reference_guidance=1.5,
        trajectory_guidance=2.0,
        scheduler="ddim",
    )
    assert "Step 4 of 4" in steps[-1][0] and "Preparing" in steps[0][0]
    assert [isinstance(step[1], dict) and "value" in step[1] for step in steps[1:]] == [0, 1, 0, 0]
    assert last[0] == "Done, seed 7." and last[2]["value"] == mine.results[0].title
    shown, files = page._watch(mine.results[0].title, page._OVERLAY, mine, True)
    assert shown["value"] == mine.results[0].overlay and len(files) == 4
    plain = page._watch(mine.results[0].title, page._ORIGINAL, mine, False)
    assert plain["value"] == mine.results[0].shown


def test_numbers_go_on_and_old_results_are_let_go(studio, monkeypatch):
    monkeypatch.setattr(page, "_EARLIER", 2)
    mine = visit()
    for seed in range(3):
        press_generate(studio, drawn(studio.shelf), mine, seed=seed)
    assert [result.title[:9] for result in mine.results] == ["2: seed 1", "3: seed 2"]
    assert page._choices(mine)["choices"] == ["", mine.results[1].title, mine.results[0].title]
    assert page._watch("1: seed 0", page._OVERLAY, mine, False)["visible"] is False
    assert len(list(studio.shelf.folder.glob("video*"))) == 2


def test_a_seed_of_minus_one_is_a_new_one(studio):
    mine = visit()
    for _ in range(2):
        press_generate(studio, drawn(studio.shelf), mine, seed=-1)
    seeds = [seed for _, seed, _ in studio.pipeline.asked]
    assert seeds[0] != seeds[1] and all(0 <= seed < SEEDS for seed in seeds)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": -2}, "seed: must be a whole number"),
        ({"seed": None}, "seed: must be"),
        ({"steps": 0}, "steps: 0 is not"),
        ({"guidance": float("nan")}, "guidance: nan is not a finite number"),
    ],
)
def test_what_cannot_be_generated_is_told_in_words(studio, changes, told):
    drawing = drawn(studio.shelf, prompt="A man and `a` dog.")
    (only,) = press_generate(studio, drawing, visit(), **changes)
    assert told in only[0] and 'entities[1].word: "kite" is not in the prompt' in only[0]
    assert not studio.pipeline.asked


def test_each_visitor_stops_only_their_own_job():
    import copy

    first = visit()
    second = copy.deepcopy(first)
    first.begin()
    second.begin()
    first.stop()
    assert first.next().is_set() and not second.next().is_set()
    assert second.results is not first.results


def test_stop_holds_for_a_job_that_waits_for_its_turn_and_not_for_the_next(studio):
    mine = visit()
    assert mine.begin() == "Waiting for its turn."
    mine.stop()
    *_, last = press_generate(studio, drawn(studio.shelf), mine)
    assert last[0] == "stopped before it began" and not studio.pipeline.asked
    mine.begin()
    *_, last = press_generate(studio, drawn(studio.shelf), mine)
    assert last[0] == "Done, seed 7." and mine.running == []


def test_what_a_visitor_made_is_removed_when_they_are_gone(studio):
    mine = visit()
    press_generate(studio, drawn(studio.shelf), mine)
    mine.forget()
    assert not list(studio.shelf.folder.glob("video*"))


def test_a_file_is_opened_or_says_why_not(studio, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"prompt": "A man.", "entities": [{"word": "man", "trajectory": [[1, 2]]}]}')
    drawing, told = page._open(studio, str(file))
    assert drawing["entities"][0]["trajectory"] == [[1, 2]] and told == "Opened."
    # Not those of the drawing before.
    assert (drawing["frames"], drawing["height"]) == (MODEL.frames, MODEL.height)
    file.write_text('{"prompt": "A man.", "entities": [{"word": "dog"}]}')
    kept, told = page._open(studio, str(file))
    assert kept == gr.skip() and '"dog" is not in the prompt' in told
    assert str(tmp_path) not in told


def test_why_needs_a_video_with_entities(studio):
    assert "Generate a video" in page._why(studio, None, visit())[1]
    mine, request = visit(), make_request("A man.", frames=17, height=96, width=96)
    empty = Path("x")
    mine.results.append(page.Result("1: x", request, 0, *[empty] * 5))
    assert "Generate a video" in page._why(studio, "1: x", mine)[1]


def test_the_page_is_built_and_nothing_of_it_is_an_open_api(studio):
    blocks = page.build(studio)
    info = blocks.get_api_info()
    assert not info["named_endpoints"] and not info["unnamed_endpoints"]
