"""Component files and the strict merge into a model."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tora2_jax.errors import CheckpointError
from tora2_jax.models.layers.basic import flat_variables
from tora2_jax.system.files import write_text, written_whole
from tora2_jax.train.runs import checkpoints
from tora2_jax.weights import checkpoint
from tora2_jax.weights import folder as weight_folder
from tora2_jax.weights.precision import resting_dtype


class _Model(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(2, 3, rngs=rngs)
        self.parts = nnx.List([nnx.BatchNorm(3, rngs=rngs), nnx.Linear(3, 4, rngs=rngs)])


def test_component_round_trip(tmp_path):
    variables = {
        "a.kernel": np.float32([1.0, 0.1]),
        "a.var": np.float32([0.1]),
        "a.index": np.int32([[3, 4]]),
    }
    path = tmp_path / "new" / "part.safetensors"
    checkpoint.save_component(path, variables, {"scaling_factor": 0.7, "model": {"width": 3}})
    loaded, metadata = checkpoint.load_component(path)
    assert metadata == {"scaling_factor": 0.7, "model": {"width": 3}}
    assert loaded["a.kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(loaded["a.kernel"], variables["a.kernel"].astype(jnp.bfloat16))
    for name in ("a.var", "a.index"):
        assert loaded[name].dtype == variables[name].dtype
        np.testing.assert_array_equal(loaded[name], variables[name])
    assert [entry.name for entry in path.parent.iterdir()] == ["part.safetensors"]


def _weight_folder(path, **arrays):
    writer = weight_folder.Writer(path, own_item=8)
    for name, array in arrays.items():
        writer.write(f"first.{name}", array)
    writer.finish({"model": {"width": 3}})
    return path


def test_weight_folder_is_a_component(tmp_path):
    kernel, bias = np.arange(6.0).reshape(2, 3).astype(jnp.bfloat16), np.float16([1, 0.1])
    folder = _weight_folder(tmp_path / "part", kernel=kernel, bias=bias)
    assert {entry.name for entry in folder.iterdir()} == {
        "first.kernel",
        "_small",
        "metadata.json",
    }
    loaded, metadata = checkpoint.load_component(folder)
    for name, array in (("first.kernel", kernel), ("first.bias", bias)):
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)
    assert metadata == {"model": {"width": 3}}
    specs = checkpoint.component_specs(folder)
    assert specs["first.kernel"] == ((2, 3), jnp.bfloat16)


def test_restoring_takes_the_narrower_type_and_the_sharding_of_the_module(tmp_path):
    model = nnx.eval_shape(lambda: nnx.Dict(first=nnx.Linear(2, 3, rngs=nnx.Rngs(0))))
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    halves = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    kernel = model.first.kernel
    kernel.set_value(jax.ShapeDtypeStruct((2, 3), jnp.float32, sharding=halves))
    stored = {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3), "bias": np.float16([1] * 3)}
    folder = _weight_folder(tmp_path / "part", **stored)
    checkpoint.restore_frozen(model, folder, dtype=jnp.bfloat16)
    restored = model.first.kernel[...]
    assert restored.dtype == jnp.bfloat16 and restored.sharding == halves
    np.testing.assert_array_equal(restored, stored["kernel"])
    checkpoint.restore_frozen(model, folder, dtype=jnp.float32)
    assert model.first.kernel[...].dtype == jnp.float32
    assert model.first.bias[...].dtype == jnp.float16


def test_types_at_rest():
    narrow, wide = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
    path = "transformer.blocks.attention.query.kernel"
    assert resting_dtype(path, wide, narrow) == narrow
    assert resting_dtype(path, jnp.float16, narrow) == narrow
    assert resting_dtype(path, jnp.float16, wide) == jnp.float16
    assert resting_dtype("transformer.time_embedding.expand.kernel", wide, narrow) == wide
    assert resting_dtype("norm_stem.var", wide, narrow) == wide
    for norm in ("norm_stem", "trajectory_extractor.blocks.first_norm", "a.blocks.fuser.norm"):
        assert resting_dtype(f"{norm}.scale", wide, narrow) == wide
    assert resting_dtype("a.index", jnp.int32, narrow) == jnp.int32


def test_nothing_to_load_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.load_component(tmp_path / "none")
    with pytest.raises(CheckpointError, match="no complete set of weights"):
        checkpoint.load_component(tmp_path)
    (tmp_path / "metadata.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.load_component(tmp_path)
    (tmp_path / "part.safetensors").write_text("no weights")
    with pytest.raises(CheckpointError, match=r"part\.safetensors cannot be read"):
        checkpoint.load_component(tmp_path / "part.safetensors")


def test_merge_assigns_and_keeps_types():
    model = _Model()
    given = {path: np.full(value.shape, 2.0, np.float16) for path, value in _arrays(model)}
    checkpoint.merge(model, given)
    for _, value in _arrays(model):
        assert value.dtype == jnp.float32
        np.testing.assert_array_equal(value, 2.0)


def test_merge_of_what_is_expected_leaves_the_rest():
    model = _Model()
    before = dict(_arrays(model))
    new = {f"first.{name}": np.ones(before[f"first.{name}"].shape) for name in ("kernel", "bias")}
    checkpoint.merge(model, new, expected=r"first\.")
    after = dict(_arrays(model))
    np.testing.assert_array_equal(after["first.kernel"], 1.0)
    np.testing.assert_array_equal(after["parts.1.kernel"], before["parts.1.kernel"])


def test_merge_lists_every_fault_and_changes_nothing():
    model = _Model()
    before = dict(_arrays(model))
    given = {path: np.ones(value.shape) for path, value in before.items()}
    del given["first.bias"], given["parts.0.mean"]
    given |= {"parts.1.kernel": np.ones((3, 5)), "other.kernel": np.ones(1)}
    with pytest.raises(CheckpointError) as error:
        checkpoint.merge(model, given, {"first.kernel": np.ones((2, 3))})
    for part in (
        "missing first.bias",
        "missing parts.0.mean",
        "misshapen parts.1.kernel: (3, 5) does not fit (3, 4)",
        "extra other.kernel",
        "repeated first.kernel",
    ):
        assert part in str(error.value)
    for path, value in _arrays(model):
        np.testing.assert_array_equal(value, before[path])


def _arrays(model):
    return flat_variables(model).items()


def test_stored_names_leave_out_the_prefix():
    paths = ["vae.encoder.kernel", "transformer.kernel", "transformer.fuser.kernel"]
    names = checkpoint.stored_names(paths, r"(?P<prefix>vae\.)")
    assert names == {"encoder.kernel": "vae.encoder.kernel"}
    names = checkpoint.stored_names(paths, r"transformer\.(?!fuser)")
    assert names == {"transformer.kernel": "transformer.kernel"}


def test_only_the_last_checkpoints_are_kept(tmp_path):
    saved = checkpoints.Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        saved.save(step, {"trainable": {"a.kernel": jnp.full(3, step, jnp.float32)}, "average": {}})
    saved.close()
    saved = checkpoints.Checkpoints(tmp_path, keep=2)
    assert saved.latest() == 3
    target = {"trainable": {"a.kernel": jnp.zeros(3)}, "average": {}}
    restored = saved.restore(3, target)
    np.testing.assert_array_equal(restored["trainable"]["a.kernel"], 3.0)
    assert restored["average"] == {}
    saved.close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["2", "3"]


@pytest.mark.parametrize(
    "change",
    [
        {"arrays": []},
        {"arrays": {"kernel": 5}},
        {"arrays": {"kernel": {"shape": "12", "dtype": "float32", "item": "kernel"}}},
        {"arrays": {"kernel": {"shape": [1], "dtype": "float32", "item": 5}}},
        {"arrays": {"kernel": {"shape": [1], "dtype": "magic", "item": "kernel"}}},
        {"metadata": []},
    ],
)
def test_damaged_metadata_of_a_weight_folder_is_refused(change, tmp_path):
    (tmp_path / "metadata.json").write_text(json.dumps({"arrays": {}, "metadata": {}} | change))
    with pytest.raises(CheckpointError, match=r"metadata.json is damaged"):
        checkpoint.component_specs(tmp_path)


@pytest.mark.parametrize("kept", [1000, 100_000])
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_lost_data_of_a_weight_folder_is_one_message(kept, tmp_path):
    writer = weight_folder.Writer(tmp_path / "part")
    for index in range(300):
        writer.write(f"{index}", np.random.default_rng(index).random((64, 64), np.float32))
    writer.finish({})
    for file in (tmp_path / "part/_small").glob("ocdbt.process_0/d/*"):
        file.write_bytes(file.read_bytes()[:kept])
    wanted = {f"{index}": jax.ShapeDtypeStruct((64, 64), np.float32) for index in range(300)}
    with pytest.raises(ValueError, match=r"_small cannot be read: .*; convert it again"):
        weight_folder.restore(tmp_path / "part", wanted)
    with pytest.raises(ValueError, match=r"_small cannot be read: .*; convert it again"):
        list(weight_folder.read(tmp_path / "part"))


def test_what_is_no_regular_file_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "text")
    assert os.read(reader, 9) == b"text" and pipe.is_fifo()
    os.close(reader)


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    write_text(tmp_path / "file", "old")
    with pytest.raises(ValueError, match="half"), written_whole(tmp_path / "file") as aside:
        aside.write_text("new")
        raise ValueError("half")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_scalars_and_empty_arrays_keep_their_shape(tmp_path):
    shapes = {"alpha": (), "empty": (0, 3), "row": (2, 1)}
    given = {name: np.full(shape, 0.5, np.float32) for name, shape in shapes.items()}
    checkpoint.save_component(tmp_path / "one.safetensors", given, {})
    loaded, _ = checkpoint.load_component(tmp_path / "one.safetensors")
    assert {name: value.shape for name, value in loaded.items()} == shapes
