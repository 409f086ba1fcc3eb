"""A run goes on after its last checkpoint, bit for bit, and with no other numbers."""

import signal
import subprocess
import time

import numpy as np
import pytest

from tests.support.tiny_stage import _CONFIG, STAGE, _assert_equal, _command, _config, _losses
from tora2_jax.config import stored as stored_settings
from tora2_jax.config import to_dict
from tora2_jax.config.train import differences
from tora2_jax.train import loop
from tora2_jax.train import state as train_state
from tora2_jax.weights import checkpoint

pytestmark = pytest.mark.usefixtures("_stage")


def test_resuming_is_exact_and_frozen_stays(tmp_path):
    whole = loop.train(_config(), tmp_path / "whole")
    loop.train(_config(steps=2), tmp_path / "parts")
    parts = loop.train(_config(export=str(tmp_path / "out.safetensors")), tmp_path / "parts")
    _assert_equal(whole, parts)
    assert _losses(tmp_path / "whole") == _losses(tmp_path / "parts")
    assert [row["step"] for row in _losses(tmp_path / "whole")] == [1, 2, 3, 4]

    _, initial = train_state.init_state(_config(), STAGE)
    _assert_equal(initial.frozen, whole.frozen)
    assert set(whole.frozen) == {"body.bias", "body.kernel"}
    moments = whole.optimizer[1][0]
    assert set(moments.mu) == set(moments.nu) == set(whole.trainable)
    assert not set(whole.frozen) & set(whole.trainable)
    for path, value in initial.trainable.items():
        assert np.any(value != whole.trainable[path]), path
    assert np.any(initial.statistics["head.0.mean"] != whole.statistics["head.0.mean"])

    exported, metadata = checkpoint.load_component(tmp_path / "out.safetensors")
    assert set(exported) == {"0.bias", "0.mean", "0.scale", "0.var", "1.bias", "1.kernel"}
    assert metadata["answer"] == 42
    loaded, stored = checkpoint.load_component(tmp_path / "whole")
    np.testing.assert_array_equal(loaded["head.1.kernel"], whole.average["head.1.kernel"])
    assert stored["stage"] == "base"

    start = _config()
    start.weights.motion = str(tmp_path / "out.safetensors")
    _, continued = train_state.init_state(start, STAGE)
    np.testing.assert_array_equal(continued.statistics["head.0.var"], exported["0.var"])
    np.testing.assert_array_equal(
        continued.trainable["head.1.kernel"], exported["1.kernel"].astype(np.float32)
    )


def test_a_killed_run_continues_bit_for_bit(tmp_path):
    (tmp_path / "config.py").write_text(_CONFIG)
    killed = tmp_path / "killed"
    overrides = (
        "optim.learning_rate=0.5",
        "optim.betas=(0.5, 0.75)",
        "world.seed=7",
        "model.binding.variant=linear",
    )
    process = subprocess.Popen(
        _command(tmp_path, killed) + [f"--config.{change}" for change in overrides],
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not list((killed / "checkpoints").glob("[0-9]*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(float(np.random.default_rng().uniform(0, 0.3)))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert list((killed / "metrics").glob("events*"))

    config = stored_settings.read_run(killed / "config.json")
    assert config.optim.learning_rate == 0.5
    assert config.optim.betas == (0.5, 0.75)
    assert config.world.seed == 7
    assert config.model.binding.variant == "linear"
    config.steps = len(_losses(killed)) + 3
    again = loop.train(config, killed)
    config.checkpoint_every = config.steps
    whole = loop.train(config, tmp_path / "whole")
    assert _losses(killed) == _losses(tmp_path / "whole")
    _assert_equal(again, whole)


def test_a_start_says_where_it_is_and_refuses_to_go_back(tmp_path, capsys):
    loop.train(_config(steps=2), tmp_path)
    assert "data=1 fsdp=1 sequence=1 tensor=1; 7 of 8 devices are not" in capsys.readouterr().err
    loop.train(_config(steps=3), tmp_path)
    assert "goes on after step 2" in capsys.readouterr().err
    with pytest.raises(loop.TrainError, match=r"has done 3 steps, but config\.steps is 1"):
        loop.train(_config(steps=1), tmp_path)


def test_a_run_is_not_continued_with_other_numbers(tmp_path):
    loop.train(_config(steps=1), tmp_path)
    changed = _config(steps=2, seed=1, log_every=1)
    changed.optim.learning_rate = 0.02
    with pytest.raises(loop.TrainError) as error:
        loop.train(changed, tmp_path)
    assert "config.seed: 0 -> 1" in str(error.value)
    assert "config.optim.learning_rate: 0.01 -> 0.02" in str(error.value)
    assert "log_every" not in str(error.value)


def test_the_number_of_steps_counts_for_a_cosine_only():
    first, second = _config(steps=2), _config(steps=3)
    assert not differences(to_dict(first), to_dict(second))
    first.optim.schedule = second.optim.schedule = "cosine"
    assert differences(to_dict(first), to_dict(second)) == ["config.steps: 2 -> 3"]


def test_a_way_to_sample_may_change_or_be_new_in_a_run_that_goes_on():
    old, new = to_dict(_config(steps=2)), to_dict(_config(steps=2))
    new["model"]["diffusion"]["scheduler"] = "ddim"
    del old["model"]["diffusion"]["steps_offset"]
    del old["optim"]["gate_lr_scale"]  # a setting that is new had its default
    assert not differences(old, new)
    new["optim"]["gate_lr_scale"] = 1.0
    assert differences(old, new) == ["config.optim.gate_lr_scale: 100.0 -> 1.0"]
