"""The page: the editor at the left, the video at the right."""

import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from tora2_jax.diffusion import SCHEDULERS
from tora2_jax.errors import MessageError
from tora2_jax.inspection import diagnosis, measure, picture
from tora2_jax.media.video import write_image
from tora2_jax.request import RequestError
from tora2_jax.request.reader import SIZES
from tora2_jax.sampling.pipeline import Tora2Pipeline
from tora2_jax.sampling.settings import SEEDS, SampleSettings, seed_problems, setting_problems
from tora2_jax.studio import drawing as drawings
from tora2_jax.studio import jobs
from tora2_jax.studio.answers import answers
from tora2_jax.studio.editor import editor
from tora2_jax.studio.results import Result, enlarged, keep
from tora2_jax.studio.shelf import Shelf

_EARLIER = 20  # videos of one visitor that can be watched again
_HOUR = 3600  # seconds
_QUICK = 2**21  # pixels of a video that is decoded in a moment
_ORIGINAL, _OVERLAY = "video", "with paths"


class Studio(NamedTuple):
    """What the page works with.

    Attributes:
        pipeline: the model.
        name: of the checkpoint, for titles.
        shelf: where pictures and videos lie.
        start: the drawing that the page begins with.
        settings: the sampling settings that it begins with.
    """

    pipeline: Tora2Pipeline
    name: str
    shelf: Shelf
    start: dict[str, Any]
    settings: SampleSettings


class Controls(NamedTuple):
    """The components that events read and write."""

    drawing: gr.HTML
    steps: gr.Slider
    guidance: gr.Slider
    reference_guidance: gr.Slider
    trajectory_guidance: gr.Slider
    dynamic_guidance: gr.Checkbox
    scheduler: gr.Dropdown
    seed: gr.Number
    preview_every: gr.Slider
    generate: gr.Button
    stop: gr.Button
    status: gr.Markdown
    preview: gr.Image
    video: gr.Video
    look: gr.Radio
    shown: gr.Dropdown
    beside: gr.Dropdown
    other: gr.Video
    files: gr.File
    opened: gr.UploadButton
    why: gr.Button
    panels: gr.Gallery
    reasons: gr.Markdown


class Visit:
    """What is kept of one visitor, in `gr.State`: results, and the ways to stop jobs.

    A job is stopped by its own event, from when its button is pressed; so pressing Stop while it
    waits for others holds, and the next job does not take it back.
    """

    def __init__(self):
        self.results: list[Result] = []
        self.waiting: list[threading.Event] = []
        self.running: list[threading.Event] = []

    def __deepcopy__(self, memo: dict) -> "Visit":
        """Gradio copies the first value for each visitor; each has its own."""
        return Visit()

    def begin(self) -> str:
        """A button was pressed."""
        self.waiting.append(threading.Event())
        return "Waiting for its turn."

    def next(self) -> threading.Event:
        """The event of the job that was asked for first."""
        event = self.waiting.pop(0) if self.waiting else threading.Event()
        self.running.append(event)
        return event

    def stop(self) -> None:
        """Stops all of them."""
        for event in (*self.waiting, *self.running):
            event.set()

    def named(self, title: str | None) -> Result | None:
        """The result of a title, if it is still kept."""
        return next((one for one in self.results if one.title == title), None)

    def forget(self) -> None:
        """The visitor is gone."""
        self.stop()
        for result in self.results:
            shutil.rmtree(result.video.parent, ignore_errors=True)


def build(studio: Studio) -> gr.Blocks:
    """The page, not yet served."""
    with gr.Blocks(
        title="Tora2 studio",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(_HOUR, _HOUR),  # Gradio's own copies of what it has shown
    ) as page:
        visit = gr.State(Visit(), delete_callback=Visit.forget)
        gr.Markdown(f"### Tora2 studio: {studio.name}")
        with gr.Row():
            with gr.Column(scale=3, min_width=480):
                left = _editor(studio)
            with gr.Column(scale=2, min_width=320):
                controls = Controls(**left, **_panel(studio))
        _connect(studio, controls, visit)
    return page


def _editor(studio: Studio) -> dict[str, Any]:
    model = studio.pipeline.config
    limits = {
        "entities": model.max_entities,
        "references": model.max_references,
        "image": model.takes_image,
    }
    functions = answers(studio.shelf, model, studio.pipeline.tokenizer)
    return {"drawing": editor(studio.start, limits, functions)}


