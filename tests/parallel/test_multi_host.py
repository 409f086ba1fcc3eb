"""Two processes on one machine train as one run, stop as one, and end when one is lost."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.support import sharded_step, tiny_stage
from tora2_jax import parallel
from tora2_jax.config.train import MeshConfig, OptimConfig, TrainConfig
from tora2_jax.parallel import processes
from tora2_jax.train import loop
from tora2_jax.train import state as train_state
from tora2_jax.weights import checkpoint
from tora2_jax.weights import folder as weight_folder

CUT = (re.compile(r"(?:body|head)\..*kernel"), (None, parallel.FSDP))  # a rule of placement
PAUSE = 0.02  # seconds per example, so that signals meet a run under way
_PROGRAM = """
import sys
sys.path[:0] = [{root!r}]
from tests.parallel import test_multi_host
from tora2_jax.parallel import placement
from tora2_jax.train import loop, state
placement.RULES.append(test_multi_host.CUT)
state.STAGES["base"] = "tests.parallel.test_multi_host"
{before}
loop.run(sys.argv)
"""
_CONFIG = """
from tests.parallel.test_multi_host import config

def get_config():
    return config(steps=100_000)  # on the device of each process
"""


def config(steps: int, data: int = -1) -> TrainConfig:
    """The run of these tests, on so many devices (-1: all)."""
    return TrainConfig(
        stage="base",
        steps=steps,
        batch_size=4,
        checkpoint_every=5,
        ema_decay=0.9,
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=2),
        mesh=MeshConfig(data=data),
    )


class _SlowSource(tiny_stage._Source):
    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        time.sleep(PAUSE)
        return super().__getitem__(index)


def source(config):
    return _SlowSource(config.seed)


def sample(config, model, step) -> np.ndarray:
    """Of a program with the model and with weights of a folder; its numbers go there, too."""
    folder = Path(config.cache_dir)
    target = jax.ShapeDtypeStruct((2, 3), np.float32)
    weights = weight_folder.restore(folder / "weights", {"kernel": target})["kernel"]
    product = jax.jit(lambda *kernels: kernels[0] @ kernels[1] @ kernels[2])(
        weights, model.body.kernel[...], model.head[1].kernel[...]
    )
    np.save(folder / f"{step}.npy", product)
    return np.zeros((2, 16, 16, 3), np.uint8)


STAGE = dataclasses.replace(tiny_stage.STAGE, source=source, sample=sample, finish=None)


def _start(
    folder: Path,
    workdir: Path,
    *overrides: str,
    before: str = "",
    own: tuple[str, str] | None = None,
) -> list[subprocess.Popen]:
    """Two processes, with fields of the config set as in `steps=4`.

    `before` is code that each runs first, `own` a flag for each of them.
    """
    (folder / "config.py").write_text(_CONFIG)
    port = sharded_step.free_port()
    program = _PROGRAM.format(root=str(Path(__file__).resolve().parents[2]), before=before)
    flags = [f"--config={folder / 'config.py'}", f"--workdir={workdir}", "--processes=2"]
    flags.append(f"--coordinator=127.0.0.1:{port}")
    flags += [f"--config.{override}" for override in overrides]
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, *flags, f"--process={index}", *(own or ())[index:][:1]],
            stderr=(folder / f"errors{index}").open("a"),
            env=tiny_stage.environment(),
        )
        for index in range(2)
    ]


def _wait_for_step(workdir: Path, step: int, running: list[subprocess.Popen]) -> None:
    while _last_step(workdir) < step and all(process.poll() is None for process in running):
        time.sleep(0.02)


def _last_step(workdir: Path) -> int:
    return max(_steps(workdir), default=0)


def _steps(workdir: Path) -> list[int]:
    return [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]


def _ends(running: list[subprocess.Popen]) -> list[int | None]:
    """Exit codes; of what waits for ever none, and it is killed."""
    deadline = time.monotonic() + 240
    while any(process.poll() is None for process in running) and time.monotonic() < deadline:
        time.sleep(0.1)
    codes = [process.poll() for process in running]
    for process in running:
        process.kill()
    return codes


def _errors(folder: Path) -> str:
    return "\n".join((folder / f"errors{index}").read_text() for index in range(2))


def _losses(workdir: Path) -> dict[int, float]:
    rows = (workdir / "metrics/losses.jsonl").read_text().splitlines()
    return {row["step"]: row["loss"] for row in map(json.loads, rows)}


def _assert_like_one_process(two: Path, steps: int, folder: Path) -> None:
    """Goes on alone to a step, with the losses of a run that was alone from the start."""
    loop.train(config(steps, data=1), two)
    loop.train(config(steps, data=1), folder / "one")
    ours, theirs = _losses(two), _losses(folder / "one")
    assert list(ours) == list(theirs) == list(range(1, steps + 1))
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-6)


@pytest.fixture
def _alone(monkeypatch):
    """Lets this process train the stage of this file, without its pauses."""
    monkeypatch.setitem(train_state.STAGES, "base", "tests.parallel.test_multi_host")
    monkeypatch.setattr(sys.modules[__name__], "PAUSE", 0)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_killed_process_ends_the_other_and_one_goes_on(tmp_path, _alone):
    two = tmp_path / "two"
    running = _start(tmp_path, two)
    _wait_for_step(two, 5, running)
    running[1].kill()
    assert running[0].wait(timeout=60) not in (0, 2, 75), _errors(tmp_path)  # the bound
    assert running[1].wait() == -signal.SIGKILL, _errors(tmp_path)
    checkpoint.load_component(two)  # whole, and readable by a process that is alone
    last = _last_step(two)
    assert last >= 5
    _assert_like_one_process(two, last + 3, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_signal_to_one_process_stops_both_at_the_same_step(tmp_path, _alone):
    two, stopped = tmp_path / "two", 0
    for signalled in (1, 0):
        running = _start(tmp_path, two)
        _wait_for_step(two, stopped + 5, running)
        running[signalled].send_signal(signal.SIGTERM)
        assert [process.wait() for process in running] == [75, 75], _errors(tmp_path)
        assert _last_step(two) >= stopped + 5
        stopped = _last_step(two)
        assert _errors(tmp_path).count(f"stopped after step {stopped} of") == 2
        assert max(_losses(two)) == stopped
    _assert_like_one_process(two, stopped + 1, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_two_processes_sample_profile_and_export_as_one(tmp_path, _alone):
    for name in ("one", "two"):
        writer = weight_folder.Writer(tmp_path / f"cache_{name}" / "weights")
        writer.write("kernel", np.arange(6, dtype=np.float32).reshape(2, 3))
        writer.finish({})
    ours = config(steps=4, data=1)
    ours.sample_every, ours.profile_steps = 2, (2, 3)
    ours.cache_dir, ours.export = str(tmp_path / "cache_one"), str(tmp_path / "out_one")
    loop.train(ours, tmp_path / "one")
    running = _start(
        tmp_path,
        tmp_path / "two",
        *("steps=4", "sample_every=2", "profile_steps=(2,3)", "mesh.data=1", "mesh.fsdp=2"),
        *(f"cache_dir={tmp_path / 'cache_two'}", f"export={tmp_path / 'out_two'}"),
    )
    assert _ends(running) == [0, 0], _errors(tmp_path)
    for step in (2, 4):
        assert (tmp_path / "two" / "samples" / f"{step:08d}.mp4").is_file(), _errors(tmp_path)
        one, two = (np.load(tmp_path / f"cache_{name}" / f"{step}.npy") for name in ("one", "two"))
        np.testing.assert_allclose(two, one, rtol=1e-5)
    for index in range(2):
        assert list((tmp_path / "two" / "profile" / f"process_{index}").rglob("*.xplane.pb"))
    one, two = (
        checkpoint.load_component(tmp_path / f"out_{name}" / "motion.safetensors")[0]
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    for path in one:
        np.testing.assert_allclose(np.float32(two[path]), np.float32(one[path]), rtol=1e-2)


@pytest.mark.parametrize("spec", [PartitionSpec(None, parallel.FSDP), PartitionSpec()])
def test_only_the_first_process_gets_a_whole_array(monkeypatch, spec):
    values = np.arange(8.0).reshape(2, 4)
    mesh = parallel.make_mesh(MeshConfig(data=2, fsdp=4))
    array = jax.device_put(values, NamedSharding(mesh, spec))
    assert processes.on_first(array) is array  # alone
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    whole = processes.on_first(array)
    assert isinstance(whole, np.ndarray)
    np.testing.assert_array_equal(whole, values)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert processes.on_first(array) is None


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", ["weights", "folder", "config"])
def test_what_is_wrong_with_one_process_ends_both_with_the_reason(tmp_path, fault):
    before, flags = "", None
    if fault == "weights":
        _, state = train_state.init_state(config(1, data=1), STAGE)
        variables = state.trainable | state.statistics
        own = {path.removeprefix("head."): array for path, array in variables.items()}
        checkpoint.save_component(tmp_path / "own.safetensors", own, {})
        before = f"import os; os.chdir('/' if '--process=1' in sys.argv else {str(tmp_path)!r})"
        flags = ("--config.weights.motion=own.safetensors",) * 2
    elif fault == "folder":
        flags = (f"--workdir={tmp_path / 'two'}", f"--workdir={tmp_path / 'own'}")
    else:
        flags = ("--config.seed=0", "--config.seed=1")
    running = _start(tmp_path, tmp_path / "two", before=before, own=flags)
    assert [process.wait() for process in running] == [2, 2], _errors(tmp_path)
    first, second = ((tmp_path / f"errors{index}").read_text() for index in range(2))
    told = {
        "weights": "/own.safetensors: no such",
        "folder": "/own/config.json",
        "config": "0 -> 1",
    }
    reason = next(line for line in second.splitlines() if told[fault] in line)
    assert reason in first and "process 1: " in first


_BLIND = """
from tora2_jax.weights import array_items
read = array_items.read

