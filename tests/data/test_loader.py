"""The content of a batch depends on its step alone."""

import threading
from itertools import chain

import numpy as np
import pytest
from absl import flags

from tora2_jax.data.loader import (
    ENDLESS,
    ExampleError,
    batches,
    example_or_next,
    identified,
    positions,
)
from tora2_jax.errors import TrainError


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


@pytest.mark.parametrize(
    ("shares", "workers"),
    [([[0, 1, 2, 3]], 0), ([[0, 1], [2, 3]], 0), ([[0, 2], [1, 3]], 2), ([[1, 2], [0, 3]], 0)],
)
def test_any_number_of_processes_and_workers_makes_the_same_batches(shares, workers):
    """Also from where another number of them has stopped: the data position is the step."""
    flags.FLAGS.mark_as_parsed()  # worker processes inherit the flags of this one
    whole = _indices(_Numbers(10), 4, seed=3, start_step=0, steps=4)
    for rows in shares:
        made = _indices(_Numbers(10), 4, seed=3, start_step=2, steps=4, workers=workers, rows=rows)
        assert made == [[batch[row] for row in rows] for batch in whole[2:]]
    assert [positions(_Numbers(10), 4, 3, step) for step in range(4)] == whole


class _Damaged(_Numbers):
    def __init__(self, length: int, damaged: set[int]):
        super().__init__(length)
        self._damaged = damaged

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index in self._damaged:
            raise OSError(f"record {index} is damaged")
        return super().__getitem__(index)


def test_examples_that_cannot_be_made_are_replaced_and_told(caplog):
    source = _Damaged(10, {3, 4, 9})
    made = list(batches(source, 5, seed=0, start_step=0, steps=4))
    rows = [positions(_Numbers(10), 5, 0, step) for step in range(4)]
    good = {3: 5, 4: 5, 9: 0}
    for batch, wanted in zip(made, rows, strict=True):
        assert batch["index"].tolist() == [good.get(index, index) for index in wanted]
        assert batch["replaced"].tolist() == [index in good for index in wanted]
    assert (
        "example 3 cannot be made (OSError: record 3 is damaged); 5 takes its place" in caplog.text
    )
    with pytest.raises(OSError, match="record"):
        list(batches(_Damaged(10, set(range(10))), 2, seed=0, start_step=0, steps=1))
    with pytest.raises(TrainError, match="refused"):
        example_or_next(_Raising(TrainError("refused")), 2)
    with pytest.raises(TrainError, match=r"10 examples in a row.* from 2 on; the first: cut off"):
        example_or_next(_Raising(ExampleError("cut off")), 2)


class _Raising(_Numbers):
    def __init__(self, error: Exception):
        super().__init__(10)
        self._error = error

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        raise self._error


def test_examples_are_identified_by_position_and_by_what_the_source_says():
    assert identified(_Damaged(10, {9}), [3, 9]) == [
        {"position": 3},
        {"position": 9, "made_from": 0},
    ]
    source = _Damaged(10, {3})
    source.describe = lambda index: {"clip": f"clip{index}", "draw": 0}
    assert identified(source, [3]) == [{"position": 3, "made_from": 4, "clip": "clip4", "draw": 0}]


class _Watched(_Numbers):
    def __init__(self, length: int, awaited: int):
        super().__init__(length)
        self._awaited, self.asked = awaited, threading.Event()

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index == self._awaited:
            self.asked.set()
        return super().__getitem__(index)


def test_batches_are_made_ahead():
    source = _Watched(ENDLESS, awaited=3)
    made = batches(source, 2, seed=0, start_step=0, steps=10)
    assert next(made)["index"].tolist() == [0, 1]
    assert source.asked.wait(60)  # before anybody asks for the second batch
    assert next(made)["index"].tolist() == [2, 3]


def test_empty_source_is_refused():
    with pytest.raises(ValueError, match="empty"):
        batches(_Numbers(0), 2, seed=0, start_step=0, steps=1)
