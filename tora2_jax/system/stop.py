"""How a program is asked to stop.

A training: SIGTERM or SIGINT once to save and end, twice to end at once. Others end at once.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Self

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_INTERRUPTED = 130  # as shells count a program that Ctrl-C has ended


def exit_code(main: Callable[[], int]) -> int:
    """What `main` returns; if Ctrl-C ends it, a line instead of where it was in the code."""
    try:
        return main()
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; no file is left half written\n")
        return _INTERRUPTED


class StopSignals:
    """Listens for the signals while its context is open, in the main thread of a program.

    A thread reads them, so that they are answered even while the main thread is inside compiled
    code, or waits there for a machine that is lost.
    """

    def __init__(self, code: int, seconds: float):
        """Exit code of an unfinished run, and how long a step and a save may take to end it."""
        self.requested = False
        self.can_save = False  # set by the loop; before, a signal ends the process at once
        self._code, self._seconds = code, seconds
        self._timer = threading.Timer(seconds, self._end, [f"not finished within {seconds:g} s"])
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        self._before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        return self

    def __exit__(self, *_) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._theirs.close()  # ends the listener
        self._listener.join()
        self._ours.close()
        self._timer.cancel()

    def _listen(self) -> None:
        while received := self._ours.recv(1):
            if received[0] in _SIGNALS:
                self._answer(signal.Signals(received[0]).name)

    def _answer(self, name: str) -> None:
        if self.requested:
            self._end(f"{name} again")
        elif not self.can_save:
            self._end(f"{name} before the first step")
        else:
            self.requested = True
            self._timer.start()
            sys.stderr.write(f"\n{name}: the run saves and stops; once more to stop at once\n")

    def _end(self, reason: str) -> None:
        sys.stderr.write(f"\n{reason}: stopped; the same command goes on from what is saved\n")
        sys.stderr.flush()
        os._exit(self._code)
