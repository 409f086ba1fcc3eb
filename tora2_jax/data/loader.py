"""Batches whose content depends on the step alone: not on workers, processes or restarts."""

from collections.abc import Iterator
from typing import Protocol

import grain
import numpy as np

ENDLESS = 2**31 - 1  # length of a source that never repeats; its order is not shuffled
_PREFETCHED = 2  # batches made ahead, so that making them overlaps with the training step


class Source(Protocol):
    """Examples by position, each a pure function of the source's settings and the index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


class _Batches:
    """Random access to this process's slice of every global batch from `start_step` on."""

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        start_step: int,
        steps: int,
        process_index: int,
        process_count: int,
    ):
        self._source, self._batch_size, self._seed = source, batch_size, seed
        self._start_step, self._steps = start_step, steps
        self._process_index, self._process_count = process_index, process_count

    def __len__(self) -> int:
        return max(0, self._steps - self._start_step)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        share = self._batch_size // self._process_count
        first = (self._start_step + index) * self._batch_size + self._process_index * share
        rows = range(first, first + share)
        examples = [self._source[_position(row, len(self._source), self._seed)] for row in rows]
        return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def batches(
    source: Source,
    batch_size: int,
    seed: int,
    start_step: int,
    steps: int,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of steps `start_step` to `steps - 1`.

    The global batch of step s holds rows `s * batch_size` and following of an endless sequence:
    the source itself if it is `ENDLESS`, else passes over it, each in another order.

    Args:
        source: picklable if `workers > 0`.
        batch_size: examples in a global batch; each process gets an equal, consecutive share.
        seed: of the orders of a finite source.
        start_step: first step to make a batch for.
        steps: the step to stop before.
        workers: processes that make whole batches; 0 uses a thread of this process.
        process_index: which share of each batch this process gets.
        process_count: number of shares.

    Raises:
        ValueError: the batch cannot be shared equally, or the source is empty.
    """
    if batch_size % process_count:
        raise ValueError(f"a batch of {batch_size} cannot be shared by {process_count} processes")
    if len(source) == 0:
        raise ValueError("the source of examples is empty")
    made = _Batches(source, batch_size, seed, start_step, steps, process_index, process_count)
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCHED)
    dataset = grain.MapDataset.source(made).to_iter_dataset(reading)
    if workers:
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
        )
    return iter(dataset)


def _position(row: int, length: int, seed: int) -> int:
    if length >= ENDLESS:
        return row
    epoch, index = divmod(row, length)
    mixed = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    return int(grain.experimental.index_shuffle(index, max_index=length - 1, seed=mixed, rounds=4))
