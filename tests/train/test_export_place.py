"""Where a run leaves its result: in its own folder, unless a person names another."""

import importlib
import json
from pathlib import Path

import pytest

from scripts import toy_checkpoint
from tests.support.tiny_stage import _config
from tora2_jax.config import toy
from tora2_jax.errors import TrainError
from tora2_jax.train import loop
from tora2_jax.weights import checkpoint

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "configs").rglob("*.py")
    if path.stem != "__init__" and not path.stem.startswith("curate_")  # these train nothing
)

pytestmark = pytest.mark.usefixtures("_stage")


@pytest.mark.parametrize("name", CONFIGS)
def test_no_config_names_a_place_for_its_result(name):
    assert importlib.import_module(name).get_config().export is None


def test_the_result_goes_to_the_folder_of_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = loop.train(_config(steps=2), "run")
    exported, metadata = checkpoint.load_component("run/trained/motion.safetensors")
    assert exported["1.kernel"].shape == state.trainable["head.1.kernel"].shape
    assert metadata["stage"] == "base"
    assert json.loads(Path("run/config.json").read_text())["export"] == "run/trained"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_a_result_goes_where_a_person_says_or_nowhere(tmp_path):
    loop.train(_config(steps=1, export=str(tmp_path / "named")), tmp_path / "one")
    assert (tmp_path / "named" / "motion.safetensors").is_file()
    loop.train(_config(steps=1, export=""), tmp_path / "two")
    for run in ("one", "two"):
        assert not (tmp_path / run / "trained").exists()


def test_the_chain_of_the_toy_model_names_the_shipped_files_it_writes(tmp_path):
    assert toy_checkpoint.STAGES.keys() - toy_checkpoint.SHIPPED.keys() == {"vae", "base"}
    written = {name: toy_checkpoint.command(name, tmp_path) for name in toy_checkpoint.STAGES}
    assert "--config.export=checkpoints/toy" in written["joint"]
    assert not any("--config.export" in part for part in written["vae"])
    for place in set(toy_checkpoint.SHIPPED.values()):
        assert (ROOT / place).exists(), place


@pytest.mark.parametrize("content", ['{"name": "a package"}', "[]", "no JSON", None])
def test_a_config_that_is_not_of_a_run_stays(tmp_path, content):
    """Of a checkpoint (None), or of another program: training would put its own in its place."""
    path = tmp_path / "config.json"
    if content is None:
        checkpoint.save_config(tmp_path, toy())
    else:
        path.write_text(content)
    before = path.read_bytes()
    with pytest.raises(TrainError, match=r"config\.json is not of a run.*another folder"):
        loop.train(_config(steps=1), tmp_path)
    assert path.read_bytes() == before


def test_an_empty_folder_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainError, match="--workdir: is empty"):
        loop.train(_config(steps=1), "")
    assert not list(tmp_path.iterdir())
