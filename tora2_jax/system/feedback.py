"""What a program says while a person waits: no stretch of more than five seconds is silent."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tqdm import tqdm

# Seconds between two signs of life; a log is to stay readable.
ON_A_TERMINAL, IN_A_LOG = 1.0, 5.0


@contextmanager
def bar(
    what: str, total: int, unit: str, *, initial: int = 0, silent: bool = False
) -> Iterator[tqdm]:
    """A progress bar on stderr whose clock runs on while a part of the work takes long.

    Args:
        what: The work, as "sampling".
        total: Of its parts.
        unit: Name of a part.
        initial: Parts that were done before.
        silent: Nothing is shown, as in processes behind the first.

    Yields:
        The bar, to be updated.
    """
    shown = tqdm(
        total=total,
        desc=what,
        unit=unit,
        initial=initial,
        mininterval=0.1 if sys.stderr.isatty() else IN_A_LOG,
        disable=silent,
    )
    with shown, _regularly(shown.refresh, silent):
        yield shown


@contextmanager
def working(what: str, *, silent: bool = False) -> Iterator[None]:
    """Says what takes long, if it does, for work whose parts cannot be counted.

    A second after it began `what` is told with the time that has passed, and again every few
    seconds; what is done sooner is not told.

    Args:
        what: The work, as "reading the checkpoint".
        silent: Nothing is told.
    """
    start, terminal, told = time.monotonic(), sys.stderr.isatty(), False

    def tell() -> None:
        nonlocal told
        told = True
        passed = f"{what}: {time.monotonic() - start:.0f} s"
        sys.stderr.write(f"\r{passed}" if terminal else f"{passed}\n")
        sys.stderr.flush()

    try:
        with _regularly(tell, silent):
            yield
    finally:
        if told and terminal:
            sys.stderr.write("\n")


@contextmanager
def _regularly(tell: Callable[[], object], silent: bool) -> Iterator[None]:
    """Calls a function from a thread while the block runs, first after a second."""
    if silent:
        yield
        return
    ended = threading.Event()
    every = ON_A_TERMINAL if sys.stderr.isatty() else IN_A_LOG

    def run() -> None:
        wait = min(ON_A_TERMINAL, every)
        while not ended.wait(wait):
            tell()
            wait = every

    teller = threading.Thread(target=run, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


class Phases:
    """Bars for the phases of a work that is reported by one callback, one after another.

    To be open as a context around the work; `report` is the callback.
    """

    def __init__(self, units: dict[str, str]):
        """`units`: name of a part, by phase."""
        self._units = units
        self._open: AbstractContextManager[tqdm] | None = None
        self._phase: str | None = None

    def report(self, phase: str, done: int, total: int) -> None:
        """Shows that `done` of `total` parts of a phase are done; its first call starts the bar."""
        if phase != self._phase:
            self._close()
            self._open = bar(phase, total, self._units.get(phase, "part"))
            self._bar, self._phase = self._open.__enter__(), phase
        self._bar.update(done - self._bar.n)
        if done == total:
            self._close()

    def _close(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
        self._open, self._phase = None, None

    def __enter__(self) -> "Phases":
        return self

    def __exit__(self, *_) -> None:
        self._close()
