"""`config.json` says its version; files of earlier ones are read, those of later ones are not."""

import json
import sys

import pytest

from convert.__main__ import main as convert
from tests.support import tiny_stage
from tests.train.test_chain import TOY
from tora2_jax.config import from_dict, stored, to_dict, toy
from tora2_jax.config.train import (
    ClipFolderConfig,
    ReferenceGuardConfig,
    TrainConfig,
    differences,
)
from tora2_jax.errors import CheckpointError
from tora2_jax.train import loop, state
from tora2_jax.weights import bundle, checkpoint


def write(path, content) -> None:
    path.write_text(json.dumps(content))


def test_files_say_their_version_and_those_without_one_are_the_first(tmp_path):
    checkpoint.save_config(tmp_path, toy())
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["version"] == stored.version() >= 1
    assert bundle.load_config(tmp_path) == toy()
    del content["version"]  # as of 2026-11
    write(tmp_path / "config.json", content)
    assert bundle.load_config(tmp_path) == toy()


@pytest.mark.parametrize("number", [0, -1, 99, "1", 1.0, True, None])
def test_versions_that_are_not_known_are_refused(tmp_path, number):
    write(tmp_path / "config.json", stored.of_model(toy()) | {"version": number})
    with pytest.raises(CheckpointError, match="version"):
        bundle.load_config(tmp_path)


def test_settings_that_are_renamed_are_found_in_earlier_files(tmp_path, monkeypatch):
    """Two steps, in order; a run of an earlier version goes on, and its file is written anew."""
    monkeypatch.setitem(state.STAGES, "base", "tests.support.tiny_stage")
    loop.train(tiny_stage._config(steps=2), tmp_path)
    path = tmp_path / "config.json"
    old = json.loads(path.read_text())
    old["rhythm"], old["version"] = old.pop("log_every"), 1
    write(path, old)

    def first(content):
        return {("log_rhythm" if name == "rhythm" else name): v for name, v in content.items()}

    def second(content):
        return {("log_every" if name == "log_rhythm" else name): v for name, v in content.items()}

    monkeypatch.setattr(stored, "_STEPS", (first, second))
    assert stored.read_run(path).log_every == 10
    loop.train(tiny_stage._config(steps=2), tmp_path)
    new = json.loads(path.read_text())
    assert new["version"] == 3 and new["log_every"] == 10 and "rhythm" not in new


def test_british_names_of_the_first_version_are_read():
    run = TrainConfig(stage="localizer", reference_guards=ReferenceGuardConfig(color=0.3))
    run.optim.tora_initialized = "motion"
    old = stored.of_run(run)
    del old["version"]
    old["stage"] = "localiser"
    old["optim"]["tora_initialised"] = old["optim"].pop("tora_initialized")
    old["reference_guards"]["colour"] = old["reference_guards"].pop("color")
    assert from_dict(TrainConfig, stored.current(old)) == run
    assert from_dict(TrainConfig, stored.current(stored.of_run(run))) == run


def test_runs_that_name_their_stacked_layers_go_on():
    run = TrainConfig(stage="base")
    run.optim.algorithm = "muon"
    old = stored.of_run(run) | {"version": 2}
    old["optim"]["stacked"] = r".*\.(blocks|layers|cross_attention)\."
    assert differences(stored.current(old), to_dict(run)) == []
    old["optim"]["stacked"] = r"(?!)"  # would make other steps, as Muon saw one matrix of all
    assert "config.optim.stacked" in differences(stored.current(old), to_dict(run))[0]
    old["optim"]["algorithm"] = run.optim.algorithm = "adamw"  # sees no matrices
    assert differences(stored.current(old), to_dict(run)) == []


def test_a_run_of_a_later_version_is_not_continued(tmp_path, monkeypatch):
    monkeypatch.setitem(state.STAGES, "base", "tests.support.tiny_stage")
    loop.train(tiny_stage._config(steps=2), tmp_path)
    path = tmp_path / "config.json"
    write(path, json.loads(path.read_text()) | {"version": 99})
    before = path.read_bytes()
    with pytest.raises(loop.TrainError, match="of version 99"):
        loop.train(tiny_stage._config(steps=4), tmp_path)
    assert path.read_bytes() == before


def test_no_code_that_stored_settings_name_is_run(tmp_path, monkeypatch, capsys):
    """Of a run that somebody has shared: reading, sampling from and bundling it import nothing."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    run = TrainConfig(stage="motion", model=toy(), tokenizer=str(TOY / "tokenizer"))
    run.clips = ClipFolderConfig(folder=str(tmp_path), estimator="evil:Estimator")
    run.weights.vae = str(TOY / "vae.safetensors")
    write(tmp_path / "config.json", stored.of_run(run))
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    write(tmp_path / "checkpoints" / "1" / "_CHECKPOINT_METADATA", {"item_handlers": {}})
    with pytest.raises(CheckpointError, match="do not fit the model"):
        bundle.load_bundle(tmp_path)
    assert stored.read_run(tmp_path / "config.json").clips.estimator == "evil:Estimator"
    config = str(tmp_path / "config.json")
    assert convert(["bundle", "--config", config, "--dst", str(tmp_path / "out")]) == 2
    assert "cannot be bundled" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists() and "evil" not in sys.modules
