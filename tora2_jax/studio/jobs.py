"""One video after the other, in a thread, with steps and previews while it is made."""

import queue
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from tora2_jax.request import Request
from tora2_jax.sampling.pipeline import Tora2Pipeline
from tora2_jax.sampling.result import Sample, SamplingStopped, Step
from tora2_jax.sampling.settings import SampleSettings
from tora2_jax.system.finite import NotFiniteError

_ONE = threading.Lock()  # jobs at a time: one that was left may still end its step


_STARTED: dict[threading.Thread, threading.Event] = {}  # until their threads have ended


def end_all(seconds: float = 60) -> None:
    """Stops all jobs and waits for their last steps; a process cannot end in the middle of one."""
    for stop in _STARTED.values():
        stop.set()
    for job in list(_STARTED):
        job.join(seconds)


class Wanted(NamedTuple):
    """A job.

    Attributes:
        request: checked against the model.
        settings: steps, guidance, scheduler.
        seed: of all draws.
        preview_every: steps between two previews; 0: none. A preview takes as long as decoding.
    """

    request: Request
    settings: SampleSettings
    seed: int
    preview_every: int = 0


class Progress(NamedTuple):
    """How far a job is. Exactly one of the last three is given at its end.

    Attributes:
        step: steps done.
        total: steps.
        preview: the video as far as it can be foreseen, uint8 `[f, height, width, 3]`.
        sample: what was made.
        stopped: where it was stopped.
        problems: why it could not be made.
    """

    step: int
    total: int
    preview: np.ndarray | None = None
    sample: Sample | None = None
    stopped: str | None = None
    problems: tuple[str, ...] = ()


def run(pipeline: Tora2Pipeline, wanted: Wanted, stop: threading.Event) -> Iterator[Progress]:
    """Makes a video and tells about it.

    Args:
        pipeline: the model.
        wanted: what to make.
        stop: set by whoever wants to stop; looked at after each step.

    Yields:
        One `Progress` for each step and one at the end. A consumer that goes away stops the job.
    """
    told: queue.Queue[Progress] = queue.Queue()
    total = wanted.settings.steps
    job = threading.Thread(target=_work, args=(pipeline, wanted, stop, told), daemon=True)
    job.start()
    _STARTED[job] = stop
    try:
        yield Progress(0, total)
        while True:
            progress = told.get()
            yield progress
            if progress.sample is not None or progress.stopped or progress.problems:
                return
    finally:
        stop.set()  # not waited for: whoever closes this must not stand still


def _work(
    pipeline: Tora2Pipeline, wanted: Wanted, stop: threading.Event, told: "queue.Queue[Progress]"
) -> None:
    total, last = wanted.settings.steps, 0

    def after(step: Step) -> bool:
        nonlocal last
        last = step.step
        every = wanted.preview_every
        shown = every and step.step % every == 0 and step.step < total and not stop.is_set()
        told.put(Progress(step.step, total, step.preview()[0] if shown else None))
        return not stop.is_set()

    def end(**how: Any) -> None:
        told.put(Progress(last, total, **how))

    try:
        with _ONE:
            for job in [one for one in _STARTED if not one.is_alive()]:
                del _STARTED[job]
            if stop.is_set():
                raise SamplingStopped("stopped before it began")
            sample = pipeline.generate(
                wanted.request, seed=wanted.seed, settings=wanted.settings, callback=after
            )
        end(sample=sample)
    except SamplingStopped as stopped:
        end(stopped=str(stopped))
    except (NotFiniteError, ValueError, OSError) as error:
        end(problems=tuple(str(error).splitlines()))
    except Exception as error:  # whatever it is, the page must not wait for ever
        end(problems=(f"the model failed: {type(error).__name__}: {error}",))