def _sampling(studio: Studio) -> dict[str, Any]:
    made: dict[str, Any] = {}
    given = studio.settings
    with gr.Accordion("Sampling", open=False):
        most = min(200, studio.pipeline.config.diffusion.num_steps)
        made["steps"] = gr.Slider(1, most, given.steps, step=1, label="Steps", elem_id="steps")
        made["guidance"] = gr.Slider(1, 15, given.guidance, step=0.1, label="Guidance (prompt)")
        made["reference_guidance"] = gr.Slider(
            1, 5, given.reference_guidance, step=0.1, label="Guidance of references"
        )
        made["trajectory_guidance"] = gr.Slider(
            1, 5, given.trajectory_guidance, step=0.1, label="Guidance of paths"
        )
        made["dynamic_guidance"] = gr.Checkbox(
            given.dynamic_guidance, label="Guidance that changes from step to step (CogVideoX's)"
        )
        made["scheduler"] = gr.Dropdown(
            list(SCHEDULERS),
            value=given.scheduler or studio.pipeline.config.diffusion.scheduler,
            label="Scheduler",
        )
        made["preview_every"] = gr.Slider(
            0,
            25,
            5 if _pixels(studio) <= _QUICK else 0,
            step=1,
            label="Preview every so many steps (0: none; each takes as long as decoding)",
            elem_id="preview_every",
        )
    return made


def _panel(studio: Studio) -> dict[str, Any]:
    made = _sampling(studio)
    made["seed"] = gr.Number(0, label="Seed (-1: a new one)", precision=0, elem_id="seed")
    with gr.Row():
        made["generate"] = gr.Button("Generate", variant="primary", elem_id="generate")
        made["stop"] = gr.Button("Stop", elem_id="stop")
    made["status"] = gr.Markdown(elem_id="status")
    made["preview"] = gr.Image(label="Preview", visible=False, interactive=False)
    made["video"] = gr.Video(label="Video", autoplay=True, loop=True, elem_id="video")
    made["look"] = gr.Radio([_ORIGINAL, _OVERLAY], value=_OVERLAY, label="Show", elem_id="look")
    made["shown"] = gr.Dropdown([], label="Videos of this visit", elem_id="shown")
    made["beside"] = gr.Dropdown([], label="Beside it", elem_id="beside")
    made["other"] = gr.Video(label="Beside it", autoplay=True, loop=True, visible=False)
    made["files"] = gr.File(
        label="Download: video, with paths, contact sheet, request", elem_id="files"
    )
    made["opened"] = gr.UploadButton(
        "Open a request (.zip or .json)", file_types=[".zip", ".json"], elem_id="open"
    )
    made["why"] = gr.Button("Why? Look inside the model", elem_id="why")
    made["panels"] = gr.Gallery(
        label="What the model makes of each entity", visible=False, elem_id="panels"
    )
    made["reasons"] = gr.Markdown(elem_id="reasons")
    return made


def _pixels(studio: Studio) -> int:
    """Of a video of the model's own size."""
    model = studio.pipeline.config
    return model.frames * model.height * model.width


def _connect(studio: Studio, c: Controls, visit: gr.State) -> None:
    given = [c.drawing, *(getattr(c, name) for name in SampleSettings._fields)]
    given += [c.seed, c.preview_every, visit]
    shown = [c.status, c.preview, c.shown, visit]

    def generate(*values: Any) -> Iterator[list[Any]]:
        yield from _generate(studio, *values)

    private: dict[str, Any] = {"api_visibility": "private"}
    # Whatever uses the model waits for the others.
    shared: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
    pressed = c.generate.click(lambda state: state.begin(), visit, c.status, queue=False, **private)
    pressed.then(generate, given, shown, show_progress="hidden", **shared, **private)
    c.stop.click(lambda state: state.stop(), visit, queue=False, **private)
    for chosen, player in ((c.shown, c.video), (c.beside, c.other)):
        gr.on(
            [chosen.change, c.look.change],
            lambda title, look, state, own=player is c.video: _watch(title, look, state, own),
            [chosen, c.look, visit],
            [player, c.files] if player is c.video else [player],
            queue=False,
            **private,
        )
    c.shown.change(_choices, visit, c.beside, queue=False, **private)
    c.opened.upload(
        lambda file: _open(studio, file), c.opened, [c.drawing, c.status], queue=False, **private
    )
    c.why.click(
        lambda title, state: _why(studio, title, state),
        [c.shown, visit],
        [c.panels, c.reasons],
        **shared,
        **private,
    )


def _generate(studio: Studio, drawing: Any, *values: Any) -> Iterator[list[Any]]:
    """What the page shows while a video is made; last the video."""
    *chosen, seed, every, visit = values
    stop = visit.next()
    try:
        yield from _made(studio, drawing, (chosen, seed, every), visit, stop)
    finally:
        visit.running.remove(stop)


