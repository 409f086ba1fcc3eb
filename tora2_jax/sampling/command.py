"""Requests from files to files: what `scripts/sample.py` and the demo run."""

import os
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from tora2_jax import diffusion, parallel, request
from tora2_jax.conditioning.references import face_problems
from tora2_jax.config import DiffusionConfig, ModelConfig
from tora2_jax.config.train import MeshConfig
from tora2_jax.errors import CheckpointError
from tora2_jax.media import video
from tora2_jax.media.image_file import decoded_once
from tora2_jax.models.vae.tiling import VAEMemory
from tora2_jax.references.faces import FaceModelError, detector_file
from tora2_jax.request.fields import Paths
from tora2_jax.request.reader import Fit
from tora2_jax.sampling import pipeline
from tora2_jax.sampling.progress import PHASES
from tora2_jax.sampling.settings import (
    DEFAULTS,
    seed_problems,
    setting_problems,
    stored_settings,
)
from tora2_jax.system import feedback, hub
from tora2_jax.system.addresses import address_problems
from tora2_jax.system.compile_cache import keep_compiled_programs
from tora2_jax.system.files import written_whole
from tora2_jax.system.finite import NotFiniteError
from tora2_jax.trajectory.points import is_still
from tora2_jax.types import Inputs
from tora2_jax.weights import bundle

_NAME_BYTES = 255  # of a file, in nearly all file systems
_UNREADABLE = (zipfile.BadZipFile, zlib.error)  # a damaged .npz


class SamplingError(ValueError):
    """The command cannot be carried out; the message lists every problem with its field.

    Args:
        problems: one line each.
        written: the files that were finished before.
    """

    def __init__(self, problems: list[str], written: Sequence[Path] = ()):
        self.problems = problems
        done = "nothing was written"
        if written:
            done = f"not everything was written, only {', '.join(map(str, written))}"
        super().__init__(f"{done}:\n  " + "\n  ".join(problems))


class Options(NamedTuple):
    """The command line of `scripts/sample.py`."""

    checkpoint: Path
    request: Path | Sequence[Path]  # several are sampled as one batch
    output: Path
    # None, of these six: as the checkpoint's folder says, or else the paper's.
    steps: int | None = None
    guidance: float | None = None
    dynamic_guidance: bool | None = None
    reference_guidance: float | None = None
    trajectory_guidance: float | None = None
    scheduler: diffusion.Scheduler | None = None
    seed: int = 0
    dtype: Literal["bfloat16", "float32"] = "float32"
    vae_memory: VAEMemory = "whole"
    face_models: Path | None = None
    init_latents: Path | None = None
    save_latents: Path | None = None
    save_frames: Path | None = None
    overlay: bool = False
    fit: Fit | None = None  # of first frames; None: as the requests say
    request_paths: Paths = "anything"
    mesh: str | None = None  # as sequence=4,tensor=2; None: one device

    @property
    def requests(self) -> list[Path]:
        """The request files."""
        single = isinstance(self.request, str | Path)
        return [Path(path) for path in ([self.request] if single else self.request)]

    @property
    def outputs(self) -> list[Path]:
        """The video of each request: numbered if there are several."""
        if len(self.requests) == 1:
            return [self.output]
        path, count = self.output, len(self.requests)
        return [path.with_name(f"{path.stem}_{index}{path.suffix}") for index in range(count)]

    def settings(self, stored: pipeline.SampleSettings = DEFAULTS) -> pipeline.SampleSettings:
        """The part that the sampler reads; what is not given is taken from `stored`."""
        given = {name: getattr(self, name) for name in pipeline.SampleSettings._fields}
        return stored._replace(**{name: one for name, one in given.items() if one is not None})


class Job(NamedTuple):
    """Requests that have passed every check."""

    model: pipeline.Tora2Pipeline
    requests: list[request.Request]
    inputs: Inputs
    initial_latents: np.ndarray | None


def run(options: Options) -> list[Path]:
    """Sample and write; returns the files written.

    Raises:
        SamplingError: see `prepare` and `write`.
    """
    with decoded_once():
        with nullcontext() if options.mesh is None else _on_mesh(options.mesh):
            job = prepare(options)
            result = sample(options, job)
        return write(options, result)


def _on_mesh(written: str):
    """Context of the mesh that `--mesh` names; axes that it leaves out are 1.

    Raises:
        SamplingError: it names no mesh of these devices.
    """
    try:
        parts = (part.partition("=") for part in written.split(","))
        sizes = {"data": 1} | {name.strip(): int(size) for name, _, size in parts}
        return parallel.use(parallel.make_mesh(MeshConfig(**sizes)))
    except (ValueError, TypeError) as error:
        reason = (
            str(error) if str(error).startswith("config") else "write it as sequence=4,tensor=2"
        )
        name = written or "is empty"
        raise SamplingError([f"--mesh: {name}: {reason}"]) from error


