"""What diffusers has no place for goes out and comes back: the shipped Tora2, every bit of it."""

import json
import shutil
from pathlib import Path

import pytest

from convert.__main__ import main
from tora2_jax.weights import bundle, checkpoint

TOY = Path(__file__).resolve().parents[2] / "checkpoints" / "toy"
NAMES = ("transformer", "motion", "personalization", "vae", "text", "dino", "face", "object")


def run(command: str, source: Path, destination: Path, *options: str) -> int:
    return main([command, "--src", str(source), "--dst", str(destination), *options])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "toy"
    assert run("export", TOY, folder, "--accept-differences") == 0
    return folder


def test_a_whole_checkpoint_comes_back(exported, tmp_path):
    assert run("tora", exported, tmp_path / "again") == 0
    assert bundle.load_config(tmp_path / "again") == bundle.load_config(TOY)
    for name in NAMES:
        ours, theirs = (
            checkpoint.load_component(checkpoint.component_path(folder, name))[0]
            for folder in (tmp_path / "again", TOY)
        )
        assert ours.keys() == theirs.keys(), name
        for path, array in ours.items():
            assert array.dtype == theirs[path].dtype, path
            assert array.tobytes() == theirs[path].tobytes(), path


def test_what_does_not_belong_together_is_refused(exported, tmp_path, capsys):
    source = shutil.copytree(exported, tmp_path / "source")
    settings = source / "tora2" / "config.json"
    right = settings.read_text()

    def refusal(changed: dict) -> str:
        settings.write_text(json.dumps(changed))
        assert run("tora", source, tmp_path / "again") == 2
        assert not (tmp_path / "again").exists()
        return capsys.readouterr().err

    changed = json.loads(right)
    changed["model"]["transformer"]["norm_eps"] = 0.5
    assert "tora2/config.json: is of another model" in refusal(changed)
    changed = json.loads(right)
    changed["model"]["personalization"]["queries"] += 1
    (source / "tora2" / "dino.safetensors").write_bytes(b"no tensors")
    message = refusal(changed)
    assert "tora2/personalization: misshapen" in message and "config.weights" not in message
    assert "dino.safetensors cannot be read" in message


def test_a_part_that_is_missing_is_told(exported, tmp_path, capsys):
    source = shutil.copytree(exported, tmp_path / "source")
    (source / "tora2" / "personalization.safetensors").unlink()
    assert run("tora", source, tmp_path / "again") == 2
    assert "tora2/personalization.safetensors: is missing" in capsys.readouterr().err


@pytest.mark.long
def test_encoders_that_nobody_reads_are_left_out(tmp_path, capsys):
    source = shutil.copytree(TOY, tmp_path / "toy", ignore=shutil.ignore_patterns("stages"))
    (source / "personalization.safetensors").unlink()
    assert run("export", source, tmp_path / "out", "--accept-differences") == 0
    assert "left out: dino, for which this model has no use" in capsys.readouterr().out
    assert run("tora", tmp_path / "out", tmp_path / "again") == 0
    assert not (tmp_path / "again" / "dino.safetensors").exists()