def _made(
    studio: Studio, drawing: Any, asked: tuple, visit: Visit, stop: threading.Event
) -> Iterator[list[Any]]:
    chosen, seed, every = asked
    wanted, problems = _wanted(studio, drawing, SampleSettings(*chosen), seed, every)
    if wanted is None:
        yield [_list("This cannot be generated:", problems), *[gr.skip()] * 3]
        return
    for progress in jobs.run(studio.pipeline, wanted, stop):
        if progress.sample is not None:
            yield _finished(studio, progress.sample, drawing, wanted.seed, visit)
        elif progress.stopped or progress.problems:
            text = progress.stopped or _list("The model gave no video:", progress.problems)
            yield [text, gr.update(visible=False), *[gr.skip()] * 2]
        else:
            half = progress.preview
            image = gr.skip()
            if half is not None:
                image = gr.update(value=enlarged(half[len(half) // 2]), visible=True)
            yield [_bar(progress.step, progress.total), image, *[gr.skip()] * 2]


def _wanted(
    studio: Studio, drawing: Any, settings: SampleSettings, seed: Any, every: Any
) -> tuple[jobs.Wanted | None, list[str]]:
    """The job of a drawing, or everything that is wrong."""
    model = studio.pipeline.config
    found = drawings.check(drawing, studio.shelf, model, studio.pipeline.tokenizer)
    problems = found.lines()
    told = setting_problems(settings, model.diffusion)
    problems += [f"{name}: {text}" for name, text in told.items()]
    if seed == -1:
        seed = random.randrange(SEEDS)
    if not isinstance(seed, int) or seed_problems([seed]):
        problems.append(f"seed: must be a whole number from 0 to {SEEDS - 1}, or -1 for a new one")
    if problems or found.request is None:
        return None, problems
    return jobs.Wanted(found.request, settings, seed, int(every or 0)), []


def _finished(studio: Studio, sample, drawing: dict, seed: int, visit: Visit) -> list[Any]:
    number = 1 + int(visit.results[-1].title.split(":")[0]) if visit.results else 1
    visit.results.append(keep(sample, drawing, studio.shelf, number, seed))
    for old in visit.results[:-_EARLIER]:
        shutil.rmtree(old.video.parent, ignore_errors=True)
    del visit.results[:-_EARLIER]
    titles = [result.title for result in reversed(visit.results)]
    last = visit.results[-1]
    return [
        f"Done, seed {seed}.",
        gr.update(visible=False),
        gr.update(choices=titles, value=last.title),  # which then shows it, see `_watch`
        visit,
    ]


def _watch(title: str | None, look: str, visit: Visit, own: bool) -> Any:
    result = visit.named(title)
    if result is None:
        return [gr.skip(), gr.skip()] if own else gr.update(visible=False)
    file = result.overlay if look == _OVERLAY else result.shown
    return (
        [gr.update(value=file), _downloads(result)] if own else gr.update(value=file, visible=True)
    )


def _downloads(result: Result) -> list[str]:
    return [str(file) for file in (result.video, result.overlay, result.sheet, result.package)]


def _choices(visit: Visit) -> Any:
    return gr.update(choices=["", *(result.title for result in reversed(visit.results))])


def _open(studio: Studio, file: Any) -> list[Any]:
    try:
        model = studio.pipeline.config
        own = {name: getattr(model, name) for name in SIZES}
        return [own | drawings.unpack(Path(file), studio.shelf), "Opened."]
    except (MessageError, ValueError) as error:
        problems = error.problems if isinstance(error, RequestError) else [str(error)]
        return [gr.skip(), _list("The file cannot be opened:", problems)]


def _why(studio: Studio, title: str | None, visit: Visit) -> list[Any]:
    """The panels of `scripts/inspect_entities.py` for the video that is shown."""
    result = visit.named(title)
    if result is None or not result.request.entities:
        return [gr.update(visible=False), "Generate a video with entities first."]
    inspection = measure.inspect(
        studio.pipeline, result.request, result.title, studio.name, seed=result.seed
    )
    panels, lines = [], []
    for entity in inspection.entities:
        file = result.video.with_name(f"why_{entity.index}.png")
        write_image(file, picture.draw_entity(inspection, entity))
        panels.append((str(file), entity.word))
        lines.append(f"{entity.word}:")
        lines += [f"  {one.level}: {one.text}" for one in diagnosis.diagnose(inspection, entity)]
    return [gr.update(value=panels, visible=True), _list("", lines)]


def _bar(step: int, total: int) -> str:
    if not step:
        return "Preparing; the first video of a size takes longer, because its program is compiled."
    return f"Step {step} of {total} `{'█' * (20 * step // total):░<20}`"


def _list(title: str, problems: Any) -> str:
    """Problems as Markdown that quotes them, whatever they hold."""
    lines = "\n".join(problem.replace("`", "'") for problem in problems)
    return f"{title}\n```\n{lines}\n```"
