"""One request from files to files: what `scripts/sample.py` and the demo run."""

from pathlib import Path
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from tora2_jax import bundle, conditioning, diffusion, pipeline, request, video
from tora2_jax.checkpoint import CheckpointError
from tora2_jax.references import load_image


class SamplingError(ValueError):
    """The command cannot be carried out; the message lists every problem with its field."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        super().__init__("nothing was written:\n  " + "\n  ".join(problems))


class Options(NamedTuple):
    """The command line of `scripts/sample.py`."""

    checkpoint: Path
    request: Path
    output: Path
    steps: int = 50
    guidance: float = 6.0
    dynamic_guidance: bool = True
    reference_guidance: float = 1.0
    trajectory_guidance: float = 1.0
    scheduler: diffusion.Scheduler | None = None
    seed: int = 0
    dtype: Literal["bfloat16", "float32"] = "float32"
    init_latents: Path | None = None
    save_latents: Path | None = None
    save_frames: Path | None = None
    overlay: bool = False

    @property
    def settings(self) -> pipeline.SampleSettings:
        """The part that the sampler reads."""
        names = pipeline.SampleSettings._fields
        return pipeline.SampleSettings(**{name: getattr(self, name) for name in names})


class Job(NamedTuple):
    """A request that has passed every check."""

    model: pipeline.Tora2Pipeline
    request: request.Request
    inputs: conditioning.Inputs
    initial_latents: np.ndarray | None


def run(options: Options) -> list[Path]:
    """Sample and write; returns the files written.

    Raises:
        SamplingError: before anything is written.
    """
    job = prepare(options)
    return write(options, job, sample(options, job))


def sample(options: Options, job: Job) -> pipeline.Sample:
    """Run the sampler with a progress bar."""
    with tqdm(total=options.steps, desc="sampling", unit="step", disable=None) as bar:
        return job.model.generate_batch(
            conditioning.batch_inputs([job.inputs]),
            seeds=[options.seed],
            settings=options.settings,
            initial_latents=job.initial_latents,
            progress=lambda done, total: bar.update(),
        )


def prepare(options: Options) -> Job:
    """Check everything that can be checked before sampling.

    Raises:
        SamplingError: with all problems of options, checkpoint, request and files at once.
    """
    problems = _option_problems(options)
    model_config = tokenizer = wanted = None
    try:
        model_config = bundle.load_config(options.checkpoint)
        tokenizer = bundle.load_bundle_tokenizer(options.checkpoint)
    except CheckpointError as error:
        problems.append(str(error))
    try:
        wanted = request.load_request(options.request, model_config, tokenizer)
    except request.RequestError as error:
        problems += error.problems
    if problems:
        raise SamplingError(problems)
    try:
        model = pipeline.Tora2Pipeline.from_checkpoint(options.checkpoint, jnp.dtype(options.dtype))
        inputs = conditioning.request_inputs(model.config, model.tokenizer, wanted)
        latents = _initial_latents(options.init_latents, model, inputs)
    except (request.RequestError, SamplingError) as error:
        raise SamplingError(error.problems) from error
    except ValueError as error:
        raise SamplingError([str(error)]) from error
    return Job(model, wanted, inputs, latents)


def _option_problems(options: Options) -> list[str]:
    problems = []
    if not 1 <= options.steps <= 1000:
        problems.append(f"--steps: {options.steps} is not between 1 and 1000")
    for name in ("guidance", "reference_guidance", "trajectory_guidance"):
        if not np.isfinite(getattr(options, name)):
            problems.append(f"--{name.replace('_', '-')}: {getattr(options, name)} is not a number")
    if options.seed < 0:
        problems.append(f"--seed: {options.seed} is negative")
    suffixes = {"output": ".mp4", "save_latents": ".npz", "save_frames": ".npy"}
    for name, suffix in suffixes.items():
        path = getattr(options, name)
        if path is not None and path.suffix != suffix:
            problems.append(f"--{name.replace('_', '-')}: {path} must end in {suffix}")
        if path is not None and path.parent.exists() and not path.parent.is_dir():
            problems.append(f"--{name.replace('_', '-')}: {path.parent} is not a folder")
    return problems


def _initial_latents(path: Path | None, model, inputs) -> np.ndarray | None:
    """`[b, t_lat, c, h, w]` as diffusers holds it -> channels last; checks shape and numbers."""
    if path is None:
        return None
    try:
        data = np.load(path, allow_pickle=False)
        array = data if isinstance(data, np.ndarray) else data["latents"]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise SamplingError([f"--init-latents: {path} cannot be read: {error}"]) from error
    b, t, h, w, c = model.latent_shape(1, *inputs.flow_video.shape[:3])
    if array.shape != (b, t, c, h, w):
        raise SamplingError([f"--init-latents: {array.shape}, but must be {(b, t, c, h, w)}"])
    if not np.isfinite(array).all():
        raise SamplingError([f"--init-latents: {path} holds values that are not finite"])
    return np.moveaxis(array.astype(np.float32), 2, -1)


def write(options: Options, job: Job, result: pipeline.Sample) -> list[Path]:
    """All files of one sample; each appears whole or not at all."""
    frames = pipeline.to_uint8(result.video[0])
    sheet = options.output.with_suffix(".png")
    written = [options.output, sheet]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    shown = frames
    if options.overlay:
        shown = draw_overlay(frames, job.request, job.model.config)
    video.write_video(options.output, shown, job.request.fps)
    video.write_image(sheet, video.contact_sheet(shown))
    if options.save_latents is not None:
        latents = np.moveaxis(result.latents, -1, 2)
        written.append(_save(options.save_latents, lambda file: np.savez(file, latents=latents)))
    if options.save_frames is not None:
        written.append(_save(options.save_frames, lambda file: np.save(file, result.video)))
    return written


def _save(path: Path, write_to) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".partial")
    with aside.open("wb") as file:
        write_to(file)
    aside.replace(path)
    return path


def draw_overlay(frames: np.ndarray, wanted: request.Request, model) -> np.ndarray:
    """The frames with every entity's path, word and first reference drawn on them."""
    tracks = [conditioning.request_track(entity, wanted, model) for entity in wanted.entities]
    empty = (np.zeros((0, len(frames), 2), np.float32), np.zeros((0, len(frames)), bool))
    positions, visible = (np.stack(part) for part in zip(*tracks, strict=True)) if tracks else empty
    thumbnails = [[load_image(path) for path in entity.images] for entity in wanted.entities]
    labels = [entity.word for entity in wanted.entities]
    return video.overlay(frames, positions, visible, labels, thumbnails)
