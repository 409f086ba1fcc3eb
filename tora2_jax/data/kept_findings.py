"""What was found out about clips, kept from one start to the next.

Looking at a clip means reading all of its file; a million of them take hours. What is found
depends on the file alone, for which its name, size and time of modification stand.
"""

import hashlib
import json
import time
from importlib.metadata import version
from pathlib import Path

from absl import logging

from tora2_jax.media.video import VideoError, VideoInfo, VideoReadError, video_info
from tora2_jax.system.files import write_text

_FORMAT = 1  # to be raised when something else is found in the same files
_PAUSE = 20  # seconds between saves, or so many times as long as the last one took


class KeptFindings:
    """Findings about the clips of a folder, in one file of a folder of caches.

    Several threads may ask at once, and several processes may keep theirs in the same file: who
    saves takes in what others have saved. What cannot be read there is found out again; what cannot
    be written is not kept, with a warning.

    Args:
        cache_dir: Where the file is or goes; None: nothing is kept.
        folder: Of the clips.
    """

    def __init__(self, cache_dir: str | Path | None, folder: Path):
        self._path: Path | None = None
        if cache_dir is not None:
            place = str(folder.resolve()).encode(errors="surrogateescape")
            self._path = Path(cache_dir) / f"clips-{hashlib.sha256(place).hexdigest()[:16]}.json"
        self._reader = version("av")
        self._videos: dict[str, list] = {}  # by file name: size, time, and the info or the fault
        self._annotations: dict[str, str] = {}  # by clip
        self._state: tuple | None = None  # of the file, when it was last read or written
        self._changed, self._next = False, time.monotonic() + _PAUSE
        self._take_in()

    def video(self, path: Path) -> VideoInfo:
        """What `video_info` finds, now or in an earlier start.

        Raises:
            VideoError: See `video_info`.
        """
        try:
            stat = path.stat()
        except OSError as error:
            raise VideoReadError(f"{path}: cannot be read ({error.strerror})") from error
        state = [stat.st_size, stat.st_mtime_ns]  # before the look: so a change during it is seen
        row = self._videos.get(path.name)
        if row is None or row[:2] != state:
            row = self._videos[path.name] = [*state, _found(path)]
            self._changed = True
        if isinstance(row[2], str):
            raise VideoError(f"{path}: {row[2]}")
        *sizes, times, changed = row[2]
        return VideoInfo(*sizes, None if times is None else tuple(times), tuple(changed))

    def is_faultless(self, clip: str, key: str) -> bool:
        """Whether the annotations of a clip were found to be faultless when they had this key."""
        return self._annotations.get(clip) == key

    def keep_faultless(self, clip: str, key: str) -> None:
        """Keeps that the annotations of a clip with this key are faultless."""
        self._annotations[clip] = key
        self._changed = True

    def save_when_due(self) -> None:
        """Saves what is new, if the last time was long ago; no other thread may ask meanwhile."""
        if time.monotonic() >= self._next:
            self.save()

    def save(self) -> None:
        """Saves what is new; no other thread may ask meanwhile."""
        if self._path is None or not self._changed:
            return
        start = time.monotonic()
        if _state(self._path) != self._state:
            self._take_in()
        content = {
            "format": _FORMAT,
            "reader": self._reader,
            "videos": self._videos,
            "annotations": self._annotations,
        }
        try:
            write_text(self._path, json.dumps(content, separators=(",", ":")))
        except OSError as error:
            logging.warning(
                "what was found out about the clips cannot be kept in %s (%s); every start will "
                "look at all of them",
                self._path,
                error,
            )
            self._path = None
            return
        self._state, self._changed = _state(self._path), False
        self._next = time.monotonic() + _PAUSE * max(1.0, time.monotonic() - start)

    def _take_in(self) -> None:
        """Adds what the file holds and is not known here."""
        if self._path is None:
            return
        self._state = _state(self._path)
        try:
            stored = json.loads(self._path.read_bytes())
            if stored["format"] != _FORMAT:
                return
            videos, annotations = dict(stored["videos"]), dict(stored["annotations"])
        except (OSError, ValueError, TypeError, KeyError):
            return
        if stored.get("reader") != self._reader:  # another one may read what this one could not
            videos = {name: row for name, row in videos.items() if not isinstance(row[2], str)}
        self._videos = videos | self._videos
        self._annotations = annotations | self._annotations


def _found(path: Path) -> list | str:
    """The info as JSON data, or what is wrong with the file."""
    try:
        return list(video_info(path))
    except VideoReadError:  # does not depend on the file alone
        raise
    except VideoError as error:
        return str(error).removeprefix(f"{path}: ")


def _state(path: Path) -> tuple | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
