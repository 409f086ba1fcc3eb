"""Which files of a folder of clips belong together: by their names, in any case of the suffix.

Names are compared in Unicode's composed form (NFC): macOS and some network disks decompose them.
Hidden files are no clips; macOS leaves `._NAME.mp4` beside each file on disks of others.
"""

import os
import unicodedata
from pathlib import Path
from typing import NamedTuple

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")


class ClipFiles(NamedTuple):
    """The files of each clip, by its name."""

    videos: dict[str, Path]
    labels: dict[str, Path]
    entities: dict[str, Path]
    faults: dict[str, list[str]]  # by name
    passed_over: list[Path]  # not hidden, and of no use here

    @property
    def names(self) -> list[str]:
        """Of all clips, and of what belongs to none, in order."""
        return sorted({*self.videos, *self.labels, *self.entities, *self.faults})


def name_of(path: Path) -> str:
    """What a clip is called after its file."""
    return unicodedata.normalize("NFC", path.stem)


def list_clips(folder: Path, annotated: bool) -> ClipFiles:
    """The files of a folder of clips; what is not there is empty.

    Args:
        folder: Holds `videos`, `labels` and, of annotated clips, `entities`.
        annotated: Whether `entities` are read.

    Raises:
        OSError: A folder is there and cannot be read.
    """
    faults: dict[str, list[str]] = {}
    passed_over: list[Path] = []

    def files(part: str, suffixes: tuple[str, ...]) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in _visible(folder / part):
            if path.suffix.lower() not in suffixes or path.is_dir():
                passed_over.append(path)
                continue
            first = found.setdefault(name_of(path), path)
            if first != path:
                text = f"{path}: has the name of {first.name} beside it; rename one of them"
                faults.setdefault(name_of(path), []).append(text)
        return found

    return ClipFiles(
        files("videos", VIDEO_SUFFIXES),
        files("labels", (".txt",)),
        files("entities", (".json",)) if annotated else {},
        faults,
        passed_over,
    )


def _visible(folder: Path) -> list[Path]:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in sorted(names) if not name.startswith(".")]
