"""What programs say while they work."""

import re
import time

import pytest

from tora2_jax.system import compile_cache, feedback


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    monkeypatch.setattr(feedback, "ON_A_TERMINAL", 0.02)
    monkeypatch.setattr(feedback, "IN_A_LOG", 0.02)


def _wait_for(capsys, pattern: str) -> str:
    """What is written until a pattern is, as long as it takes."""
    told, deadline = "", time.monotonic() + 60
    while not re.search(pattern, told) and time.monotonic() < deadline:
        time.sleep(0.01)
        told += capsys.readouterr().err
    return told


def test_long_work_is_told_again_and_again(capsys):
    with feedback.working("reading the checkpoint"):
        told = _wait_for(capsys, r"(reading the checkpoint: 0 s\n){3}")
    assert told.startswith("reading the checkpoint: 0 s\n" * 3)


def test_short_and_silent_work_is_not_told(capsys, monkeypatch):
    with feedback.working("reading", silent=True):
        time.sleep(0.1)
    monkeypatch.setattr(feedback, "ON_A_TERMINAL", 60)
    monkeypatch.setattr(feedback, "IN_A_LOG", 60)
    with feedback.working("reading"):
        pass
    assert capsys.readouterr().err == ""


def test_a_bar_moves_while_one_part_takes_long(capsys):
    with feedback.bar("sampling", 3, "step") as bar:
        told = _wait_for(capsys, r"(sampling:   0%.*0/3.*){3}")
        bar.update()
        told += _wait_for(capsys, "1/3")
    assert len(re.findall(r"0/3 \[", told)) >= 3 and "1/3 [" in told


def test_phases_have_a_bar_each(capsys):
    with feedback.Phases({"encoding": "part", "sampling": "step"}) as phases:
        for phase, total in (("encoding", 1), ("sampling", 2)):
            for done in range(total + 1):
                phases.report(phase, done, total)
    told = capsys.readouterr().err
    assert "encoding: 100%" in told and "1/1 [" in told
    assert "sampling: 100%" in told and "2/2 [" in told and "step" in told
    assert told.index("sampling") > told.index("encoding: 100%")


def test_compiled_programs_are_kept_unless_the_user_says_otherwise(tmp_path, monkeypatch):
    changed = {}
    config = type("Config", (), {"jax_compilation_cache_dir": None, "update": changed.__setitem__})
    monkeypatch.setattr(compile_cache.jax, "config", config)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compile_cache.keep_compiled_programs()
    assert not changed  # these tests have eight CPU devices
    monkeypatch.delenv("XLA_FLAGS")
    compile_cache.keep_compiled_programs()
    folder = compile_cache.cache_folder()
    assert changed["jax_compilation_cache_dir"] == str(folder) and folder.is_dir()
    assert folder.is_relative_to(tmp_path / "tora2_jax" / "compiled")

    changed.clear()
    config.jax_compilation_cache_dir = "elsewhere"
    compile_cache.keep_compiled_programs()
    assert not changed

    config.jax_compilation_cache_dir = None
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compile_cache.keep_compiled_programs()
    assert not changed