def sample(options: Options, job: Job) -> pipeline.Sample:
    """Run the sampler with progress bars.

    Raises:
        SamplingError: latents or frames are not finite; says from where on.
    """
    try:
        with feedback.Phases(PHASES) as phases:
            made = job.model.generate_batch(
                job.inputs,
                seeds=[options.seed + index for index in range(len(job.requests))],
                settings=options.settings(job.model.settings),
                initial_latents=job.initial_latents,
                report=phases.report,
            )
        return made._replace(requests=tuple(job.requests), model=job.model.config)
    except NotFiniteError as error:
        raise SamplingError([str(error)]) from error


def prepare(options: Options) -> Job:
    """Check everything that can be checked before sampling.

    Raises:
        SamplingError: with all problems of options, checkpoint, request and files at once.
    """
    if problems := address_problems(_paths(options)):
        raise SamplingError(problems)
    keep_compiled_programs()
    problems = _option_problems(options)
    model_config = tokenizer = None
    stored, schedule = DEFAULTS, DiffusionConfig()
    try:
        options = options._replace(checkpoint=hub.local(options.checkpoint))
        model_config = bundle.load_config(options.checkpoint)
        schedule = model_config.diffusion
        stored = stored_settings(options.checkpoint, schedule)
        tokenizer = bundle.load_bundle_tokenizer(options.checkpoint)
    except CheckpointError as error:
        problems.append(str(error))
    found = setting_problems(options.settings(stored), schedule)
    problems += [f"--{name.replace('_', '-')}: {problem}" for name, problem in found.items()]
    try:
        requests = request.load_requests(
            options.requests, model_config, tokenizer, options.request_paths
        )
        if options.fit is not None:
            requests = [wanted._replace(fit=options.fit) for wanted in requests]
        problems += _face_problems(options, model_config, requests)
        problems += _overwritten(options, requests)
    except request.RequestError as error:
        problems += error.problems
    if problems:
        raise SamplingError(problems)
    return _loaded(options, requests)


def _loaded(options: Options, requests: list[request.Request]) -> Job:
    """The job of requests that fit the checkpoint.

    Raises:
        SamplingError: with all problems of the weights, or of what only they can tell.
    """
    try:
        dtype = jnp.dtype(options.dtype)
        with feedback.working("reading the checkpoint"):
            model = pipeline.Tora2Pipeline.from_checkpoint(
                options.checkpoint, dtype, options.vae_memory, options.face_models
            )
        # Checked once more, for the parts that the checkpoint turned out to have.
        names, notes = request.request_names(options.requests), []
        with feedback.working("reading the requests"):
            requests, inputs = model.prepare(requests, notes.append, names)
        latents = _initial_latents(options.init_latents, model, inputs)
    except (request.RequestError, SamplingError) as error:
        raise SamplingError(error.problems) from error
    except ValueError as error:
        raise SamplingError([str(error)]) from error
    notes += still_notes(options.requests, requests, model.config)
    if notes:
        print("\n".join(notes), file=sys.stderr)
    return Job(model, requests, inputs, latents)


def _paths(options: Options) -> dict[str, Path | None]:
    """Every place that the command line names."""
    names = ("checkpoint", "output", "face_models", "init_latents", "save_latents", "save_frames")
    paths = {f"--{name.replace('_', '-')}": getattr(options, name) for name in names}
    requests = enumerate(options.requests)
    return paths | {f"--request[{index}]": path for index, path in requests}


def _face_problems(
    options: Options, model: ModelConfig | None, requests: Sequence[request.Request]
) -> list[str]:
    """What lacks face models, told before the checkpoint is read."""
    if model is None:
        return []
    names = request.request_names(options.requests)
    has_models = options.face_models is not None

    def check(wanted: request.Request) -> None:
        if problems := face_problems(model, wanted, has_models):
            raise request.RequestError(problems)

    return request.for_each(names, requests, check)[1]


def still_notes(
    names: Sequence[Path], requests: Sequence[request.Request], model: ModelConfig
) -> list[str]:
    """One line per request that has entities with a still path and no references."""
    notes = []
    for name, wanted in zip(names, requests, strict=True):
        still = [
            f'entities[{index}] "{entity.word}"'
            for index, entity in enumerate(wanted.entities)
            if entity.points is not None and not entity.images and is_still(entity.points)
        ]
        if still:
            lacking = "" if model.personalization else ", which this checkpoint does not have"
            notes.append(
                f"{name}: {', '.join(still)}: a still entity without references leaves the flow "
                f"map white and acts only through the binder{lacking}"
            )
    return notes


