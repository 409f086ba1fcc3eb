"""Signals end a run in time, whatever its main thread is doing."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tora2_jax.system.stop import exit_code

_SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

_PROGRAM = """
import time
from tora2_jax.system.stop import StopSignals

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


def test_an_interrupted_program_shows_no_traceback():
    programs = ("sample", "inspect_entities", "evaluate", "encode_references", "demo")
    for name in programs:
        assert "sys.exit(exit_code(main))" in (_SCRIPTS / f"{name}.py").read_text()
    program = """
import sys, time
from tora2_jax.system.stop import exit_code

def main():
    print("ready", flush=True)
    time.sleep(1000)

sys.exit(exit_code(main))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 130
    assert told == "\nstopped; no file is left half written\n"


def test_others_end_as_they_do():
    assert exit_code(lambda: 2) == 2
    with pytest.raises(SystemExit):
        exit_code(lambda: sys.exit(3))
