"""Requests from files to pictures: what `scripts/inspect_entities.py` runs."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax.numpy as jnp

from tora2_jax import diffusion
from tora2_jax.conditioning.references import face_problems
from tora2_jax.config import DiffusionConfig
from tora2_jax.errors import CheckpointError
from tora2_jax.inspection import measure
from tora2_jax.inspection.diagnosis import diagnose
from tora2_jax.inspection.numbers import as_data
from tora2_jax.inspection.picture import draw_entity
from tora2_jax.inspection.views import Inspection
from tora2_jax.media import video
from tora2_jax.media.image_file import decoded_once
from tora2_jax.references.faces import FaceModelError, detector_file
from tora2_jax.request import Request, RequestError, for_each, load_request
from tora2_jax.sampling.command import SamplingError, write_faults
from tora2_jax.sampling.pipeline import Tora2Pipeline
from tora2_jax.sampling.settings import seed_problems
from tora2_jax.system import feedback
from tora2_jax.system.compile_cache import keep_compiled_programs
from tora2_jax.system.files import write_text
from tora2_jax.weights import bundle


class Options(NamedTuple):
    """The command line of `scripts/inspect_entities.py`."""

    requests: Sequence[Path]
    checkpoint: Path
    output: Path  # a folder
    json: bool = False
    seed: int = 0
    steps: int = measure.STEPS
    dtype: Literal["bfloat16", "float32"] = "float32"
    face_models: Path | None = None


def run(options: Options, say: Callable[[str], None] = print) -> list[Path]:
    """Inspect every request and write a picture per entity; returns the files written.

    Args:
        options: the command line.
        say: told each entity's diagnosis and every file, as soon as it is there.

    Raises:
        SamplingError: all problems of options, checkpoint and requests, before anything is written;
            or a file that cannot be written, with those that were.
    """
    with decoded_once():
        return _run(options, say)


def _run(options: Options, say: Callable[[str], None]) -> list[Path]:
    requests = check(options)
    keep_compiled_programs()
    written: list[Path] = []
    try:
        with feedback.working("reading the checkpoint"):
            pipeline = Tora2Pipeline.from_checkpoint(
                options.checkpoint, jnp.dtype(options.dtype), face_models=options.face_models
            )
        for stem, name, request in zip(
            file_stems(options.requests), options.requests, requests, strict=True
        ):
            with feedback.working(f"inspecting {name}"):
                inspection = measure.inspect(
                    pipeline,
                    request,
                    str(name),
                    str(options.checkpoint),
                    seed=options.seed,
                    steps=options.steps,
                )
            _write(inspection, options.output / stem, options.json, say, written)
    except RequestError as error:
        raise SamplingError(error.problems, written) from error
    except (OSError, ValueError) as error:
        raise SamplingError([str(error)], written) from error
    return written


def check(options: Options) -> list[Request]:
    """Everything that can be told before the weights are read.

    Raises:
        SamplingError: with all problems at once.
    """
    problems = _option_problems(options)
    model = tokenizer = None
    try:
        model = bundle.load_config(options.checkpoint)
        tokenizer = bundle.load_bundle_tokenizer(options.checkpoint)
    except CheckpointError as error:
        problems.append(str(error))
    try:
        schedule = DiffusionConfig() if model is None else model.diffusion
        diffusion.step_coefficients(schedule, max(options.steps, 1), "ddim")
    except ValueError as error:
        problems.append(f"--steps: {error}")

    def load(path: Path) -> Request:
        wanted = load_request(path, model, tokenizer)
        found = [] if wanted.entities else ["entities: there are none to inspect"]
        if model is not None:
            found += face_problems(model, wanted, options.face_models is not None)
        if found:
            raise RequestError(found)
        return wanted

    requests, found = for_each(list(map(str, options.requests)), options.requests, load)
    if problems + found:
        raise SamplingError(problems + found)
    return requests


def _option_problems(options: Options) -> list[str]:
    problems = [f"--seed: {problem}" for problem in seed_problems([options.seed])]
    if options.steps < 1:
        problems.append(f"--steps: {options.steps} is not at least 1")
    problems += [
        f"--output: {text}" for text in write_faults(options.output / "entity.png", ".png")
    ]
    try:
        if options.face_models is not None:
            detector_file(options.face_models)
    except FaceModelError as error:
        problems.append(f"--face-models: {error}")
    return problems


def file_stems(requests: Sequence[Path]) -> list[str]:
    """What the files of each request start with: its name, numbered where it occurs again."""
    stems: list[str] = []
    for path in requests:
        names = [Path(path).stem, *(f"{Path(path).stem}_{n}" for n in range(2, len(requests) + 1))]
        stems.append(next(name for name in names if name not in stems))
    return stems


def _write(
    inspection: Inspection,
    start: Path,
    with_numbers: bool,
    say: Callable[[str], None],
    written: list[Path],
) -> None:
    """Every file appears whole or not at all."""
    for entity in inspection.entities:
        say(f'{inspection.name}: entities[{entity.index}] "{entity.word}"')
        for note in diagnose(inspection, entity):
            say(f"  {note.level}: {note.text}")
        word = re.sub(r"\W+", "_", entity.word).strip("_")[:40]
        path = start.with_name(f"{start.name}_{entity.index}_{word}.png")
        video.write_image(path, draw_entity(inspection, entity))
        written.append(path)
        say(f"  wrote {path}")
    if with_numbers:
        path = start.with_name(f"{start.name}.json")
        text = json.dumps(as_data(inspection), indent=1, ensure_ascii=False)
        write_text(path, text)
        written.append(path)
        say(f"wrote {path}")
