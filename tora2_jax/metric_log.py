"""What a training run writes about itself while it runs."""

import json
import math
from pathlib import Path

import jax
import numpy as np
from tensorboardX import SummaryWriter

from tora2_jax.train_config import TrainError


class MetricLog:
    """Losses of every step as JSON lines; means of all metrics between writes for TensorBoard."""

    def __init__(self, directory: Path, start: int):
        """Continues the files of `directory` after `start` finished steps."""
        self._path = directory / "losses.jsonl"
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        rows = self._path.read_text().splitlines() if self._path.exists() else []
        aside = self._path.with_suffix(".partial")
        # The rows after the checkpoint belong to steps that are done again.
        aside.write_text("".join(f"{row}\n" for row in rows[:start]))
        aside.replace(self._path)
        self._board = SummaryWriter(str(directory), purge_step=start)

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Keeps the metrics of a step without waiting for them."""
        self._pending.append((step, metrics))

    def write(self) -> float:
        """Writes what was added; returns the mean loss. Raises TrainError if one is not finite."""
        rows = [(step, jax.tree.map(float, metrics)) for step, metrics in self._pending]
        self._pending = []
        with self._path.open("a") as file:
            for step, metrics in rows:
                file.write(json.dumps({"step": step, "loss": metrics["loss"]}) + "\n")
        means = {name: float(np.mean([row[name] for _, row in rows])) for name in rows[0][1]}
        for name, value in means.items():
            self._board.add_scalar(name, value, rows[-1][0])
        if bad := [step for step, metrics in rows if not math.isfinite(metrics["loss"])]:
            raise TrainError(f"the loss of step {bad[0]} is not finite; lower the learning rate")
        return means["loss"]

    def close(self) -> None:
        """Flushes TensorBoard's file."""
        self._board.close()
