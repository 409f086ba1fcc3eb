"""What a run cannot start with is told before its first step."""

import errno
import subprocess

import pytest

from tests.support.tiny_stage import _CONFIG, _command, _config
from tora2_jax.train import loop
from tora2_jax.train.runs import folder as run_folder

pytestmark = pytest.mark.usefixtures("_stage")


def test_unknown_field_ends_with_2(tmp_path):
    (tmp_path / "config.py").write_text(_CONFIG)
    done = subprocess.run(
        [*_command(tmp_path, tmp_path / "run"), "--config.optim.learning_rat=0.5"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "learning_rat" in done.stderr and "Traceback" not in done.stderr


def test_unusable_configs_are_refused(tmp_path):
    config = _config(stage="nothing", steps=0)
    config.dropout.caption = 1.5
    config.optim.stacked, config.optim.betas, config.profile_steps = "(", (0.9, 1.0), 5
    config.export = str(tmp_path / "trained")  # else it is copied, of which 5 is caught too soon
    config.model.binding.variant = "gate"
    with pytest.raises(loop.TrainError) as error:
        loop.train(config, tmp_path)
    parts = ["nothing", "config.steps", "config.dropout.caption", "model.binding.variant"]
    for part in [*parts, "optim.stacked", "optim.betas", "profile_steps must be"]:
        assert part in str(error.value)


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        with pytest.raises(loop.TrainError, match=r"--workdir: .*file is a file; name a folder"):
            loop.train(_config(), tmp_path / place)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(loop.TrainError, match=r"config.json is missing; put it back"):
        loop.train(_config(), tmp_path)
    for content in ("{", "[]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(loop.TrainError, match="is damaged"):
            loop.train(_config(), tmp_path)


def test_a_full_disk_at_the_start_is_not_for_the_user_to_change(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder, "write_text", full)
    with pytest.raises(OSError, match="No space") as error:
        loop.train(_config(), tmp_path)
    assert not isinstance(error.value, loop.TrainError)


def test_an_export_that_cannot_be_written_is_told_before_the_first_step(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(loop.TrainError, match=r"config.export: .*file/x/motion.*cannot be"):
        loop.train(_config(export=str(tmp_path / "file/x")), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics" / "losses.jsonl").exists()
