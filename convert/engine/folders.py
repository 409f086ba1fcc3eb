"""Folders that appear whole or not at all, and the small files beside weights."""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tora2_jax.system.addresses import address_problem
from tora2_jax.system.unusable_file import why_unusable

_MARGIN = 1.05  # of the disk space that weights take, for indices and metadata
TOKENIZER_FILES = (
    "tokenizer.json",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


class FolderError(ValueError):
    """A folder that cannot be read or written; the message says what to do."""


@contextmanager
def new_folder(path: str | Path, size: int) -> Iterator[Path]:
    """A folder to fill, beside `path`; it takes the name `path` only when the block ends well.

    Until then it lies in a hidden folder of its own, so that nothing else is touched.

    Args:
        path: Must not exist, or be empty.
        size: Bytes that will be written.

    Raises:
        FolderError: the path is taken, cannot be made, or the disk has or gets no room.
    """
    if problem := address_problem(path):
        raise FolderError(problem)
    path = Path(path).absolute()
    try:
        _refuse_taken(path)
        with _parents(path), TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as own:
            free = shutil.disk_usage(path.parent).free
            if free < size * _MARGIN:
                raise FolderError(
                    f"{path}: the disk has {free / 1e9:.1f} GB free, "
                    f"but {size / 1e9:.1f} GB are needed"
                )
            aside = Path(own) / path.name  # a temporary folder itself is its owner's alone
            aside.mkdir()
            yield aside
            _refuse_taken(path)
            aside.rename(path)
    except BaseException as error:
        if disk_full(error):
            raise FolderError(f"{path}: the disk is full; nothing was written") from error
        if isinstance(error, OSError):
            raise FolderError(f"{path} cannot be written: {error}") from error
        raise


def _refuse_taken(path: Path) -> None:
    """Raises FolderError if there is something that a new folder would replace."""
    if path.is_symlink() or path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise FolderError(f"{path} exists already; remove it or name another folder")


@contextmanager
def _parents(path: Path) -> Iterator[None]:
    """Makes the folders above a path, and removes them if the block fails."""
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # somebody else put something there
                folder.rmdir()
        raise


def disk_full(error: BaseException | None) -> bool:
    """Whether an error comes from a full disk; storage libraries wrap it in their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return True
        if "no space left" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    """A JSON object; what is wrong with it goes to `problems`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{path}: is missing")
    except (OSError, ValueError) as error:
        problems.append(f"{path}: {why_unusable(path) or f'cannot be read ({error})'}")
    else:
        if isinstance(content, dict):
            return content
        problems.append(f"{path}: is no JSON object")
    return {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """A JSON object, as people read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def copy_tokenizer(source: Path, target: Path) -> None:
    """The files of a tokenizer, whichever it has."""
    target.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
