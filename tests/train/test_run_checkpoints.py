"""What becomes of a run whose checkpoints cannot be written or read."""

import resource
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import logging

from tests.support.tiny_stage import _assert_equal, _checkpoints, _config
from tora2_jax.errors import CheckpointError
from tora2_jax.train import loop
from tora2_jax.train.runs import checkpoints
from tora2_jax.weights import checkpoint

pytestmark = pytest.mark.usefixtures("_stage")


@pytest.fixture
def _quiet():
    before = logging.get_verbosity()
    checkpoints.quiet()
    yield
    logging.set_verbosity(before)
    logging.get_absl_logger().removeFilter(checkpoints._not_told_here)


@pytest.fixture
def saved(tmp_path):
    """Steps 2 and 4, each with an array of that number."""
    made = checkpoints.Checkpoints(tmp_path)
    for step in (2, 4):
        made.save(step, _items(step))
    made.finish()
    yield made
    made.close()


def _items(number: int) -> dict[str, dict[str, np.ndarray]]:
    return {"trainable": {"kernel": np.full(3, number, np.float32)}}


@pytest.mark.usefixtures("_quiet")
def test_a_first_save_that_fails_is_one_message_and_leaves_nothing(tmp_path, caplog):
    """As on a full disk: no file may have the size of the array."""
    saved = checkpoints.Checkpoints(tmp_path)
    frozen = {"kernel": jax.random.normal(jax.random.key(0), (100_000,))}
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
    try:
        with pytest.raises(checkpoints.SaveError, match="frozen weights could not be saved"):
            saved.save_frozen(frozen)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert not any(record.exc_info for record in caplog.records)
    assert list(tmp_path.iterdir()) == []
    saved.save_frozen(frozen)
    np.testing.assert_array_equal(saved.restore_frozen(frozen)["kernel"], frozen["kernel"])
    _cut(tmp_path / "frozen" / "frozen")
    with pytest.raises(loop.TrainError, match="frozen/frozen cannot be read"):
        saved.restore_frozen(frozen)
    saved.close()


def _cut(item: Path) -> None:
    for file in item.rglob("d/*"):
        file.write_bytes(file.read_bytes()[:20])


def _empty(item: Path) -> None:
    (item / "_METADATA").write_bytes(b"")


def _zeros(item: Path) -> None:
    for file in item.rglob("manifest.ocdbt"):
        file.write_bytes(bytes(file.stat().st_size))


@pytest.mark.parametrize("damage", [_cut, _empty, _zeros, shutil.rmtree])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(saved, tmp_path, damage, caplog):
    damage(tmp_path / "4" / "trainable")
    step, restored = saved.restore_newest(_items(0))
    assert "checkpoint 4 is damaged: " in caplog.text
    assert step == saved.latest() == 2
    np.testing.assert_array_equal(restored["trainable"]["kernel"], 2)
    saved.save(4, _items(5))
    saved.finish()
    step, restored = saved.restore_newest(_items(0))
    assert step == 4 and restored["trainable"]["kernel"][0] == 5


def test_a_run_makes_a_damaged_checkpoint_again(tmp_path):
    first = loop.train(_config(steps=2, checkpoint_every=1), tmp_path)
    _cut(tmp_path / "checkpoints" / "2" / "optimizer")
    _assert_equal(first, loop.train(_config(steps=2), tmp_path))
    assert _checkpoints(tmp_path) == ["1", "2"]


def test_checkpoints_that_are_all_damaged_stay_and_are_told(saved, tmp_path):
    for step in (2, 4):
        _cut(tmp_path / str(step) / "trainable")
    with pytest.raises(loop.TrainError, match=r"(?s)no checkpoint of this run.*/4/.*/2/"):
        saved.restore_newest(_items(0))
    assert saved.latest() == 4 and (tmp_path / "2").exists()


def test_a_folder_that_is_seen_late_is_waited_for(saved, tmp_path, monkeypatch):
    _cut(tmp_path / "4" / "trainable")
    folder, late = tmp_path / "4", tmp_path / "late"
    monkeypatch.setattr(saved, "_remove", lambda _: folder.rename(late))
    reload, seen = saved._manager.reload, []

    def reload_late():
        seen.append(late.exists())
        late.rename(folder) if len(seen) == 1 else folder.rename(late)
        reload()

    monkeypatch.setattr(saved._manager, "reload", reload_late)
    step, _ = saved.restore_newest(_items(0))
    assert step == saved.latest() == 2
    assert seen == [True, False]


@pytest.mark.parametrize("damage", [_cut, _empty, _zeros, shutil.rmtree])
def test_weights_of_a_run_are_of_the_newest_checkpoint_that_can_be_read(tmp_path, damage, caplog):
    loop.train(_config(steps=10, checkpoint_every=5), tmp_path)
    newest, settings = checkpoint.load_component(tmp_path)
    assert settings["steps"] == 10
    damage(tmp_path / "checkpoints" / "10" / "average")
    older, _ = checkpoint.load_component(tmp_path)
    assert "checkpoint 5 is taken instead: " in caplog.text
    assert older.keys() == newest.keys()
    moving = [name for name in newest if (older[name] != newest[name]).any()]
    assert "head.1.kernel" in moving and "body.kernel" not in moving
    damage(tmp_path / "checkpoints" / "5" / "average")
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint can be read.*/10.*/5"):
        checkpoint.load_component(tmp_path)


def test_a_run_that_lost_its_list_or_its_config_is_told(tmp_path):
    loop.train(_config(steps=1, checkpoint_every=1), tmp_path)
    (tmp_path / "checkpoints" / "1" / "_CHECKPOINT_METADATA").write_text("{")
    with pytest.raises(CheckpointError, match="_CHECKPOINT_METADATA cannot be read"):
        checkpoint.load_component(tmp_path)
    for content, problem in (("{", "cannot be read"), ("[]", "is no JSON object")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=rf"config.json .*{problem}"):
            checkpoint.load_component(tmp_path)
