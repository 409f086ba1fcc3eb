"""What a training run writes about itself while it runs."""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from tensorboardX import SummaryWriter

from tora2_jax.whole_file import write_text

_OF_A_STEP = ("data", "step")  # parts of its time; saving is none


class MetricLog:
    """Losses of every step as JSON lines; means of all metrics between writes for TensorBoard.

    `losses.jsonl` has a row per step, `skipped.jsonl` one per step whose update was not done.
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
        self._losses, self._skipped = directory / "losses.jsonl", directory / "skipped.jsonl"
        self._pending: list[tuple[int, dict[str, float]]] = []
        self._seconds: dict[str, float] = {}
        self._board = None
        self.skipped = 0  # steps of the whole run
        if writes:
            _cut(self._losses, start)
            self.skipped = _cut(self._skipped, start)
            self._board = SummaryWriter(str(directory), purge_step=start)

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
        if self._board:
            with self._skipped.open("a") as file:
                file.write(json.dumps(dict(row)) + "\n")

    def write(self) -> float:
        """Writes what was added, skipped steps outside the means; returns the mean loss."""
        rows, seconds = self._pending, self._seconds
        self._pending, self._seconds = [], {}
        done = [metrics for _, metrics in rows if not metrics.get("skipped")] or [rows[-1][1]]
        means = {name: _mean([row[name] for row in done]) for name in done[0]}
        if self._board:
            with self._losses.open("a") as file:
                for step, metrics in rows:
                    loss = metrics["loss"] if math.isfinite(metrics["loss"]) else None
                    file.write(json.dumps({"step": step, "loss": loss}) + "\n")
            extra = {f"seconds/{name}": value / len(rows) for name, value in seconds.items()}
            if self._speed and (busy := sum(extra.get(f"seconds/{x}", 0) for x in _OF_A_STEP)):
                extra |= self._speed(busy)
            extra["skipped"] = self.skipped
            for name, value in (means | extra).items():
                if math.isfinite(value):
                    self._board.add_scalar(name, value, rows[-1][0])
        return means["loss"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        if self._board:
            self._board.close()  # flushes TensorBoard's file


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
