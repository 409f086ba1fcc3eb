"""A profile of some steps of a run (TensorBoard's profiler, or Perfetto)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import jax
from absl import logging

_FAULTS = (OSError, RuntimeError, ValueError)  # of the profiler; none may end a run


class StepProfile:
    """Traces the steps `first` to `last` of a run that may start or end between them.

    To be open as a context around the steps; what is traced when it closes is written.
    """

    def __init__(self, workdir: Path, first: int, last: int):
        """Writes to `workdir/profile`; first 0: nothing.

        Processes of one host would overwrite each other's files, so each of several has a folder.
        """
        several = jax.process_count() > 1
        own = f"process_{jax.process_index()}" if several else ""
        self._folder = workdir / "profile" / own
        self._steps = range(first, last + 1) if first else range(0)
        self._running = False

    @contextmanager
    def of(self, step: int) -> Iterator[None]:
        """Around the work of a step, from 1."""
        if step in self._steps and not self._running:
            self._start()
        yield
        if self._running and step == self._steps[-1]:
            self._stop()

    def _start(self) -> None:
        try:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        except _FAULTS as error:
            logging.warning("no profile: %s", error)
            self._steps = range(0)

    def _stop(self) -> None:
        self._running = False
        try:
            jax.profiler.stop_trace()
        except _FAULTS as error:
            logging.warning("the profile could not be written to %s: %s", self._folder, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        if self._running:
            self._stop()
