"""`python -m convert cogvideox`: a CogVideoX folder of diffusers -> a folder to sample from."""

from pathlib import Path
from typing import NamedTuple

from convert import diffusers_config, folders
from convert.components import COMPONENTS, target
from convert.engine import ConversionError, Piece, assemble, plan
from convert.tensor_files import SourceError, TensorFiles
from tora2_jax import weight_folder
from tora2_jax.config import ModelConfig, to_dict
from tora2_jax.text import load_tokenizer

_PARTS = {part.folder: part for part in diffusers_config.PARTS}


class Job(NamedTuple):
    """One component that has been seen to fit."""

    files: TensorFiles
    pieces: dict[str, list[Piece]]
    shapes: dict[str, tuple[int, ...]]
    prefix: str


def convert_folder(source: str | Path, destination: str | Path) -> None:
    """Converts transformer, VAE, T5, tokenizer and scheduler settings.

    Weights go through array by array, each in the dtype it came with. The destination appears when
    everything is written.

    Args:
        source: As people download it; only local files are read.
        destination: Must not exist.

    Raises:
        ConversionError: lists everything about the source that is missing, damaged or of another
            model.
        FolderError: the destination cannot be written.
    """
    source = Path(source)
    model, jobs = _check(source)
    size = sum(job.files.size() for job in jobs.values())
    with folders.new_folder(destination, size) as folder:
        for name, job in jobs.items():
            _write(folder / name, job, model)
        folders.copy_tokenizer(source / "tokenizer", folder / "tokenizer")
        folders.write_json(folder / "config.json", {"model": to_dict(model)})


def _check(source: Path) -> tuple[ModelConfig, dict[str, Job]]:
    if not source.is_dir():
        raise ConversionError(f"{source} is not a folder")
    problems: list[str] = []
    data = {
        name: folders.read_json(source / name / part.file, problems)
        for name, part in _PARTS.items()
    }
    problems += _class_problems(data)
    readable = not problems
    files = _open(source, problems)
    vocabulary = _vocabulary(source / "tokenizer", problems)
    jobs = {}
    if readable:
        model, faults = diffusers_config.read(data, source.absolute().name)
        problems += faults
        if vocabulary > model.text.vocab_size:
            problems.append(
                f"{source / 'tokenizer'}: has {vocabulary} tokens, but the text encoder knows "
                f"{model.text.vocab_size}"
            )
        jobs = _plan(model, files, problems)
    if problems:
        raise ConversionError(f"{source} cannot be converted:\n  " + "\n  ".join(problems))
    return model, jobs


def _open(source: Path, problems: list[str]) -> dict[str, TensorFiles]:
    files = {}
    for name, component in COMPONENTS.items():
        try:
            files[name] = TensorFiles(source / component.folder)
        except SourceError as error:
            problems += error.problems
    return files


def _plan(model: ModelConfig, files: dict[str, TensorFiles], problems: list[str]) -> dict[str, Job]:
    jobs = {}
    for name, opened in files.items():
        component = COMPONENTS[name]
        shapes = target(component, model)
        try:
            pieces = plan(component.rules(model), opened.specs, shapes)
        except ConversionError as error:
            problems.append(f"{component.folder}: {error}")
        else:
            own = {path: spec.shape for path, spec in shapes.items()}
            jobs[name] = Job(opened, pieces, own, component.prefix)
    return jobs


def _class_problems(data: dict[str, dict]) -> list[str]:
    problems = []
    for name, part in _PARTS.items():
        content = data[name]
        given = content.get("_class_name") or (content.get("architectures") or [None])[0]
        if content and given not in part.classes:
            problems.append(
                f"{name}/{part.file}: is a {given}, not a {' or '.join(part.classes[:2])}; "
                "is this a CogVideoX folder?"
            )
    return problems


def _vocabulary(folder: Path, problems: list[str]) -> int:
    """How many ids the tokenizer has; 0 if it cannot be read."""
    try:
        return max(load_tokenizer(folder).get_vocab().values()) + 1
    except (OSError, ValueError) as error:
        problems.append(str(error))
        return 0


def _write(folder: Path, job: Job, model: ModelConfig) -> None:
    writer = weight_folder.Writer(folder)
    # The largest first: what the allocator keeps of one array then suffices for the next.
    for path in sorted(job.shapes, key=lambda path: -_elements(job.shapes[path])):
        array = assemble(job.pieces[path], job.shapes[path], job.files.read)
        writer.write(job.prefix + path, array)
    writer.finish({"model": to_dict(model)})


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count
