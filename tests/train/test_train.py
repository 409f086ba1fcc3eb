"""The training program on a stage of a few hundred numbers, which is defined here."""

import dataclasses
import errno
import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tensorboardX.proto import event_pb2

from tora2_jax.config import stored as stored_settings
from tora2_jax.config import to_dict
from tora2_jax.config.train import MeshConfig, OptimConfig, TrainConfig, differences
from tora2_jax.data.loader import ENDLESS
from tora2_jax.train import loop, optim
from tora2_jax.train import state as train_state
from tora2_jax.train.runs import checkpoints, export
from tora2_jax.train.runs import folder as run_folder
from tora2_jax.train.stage import Stage
from tora2_jax.weights import checkpoint

_PROGRAM = """
import sys
sys.path[:0] = [{root!r}]
from tora2_jax.train import loop, state
state.STAGES["base"] = "tests.train.test_train"
loop.run(sys.argv)
"""
_CONFIG = """
from tora2_jax.config.train import MeshConfig, OptimConfig, TrainConfig

def get_config():
    return TrainConfig(
        stage="base", steps=100_000, batch_size=4, checkpoint_every=2, ema_decay=0.9,
        optim=OptimConfig(learning_rate=0.01, warmup_steps=2), mesh=MeshConfig(data=1),
    )
"""


class _Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.body = nnx.Linear(3, 8, rngs=rngs)
        self.head = nnx.List([nnx.BatchNorm(8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)])


class _Source:
    def __init__(self, seed: int):
        self._seed = seed

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        random = np.random.default_rng((self._seed, index))
        return {"inputs": random.normal(size=3).astype(np.float32)}

    def describe(self, index: int) -> dict[str, str]:
        return {"clip": f"clip{index}"}


def build(config, rngs):
    return _Model(rngs)


def source(config):
    return _Source(config.seed)


def loss(config, model, batch, key):
    hidden = model.head[0](model.body(batch["inputs"]))
    noise = jax.random.normal(key, (hidden.shape[0], 2))
    value = jnp.mean((model.head[1](hidden) - noise) ** 2)
    return value, {"noise": jnp.mean(noise)}


def finish(config, model):
    return {"answer": 42}


STAGE = Stage(
    build=build,
    source=source,
    loss=loss,
    components={"transformer": r"(?P<prefix>body\.)", "motion": r"(?P<prefix>head\.)"},
    trainable=lambda config: r"head\.",
    finish=finish,
)


def change_stage(monkeypatch, **changes):
    """Other functions of this module's stage, until the test ends."""
    module = sys.modules[__name__]
    monkeypatch.setattr(module, "STAGE", dataclasses.replace(module.STAGE, **changes))


@pytest.fixture(autouse=True)
def _stage(monkeypatch):
    monkeypatch.setitem(train_state.STAGES, "base", "tests.train.test_train")


def _config(**changes) -> TrainConfig:
    settings = {"stage": "base", "steps": 4, "batch_size": 4, "checkpoint_every": 2}
    settings |= {"optim": OptimConfig(learning_rate=0.01, warmup_steps=2), "ema_decay": 0.9}
    settings |= {"mesh": MeshConfig(data=1)}
    return TrainConfig(**(settings | changes))


def _losses(workdir: Path) -> list[dict]:
    return [json.loads(row) for row in (workdir / "metrics/losses.jsonl").read_text().splitlines()]


def _assert_equal(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for left, right in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(left, right)


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


def environment(devices: int = 1) -> dict[str, str]:
    """Of a program of its own, with so many devices instead of the eight of the tests."""
    return os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", f"count={devices}")
    }


def _command(folder: Path, workdir: Path) -> list[str]:
    program = _PROGRAM.format(root=str(Path(__file__).resolve().parents[2]))
    config = f"--config={folder / 'config.py'}"
    return [sys.executable, "-c", program, config, f"--workdir={workdir}"]


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


def test_export_paths():
    folder = export.export_paths("folder", ["text", "transformer"])
    assert folder["text"] == Path("folder/text.safetensors")
    with pytest.raises(loop.TrainError, match="name a folder"):
        export.export_paths("one.safetensors", ["text", "transformer"])


