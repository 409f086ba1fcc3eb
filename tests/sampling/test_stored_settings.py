"""How a checkpoint is sampled best travels in its folder, and what is asked for goes first."""

import json
from pathlib import Path

import pytest

from scripts import sample as script
from tora2_jax.config.model import DiffusionConfig
from tora2_jax.errors import CheckpointError
from tora2_jax.sampling import command
from tora2_jax.sampling.pipeline import Tora2Pipeline
from tora2_jax.sampling.settings import DEFAULTS, STORED, SampleSettings, stored_settings

TOY = Path(__file__).resolve().parents[2] / "checkpoints" / "toy"
KEPT = {"steps": 20, "guidance": 3, "dynamic_guidance": False, "scheduler": "ddim"}


def kept(folder: Path, content) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / STORED).write_text(text)
    return folder


def test_without_a_file_they_are_the_papers(tmp_path):
    assert stored_settings(tmp_path, DiffusionConfig()) == DEFAULTS == SampleSettings()


def test_what_the_file_leaves_out_is_the_papers(tmp_path):
    found = stored_settings(kept(tmp_path, KEPT), DiffusionConfig())
    assert found == SampleSettings(20, 3, False, "ddim", 1.0, 1.0)


def test_the_pipeline_and_the_command_take_them(tmp_path, monkeypatch):
    for file in TOY.iterdir():
        (tmp_path / file.name).symlink_to(file)
    if (tmp_path / STORED).is_symlink():
        (tmp_path / STORED).unlink()
    pipeline = Tora2Pipeline.from_checkpoint(kept(tmp_path, KEPT))
    assert pipeline.settings == SampleSettings(20, 3, False, "ddim", 1.0, 1.0)
    arguments = ["--checkpoint", str(tmp_path), "--request", "r.json", "--output", "o.mp4"]
    seen = []
    monkeypatch.setattr(command, "run", lambda options: seen.append(options) or [])
    script.main([*arguments, "--guidance", "5", "--dynamic-guidance"])
    assert seen[0].settings(pipeline.settings) == SampleSettings(20, 5, True, "ddim", 1.0, 1.0)
    assert seen[0].settings() == SampleSettings(50, 5, True)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", ["cannot be read"]),
        ("[" * 10_000, ["cannot be read"]),
        ([1], ["must hold an object"]),
        ({"steps": 0, "top_k": 3}, ["top_k: unknown setting", "steps: 0 is not a whole number"]),
        ({"guidance": "6", "scheduler": "euler"}, ["guidance: '6'", "scheduler: 'euler' is unkn"]),
        ({"dynamic_guidance": 1, "steps": True}, ["dynamic_guidance: 1", "steps: True"]),
    ],
)
def test_what_cannot_be_used_is_told_at_once(tmp_path, content, told):
    with pytest.raises(CheckpointError) as refused:
        stored_settings(kept(tmp_path, content), DiffusionConfig())
    assert all(text in str(refused.value) for text in [*told, STORED])
