"""The content of a batch depends on its step alone."""

import time
from itertools import chain

import numpy as np
import pytest
from absl import flags

from tora2_jax.data.loader import ENDLESS, batches


class _Numbers:
    def __init__(self, length: int):
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"index": np.int64(index), "pair": np.float32([index, -index])}


def _indices(*arguments, **options) -> list[list[int]]:
    return [batch["index"].tolist() for batch in batches(*arguments, **options)]


def test_endless_source_is_read_in_order():
    made = list(batches(_Numbers(ENDLESS), 3, seed=0, start_step=2, steps=4))
    assert [batch["index"].tolist() for batch in made] == [[6, 7, 8], [9, 10, 11]]
    assert made[0]["pair"].shape == (3, 2)


def test_start_step_continues_the_same_sequence():
    whole = _indices(_Numbers(10), 4, seed=3, start_step=0, steps=6)
    assert _indices(_Numbers(10), 4, seed=3, start_step=4, steps=6) == whole[4:]
    assert _indices(_Numbers(10), 4, seed=3, start_step=6, steps=6) == []
    assert _indices(_Numbers(10), 4, seed=4, start_step=0, steps=6) != whole


def test_pool_is_passed_over_in_changing_order():
    rows = list(chain(*_indices(_Numbers(10), 4, seed=3, start_step=0, steps=5)))
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10] != rows[10:] and rows[:10] != list(range(10))


def test_processes_share_each_batch():
    whole = _indices(_Numbers(10), 6, seed=3, start_step=1, steps=4)
    shares = [
        _indices(_Numbers(10), 6, seed=3, start_step=1, steps=4, process_index=i, process_count=3)
        for i in range(3)
    ]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == whole
    with pytest.raises(ValueError, match="cannot be shared by 4"):
        batches(_Numbers(10), 6, seed=3, start_step=0, steps=1, process_count=4)


def test_workers_change_nothing():
    flags.FLAGS.mark_as_parsed()  # worker processes inherit the flags of this one
    whole = _indices(_Numbers(10), 4, seed=3, start_step=1, steps=6)
    assert _indices(_Numbers(10), 4, seed=3, start_step=1, steps=6, workers=2) == whole


def test_batches_are_made_ahead():
    made = batches(_Numbers(ENDLESS), 2, seed=0, start_step=0, steps=10)
    next(made)
    time.sleep(0.05)
    assert next(made)["index"].tolist() == [2, 3]


def test_empty_source_is_refused():
    with pytest.raises(ValueError, match="empty"):
        batches(_Numbers(0), 2, seed=0, start_step=0, steps=1)