def test_an_export_that_cannot_be_written_is_told_before_the_first_step(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(loop.TrainError, match=r"config.export: .*file/x/motion.*cannot be"):
        loop.train(_config(export=str(tmp_path / "file/x")), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics" / "losses.jsonl").exists()


def _bad_at(steps: set[int], gradient_only: bool = False):
    """The stage's loss, not finite at some steps (from 0); known by the examples of the batch."""
    rows = [source(_config())[step * 4]["inputs"] for step in sorted(steps)]
    plain_loss = loss

    def bad_loss(config, model, batch, key):
        value, metrics = plain_loss(config, model, batch, key)
        bad = jnp.any(jnp.all(jnp.asarray(rows)[:, None] == batch["inputs"], axis=-1))
        if gradient_only:  # the square root has an infinite slope at zero
            return value + jnp.sqrt(jnp.where(bad, 0.0, 1.0) * value**2), metrics
        return jnp.where(bad, jnp.inf, value), metrics

    return bad_loss


@pytest.mark.parametrize("gradient_only", [False, True])
def test_a_step_without_finite_numbers_is_skipped_and_counted(tmp_path, monkeypatch, gradient_only):
    change_stage(monkeypatch, loss=_bad_at({2}, gradient_only))
    before = loop.train(_config(steps=2), tmp_path / "before")
    after = loop.train(_config(steps=3), tmp_path / "after")
    assert int(after.step) == 3
    schedule = optim.after_skipped_step(before.optimizer, after.optimizer)  # alone goes on
    _assert_equal(before._replace(step=after.step, optimizer=schedule), after)
    rows = _skipped(tmp_path / "after")
    assert [row["step"] for row in rows] == [3]
    assert rows[0]["examples"] == [
        {"position": index, "clip": f"clip{index}"} for index in range(8, 12)
    ]
    assert rows[0]["gradient_norm" if gradient_only else "loss"] in ("inf", "nan")
    assert (_losses(tmp_path / "after")[2]["loss"] is None) != gradient_only
    further = loop.train(_config(steps=5), tmp_path / "after")
    assert np.any(further.trainable["head.1.kernel"] != after.trainable["head.1.kernel"])
    assert len(_skipped(tmp_path / "after")) == 1


def test_too_many_skipped_steps_in_a_row_end_the_run(tmp_path, monkeypatch):
    change_stage(monkeypatch, loss=_bad_at({1, 3, 4, 5, 6}))
    told = (
        r"steps 4 to 6 had no finite.*skipped\.jsonl lists: position 12 clip clip12; position 13 "
    )
    with pytest.raises(loop.TrainError, match=told):
        loop.train(_config(steps=9, skips_allowed=2), tmp_path)
    assert [row["step"] for row in _skipped(tmp_path)] == [2, 4, 5, 6]
    assert [row["step"] for row in _losses(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_bad_example_is_replaced_and_counted(tmp_path, monkeypatch):
    change_stage(monkeypatch, source=lambda config: _Holes(config.seed))
    change_stage(monkeypatch, loss=_sum_of_inputs(loss))
    loop.train(_config(steps=2, log_every=1), tmp_path)
    good = _Source(0)
    rows = [good[index]["inputs"] for index in (4, 6, 6, 7)]
    assert _losses(tmp_path)[1]["loss"] == pytest.approx(float(np.sum(rows)), rel=1e-5)
    assert _scalars(tmp_path, "replaced") == [0, 1]


class _Holes(_Source):
    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index == 5:
            raise OSError("example 5 is damaged")
        return super().__getitem__(index)


def _sum_of_inputs(plain_loss):
    def summed(config, model, batch, key):
        value, metrics = plain_loss(config, model, batch, key)
        return 0 * value + batch["inputs"].sum(), metrics

    return summed


def test_a_save_that_fails_is_told_and_leaves_the_last_checkpoint(tmp_path, monkeypatch, caplog):
    """As on a full disk: no file may have the size of an array while step 4 is saved."""
    save = checkpoints.Checkpoints.save

    def on_a_full_disk(self, step, items):
        if step not in full:
            return save(self, step, items)
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
        large = jax.random.normal(jax.random.key(0), (100_000,))
        try:
            save(self, step, items | {"average": items["average"] | {"large": large}})
            while not self.failed():
                time.sleep(0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    full = {4}
    monkeypatch.setattr(checkpoints.Checkpoints, "save", on_a_full_disk)
    loop.train(_config(steps=6, keep_checkpoints=1), tmp_path / "goes_on")
    assert "step 4 could not be saved" in caplog.text and "checkpoint 2 is kept" in caplog.text
    assert _checkpoints(tmp_path / "goes_on") == ["6"]

    with pytest.raises(checkpoints.SaveError, match=r"step 4 could not.* 2 is kept"):
        loop.train(_config(keep_checkpoints=1), tmp_path / "ends")
    assert _checkpoints(tmp_path / "ends") == ["2"]
    full.clear()
    again = loop.train(_config(keep_checkpoints=1), tmp_path / "ends")
    _assert_equal(again, loop.train(_config(), tmp_path / "whole"))


def test_a_full_disk_is_told_before_it_is_full(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    loop.train(_config(steps=1), tmp_path)
    assert "GB free; a checkpoint takes" in caplog.text


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


def _checkpoints(workdir: Path) -> list[str]:
    names = (entry.name for entry in (workdir / "checkpoints").iterdir())
    return sorted(name for name in names if name.isdigit())


def _skipped(workdir: Path) -> list[dict]:
    return [json.loads(row) for row in (workdir / "metrics/skipped.jsonl").read_text().splitlines()]


def _scalars(workdir: Path, name: str) -> list[float]:
    """Values of a metric in the order in which TensorBoard's file has them."""
    values = []
    for path in sorted((workdir / "metrics").glob("events*")):
        data, place = path.read_bytes(), 0
        while place < len(data):  # length (8 bytes), its checksum (4), an event, its checksum (4)
            size = int.from_bytes(data[place : place + 8], "little")
            event = event_pb2.Event.FromString(data[place + 12 : place + 12 + size])
            values += [value.simple_value for value in event.summary.value if value.tag == name]
            place += 16 + size
    return values


def test_weight_decay_and_groups():
    mask = optim.decay_mask(["a.kernel", "a.bias", "b.scale", "c.embedding", "gate"])
    assert [name for name, decays in mask.items() if decays] == ["a.kernel", "c.embedding"]

    config = OptimConfig(
        learning_rate=0.1, warmup_steps=0, weight_decay=0.5, new_lr_scale=3.0,
        tora_initialized="motion",
    )  # fmt: skip
    variables = {name: jnp.ones((2, 2)) for name in ("motion.kernel", "motion.bias", "new.kernel")}
    optimizer = optim.make_optimizer(config, steps=10)
    gradients = jax.tree.map(jnp.zeros_like, variables)
    updates, _ = optimizer.update(gradients, optimizer.init(variables), variables)
    np.testing.assert_allclose(updates["motion.kernel"], -0.05)
    np.testing.assert_allclose(updates["new.kernel"], -0.15)
    np.testing.assert_array_equal(updates["motion.bias"], 0)


def test_the_scalar_of_a_tanh_gate_learns_faster():
    config = OptimConfig(learning_rate=1e-3, warmup_steps=0, clip_norm=1e9, new_lr_scale=3.0)
    config.tora_initialized = "motion"
    names = (
        "binder.gate_motion.alpha",
        "binder.gate_motion.value.kernel",
        "motion.alpha_conv.bias",
    )
    gradients = {name: jnp.ones((2, 2)) for name in names}
    for algorithm, share in (("adamw", 1.0), ("muon", 0.15)):
        config.algorithm = algorithm
        step = -_first_step(config, gradients)["binder.gate_motion.alpha"]
        config.gate_lr_scale = 1.0
        slow = _first_step(config, gradients)
        config.gate_lr_scale = 100.0
        np.testing.assert_allclose(step, -100 * slow["binder.gate_motion.alpha"], rtol=1e-5)
        assert (step > 0.9 * 3e-3 * 100 * share).all()
        fast = _first_step(config, gradients)
        for name in names[1:]:
            np.testing.assert_array_equal(fast[name], slow[name])


def test_muon_turns_the_gradient_of_a_kernel_into_orthogonal_directions():
    config = OptimConfig(algorithm="muon", learning_rate=0.1, warmup_steps=0, clip_norm=1e9)
    kernel = jnp.zeros((3, 3, 4, 5))
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=kernel.shape), jnp.float32)
    variables = {"conv.kernel": kernel, "conv.bias": jnp.zeros(5)}
    gradients = {"conv.kernel": gradient, "conv.bias": jnp.ones(5)}
    optimizer = optim.make_optimizer(config, steps=10)
    updates, _ = optimizer.update(gradients, optimizer.init(variables), variables)
    values = np.linalg.svd(updates["conv.kernel"].reshape(-1, 5), compute_uv=False)
    assert values.max() < 2 * values.min()  # those of the gradient differ more
    step = -np.asarray(updates["conv.bias"])  # Adam's, with Nesterov's look ahead
    assert (step >= 0.1 * 0.15).all() and (step < 0.1 * 0.3).all()


def test_muon_turns_every_layer_of_a_stacked_kernel_alone():
    config = OptimConfig(algorithm="muon", learning_rate=0.1, warmup_steps=0, clip_norm=1e9)
    config.stacked = r"blocks\."
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5)), jnp.float32)
    whole = _first_step(config, {"blocks.kernel": gradient})["blocks.kernel"]
    layers = _first_step(config, {f"{layer}.kernel": gradient[layer] for layer in range(3)})
    for layer in range(3):
        np.testing.assert_allclose(whole[layer], layers[f"{layer}.kernel"], rtol=1e-3, atol=1e-5)


def _first_step(config, gradients):
    variables = jax.tree.map(jnp.zeros_like, gradients)
    optimizer = optim.make_optimizer(config, steps=10)
    return optimizer.update(gradients, optimizer.init(variables), variables)[0]


def test_learning_rate():
    config = OptimConfig(learning_rate=1.0, warmup_steps=4)
    constant = optim.learning_rate(config, 12)
    np.testing.assert_allclose([constant(s) for s in (0, 3, 4, 11)], [0.25, 1, 1, 1])
    config.schedule = "cosine"
    cosine = optim.learning_rate(config, 12)
    np.testing.assert_allclose([cosine(s) for s in (0, 4, 8, 12)], [0.25, 1, 0.5, 0], atol=1e-7)
