"""Numbers that are not finite, damaged examples and full disks are told; a run goes on or ends."""

import json
import resource
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from tests.support.tiny_stage import (
    _assert_equal,
    _checkpoints,
    _config,
    _losses,
    _Source,
    change_stage,
    loss,
    source,
)
from tora2_jax.train import loop, optim
from tora2_jax.train.runs import checkpoints

pytestmark = pytest.mark.usefixtures("_stage")


def _bad_at(steps: set[int], gradient_only: bool = False):
    """The stage's loss, not finite at some steps (from 0); known by the examples of the batch."""
    rows = [source(_config())[step * 4]["inputs"] for step in sorted(steps)]
    plain_loss = loss

    def bad_loss(config, model, batch, key):
        value, metrics = plain_loss(config, model, batch, key)
        bad = jnp.any(jnp.all(jnp.asarray(rows)[:, None] == batch["inputs"], axis=-1))
        if gradient_only:  # the square root has an infinite slope at zero
            return value + jnp.sqrt(jnp.where(bad, 0.0, 1.0) * value**2), metrics
        return jnp.where(bad, jnp.inf, value), metrics

    return bad_loss


@pytest.mark.parametrize("gradient_only", [False, True])
def test_a_step_without_finite_numbers_is_skipped_and_counted(tmp_path, monkeypatch, gradient_only):
    change_stage(monkeypatch, loss=_bad_at({2}, gradient_only))
    before = loop.train(_config(steps=2), tmp_path / "before")
    after = loop.train(_config(steps=3), tmp_path / "after")
    assert int(after.step) == 3
    schedule = optim.after_skipped_step(before.optimizer, after.optimizer)  # alone goes on
    _assert_equal(before._replace(step=after.step, optimizer=schedule), after)
    rows = _skipped(tmp_path / "after")
    assert [row["step"] for row in rows] == [3]
    assert rows[0]["examples"] == [
        {"position": index, "clip": f"clip{index}"} for index in range(8, 12)
    ]
    assert rows[0]["gradient_norm" if gradient_only else "loss"] in ("inf", "nan")
    assert (_losses(tmp_path / "after")[2]["loss"] is None) != gradient_only
    further = loop.train(_config(steps=5), tmp_path / "after")
    assert np.any(further.trainable["head.1.kernel"] != after.trainable["head.1.kernel"])
    assert len(_skipped(tmp_path / "after")) == 1


def test_too_many_skipped_steps_in_a_row_end_the_run(tmp_path, monkeypatch):
    change_stage(monkeypatch, loss=_bad_at({1, 3, 4, 5, 6}))
    told = (
        r"steps 4 to 6 had no finite.*skipped\.jsonl lists: position 12 clip clip12; position 13 "
    )
    with pytest.raises(loop.TrainError, match=told):
        loop.train(_config(steps=9, skips_allowed=2), tmp_path)
    assert [row["step"] for row in _skipped(tmp_path)] == [2, 4, 5, 6]
    assert [row["step"] for row in _losses(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_bad_example_is_replaced_and_counted(tmp_path, monkeypatch):
    change_stage(monkeypatch, source=lambda config: _Holes(config.seed))
    change_stage(monkeypatch, loss=_sum_of_inputs(loss))
    loop.train(_config(steps=2, log_every=1), tmp_path)
    good = _Source(0)
    rows = [good[index]["inputs"] for index in (4, 6, 6, 7)]
    assert _losses(tmp_path)[1]["loss"] == pytest.approx(float(np.sum(rows)), rel=1e-5)
    assert _scalars(tmp_path, "replaced") == [0, 1]


class _Holes(_Source):
    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index == 5:
            raise OSError("example 5 is damaged")
        return super().__getitem__(index)


def _sum_of_inputs(plain_loss):
    def summed(config, model, batch, key):
        value, metrics = plain_loss(config, model, batch, key)
        return 0 * value + batch["inputs"].sum(), metrics

    return summed


def test_a_save_that_fails_is_told_and_leaves_the_last_checkpoint(tmp_path, monkeypatch, caplog):
    """As on a full disk: no file may have the size of an array while step 4 is saved."""
    save = checkpoints.Checkpoints.save

    def on_a_full_disk(self, step, items):
        if step not in full:
            return save(self, step, items)
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
        large = jax.random.normal(jax.random.key(0), (100_000,))
        try:
            save(self, step, items | {"average": items["average"] | {"large": large}})
            while not self.failed():
                time.sleep(0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    full = {4}
    monkeypatch.setattr(checkpoints.Checkpoints, "save", on_a_full_disk)
    loop.train(_config(steps=6, keep_checkpoints=1), tmp_path / "goes_on")
    assert "step 4 could not be saved" in caplog.text and "checkpoint 2 is kept" in caplog.text
    assert _checkpoints(tmp_path / "goes_on") == ["6"]

    with pytest.raises(checkpoints.SaveError, match=r"step 4 could not.* 2 is kept"):
        loop.train(_config(keep_checkpoints=1), tmp_path / "ends")
    assert _checkpoints(tmp_path / "ends") == ["2"]
    full.clear()
    again = loop.train(_config(keep_checkpoints=1), tmp_path / "ends")
    _assert_equal(again, loop.train(_config(), tmp_path / "whole"))


def test_a_full_disk_is_told_before_it_is_full(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    loop.train(_config(steps=1), tmp_path)
    assert "GB free; a checkpoint takes" in caplog.text


def _skipped(workdir: Path) -> list[dict]:
    return [json.loads(row) for row in (workdir / "metrics/skipped.jsonl").read_text().splitlines()]


def _scalars(workdir: Path, name: str) -> list[float]:
    """Values of a metric in the order in which TensorBoard's file has them."""
    values = []
    for path in sorted((workdir / "metrics").glob("events*")):
        data, place = path.read_bytes(), 0
        while place < len(data):  # length (8 bytes), its checksum (4), an event, its checksum (4)
            size = int.from_bytes(data[place : place + 8], "little")
            event = event_pb2.Event.FromString(data[place + 12 : place + 12 + size])
            values += [value.simple_value for value in event.summary.value if value.tag == name]
            place += 16 + size
    return values
