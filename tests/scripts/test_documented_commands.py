"""The commands that the pages show are commands that the programs take, and do what they say."""

import argparse
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from absl import app, flags

from tests.support.documented import ROOT, commands

TOY = ["--checkpoint", "checkpoints/toy"]
# What is run as it stands there, and what makes it short. Trainings do two steps.
RUN = {
    "python scripts/sample.py --checkpoint checkpoints/toy --request examples/request.json": [
        *("--steps", "2")
    ],
    "python scripts/sample.py --checkpoint checkpoints/toy --request a.json": ["--steps", "1"],
    "python scripts/sample.py --checkpoint checkpoints/toy --request mine": ["--steps", "1"],
    "python scripts/inspect_entities.py mine/request.json": [],
    "python -m tora2_jax.trajectory a.txt b.json": [],
    "python -m tora2_jax.trajectory a.txt --to comfyui": [],
    "python scripts/inspect_entities.py examples/request.json --checkpoint checkpoints/toy": [],
    "python scripts/evaluate.py world --checkpoint checkpoints/toy": [
        *("--requests", "2", "--steps", "2", "--batch-size", "2")
    ],
    "python -m tora2_jax.train --config configs/toy.py --workdir workdirs/tora2": ["--smoke"],
    "python scripts/world_to_clips.py": [],
}
# Why the others are not run here.
REASONS = {
    r"python -m convert |clips_to_checkpoint": "needs downloads; tests/convert runs it on twins",
    r"motion_stage|motion_vae|tora2_5b|configs/CONFIG|--config CONFIG": "needs weights and clips",
    r"configs/ablations/|configs/toy\.py --workdir (workdirs/ablations|DIR)": "a training of hours",
    r"checkpoints/(tora|cogvideox)|workdirs/ablations|DIR": "needs such a checkpoint",
    r"scripts/curate\.py": "needs videos; tests/data/curate runs it on those of the toy world",
    r"tora2_jax\.plan|scripts/benchmark\.py": "compiles for other machines for minutes",
    r"^make ": "tests/test_rooms.py knows the targets; continuous integration runs them",
}


class Accepted(BaseException):
    """A program has understood its command line."""


@pytest.fixture
def stopped_after_flags(monkeypatch, tmp_path):
    """Programs end as soon as they have read their flags, which the next one does not see."""
    parse, before = argparse.ArgumentParser.parse_args, set(flags.FLAGS)

    def parsed(self, *arguments, **others):
        parse(self, *arguments, **others)
        raise Accepted

    def run(main, argv, flags_parser):
        flags_parser(argv)
        raise Accepted

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.setattr(app, "run", run)
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "checkpoints", "examples", "scripts"):
        os.symlink(ROOT / name, name)
    Path("run/checkpoint-500").mkdir(parents=True)  # else it could be a name on the hub
    yield
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()


def with_a_config_that_is_there(words: list[str]) -> list[str]:
    """Placeholders such as CONFIG and configs/mine.py as a config of ours."""
    for index, word in enumerate(words[:-1]):
        if word == "--config" and not (ROOT / words[index + 1]).is_file():
            words = [*words[: index + 1], "configs/tora2_5b.py", *words[index + 2 :]]
    return words


def program_words() -> list[list[str]]:
    known = {tuple(words): None for _, words in commands() if words[0] == "python"}
    return [list(words) for words in known if "zai-org/" not in " ".join(words)]


@pytest.mark.parametrize("words", program_words(), ids=" ".join)
def test_the_program_takes_these_words(words, stopped_after_flags, monkeypatch, capsys):
    _, *words = with_a_config_that_is_there(words)
    module = words[0] == "-m"
    if words[1] == "tora2_jax.train" and "--workdir" not in words:
        words += ["--workdir", "DIR"]  # the page says "..."
    monkeypatch.setattr(sys, "argv", words[1:] if module else words)
    try:
        if module:
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    except Accepted:
        return
    except SystemExit as ended:
        if ended.code == 0 and "--help" in words:
            return
        pytest.fail(f"{ended.code}: {capsys.readouterr().err}")
    pytest.fail("it reads no flags")


def test_make_has_the_targets():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {words[1] for _, words in commands() if words[0] == "make" and len(words) > 1}
    assert named and named <= targets


def test_every_command_is_run_or_there_is_a_reason_why_not():
    told = set()
    for page, words in commands():
        line = " ".join(words)
        if any(line.startswith(start) for start in RUN):
            continue
        reasons = [pattern for pattern in REASONS if re.search(pattern, line)]
        assert reasons, f"{page}: {line}"
        told.update(reasons)
    assert told == set(REASONS)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("start", RUN, ids=lambda start: " ".join(start.split()[1:3]))
def test_it_runs_as_the_page_says(start, tmp_path):
    words = next(words for _, words in commands() if " ".join(words).startswith(start))
    for name in ("configs", "checkpoints", "examples", "scripts"):
        os.symlink(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "examples", tmp_path / "mine")
    (tmp_path / "a.txt").write_text("10,20\n100,120\n")
    (tmp_path / "b.json").write_text("[[10, 20], [200, 30]]")
    if "a.json" in words:
        for name in ("a.json", "b.json"):
            text = '{"prompt": "A man.", "entities": [{"word": "man", "trajectory": [[9, 9]]}]}'
            (tmp_path / name).write_text(text)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, *words[1:], *RUN[start]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for index, word in enumerate(words[:-1]):
        if word in ("--output", "--plot"):
            assert written(tmp_path / words[index + 1])


def written(path: Path) -> bool:
    """Whether a file is there, or those of a batch, or a folder that holds some."""
    numbered = list(path.parent.glob(f"{path.stem}_*{path.suffix}"))
    return bool(numbered) or path.is_file() or (path.is_dir() and any(path.iterdir()))
