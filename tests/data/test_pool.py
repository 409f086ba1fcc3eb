"""The pool of encoded examples: what it holds depends on nobody who shares the work."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from tests.support import sharded_step
from tests.support.tiny_stage import environment
from tora2_jax.config import ModelConfig
from tora2_jax.data import pool
from tora2_jax.data.loader import identified
from tora2_jax.errors import TrainError
from tora2_jax.models.frozen import FrozenNetworks
from tora2_jax.types import Inputs

SIZE = 11
NO_INPUTS = Inputs._make([None] * len(Inputs._fields))
_PROGRAM = """
import sys
sys.path[:0] = [{root!r}]
from pathlib import Path
from tests.data.test_pool import Examples, build_plain
from tora2_jax.parallel import processes
from tora2_jax.errors import TrainError
processes.start("127.0.0.1:{port}", 2, {index})
try:
    build_plain(Path({folder!r}), Examples({refused}))
except TrainError as error:
    print(error)
    processes.leave(2)
processes.leave(0)
"""


class Examples:
    """Numbers instead of clips; one is damaged, and one may be refused."""

    at_once = 2
    identity = {}  # noqa: RUF012

    def __init__(self, refused: int | None = None):
        self.refused = refused

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> tuple[Inputs, np.ndarray]:
        if index == 3:
            raise OSError("clip 3 is damaged")
        if index == self.refused:
            raise TrainError(f"clip {index} is refused")
        numbers = np.full(3, index, np.float32)
        return NO_INPUTS._replace(path=numbers), np.zeros((1, 2, 2, 3), np.uint8)

    def describe(self, index: int) -> dict[str, str]:
        return {"clip": f"number {index}"}


def build_plain(folder: Path, examples: Examples, devices: int = 1) -> None:
    """A pool of the numbers themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "_features", lambda networks, model, inputs, video: {"x": inputs.path})
        own = jax.local_devices()[:devices]
        pool.build(folder, ModelConfig(), examples, lambda: nnx.Linear(1, 1, rngs=nnx.Rngs(0)), own)


def assert_complete(folder: Path) -> None:
    made = pool.Pool(folder)
    expected = [0, 1, 2, 4, 4, 5, 6, 7, 8, 9, 10]
    assert [made[index]["x"].tolist() for index in range(SIZE)] == [[x] * 3 for x in expected]
    stored = json.loads((folder / "pool.json").read_text())
    named = {"3": {"clip": "number 3"}, "4": {"clip": "number 4"}}
    assert stored == {"size": SIZE, "replaced": {"3": 4}, "examples": named}


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_an_example_that_cannot_be_made_is_replaced_and_told(tmp_path, caplog, devices):
    build_plain(tmp_path, Examples(), devices)
    assert_complete(tmp_path)
    assert "example 3 cannot be made (OSError: clip 3 is damaged); 4 takes its place" in caplog.text
    assert f"1 of {SIZE} examples are replaced" in caplog.text


def test_an_interrupted_build_goes_on_with_what_is_left(tmp_path, monkeypatch):
    """Also where parts of earlier processes lie in several places."""
    with pytest.raises(TrainError, match="clip 7 is refused"):
        build_plain(tmp_path, Examples(refused=7))
    assert not (tmp_path / "pool.json").exists()
    progress = json.loads((tmp_path / "progress_0.json").read_text())
    assert progress == {"done": [[0, 6]], "replaced": {"3": 4}}
    stored = {"done": [[0, 2], [4, 6]], "replaced": {}}
    (tmp_path / "progress_1.json").write_text(json.dumps(stored))
    (tmp_path / "progress_0.json").unlink()
    asked = []
    taken = Examples.__getitem__
    monkeypatch.setattr(
        Examples, "__getitem__", lambda self, index: asked.append(index) or taken(self, index)
    )
    build_plain(tmp_path, Examples(), devices=2)
    assert_complete(tmp_path)
    assert asked[1:] == [2, 3, 4, 6, 7, 8, 9, 10]  # after the first one, for its shapes


def write_pool(folder: Path, stored: dict) -> np.ndarray:
    """A pool of 1 MB, made by hand."""
    values = np.random.default_rng(0).random((4, 1 << 15))
    np.save(folder / "x.npy", values)
    (folder / "pool.json").write_text(json.dumps({"size": 4} | stored))
    return values