def blind(location, *arguments):
    if "--process=1" in sys.argv and "/checkpoints/2/" in str(location):
        raise ValueError(f"{location} cannot be read")
    return read(location, *arguments)

array_items.read = blind
"""


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_checkpoint_that_one_process_cannot_read_is_made_again(tmp_path, _alone):
    def run(steps: int, before: str = "") -> None:
        running = _start(tmp_path, tmp_path / "two", f"steps={steps}", before=before)
        assert [process.wait() for process in running] == [0, 0], _errors(tmp_path)

    run(1)
    run(2)
    run(3, _BLIND)
    assert _errors(tmp_path).count("checkpoint 2 is damaged") == 2
    assert sorted(_steps(tmp_path / "two")) == [1, 3]
    loop.train(config(3, data=1), tmp_path / "one")
    np.testing.assert_allclose(
        list(_losses(tmp_path / "two").values()),
        list(_losses(tmp_path / "one").values()),
        rtol=1e-6,
    )


def test_the_cluster_is_known_by_its_environment(monkeypatch):
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    assert not processes.in_cluster()  # JAX_PLATFORMS is cpu here
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.delenv("SLURM_STEP_NODELIST", raising=False)
    assert not processes.in_cluster()  # within an allocation, but not started by srun
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-4]")
    assert processes.in_cluster()
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert not processes.in_cluster()


def test_flags_that_make_no_sense_are_refused():
    with pytest.raises(loop.TrainError, match="together or not at all"):
        processes.start("127.0.0.1:1234", 2, None)
