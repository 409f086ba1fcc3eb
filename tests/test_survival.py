"""A run that is killed again and again, at toy size."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


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
