"""scripts/clips_to_checkpoint.sh alone: what it calls and how it ends; Python is a stand-in."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "clips_to_checkpoint.sh"
INPUTS = ("cogvideox", "tora", "dinov2", "arcface", "reid")
# Makes what a command is to make; writes down how it is called, when signals may come. Each life of
# the training takes a line of `lives`: exit code, and the step that is saved; "wait" ends it by
# SIGTERM alone.
STAND_IN = r"""#!/usr/bin/env bash
here=$(dirname "$0") call=$*
called() { echo "$call" >> "$here/calls"; }
for argument in "$@"; do
  case "$argument" in --workdir=*) run=${argument#*=} ;; esac
  [ "${before:-}" != --dst ] || mkdir -p "$argument"
  before=$argument
done
if [ "$3" = "$(cat "$here/hangs" 2>/dev/null)" ]; then
  trap 'echo stopped >> "$here/calls"; exit 143' TERM
  called
  while :; do :; done
fi
[ "$2" = tora2_jax.train ] || { called; exit 0; }
read -r code step < "$here/lives"
sed -i 1d "$here/lives"
[ "$code" != wait ] || trap 'echo stopped >> "$here/calls"; exit 75' TERM
called
[ -z "$step" ] || mkdir -p "$run/checkpoints/$step"
while [ "$code" = wait ]; do :; done
exit "$code"
"""


@pytest.fixture
def start(tmp_path):
    """Starts the script with lives of the training; all inputs are empty files."""
    (tmp_path / "python").write_text(STAND_IN)
    (tmp_path / "sleep").write_text("#!/bin/sh\n")  # no pause before the next life
    for name in ("python", "sleep"):
        (tmp_path / name).chmod(0o755)
    (tmp_path / "clips").mkdir(exist_ok=True)
    command = [str(SCRIPT), "--clips", "clips", "--out", "out"]
    for name in INPUTS:
        (tmp_path / name).touch()
        command += [f"--{name}", name]

    def begin(*lives: str, options: tuple[str, ...] = ()) -> subprocess.Popen:
        (tmp_path / "lives").write_text("".join(f"{life}\n" for life in lives))
        (tmp_path / "calls").write_text("")
        path = f"{tmp_path}:{os.environ['PATH']}"
        return subprocess.Popen(
            [*command, *options],
            cwd=tmp_path,
            env=os.environ | {"PYTHON": str(tmp_path / "python"), "PATH": path},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    return begin


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def test_it_goes_on_after_every_failure_and_does_nothing_twice(start, tmp_path):
    (tmp_path / "request.json").touch()
    flags = ("--request", "request.json", "--sample-options", "--steps 2", "--", "--config.seed=3")
    script = start("1", "1", "137 2", "1", "75 4", "1", "0 6", options=flags)
    out, error = script.communicate()
    assert script.returncode == 0, error
    made, weights = calls(tmp_path), tmp_path / "out" / "weights"
    assert [line.split()[2] for line in made if line.startswith("-m convert")] == [
        *INPUTS,
        "bundle",
        "export",
    ]
    assert f"-m convert tora --src {tmp_path}/tora --dst {weights}/tora" in made[1]
    assert f"--base {weights}/cogvideox" in made[1]
    training = [line for line in made if "tora2_jax.train" in line]
    assert len(training) == 7 and len(set(training)) == 1
    assert training[0].endswith("--config.seed=3")
    assert f"--config=configs/tora2_5b.py:{weights}/tora " in training[0]
    assert f"--config.clips.folder={tmp_path}/clips " in training[0]
    (sample,) = (line for line in made if line.startswith("scripts/sample.py"))
    assert f"--checkpoint {tmp_path}/out/checkpoint_6" in sample
    assert sample.endswith(f"{tmp_path}/out/video_6.mp4 --steps 2")
    assert out.count("it starts again") == 6

    again = start("0")
    again.communicate()
    assert again.returncode == 0
    assert [line.split()[1] for line in calls(tmp_path)] == ["tora2_jax.train"]


@pytest.mark.parametrize("option", ["--out", "--clips", "--cogvideox", "--request"])
def test_an_address_is_no_folder(start, tmp_path, option):
    script = start(options=(option, "gs://bucket/run"))
    _, error = script.communicate()
    assert script.returncode == 2 and f"{option}: gs://bucket/run is an address" in error
    assert not calls(tmp_path) and not list(tmp_path.glob("gs:*"))


@pytest.mark.parametrize(
    ("lives", "code", "count"), [(("2", "0"), 2, 1), (("9 1", "9", "9", "9", "0"), 9, 4)]
)
def test_it_ends_where_another_life_would_be_in_vain(start, tmp_path, lives, code, count):
    script = start(*lives)
    _, error = script.communicate()
    assert script.returncode == code
    made = calls(tmp_path)
    assert sum("tora2_jax.train" in line for line in made) == count == len(made) - len(INPUTS)
    assert ("three times" in error) == (count > 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_is_passed_on(start, tmp_path, number):
    script = start("wait 3", "0 9")
    while not (tmp_path / "out/run/checkpoints/3").exists() and script.poll() is None:
        time.sleep(0.01)
    script.send_signal(number)
    script.communicate()
    assert script.returncode == 75
    assert calls(tmp_path)[-1] == "stopped"


@pytest.mark.parametrize("command", ["dinov2", "bundle"])
def test_a_stop_of_what_is_no_training(start, tmp_path, command):
    (tmp_path / "hangs").write_text(command)
    script = start("0 9")
    while command not in " ".join(calls(tmp_path)).split() and script.poll() is None:
        time.sleep(0.01)
    script.send_signal(signal.SIGTERM)
    script.communicate()
    assert script.returncode == 75
    assert calls(tmp_path)[-1] == "stopped"


def test_everything_that_is_missing_is_told(tmp_path):
    command = [str(SCRIPT), "--tora", "absent.pt", "--out", "out", "--clips", "absent"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    for line in (
        "--cogvideox: is needed",
        f"--tora: {tmp_path}/absent.pt is not there",
        f"--clips: there is no folder {tmp_path}/absent",
        "--reid: is needed",
    ):
        assert line in done.stderr
    for given in (["--clip", "x"], ["--out"]):
        done = subprocess.run([str(SCRIPT), *given], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2 and given[0] in done.stderr