def _option_problems(options: Options) -> list[str]:
    seeds = {options.seed, options.seed + len(options.requests) - 1}
    problems = [f"--seed: {problem}" for problem in seed_problems(sorted(seeds))]
    suffixes = {"output": ".mp4", "save_latents": ".npz", "save_frames": ".npy"}
    for name, suffix in suffixes.items():
        path = getattr(options, name)
        if path is not None:
            problems += [
                f"--{name.replace('_', '-')}: {text}" for text in write_faults(path, suffix)
            ]
    try:
        if options.face_models is not None:
            detector_file(options.face_models)
    except FaceModelError as error:
        problems.append(f"--face-models: {error}")
    for path in options.outputs[1:]:
        problems += [f"--output: {path} is a folder"] if path.is_dir() else []
    return problems


def _overwritten(options: Options, requests: Sequence[request.Request]) -> list[str]:
    """Which results would take the place of files that are read: of their pictures, mostly."""
    read = {*options.requests, options.init_latents}
    for wanted in requests:
        read.add(wanted.image)
        for entity in wanted.entities:
            read.update((*entity.images, *entity.masks, *entity.features, *entity.path_files))
    read = {os.path.realpath(path) for path in read - {None}}
    sheets = [path.with_suffix(".png") for path in options.outputs if path.name]
    made = {"--output": [*options.outputs, *sheets]}
    made |= {"--save-latents": [options.save_latents], "--save-frames": [options.save_frames]}
    return [
        f"{name}: {path} would be overwritten, but it is read; choose another name"
        for name, paths in made.items()
        for path in paths
        if path is not None and os.path.realpath(path) in read
    ]


def write_faults(path: Path, suffix: str) -> list[str]:
    """Why a file cannot be written there."""
    if not path.name:
        return [f"{path} names no file"]
    faults = [] if path.suffix == suffix else [f"{path} must end in {suffix}"]
    if (length := len(os.fsencode(path.name))) > _NAME_BYTES:
        faults.append(f"{path} has a name of {length} bytes; files may have {_NAME_BYTES}")
    if os.path.isdir(path):
        faults.append(f"{path} is a folder")
    # What is missing of the folders is made; `os.path` takes what it may not look into as missing.
    nearest = next((parent for parent in path.parents if os.path.exists(parent)), path.parent)
    if not os.path.isdir(nearest):
        faults.append(f"{path} cannot be written: {nearest} is not a folder")
    elif not os.access(nearest, os.W_OK | os.X_OK):
        faults.append(f"{path} cannot be written: the folder {nearest} is write-protected")
    return faults


def _initial_latents(path: Path | None, model, inputs) -> np.ndarray | None:
    """`[b, t_lat, c, h, w]` as diffusers holds it -> channels last; checks shape and numbers."""
    if path is None:
        return None
    try:
        data = np.load(path, allow_pickle=False)
        array = data if isinstance(data, np.ndarray) else data["latents"]
    except (*_UNREADABLE, OSError, ValueError, KeyError, EOFError) as error:
        reason = "it is no .npy or .npz file" if "pickle" in str(error) else error
        raise SamplingError([f"--init-latents: {path} cannot be read: {reason}"]) from error
    b, t, h, w, c = model.latent_shape(*inputs.flow_video.shape[:4])
    if array.shape != (b, t, c, h, w):
        raise SamplingError([f"--init-latents: {array.shape}, but must be {(b, t, c, h, w)}"])
    if not np.isfinite(array).all():
        raise SamplingError([f"--init-latents: {path} holds values that are not finite"])
    return np.moveaxis(array.astype(np.float32), 2, -1)


def write(options: Options, result: pipeline.Sample) -> list[Path]:
    """All files of a batch; each appears whole or not at all.

    Raises:
        SamplingError: a file cannot be written; names those that were.
    """
    written: list[Path] = []
    try:
        with feedback.working("writing the files"):
            for path in _write_each(options, result):
                written.append(path)
    except (OSError, video.VideoError) as error:
        raise SamplingError([str(error)], written) from error
    return written


def _write_each(options: Options, result: pipeline.Sample) -> Iterator[Path]:
    for row, (path, wanted) in enumerate(zip(options.outputs, result.requests, strict=True)):
        shown = result.overlay(row) if options.overlay else result.frames(row)
        sheet = path.with_suffix(".png")
        video.write_video(path, shown, wanted.fps)
        yield path
        video.write_image(sheet, video.contact_sheet(shown))
        yield sheet
    if options.save_latents is not None:
        latents = np.moveaxis(result.latents, -1, 2)
        yield _save(options.save_latents, lambda file: np.savez(file, latents=latents))
    if options.save_frames is not None:
        yield _save(options.save_frames, lambda file: np.save(file, result.video))


def _save(path: Path, write_to) -> Path:
    with written_whole(path) as aside, aside.open("wb") as file:
        write_to(file)
    return path
