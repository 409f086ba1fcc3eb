"""Prints the tests to run after a change: those of what it touched, and one parity test per room.

    pytest $(python scripts/touched_tests.py)         since the branch left main
    python scripts/touched_tests.py --since HEAD~3

A test file is taken if it was changed itself, or if it stands in the room of a changed module and
names that module. `make test FAST=1` runs them.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
# What each room is measured by, seconds each.
PARITY = (
    "conditioning/test_twin_inputs.py",
    "config/test_stored_settings.py::test_british_names_of_the_first_version_are_read",
    "convert/test_convert_t5.py",
    "data/test_loader.py::test_start_step_continues_the_same_sequence",
    "evaluation/test_probes.py",
    "media/test_video_reading.py",
    "models/test_dit.py::test_every_block_equals_diffusers",
    "models/test_twin_entities.py",
    "parallel/test_parallel.py::test_of_a_block_only_attention_sends_its_stream",
    "request/test_request.py",
    "sampling/test_twin_guidance.py",
    "test_rooms.py",
    "train/test_twin_step.py",
    "trajectory/test_trajectory.py",
    "weights/test_checkpoint.py",
    "world/test_world.py",
)


def changed_files(since: str) -> list[str]:
    """Paths below the project, of commits since then and of what is not committed."""

    def lines(*arguments: str) -> list[str]:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    start = lines("merge-base", since, "HEAD")[0]
    return sorted(
        {
            *lines("diff", "--name-only", start),
            *lines("ls-files", "--others", "--exclude-standard"),
        }
    )


def files_for(changed: Iterable[str], texts: dict[str, str]) -> list[str]:
    """Test files for changed paths.

    Args:
        changed: Paths below the project.
        texts: Test file, as a path below `tests`, -> its text.
    """
    chosen = set()
    for path in changed:
        below = path.removeprefix("tests/")
        if below in texts:
            chosen.add(below)
        match = re.fullmatch(r"(?:tora2_jax/)?(\w+)/(?:.*/)?(\w+)\.py", path)
        if match is None or path.startswith("tests/"):
            continue
        room, module = match.groups()
        word = re.compile(rf"\b{room if module == '__init__' else module}\b")
        chosen |= {
            name
            for name, text in texts.items()
            if name.startswith(f"{room}/") and word.search(text)
        }
    return sorted(chosen)


def main() -> int:
    """Prints one pytest argument per line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--since", default="main", help="commit or branch; default: main")
    options = parser.parse_args()
    texts = {str(path.relative_to(TESTS)): path.read_text() for path in TESTS.rglob("test_*.py")}
    try:
        touched = files_for(changed_files(options.since), texts)
    except subprocess.CalledProcessError as error:
        print(f"--since {options.since}: {error.stderr.strip()}", file=sys.stderr)
        return 2
    rest = [name for name in PARITY if name.split("::")[0] not in touched]
    print("\n".join(f"tests/{name}" for name in (*touched, *rest)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
