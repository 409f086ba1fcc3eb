"""Plants known faults, one at a time, in a copy of the project, and runs the tests that name them.

    python scripts/mutants.py                  all of tests/planted_faults.json
    python scripts/mutants.py --count 15 --first 30   fifteen of them, from the thirtieth on, around

A fault is noticed if its tests pass without it and fail on a value with it; exit code 1 if one is
not. A test that cannot fail is a defect.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "tests" / "planted_faults.json"
_COPIED = ("tora2_jax", "convert", "configs", "scripts", "tests", "examples", "pyproject.toml")
_SECONDS = 300  # for one fault's tests, compiling included
_VALUE = re.compile(r"^E +(AssertionError|assert |Failed: DID NOT )", re.MULTILINE)


class Fault(NamedTuple):
    """One change that tests have to notice."""

    fault: str
    file: str
    old: str  # occurs once in the file
    new: str
    tests: str  # file
    select: str  # pytest's -k


def read() -> list[Fault]:
    """All faults of the list."""
    return [Fault(**row) for row in json.loads(LIST.read_text())]


def verdict(before: int, after: int, output: str) -> str:
    """What exit codes of pytest without and with the fault, and the latter's output, say."""
    if before:
        return "the tests fail without it"
    if after == 0:
        return "SURVIVED"
    if after != 1 or not _VALUE.search(output):
        return f"fails, but not on a value (code {after})"
    return "noticed"


def _run(folder: Path, fault: Fault) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", fault.tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
    try:
        done = subprocess.run(
            [*command, "-k", fault.select],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return 124, ""
    return done.returncode, done.stdout


def plant(folder: Path, fault: Fault, clean: dict[tuple[str, str], int]) -> str:
    """The verdict on one fault; `clean` keeps the exit codes of tests without faults."""
    tests = (fault.tests, fault.select)
    if tests not in clean:
        clean[tests] = _run(folder, fault)[0]
    path = folder / fault.file
    text = path.read_text()
    if text.count(fault.old) != 1:
        return f"cannot be planted: {fault.old!r} occurs {text.count(fault.old)} times"
    try:
        path.write_text(text.replace(fault.old, fault.new))
        code, output = _run(folder, fault)
    finally:
        path.write_text(text)
    return verdict(clean[tests], code, output)


def main() -> int:
    """Plants the chosen faults and prints one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, help="how many; default: all")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    options = parser.parse_args()
    faults = read()
    count = len(faults) if options.count is None else options.count
    chosen = [(options.first + place) % len(faults) for place in range(min(count, len(faults)))]
    missed, clean = 0, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in _COPIED:
            source = ROOT / part
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, folder / part)
        (folder / "checkpoints").symlink_to(ROOT / "checkpoints")
        for number in chosen:
            start = time.monotonic()
            said = plant(folder, faults[number], clean)
            missed += said != "noticed"
            seconds = time.monotonic() - start
            print(f"{number:3} {faults[number].fault}: {said} ({seconds:.0f} s)", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} faults were noticed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
