"""What a training run writes about itself while it runs."""

import json
import math
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from absl import logging

from tora2_jax.errors import first_line
from tora2_jax.system.appended_file import AppendedFile
from tora2_jax.system.files import write_text

_OF_A_STEP = ("data", "step")  # parts of its time; saving is none


class MetricLog:
    """Losses of every step as JSON lines; means of all metrics between writes for TensorBoard.

    `losses.jsonl` has a row per step, `skipped.jsonl` one per step whose update was not done. What
    cannot be written is tried again with what comes next, and told once: a run is worth more than
    its log.
    """

    def __init__(
        self,
        directory: Path,
        start: int,
        writes: bool = True,
        speed: Callable[[float], Mapping[str, float]] | None = None,
    ):
        """Continues the files of `directory` after `start` finished steps.

        Args:
            directory: Of the files.
            start: Number of finished steps; later rows belong to steps that are done again.
            writes: False in all processes of a run but one.
            speed: Seconds of a step -> measures of it, written too.
        """
        self._speed = speed
        losses, skipped = directory / "losses.jsonl", directory / "skipped.jsonl"
        self._losses, self._skipped = AppendedFile(losses), AppendedFile(skipped)
        self._pending: list[tuple[int, dict[str, float]]] = []
        self._seconds: dict[str, float] = {}
        self._writes, self._fails = writes, False
        self.skipped = 0  # steps of the whole run
        if writes:
            _cut(losses, start)
            self.skipped = _cut(skipped, start)
            name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
            # Not above: it loads PyTorch where there is one, and takes two seconds of every start.
            from tora2_jax.train.runs.event_file import EventFile

            self._board = EventFile(directory / name, start)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds of a block to a part of the steps' time."""
        start = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Keeps the metrics of a step."""
        self._pending.append((step, {name: float(value) for name, value in metrics.items()}))

    def add_skipped(self, row: Mapping[str, Any]) -> None:
        """Writes down at once that the update of a step was skipped, and why."""
        self.skipped += 1
        if self._writes:
            self._skipped.add(_row(dict(row)))
            self._flush()

    def write(self) -> float:
        """Writes what was added, skipped steps outside the means; returns the mean loss."""
        rows, seconds = self._pending, self._seconds
        self._pending, self._seconds = [], {}
        done = [metrics for _, metrics in rows if not metrics.get("skipped")] or [rows[-1][1]]
        means = {name: _mean([row[name] for row in done]) for name in done[0]}
        if self._writes:
            for step, metrics in rows:
                loss = metrics["loss"] if math.isfinite(metrics["loss"]) else None
                self._losses.add(_row({"step": step, "loss": loss}))
            extra = {f"seconds/{name}": value / len(rows) for name, value in seconds.items()}
            if self._speed and (busy := sum(extra.get(f"seconds/{x}", 0) for x in _OF_A_STEP)):
                extra |= self._speed(busy)
            extra["skipped"] = self.skipped
            for name, value in (means | extra).items():
                if math.isfinite(value):
                    self._board.add_scalar(name, value, rows[-1][0])
            self._flush()
        return means["loss"]

    def _flush(self) -> None:
        """Writes all that waits, or tells once that it cannot."""
        try:
            for file in (self._losses, self._skipped, self._board):
                file.flush()
        except OSError as error:
            if not self._fails:
                logging.warning(
                    "metrics cannot be written now (%s); tried again later", first_line(error)
                )
            self._fails = True
        else:
            self._fails = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        if self._writes:
            self._flush()


def _row(content: dict[str, Any]) -> bytes:
    return f"{json.dumps(content)}\n".encode()


def _mean(values: Iterable[float]) -> float:
    """Of the values that there are; some steps have no sample of a kind."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _cut(path: Path, start: int) -> int:
    """Removes the rows after a step; returns how many are left."""
    rows = path.read_text(errors="replace").splitlines() if path.exists() else []
    kept = []
    for row in rows:
        try:
            if json.loads(row)["step"] > start:
                break
        except ValueError:
            break  # half written by a run that was killed
        kept.append(f"{row}\n")
    write_text(path, "".join(kept))
    return len(kept)
