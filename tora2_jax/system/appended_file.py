"""Files that grow while a program runs, and survive a disk that is full for a while."""

import os
from pathlib import Path


class AppendedFile:
    """Whole rows or records at the end of a file; what cannot be written now is kept for later.

    Args:
        path: Of the file; made at the first write.
    """

    def __init__(self, path: str | Path):
        self._path, self._waiting = Path(path), bytearray()

    def add(self, data: bytes) -> None:
        """Takes a row or a record, to be written at the next `flush`."""
        self._waiting += data

    def flush(self) -> None:
        """Writes what waits: all of it or, with an error, nothing.

        Raises:
            OSError: it could not be written; it still waits.
        """
        if not self._waiting:
            return
        with self._path.open("ab", buffering=0) as file:
            before, left = file.seek(0, os.SEEK_END), bytes(self._waiting)
            try:
                while left:  # a write may take a part only
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(before)
                raise
        self._waiting = bytearray()
