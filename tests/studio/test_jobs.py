"""A job tells of each step, shows previews, stops when asked, and always ends."""

import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tora2_jax.request import Request
from tora2_jax.sampling.pipeline import Tora2Pipeline
from tora2_jax.sampling.result import Sample, watcher
from tora2_jax.sampling.settings import SampleSettings
from tora2_jax.studio import jobs, results
from tora2_jax.studio.shelf import Shelf

SHAPE = (1, 3, 4, 6, 3)


class Fake(Tora2Pipeline):
    """A sampler without a model; before its third step it waits for `hold`."""

    def __init__(self, fault: Exception | None = None, hold: threading.Event | None = None):
        self.fault, self.hold, self.reached = fault, hold, 0

    def generate(self, request, *, seed=0, settings, callback, **others) -> Sample:
        after = watcher(callback, settings.steps, lambda clean: np.zeros(SHAPE) + np.asarray(clean))
        for index in range(1, settings.steps + 1):
            self.reached = index
            if self.fault is not None and index == 2:
                raise self.fault
            if self.hold is not None and index == 3:
                assert self.hold.wait(60)
            after(index, jnp.full((1, 1, 1, 1, 1), -1 + index / 10.2))
        return Sample(np.full(SHAPE, seed / 10), np.zeros(SHAPE))


def wanted(**changes) -> jobs.Wanted:
    return jobs.Wanted(Request("A man."), SampleSettings(steps=6), 3)._replace(**changes)


def test_steps_previews_and_the_sample():
    told = list(jobs.run(Fake(), wanted(preview_every=2), threading.Event()))
    assert [one.step for one in told] == [0, 1, 2, 3, 4, 5, 6, 6]
    assert all(one.total == 6 for one in told)
    assert [one.step for one in told if one.preview is not None] == [2, 4]
    assert (told[2].preview == 25).all() and told[2].preview.shape == SHAPE[1:]
    assert told[-1].sample is not None and (told[-1].sample.video == 0.3).all()


def test_it_stops_within_a_step_and_says_where():
    stop = threading.Event()
    told = []
    for one in jobs.run(Fake(hold=stop), wanted(), stop):
        told.append(one)
        if one.step == 2:
            stop.set()
    assert [one.step for one in told] == [0, 1, 2, 3, 3]
    assert told[-1].stopped == "stopped after step 3 of 6" and told[-1].sample is None


def test_a_page_that_is_closed_stops_its_job():
    stop = threading.Event()
    pipeline = Fake(hold=stop)
    job = jobs.run(pipeline, wanted(), stop)
    next(job)
    job.close()  # returns at once, the thread ends behind its step
    assert stop.is_set()
    for thread in threading.enumerate():
        if thread.name.endswith("(_work)"):
            thread.join(60)
    assert pipeline.reached <= 3


def test_a_job_that_was_left_ends_before_the_next_begins():
    stop, first, second = threading.Event(), Fake(), Fake()
    first.hold = threading.Event()
    left = jobs.run(first, wanted(), threading.Event())
    while next(left).step < 2:
        pass
    left.close()
    told = jobs.run(second, wanted(), stop)
    next(told)
    assert second.reached == 0
    first.hold.set()
    assert list(told)[-1].sample is not None and first.reached == 3


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (ValueError("settings.steps: no\n  guidance: no"), "settings.steps: no"),
        (RuntimeError("out of memory"), "the model failed: RuntimeError: out of memory"),
    ],
)
def test_a_fault_ends_the_job_with_its_message(fault, told):
    *_, last = jobs.run(Fake(fault), wanted(), threading.Event())
    assert last.problems[0] == told and last.sample is None


def test_small_videos_are_enlarged_by_whole_factors():
    frames = np.arange(2 * 100 * 120 * 3, dtype=np.uint64).astype(np.uint8).reshape(2, 100, 120, 3)
    shown = results.enlarged(frames)
    assert shown.shape == (2, 300, 360, 3) and np.array_equal(shown[:, ::3, 1::3], frames)
    assert results.enlarged(frames.repeat(4, 1).repeat(4, 2)).shape == (2, 400, 480, 3)


def test_the_files_of_a_result_lie_in_a_folder_of_their_own(tmp_path):
    from tora2_jax.config import toy
    from tora2_jax.request.build import make_request

    request = make_request("A man.", frames=3, height=32, width=48, fps=4)
    sample = Sample(np.zeros((1, 3, 32, 48, 3), np.float32), np.zeros(SHAPE), (request,), toy())
    shelf, drawing = Shelf(tmp_path), {"prompt": "A man.", "entities": [], "image": None}
    made = [results.keep(sample, drawing, shelf, number, 7) for number in (1, 2)]
    files = [file for one in made for file in one if isinstance(file, Path)]
    assert len({file.parent for file in files}) == 2
    assert all(file.stat().st_size and file.is_relative_to(tmp_path) for file in files)
    assert made[1].title == "2: seed 7, A man."
