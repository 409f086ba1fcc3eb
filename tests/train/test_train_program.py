"""The training program as a person meets it: help, mistyped fields, smoke runs, more steps."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.support.tiny_stage import _CONFIG, _command, _config, _losses, environment
from tora2_jax.config import toy
from tora2_jax.config.help import comments, known_fields, unknown_fields
from tora2_jax.config.train import ClipFolderConfig, TrainConfig, problems
from tora2_jax.train import loop
from tora2_jax.train.runs import result
from tora2_jax.train.smoke import smoke

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("_stage")


def _program(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("program", ["tora2_jax.train", "tora2_jax.plan"])
def test_help_lists_what_can_be_set_with_its_defaults(program):
    done = _program("-m", program, "--help")
    assert done.returncode == 0 and not done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("  --config.steps=15000") for line in lines)
    batch = next(line for line in lines if "--config.batch_size=" in line)
    assert batch.split() == ["--config.batch_size=32", "global,", "over", "all", "processes"]
    algorithm = next(line for line in lines if "optim.algorithm" in line)
    assert algorithm.split() == ["--config.optim.algorithm=adamw", "adamw", "or", "muon"]
    assert not any("grain" in line for line in lines)
    own = "--workdir" if program.endswith("train") else "--target"
    assert any(line.startswith(f"  {own}=") for line in lines)


def test_help_of_a_config_shows_its_values():
    done = _program(
        "-m", "tora2_jax.train", "--help", "--config=configs/toy.py", "--config.seed=77"
    )
    assert done.returncode == 0
    assert "--config.model.name=toy\n" in done.stdout and "--config.seed=77\n" in done.stdout


def test_mistyped_fields_are_all_told_with_what_was_meant(tmp_path):
    (tmp_path / "config.py").write_text(_CONFIG)
    command = _command(tmp_path, tmp_path / "run")
    command += ["--config.optim.learning_rat=1", "--config.learning_rate=1", "--config.foo=1"]
    done = _program(*command[1:])
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "--config.optim.learning_rat: there is no such field; did you mean "
        "--config.optim.learning_rate?",
        "--config.learning_rate: there is no such field; did you mean "
        "--config.optim.learning_rate?",
        "--config.foo: there is no such field; see --help",
    ]
    assert not (tmp_path / "run").exists()


def test_all_that_is_wrong_with_a_command_line_is_told_at_once(tmp_path):
    given = ["--config=configs/toy.py", "--config.steps=abc", "--config.optim.lr=1", "--sped=3"]
    given += ["--config.optim.learning_rate", "fast", "--config.batch_size=0", "stray"]
    done = _program("-m", "tora2_jax.train", *given)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "--config.optim.lr: there is no such field; did you mean --config.optim.learning_rate?",
        "--config.steps=abc: is no whole number",
        "--config.optim.learning_rate=fast: is no number",
        "--sped: there is no such flag; see --help",
        "--workdir is needed: Folder of this run; made if needed.",
        "stray: not understood; a flag is written --NAME=VALUE",
        "config.batch_size must be positive",
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("import no_such_module", "{path}, line 1: ModuleNotFoundError: No module named"),
        ("x = (", "{path}, line 1: '(' was never closed"),
        ("x = 3", "AttributeError: the file has no attribute 'get_config'"),
        (
            "def get_config():\n    return 3 + None",
            "{path}, line 2: TypeError: unsupported operand",
        ),
        ("def get_config():\n    return 3", "it makes 3, which is no TrainConfig"),
    ],
)
def test_a_config_that_fails_is_told_with_its_line(tmp_path, content, told):
    path = tmp_path / "faulty.py"
    path.write_text(content)
    fields = [] if content.endswith("return 3") else ["--config.steps=x"]
    done = _program("-m", "tora2_jax.train", "--config", str(path), *fields)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 2, done.stderr
    assert lines[0].startswith("--config: " + told.format(path=path))
    assert lines[1].startswith("--workdir is needed")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "names no file; give one of configs/"),
        ("configs", "configs is a folder; give a file of configs/"),
        ("checkpoints/toy/config.json", "checkpoints/toy/config.json is no Python file; give one"),
        ("configs/tay.py", "configs/tay.py is not there"),
    ],
)
def test_what_is_no_config_is_told(name, told):
    done = _program("-m", "tora2_jax.train", "--config", name, "--config.foo=1", "--workdir=x")
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 2, done.stderr
    assert lines[0].startswith(f"--config: {told}")
    assert lines[1] == "--config.foo: there is no such field; see --help"


def test_fields_that_there_are_are_known():
    given = ["--config.clips.entities.smallest_cut=3", "--config.model.motion.width=8"]
    given += ["--config=configs/toy.py", "--workdir=x", "--config.profile_steps=(1,2)", "--smoke"]
    assert not unknown_fields(given)
    assert {"clips", "clips.faulty", "model.personalization.variant"} <= known_fields()
    assert comments(TrainConfig)["accumulate"].startswith("In how many parts, one after another,")


@pytest.mark.long
def test_a_refused_start_leaves_nothing_behind(tmp_path):
    (tmp_path / "config.py").write_text(
        "from configs.bold.base_one import get_config as base\n"
        "def get_config():\n    config = base()\n"
        "    config.weights.transformer = 'not/there'\n    return config\n"
    )
    workdir = tmp_path / "new" / "run"
    done = _program(*_command(tmp_path, workdir)[1:])
    assert done.returncode == 2 and "not/there" in done.stderr
    assert not (tmp_path / "new").exists()
    workdir.mkdir(parents=True)  # that of the user stays
    assert _program(*_command(tmp_path, workdir)[1:]).returncode == 2
    assert workdir.is_dir() and not any(workdir.iterdir())


@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_is_no_folder_of_a_run(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(loop.TrainError) as error:
        loop.train(_config(steps=1), tmp_path / "file" / below)
    assert str(error.value) == f"--workdir: {tmp_path / 'file'} is a file; name a folder"


def test_a_smoke_run_is_short_and_stays_in_its_folder(tmp_path):
    config = TrainConfig(cache_dir="elsewhere", data_size=1000, batch_size=8, export="elsewhere")
    config.clips = ClipFolderConfig(folder="clips")
    small = smoke(config, tmp_path)
    assert (small.steps, small.data_size, small.clips.at_most) == (2, 8, 8)
    assert small.cache_dir == str(tmp_path / "cache") and small.export is None
    assert (small.batch_size, small.model) == (config.batch_size, config.model)
    config.clips.at_most = 0
    assert "config.clips.at_most must be positive or None" in problems(config)
    config.clips.at_most = None
    assert config.steps == 15_000 and config.clips.at_most is None


def test_the_program_smokes(tmp_path):
    (tmp_path / "config.py").write_text(_CONFIG)
    done = _program(*_command(tmp_path, tmp_path / "run")[1:], "--smoke")
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in _losses(tmp_path / "run")] == [1, 2]
    assert done.stdout.splitlines()[0].startswith("all 2 steps are done; checkpoints and metrics")
    assert f"trained weights: {tmp_path}/run/trained/motion.safetensors" in done.stdout
    for line in done.stderr.replace("\r", "\n").splitlines():  # nothing of any library
        own = ("base: ", "making", "reading", "saving", "measuring")
        assert line.startswith(own) or not line.strip(), line


def test_a_finished_run_goes_on_with_more_steps(tmp_path, capsys):
    loop.train(_config(steps=2), tmp_path / "parts")
    loop.train(_config(steps=2), tmp_path / "parts")
    assert "all 2 steps are done already; --config.steps asks for more" in capsys.readouterr().err
    further = loop.train(_config(steps=4), tmp_path / "parts")
    assert "goes on after step 2" in capsys.readouterr().err
    whole = loop.train(_config(steps=4), tmp_path / "whole")
    for left, right in zip(jax.tree.leaves(whole), jax.tree.leaves(further), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_run_whose_schedule_does_not_allow_more_steps_says_why(tmp_path):
    def config(steps: int) -> TrainConfig:
        made = _config(steps=steps)
        made.optim.schedule = "cosine"
        return made

    loop.train(config(1), tmp_path)
    with pytest.raises(loop.TrainError) as error:
        loop.train(config(2), tmp_path)
    told = str(error.value)
    assert "config.steps: 1 -> 2" in told
    assert "With optim.schedule cosine the learning rate of every step" in told
    assert f"--config.weights.NAME={tmp_path}/trained" in told
    with pytest.raises(loop.TrainError) as error:
        loop.train(_config(steps=1, seed=3), tmp_path)
    assert "learning rate of every step" not in str(error.value)


def test_the_end_of_a_run_names_the_command_that_samples_it(tmp_path, monkeypatch):
    config = TrainConfig(stage="tora2", model=toy(), tokenizer="t", export=str(tmp_path / "out"))
    lines = result.result_lines(config, tmp_path / "run", ["motion", "personalization"])
    assert lines[1] == f"trained weights: {tmp_path}/out/motion.safetensors, " + (
        f"{tmp_path}/out/personalization.safetensors"
    )
    monkeypatch.chdir(ROOT)
    (line,) = result.result_lines(config, tmp_path / "run", ["motion"])[2:]
    assert line == (
        f"sample them: python scripts/sample.py --checkpoint {tmp_path}/run --request "
        "examples/request.json --output out/run.mp4"
    )
    monkeypatch.chdir(tmp_path)
    assert f"--request {tmp_path}/run/request.json" in result.sample_command(
        config, tmp_path / "run"
    )
    written = json.loads((tmp_path / "run" / "request.json").read_text())
    assert [entity["word"] for entity in written["entities"]] == ["man", "kite"]
    config.model.motion = None
    assert "entities" not in result.plain_request(config.model)


@pytest.mark.parametrize(
    ("stage", "component", "told"), [("vae", "vae", "vae"), ("face", "encoder", "face")]
)
def test_the_end_of_a_stage_that_makes_no_videos_names_its_use(tmp_path, stage, component, told):
    config = TrainConfig(stage=stage, steps=3, export="out")
    lines = result.result_lines(config, tmp_path, [component])
    assert lines == [
        f"all 3 steps are done; checkpoints and metrics are in {tmp_path}",
        f"trained weights: out/{component}.safetensors",
        f"use them in another stage: --config.weights.{told}=out/{component}.safetensors",
    ]


def test_jaxs_search_for_nans_does_not_end_a_healthy_run(tmp_path, monkeypatch):
    from tests.support import tiny_stage
    from tora2_jax.train import measures

    plain = tiny_stage.loss

    def loss(config, model, batch, key):
        value, metrics = plain(config, model, batch, key)
        nobody = measures.share(batch["inputs"][:, 0], batch["inputs"][:, 0] > 1e9)
        return value, metrics | {"of_nobody": nobody}

    tiny_stage.change_stage(monkeypatch, loss=loss)
    with jax.debug_nans(True):
        loop.train(_config(steps=2), tmp_path)
    assert len(_losses(tmp_path)) == 2


def test_a_run_on_damaged_weights_names_them(tmp_path, monkeypatch):
    from tests.support import tiny_stage

    def build(config, rngs):
        model = tiny_stage._Model(rngs)
        model.body.bias[...] = model.body.bias[...].at[0].set(np.nan)
        return model

    tiny_stage.change_stage(monkeypatch, build=build)
    with pytest.raises(loop.TrainError) as error:
        loop.train(_config(steps=9, skips_allowed=1), tmp_path)
    assert str(error.value) == (
        "steps 1 to 2 had no finite loss and gradient, more than config.skips_allowed (1) in a "
        "row; weights that are not finite: body.bias; the checkpoint is damaged: convert it or "
        "copy it again"
    )
