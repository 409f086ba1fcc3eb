"""Addresses such as gs://bucket/run, which people write for folders, are no places on a disk."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# One slash, too: what has been a `Path` has lost the other. No drive has two letters.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")


def address_problem(path: str | Path | None) -> str | None:
    """Why a path can be neither read nor written, if it is an address; None if it is a path."""
    match = _ADDRESS.match("" if path is None else str(path))
    if match is None:
        return None
    scheme, rest = match[1], str(path)[match.end() :]
    if scheme.lower() == "file":
        return f"{scheme}:///{rest} is an address, not a local path; write /{rest}"
    return (
        f"{scheme}://{rest} is an address, not a local path; mount the bucket, or copy the files, "
        "and name the folder"
    )


def address_problems(paths: Mapping[str, Any]) -> list[str]:
    """One line, with its name, for each of these paths that is an address; None is no path."""
    found = {name: address_problem(path) for name, path in paths.items()}
    return [f"{name}: {problem}" for name, problem in found.items() if problem is not None]


def named_path(text: str) -> Path:
    """The type of an argparse option that names a file or a folder.

    Refuses an empty text, which an unset variable of a shell leaves and `Path` takes for the
    current folder.
    """
    if not text:
        raise argparse.ArgumentTypeError("is empty; name a file or a folder")
    return Path(text)


def local_path(text: str) -> Path:
    """As `named_path`; refuses addresses, too."""
    if problem := address_problem(text):
        raise argparse.ArgumentTypeError(problem)
    return named_path(text)
