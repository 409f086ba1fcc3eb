"""A run that is killed again and again, at toy size; its workers end with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import tiny_stage

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
def test_a_run_killed_in_every_way_is_bit_equal_to_one_that_is_not(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "kill_test.py"), "--kills", "5"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path / "kills")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 kills" in done.stdout and "0 different" in done.stdout
    for kind in ("starting", "training", "saving", "stop, exit code 75", "stop, then kill"):
        assert kind in done.stdout


@pytest.mark.long
@pytest.mark.timeout(900)
def test_workers_leave_signals_to_the_run_and_end_with_it(tmp_path):
    (tmp_path / "config.py").write_text(tiny_stage._CONFIG)
    command = [*tiny_stage._command(tmp_path, tmp_path / "run"), "--config.workers=1"]

    def started_after(step: int) -> subprocess.Popen:
        process = subprocess.Popen(
            command, env=tiny_stage.environment(), stderr=subprocess.DEVNULL, start_new_session=True
        )
        while _last_step(tmp_path / "run") <= step and process.poll() is None:
            time.sleep(0.01)
        return process

    process = started_after(0)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    assert process.wait() == 75
    process = started_after(_last_step(tmp_path / "run"))
    workers = [int(pid) for pid in _children(process.pid)]
    assert workers
    process.kill()
    process.wait()
    while any(_is_alive(pid) for pid in workers):  # the test's timeout is the bound
        time.sleep(0.05)


def _last_step(workdir: Path) -> int:
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def _children(pid: int) -> list[str]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return found.stdout.split()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
