"""One program at a time in a folder, and what becomes of a holder that is gone."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest

from tests.support import tiny_stage
from tora2_jax import config
from tora2_jax.data import pool
from tora2_jax.system import lease
from tora2_jax.system.lease import Lease, LeaseError
from tora2_jax.train import loop, state
from tora2_jax.train.runs import checkpoints

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from tora2_jax.system.lease import Lease
with Lease(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def _stage(monkeypatch):
    monkeypatch.setitem(state.STAGES, "base", "tests.support.tiny_stage")


@pytest.fixture
def _quick(monkeypatch):
    monkeypatch.setattr(lease, "RENEWED_EVERY", 0.05)
    monkeypatch.setattr(lease, "WATCHED_FOR", 1.0)
    monkeypatch.setattr(lease, "_SETTLED_AFTER", 0.2)


def stored(folder: Path) -> dict:
    return json.loads((folder / "lease.json").read_text())


def write(folder: Path, **changes) -> None:
    """A lease as a holder elsewhere has left it."""
    holder = lease._myself() | {"machine": "another", "host": "far", "process": 7} | changes
    (folder / "lease.json").write_bytes(lease._written(holder, 3))


def test_a_holder_of_this_machine_keeps_others_out_until_it_ends(tmp_path, monkeypatch):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(LeaseError, match=rf"in use by process {process.pid} on "), Lease(tmp_path):
        pass
    process.kill()
    process.wait()
    monkeypatch.setattr(lease.Lease, "_changes", None)  # nothing has to be watched
    with Lease(tmp_path):
        assert stored(tmp_path)["process"] != process.pid
    assert not list(tmp_path.iterdir())


def test_a_number_of_a_process_that_another_has_got_means_nothing(tmp_path, _quick):
    own = lease._myself()
    if own["started"] is None:
        pytest.skip("the system does not tell when a process began")
    write(tmp_path, machine=own["machine"], process=own["process"], started="1")
    assert lease._runs_here(stored(tmp_path)) is False and lease._runs_here(own) is True
    with Lease(tmp_path):
        assert stored(tmp_path)["started"] == own["started"]


def test_a_holder_elsewhere_is_watched_not_its_clock(tmp_path, _quick):
    write(tmp_path)
    before = time.monotonic()
    with Lease(tmp_path):
        assert time.monotonic() - before >= lease.WATCHED_FOR
    write(tmp_path)
    ended = threading.Event()

    def renew():
        while not ended.wait(0.1):
            path = tmp_path / "lease.json"
            path.write_bytes(path.read_bytes().replace(b"00000003", b"00000004"))

    threading.Thread(target=renew).start()
    with pytest.raises(LeaseError, match="in use by process 7 on far"), Lease(tmp_path):
        pass
    ended.set()


def test_of_two_that_take_over_at_once_one_does(tmp_path, _quick):
    write(tmp_path)
    found, done = [], threading.Event()

    def take():
        try:
            with Lease(tmp_path):
                found.append("held")
                done.wait()
        except LeaseError:
            found.append("refused")

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(found) < 4:
        time.sleep(0.05)
    done.set()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["held", *["refused"] * 3]
    assert not list(tmp_path.iterdir())


def test_who_has_lost_the_folder_knows_it_and_leaves_it(tmp_path, _quick):
    with Lease(tmp_path) as held:
        time.sleep(0.2)
        assert held.lost is None and stored(tmp_path)["renewed"] > "00000000"
        write(tmp_path)
        while held.lost is None:
            time.sleep(0.05)
        assert held.lost == "process 7 on far"
    assert stored(tmp_path)["host"] == "far"


def test_a_file_that_says_nothing_is_watched_too(tmp_path, _quick):
    for content in (b"", b"[1]", b"{"):
        (tmp_path / "lease.json").write_bytes(content)
        with Lease(tmp_path):
            assert stored(tmp_path)["host"]


def test_a_second_start_leaves_a_live_run_alone(tmp_path):
    (tmp_path / "config.py").write_text(tiny_stage._CONFIG)
    command = [*tiny_stage._command(tmp_path, tmp_path / "run"), "--config.checkpoint_every=1"]
    environment = tiny_stage.environment()
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "run" / "checkpoints").glob("[0-9]*")):
        assert first.poll() is None
        time.sleep(0.1)
    try:
        frozen = tmp_path / "run" / "checkpoints" / "frozen"
        before = {path: path.stat().st_mtime_ns for path in frozen.rglob("*")}
        second = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert second.returncode == 2, second.stderr
        assert f"in use by process {first.pid} on " in second.stderr
        assert "Traceback" not in second.stderr
        assert {path: path.stat().st_mtime_ns for path in frozen.rglob("*")} == before
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()


def test_a_run_whose_folder_was_taken_ends_and_saves_nothing(tmp_path, _quick, _stage, monkeypatch):
    save = checkpoints.Checkpoints.save

    def save_and_stand_still(self, step, items):
        save(self, step, items)
        if step == 4:
            write(tmp_path)
            time.sleep(0.5)

    monkeypatch.setattr(checkpoints.Checkpoints, "save", save_and_stand_still)
    with pytest.raises(loop.TrainError, match="taken over by process 7 on far"):
        loop.train(tiny_stage._config(steps=8, checkpoint_every=2), tmp_path)
    assert max(int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*")) == 4


def test_a_pool_that_another_makes_is_waited_for(tmp_path, _quick, monkeypatch):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout.readline() == b"held\n"

    def end():
        (tmp_path / "pool.json").write_text('{"size": 0}')
        process.kill()
        process.wait()

    monkeypatch.setattr(pool, "_build", None)  # it is there when the other ends
    timer = threading.Timer(0.5, end)
    timer.start()
    examples = mock.Mock(spec=pool.Examples, at_once=1, identity={})
    pool.build(tmp_path, config.toy(), examples, mock.Mock(), jax.devices())
    assert process.poll() is not None
    assert np.array_equal(sorted(path.name for path in tmp_path.iterdir()), ["pool.json"])
