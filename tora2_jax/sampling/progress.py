"""How far a batch of videos is, for whoever wants to know."""

from collections.abc import Callable
from typing import NamedTuple

# Phases of a batch in their order, and what their parts are.
PHASES = {"encoding": "part", "sampling": "step", "decoding": "part"}
Report = Callable[[str, int, int], None]  # given a phase, how many of its parts are done, and all


class Listeners(NamedTuple):
    """Callbacks that are told when the device has done something."""

    progress: Callable[[int, int], None] | None = None  # given (steps done, steps), from 1 on
    report: Report | None = None  # from 0 on, in every phase

    def encoded(self, done: int) -> None:
        """Two parts: what the frozen networks make, and what the model makes of that."""
        self._tell("encoding", done, 2)

    def sampled(self, done: int, total: int) -> None:
        """Steps."""
        if self.progress is not None and done:
            self.progress(done, total)
        self._tell("sampling", done, total)

    def decoded(self, done: int, total: int) -> None:
        """Parts of the videos as the VAE's memory setting cuts them."""
        self._tell("decoding", done, total)

    def _tell(self, phase: str, done: int, total: int) -> None:
        if self.report is not None:
            self.report(phase, done, total)
