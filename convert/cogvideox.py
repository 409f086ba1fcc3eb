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
    problems += _class_problems(source, data)
    if problems:
        raise ConversionError(_listing(source, problems))
    model, problems = diffusers_config.read(data, source.absolute().name)
    problems += _tokenizer_problems(source / "tokenizer", model)
    jobs = {}
    for name, component in COMPONENTS.items():
        try:
            files = TensorFiles(source / component.folder)
            shapes = target(component, model)
            pieces = plan(component.rules(model), files.specs, shapes)
        except SourceError as error:
            problems += error.problems
        except ConversionError as error:
            problems.append(f"{component.folder}: {error}")
        else:
            own = {path: spec.shape for path, spec in shapes.items()}
            jobs[name] = Job(files, pieces, own, component.prefix)
    if problems:
        raise ConversionError(_listing(source, problems))
    return model, jobs


def _listing(source: Path, problems: list[str]) -> str:
    return f"{source} cannot be converted:\n  " + "\n  ".join(problems)


def _class_problems(source: Path, data: dict[str, dict]) -> list[str]:
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


def _tokenizer_problems(folder: Path, model: ModelConfig) -> list[str]:
    try:
        largest = max(load_tokenizer(folder).get_vocab().values())
    except (OSError, ValueError) as error:
        return [str(error)]
    if largest >= model.text.vocab_size:
        return [
            f"{folder}: has ids up to {largest}, but the text encoder knows "
            f"{model.text.vocab_size} tokens"
        ]
    return []


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
