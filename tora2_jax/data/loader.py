"""Batches whose content depends on the step alone: not on workers, processes or restarts."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from absl import logging
from jaxtyping import Int

from tora2_jax.errors import TrainError

REPLACED = "replaced"  # in a batch, bool [b]: examples in the place of others that cannot be made
ENDLESS = 2**31 - 1  # length of a source that never repeats; its order is not shuffled
TRIES = 16  # so many examples in a row that cannot be made are a fault of all
_GRACE = 60  # seconds that a worker outlives a SIGTERM, for the step that its batch belongs to
_PREFETCHED = 2  # batches made ahead, so that making them overlaps with the training step


@runtime_checkable
class Source(Protocol):
    """Examples by position, each a pure function of the source's settings and the index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...

    # And, if it likes, describe(index) -> JSON data that says what the example is made of.


class ExampleError(ValueError):
    """The data of an example is damaged; says where and how. Another can take its place."""


class _Batches:
    """Random access to some samples of every global batch from `start_step` on."""

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        start_step: int,
        steps: int,
        rows: Sequence[int] | Int[np.ndarray, " rows"],
    ):
        self._source, self._batch_size, self._seed = source, batch_size, seed
        self._start_step, self._steps, self._rows = start_step, steps, rows

    def __len__(self) -> int:
        return max(0, self._steps - self._start_step)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        first, length = (self._start_step + index) * self._batch_size, len(self._source)
        rows = [_position(first + int(row), length, self._seed) for row in self._rows]
        examples, made_from = zip(
            *(example_or_next(self._source, row) for row in rows), strict=True
        )
        batch = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
        return batch | {REPLACED: np.asarray(made_from) != np.asarray(rows)}


def example_or_next(source: Any, index: int) -> tuple[Any, int]:
    """An example and its position: the next that can be made if this one cannot, with a warning.

    Raises:
        TrainError: the source does not want an example replaced, or the data of so many in a row
            is damaged.
        Exception: that of the first, if no example can be made in so many tries.
    """
    first, tries = None, min(TRIES, len(source))
    for offset in range(tries):
        position = (index + offset) % len(source)
        try:
            example = source[position]
        except TrainError:
            raise  # the source refuses: its settings say so
        except Exception as error:  # whatever a damaged file raises in whatever reads it
            first = first or error
            continue
        if first is not None:
            message = "example %d cannot be made (%s: %s); %d takes its place"
            logging.warning(message, index, type(first).__name__, first, position)
        return example, position
    if isinstance(first, ExampleError):
        raise TrainError(
            f"{tries} examples in a row cannot be made, from {index} on; the first: {first}"
        ) from first
    raise first


def positions(source: Source, batch_size: int, seed: int, step: int) -> list[int]:
    """Which examples the batch of a step (from 0) holds."""
    rows = range(step * batch_size, (step + 1) * batch_size)
    return [_position(row, len(source), seed) for row in rows]


def identified(source: Source, rows: list[int]) -> list[dict[str, Any]]:
    """What the examples at these positions are, as JSON data.

    Each has its `position`; if another example takes its place, `made_from`, the position of that
    one; and what the source says of the example that is used.
    """
    describe = getattr(source, "describe", lambda position: {})
    found = []
    for position in rows:
        _, used = example_or_next(source, position)  # the same one as in the batch
        replaced = {} if used == position else {"made_from": used}
        found.append({"position": position, **replaced, **describe(used)})
    return found


def batches(
    source: Source,
    batch_size: int,
    seed: int,
    start_step: int,
    steps: int,
    workers: int = 0,
    rows: Sequence[int] | Int[np.ndarray, " rows"] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of steps `start_step` to `steps - 1`.

    The global batch of step s holds rows `s * batch_size` and following of an endless sequence:
    the source itself if it is `ENDLESS`, else passes over it, each in another order. An example
    that cannot be made is replaced by the next that can; `REPLACED` says which were.

    Args:
        source: picklable if `workers > 0`.
        batch_size: examples in a global batch.
        seed: of the orders of a finite source.
        start_step: first step to make a batch for.
        steps: the step to stop before.
        workers: processes that make whole batches; 0 uses a thread of this process.
        rows: which examples of each batch to make, from 0; default: all.

    Raises:
        ValueError: the source is empty.
    """
    if len(source) == 0:
        raise ValueError("the source of examples is empty")
    rows = range(batch_size) if rows is None else rows
    made = _Batches(source, batch_size, seed, start_step, steps, rows)
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCHED)
    dataset = grain.MapDataset.source(made).to_iter_dataset(reading)
    if workers:
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1),
            worker_init_fn=_prepare_worker,
        )
    return iter(dataset)


def _prepare_worker(index: int, count: int) -> None:
    """Signals are for the program that trains; its workers end when it does, however it does."""
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: threading.Timer(_GRACE, os._exit, [0]).start())
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _position(row: int, length: int, seed: int) -> int:
    if length >= ENDLESS:
        return row
    epoch, index = divmod(row, length)
    mixed = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    return int(grain.experimental.index_shuffle(index, max_index=length - 1, seed=mixed, rounds=4))