def test_a_pickled_pool_is_its_folder_alone(tmp_path):
    """Each worker process gets one."""
    values = write_pool(tmp_path, {"replaced": {}})
    pickled = pickle.dumps(pool.Pool(tmp_path, Examples().describe))
    assert len(pickled) < 1000
    again = pickle.loads(pickled)
    assert len(again) == 4 and isinstance(again._arrays["x"], np.memmap)
    for index in range(4):
        np.testing.assert_array_equal(again[index]["x"], values[index])


@pytest.mark.parametrize("stored", [{"replaced": {"1": 2}}, {}])
def test_rows_are_named_also_of_pools_that_earlier_versions_made(tmp_path, stored):
    write_pool(tmp_path, stored)
    made = pool.Pool(tmp_path, Examples().describe)
    assert made.describe(0) == {"clip": "number 0"}
    replaced = {"made_from": 2, "clip": "number 2"} if stored else {"clip": "number 1"}
    assert made.describe(1) == replaced
    assert identified(made, [1, 3]) == [
        {"position": 1} | replaced,
        {"position": 3, "clip": "number 3"},
    ]


def start_two(folder: Path, refused: int | None = None) -> list[tuple[int, str]]:
    """Exit code and last words of two processes that build one pool."""
    root, port = str(Path(__file__).resolve().parents[2]), sharded_step.free_port()
    settings = {"root": root, "port": port, "folder": str(folder), "refused": refused}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(index=index, **settings)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for index in range(2)
    ]
    said = [process.communicate(timeout=200)[0].splitlines() for process in running]
    said = [" ".join(line for line in lines if "[Gloo]" not in line) for lines in said]
    return [(process.returncode, text) for process, text in zip(running, said, strict=True)]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_two_processes_share_the_work(tmp_path):
    assert start_two(tmp_path) == [(0, ""), (0, "")]
    assert_complete(tmp_path)
    done = [json.loads((tmp_path / f"progress_{index}.json").read_text()) for index in range(2)]
    assert [part["done"] for part in done] == [[[0, 6]], [[6, 11]]]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_what_one_process_refuses_ends_both(tmp_path):
    codes = start_two(tmp_path, refused=9)
    assert codes == [(2, "process 1: clip 9 is refused"), (2, "clip 9 is refused")]
    assert not (tmp_path / "pool.json").exists()
    build_plain(tmp_path, Examples())
    assert_complete(tmp_path)


@pytest.mark.long
def test_real_features_have_the_same_bits_on_several_devices(tmp_path):
    """Each device runs the same program, whatever their number."""
    model = sharded_step.tiny_config().model
    networks = FrozenNetworks(model, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)

    def random(leaf):
        values = 3 * rng.random((SIZE, *leaf.shape))
        return values.astype(leaf.dtype)

    inputs = jax.tree.map(random, pool.input_shapes(model))
    videos = rng.integers(0, 256, (SIZE, 9, 32, 48, 3)).astype(np.uint8)

    class Clips(Examples):
        def __getitem__(self, index):
            return jax.tree.map(lambda array: array[index], inputs), videos[index]

    for count in (1, 3):
        folder = tmp_path / str(count)
        pool.build(folder, model, Clips(), lambda: networks, jax.devices()[:count])
    one, three = pool.Pool(tmp_path / "1"), pool.Pool(tmp_path / "3")
    for index in range(SIZE):
        for name, values in one[index].items():
            np.testing.assert_array_equal(values, three[index][name], err_msg=name)


class NotFinite(Examples):
    """One example of which a network makes what is not finite."""

    def __getitem__(self, index: int) -> tuple[Inputs, np.ndarray]:
        inputs, video = super().__getitem__(index)
        broken = inputs._replace(path=np.full_like(inputs.path, np.inf))
        return (broken if index == 6 else inputs), video


def test_features_that_are_not_finite_are_refused_with_their_example(tmp_path):
    with pytest.raises(TrainError, match=r"x of clip number 6: .* not finite; all weights are"):
        build_plain(tmp_path / "pool", NotFinite())
    assert not (tmp_path / "pool" / "pool.json").exists()
