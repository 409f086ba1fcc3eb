"""What a run leaves beside its checkpoints: profiles, sample videos, exported weights."""

import dataclasses
import gc
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.tiny_stage import STAGE, _checkpoints, _config, change_stage
from tora2_jax.config import to_dict
from tora2_jax.train import loop
from tora2_jax.train import state as train_state
from tora2_jax.train.runs import export
from tora2_jax.weights import checkpoint

pytestmark = pytest.mark.usefixtures("_stage")


def test_export_paths():
    folder = export.export_paths("folder", ["text", "transformer"])
    assert folder["text"] == Path("folder/text.safetensors")
    with pytest.raises(loop.TrainError, match="name a folder"):
        export.export_paths("one.safetensors", ["text", "transformer"])


def test_a_profile_of_chosen_steps(tmp_path):
    loop.train(_config(steps=3, profile_steps=(2, 3)), tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_run_may_end_and_start_between_profiled_steps(tmp_path):
    for steps in (2, 5):
        loop.train(_config(steps=steps, profile_steps=(2, 4)), tmp_path)
        assert list((tmp_path / "profile").rglob("*.xplane.pb")), steps
        shutil.rmtree(tmp_path / "profile")


def test_samples_are_of_saved_steps_and_may_fail(tmp_path, monkeypatch, caplog):
    saved, kernels = {}, {}

    def sample(config, model, step):
        saved[step], kernels[step] = _checkpoints(tmp_path), np.array(model.head[1].kernel[...])
        if step == 2:
            raise RuntimeError("the device is full\nof something")
        return np.zeros((3, 16, 16, 3), np.uint8)

    change_stage(monkeypatch, sample=sample)
    state = loop.train(_config(steps=3, sample_every=1, checkpoint_every=100), tmp_path)
    assert saved == {1: ["1"], 2: ["1", "2"], 3: ["2", "3"]}
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["00000001.mp4", "00000003.mp4"]
    assert "step 2 has no sample video (RuntimeError: the device is full);" in caplog.text
    np.testing.assert_array_equal(kernels[3], state.average["head.1.kernel"])


def test_nothing_of_a_sample_stays_on_the_device(tmp_path, monkeypatch):
    left = []

    def sample(config, model, step):
        left.append(sum(array.size == 12_345 for array in jax.live_arrays()))
        refers_to_itself = [jnp.zeros(12_345)]
        refers_to_itself.append(refers_to_itself)
        return np.zeros((3, 16, 16, 3), np.uint8)

    change_stage(monkeypatch, sample=sample)
    gc.disable()
    try:
        loop.train(_config(steps=2, sample_every=1), tmp_path)
    finally:
        gc.enable()
    assert left == [0, 0]


def test_an_export_takes_no_more_than_it_writes(tmp_path):
    stage = dataclasses.replace(STAGE, finish=None)
    config = _config(export=str(tmp_path / "out"))
    graph, state = train_state.init_state(config, stage)
    without = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), state.frozen
    )
    state = state._replace(frozen=without)
    export.export(config, stage, graph, state)
    exported, metadata = checkpoint.load_component(tmp_path / "out" / "motion.safetensors")
    assert set(exported) == {"0.bias", "0.mean", "0.scale", "0.var", "1.bias", "1.kernel"}
    assert metadata["model"] == json.loads(json.dumps(to_dict(config.model)))
    assert not (tmp_path / "out" / "transformer.safetensors").exists()
