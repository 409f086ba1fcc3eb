"""Several workers write what one writes, whoever dies in between."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.curate.test_run import small, world
from tora2_jax.data.curate import run
from tora2_jax.media.video import write_video

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
VIDEOS = 8

_PROGRAM = """
import sys
from pathlib import Path
from tests.data.curate.test_run import small
from tora2_jax.data.curate import run
if __name__ == "__main__":
    run.run(run.Options(Path(sys.argv[1]), Path(sys.argv[2]), small(), int(sys.argv[3])))
"""


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "raw"
    for index in range(VIDEOS):
        record = world(index)
        write_video(folder / f"{index}.mp4", record.video, 8)
        (folder / f"{index}.txt").write_text(record.caption)
    return folder


@pytest.fixture(scope="module")
def expected(raw) -> dict[str, bytes]:
    """The files of an undisturbed run of one worker."""
    out = raw.parent / "alone"
    run.run(run.Options(raw, out, small()))
    return files(out)


def files(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }


def start(raw: Path, out: Path, workers: int) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_DEDUP_LOGS": "0"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(raw), str(out), str(workers)],
        env=environment,
        cwd=raw.parent,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_records(out: Path, count: int, program: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while len(list((out / run.RECORDS).glob("*.json"))) < count:
        assert program.poll() is None, program.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def workers_of(raw: Path) -> list[int]:
    """The processes of Ray's actors that run in the folder of these tests."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words, folder = (place / "cmdline").read_bytes(), os.readlink(place / "cwd")
        except OSError:  # it has ended, or is of somebody else
            continue
        if words.startswith(b"ray::") and b"Worker" in words and folder == str(raw.parent):
            found.append(int(place.name))
    return found


def test_two_workers_write_what_one_writes(raw, expected):
    out = raw.parent / "two"
    program = start(raw, out, 2)
    _, told = program.communicate(timeout=600)
    assert program.returncode == 0, told[-3000:]
    assert files(out) == expected


def test_a_worker_and_then_the_program_are_killed(raw, expected):
    out = raw.parent / "killed"
    program = start(raw, out, 2)
    wait_for_records(out, 1, program)
    for worker in workers_of(raw)[:1]:
        os.kill(worker, signal.SIGKILL)
    wait_for_records(out, 3, program)
    program.kill()
    program.communicate()
    again = start(raw, out, 1)
    _, told = again.communicate(timeout=600)
    assert again.returncode == 0, told[-3000:]
    assert files(out) == expected
