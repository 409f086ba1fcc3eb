"""Checks that no room has more type errors than it is allowed, so that their number only falls.

Usage:
    python scripts/check_types.py          # compares mypy's errors with tests/type_errors.json
    python scripts/check_types.py --write  # lowers the file to what was found, and never raises it

A room is a module or folder of tora2_jax, or `convert` or `scripts`; what the file does not name
may have none. Exit codes: 0 no room has more errors than the file says (if one has fewer, it is
said how to lower the file), 1 a room has more, 2 mypy could not run.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = ROOT / "tests" / "type_errors.json"
CHECKED = ("tora2_jax", "convert", "scripts")


def room_of(path: str) -> str:
    """The room that a file belongs to; `path` is relative to the repository."""
    parts = Path(path).with_suffix("").parts
    return parts[1] if parts[0] == "tora2_jax" and len(parts) > 1 else parts[0]


def by_room(output: Iterable[str]) -> dict[str, list[str]]:
    """The errors among the lines that mypy prints; its notes belong to them and are left out."""
    found: dict[str, list[str]] = {}
    for line in output:
        if ": error: " in line:
            found.setdefault(room_of(line.split(":")[0]), []).append(line)
    return found


def differences(found: Mapping[str, int], allowed: Mapping[str, int]) -> dict[str, int]:
    """Of each room whose count is not the allowed one: how many errors it has more (or, fewer)."""
    rooms = sorted({*found, *allowed})
    change = {room: found.get(room, 0) - allowed.get(room, 0) for room in rooms}
    return {room: more for room, more in change.items() if more}


def verdict(change: Mapping[str, int], write: bool) -> list[str]:
    """What is to be said of differences; empty if there is nothing to do by hand."""
    name = ALLOWED.relative_to(ROOT)
    worse = {room: more for room, more in change.items() if more > 0}
    lines = [f"{room}: {more} more than {name} allows" for room, more in worse.items()]
    if worse and write:
        lines.append(f"{name} stays as it is: it may only be lowered")
    better = {room: -more for room, more in change.items() if more < 0}
    if better and not write:
        lines += [f"{room}: {fewer} fewer than {name} allows" for room, fewer in better.items()]
        lines.append(f"lower {name}: python scripts/check_types.py --write")
    return lines


def run_mypy() -> list[str]:
    """The lines that mypy prints; ends the process with code 2 if it cannot check."""
    if importlib.util.find_spec("mypy") is None:
        print("mypy is not there; install it: pip install -e '.[dev]'", file=sys.stderr)
        sys.exit(2)
    command = [sys.executable, "-m", "mypy", "--no-color-output", "--no-error-summary", *CHECKED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):  # 1: it has found errors
        print(done.stdout + done.stderr, file=sys.stderr)
        sys.exit(2)
    return done.stdout.splitlines()


def main() -> int:
    """Runs the check and returns the exit code."""
    parser = argparse.ArgumentParser(description="No room may have more type errors than before.")
    parser.add_argument("--write", action="store_true", help=f"lower {ALLOWED.relative_to(ROOT)}")
    write = parser.parse_args().write
    errors = by_room(run_mypy())
    found = {room: len(lines) for room, lines in sorted(errors.items())}
    change = differences(found, json.loads(ALLOWED.read_text()))
    for room, more in change.items():
        if more > 0:
            print("\n".join(errors[room]))
    lines = verdict(change, write)
    if write and not lines:
        ALLOWED.write_text(json.dumps(found, indent=2) + "\n")
    print("\n".join(lines) if lines else f"{sum(found.values())} type errors, as allowed")
    return int(any(more > 0 for more in change.values()))


if __name__ == "__main__":
    sys.exit(main())
