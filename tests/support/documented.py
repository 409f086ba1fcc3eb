"""The commands that the pages show, as words."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"^```(?:bash|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PROGRAM = re.compile(r"(?:^|\s)(python|make|scripts/\S+\.sh)\s")
_SETTING = re.compile(r"[A-Z_]+=")  # of the environment, before a command


def pages() -> list[Path]:
    """All Markdown that users read."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[tuple[str, list[str]]]:
    """Every command of a program of this project, with the page that shows it."""
    found = []
    for page in pages():
        for block in _BLOCK.findall(page.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                if program := _PROGRAM.search(f" {line}"):
                    words = _words(f" {line}"[program.start() :])
                    found.append((page.name, words))
    return found


def _words(line: str) -> list[str]:
    """Without remarks, what follows the command, and what may be left out."""
    line = re.split(r"\s#|;|&&|\|\|", line)[0]
    words = shlex.split(re.sub(r"\[.*?\]|\.\.\.", "", line.replace("'", "")))
    return [word for word in words if not _SETTING.match(word) or word.startswith("STAGE")]
