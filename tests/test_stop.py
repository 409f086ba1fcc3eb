"""Signals end a run in time, whatever its main thread is doing."""

import signal
import subprocess
import sys

import pytest

_PROGRAM = """
import time
from tora2_jax.stop import StopSignals

with StopSignals(code=75, seconds={seconds}) as stop:
    stop.can_save = {can_save}
    print("ready", flush=True)
    while not ({ends} and stop.requested):
        time.sleep(0.01)
print("saved", flush=True)
"""


@pytest.mark.parametrize(
    ("number", "times", "seconds", "can_save", "ends", "code", "said"),
    [
        (signal.SIGTERM, 1, 1000, True, True, 0, "the run saves and stops"),
        (signal.SIGINT, 1, 1000, True, True, 0, "the run saves and stops"),
        (signal.SIGTERM, 2, 1000, True, False, 75, "SIGTERM again: stopped"),
        (signal.SIGTERM, 1, 0.1, True, False, 75, "not finished within 0.1 s: stopped"),
        (signal.SIGTERM, 1, 1000, False, False, 75, "before the first step: stopped"),
    ],
)
def test_first_signal_asks_and_a_second_or_the_bound_ends(
    number, times, seconds, can_save, ends, code, said
):
    program = _PROGRAM.format(seconds=seconds, can_save=can_save, ends=ends)
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    if times == 2:
        assert process.stderr.readline() == "\n"
        assert "once more to stop at once" in process.stderr.readline()
        process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (code, "saved\n" if code == 0 else ""), errors
    assert said in errors
