"""gs://bucket/run is no folder: it is refused before any work, and no folder gs: is ever made."""

import os
from pathlib import Path

import pytest

from convert import __main__ as convert
from convert.engine.folders import FolderError, new_folder
from scripts import encode_references, inspect_entities, make_gallery, sample
from tora2_jax.config.train import ClipFolderConfig, TrainConfig
from tora2_jax.errors import CheckpointError
from tora2_jax.sampling.pipeline import Tora2Pipeline
from tora2_jax.system.addresses import address_problem
from tora2_jax.system.files import write_text
from tora2_jax.train import loop
from tora2_jax.trajectory import command
from tora2_jax.weights import checkpoint

RUN = "gs://bucket/run"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Every test runs in an empty folder and leaves it empty."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "path", [RUN, Path(RUN), "s3://b/x", "hf://org/name", Path("memory://x"), "https://host/a.pt"]
)
def test_an_address_is_told_as_it_was_written(path):
    scheme, rest = str(path).split(":/", 1)
    told = address_problem(path)
    assert told.startswith(f"{scheme}://{rest.lstrip('/')} is an address, not a local path; mount")


def test_the_address_of_a_file_is_told_with_its_path():
    assert address_problem("file:///data/run") == (
        "file:///data/run is an address, not a local path; write /data/run"
    )


@pytest.mark.parametrize(
    "path", ["run", "/data/run", "a:b.mp4", "out:1/a.mp4", "C:/data", "./gs:/x", "", None]
)
def test_a_path_is_no_address(path):
    assert address_problem(path) is None


def test_a_training_names_all_its_addresses_at_once():
    config = TrainConfig(
        stage="base", cache_dir="gs://b/c", export="gs://b/e", tokenizer="gs://b/t"
    )
    config.clips, config.weights.vae = ClipFolderConfig(folder="s3://b/clips"), "hf://org/model"
    config.model.personalization = None
    with pytest.raises(loop.TrainError) as error:
        loop.train(config, RUN)
    found = [line.split(" is an address")[0] for line in str(error.value).splitlines()]
    assert found == [
        "--workdir: gs://bucket/run",
        "config.cache_dir: gs://b/c",
        "config.tokenizer: gs://b/t",
        "config.export: gs://b/e",
        "config.weights.vae: hf://org/model",
        "config.clips.folder: s3://b/clips",
    ]


def test_sampling_names_all_its_addresses_at_once(capsys):
    arguments = ["--checkpoint", "gs://b/model", "--request", "a.json", "s3://b/r.json"]
    arguments += ["--output", "gs://b/o.mp4", "--save-frames", "gs://b/f.npy"]
    assert sample.main(arguments) == 2
    told = capsys.readouterr().err
    for name in ("checkpoint", "output", "save-frames", r"request[1]"):
        assert f"--{name}: " in told
    assert "gs://b/o.mp4 is an address, not a local path" in told and "a.json" not in told


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        (convert.main, ["dinov2", "--src", "hf://a/b", "--dst", "made"]),
        (convert.main, ["cogvideox", "--src", "here", "--dst", RUN]),
        (inspect_entities.main, ["a.json", "--checkpoint", RUN]),
        (encode_references.main, ["--checkpoint", "c", "--request", "r", "--output", RUN]),
        (command.main, ["a.txt", "--plot", "gs://b/a.png"]),
        (make_gallery.arguments, ["page", "a.json", "--output", "gs://b/page.md"]),
    ],
)
def test_other_programs_end_with_2(program, arguments, capsys):
    with pytest.raises(SystemExit) as end:
        program(arguments)
    assert end.value.code == 2 and "is an address, not a local path" in capsys.readouterr().err


def test_functions_refuse_addresses_too():
    for error, call in (
        (CheckpointError, lambda: Tora2Pipeline.from_checkpoint(RUN)),
        (CheckpointError, lambda: checkpoint.load_component(RUN)),
        (CheckpointError, lambda: checkpoint.component_specs(RUN)),
        (OSError, lambda: write_text(f"{RUN}/a.json", "")),
        (FolderError, lambda: new_folder(RUN, 1).__enter__()),
    ):
        with pytest.raises(error, match=r"gs://bucket/run.* is an address, not a local path"):
            call()
