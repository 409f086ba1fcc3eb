"""Files that appear whole or not at all."""

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from tora2_jax.system.addresses import address_problem


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A file to fill, beside `path`; it takes the name `path` only when the block ends well.

    Folders above are made. Several processes and hosts may write the same file; the last one stays.
    What is no regular file, such as /dev/stdout, is written to as it is.

    Args:
        path: What is there stays until then.

    Raises:
        OSError: it cannot be written.
    """
    if problem := address_problem(path):
        raise OSError(problem)
    path = Path(path)
    if path.exists() and not path.is_file():
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file.

    Raises:
        OSError: it cannot be written.
    """
    with written_whole(path) as aside:
        aside.write_text(text, encoding="utf-8")


def save_tensors(
    path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file.

    Args:
        path: Of the file.
        arrays: By name.
        metadata: Kept in its header.

    Raises:
        OSError: it cannot be written.
    """
    with written_whole(path) as aside:
        try:
            save_file(dict(arrays), aside, metadata=None if metadata is None else dict(metadata))
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error
        aside.chmod(0o644)  # safetensors makes files that only their owner can read
