"""Meshes and rules, and what is made for a mesh: states, steps and samples."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import sharded_step
from tests.support.parity import BLOCK_TOLERANCE, relative_error
from tora2_jax import config, parallel
from tora2_jax.config.train import MeshConfig, TrainConfig, differences
from tora2_jax.errors import TrainError
from tora2_jax.models.layers.attention import attention
from tora2_jax.parallel import mesh, placement
from tora2_jax.train import state as train_state
from tora2_jax.train.stages import diffusion, vae


def test_one_size_takes_the_devices_that_are_left():
    shape = parallel.make_mesh(MeshConfig(fsdp=2, tensor=2)).shape
    assert dict(shape) == {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}
    assert parallel.make_mesh(MeshConfig(data=2, sequence=-1)).shape["sequence"] == 4
    assert parallel.make_mesh(MeshConfig(data=1)).devices.size == 1


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"fsdp": 3}, "8 devices cannot be shared so"),
        ({"data": 16}, "needs 16 devices of 8"),
        ({"fsdp": -1}, "one may be -1"),
        ({"tensor": 0}, "sizes are positive"),
    ],
)
def test_meshes_that_cannot_be_are_refused(sizes, told):
    with pytest.raises(TrainError, match=f"config.mesh .*{told}"):
        parallel.make_mesh(MeshConfig(**sizes))


def test_a_mesh_that_the_topology_does_not_allow_is_refused(monkeypatch):
    def no_assignment(*_, **__):
        raise NotImplementedError("Failed to find assignment for logical_axis_index 1")

    monkeypatch.setattr(mesh.mesh_utils, "create_device_mesh", no_assignment)
    with pytest.raises(TrainError, match=r"config.mesh .*fsdp=8.*Failed to find assignment"):
        train_state.mesh_of(sharded_step.tiny_config(mesh=MeshConfig(fsdp=8)), diffusion.STAGE)


def test_a_batch_that_cannot_be_shared_is_refused():
    settings = sharded_step.tiny_config(batch_size=12, accumulate=2)
    with pytest.raises(TrainError, match=r"batch_size 12 is not a multiple of 8 .* x 2"):
        train_state.mesh_of(settings, diffusion.STAGE)
    stage = vae.STAGE
    settings = TrainConfig(stage="vae", batch_size=16, accumulate=2)
    with pytest.raises(TrainError, match="accumulate must be 1 in stage vae"):
        train_state.mesh_of(settings, stage)


def test_older_runs_go_on_and_on_another_mesh():
    settings = sharded_step.tiny_config()
    new = config.to_dict(settings)
    old = {name: value for name, value in new.items() if name not in ("mesh", "accumulate")}
    old["model"]["transformer"]["rematerialize"] = False
    assert differences(old, new) == []
    assert differences(new, new | {"mesh": {"data": 1, "fsdp": 8}}) == []
    assert differences(old, new | {"accumulate": 2}) == ["config.accumulate: 1 -> 2"]
    loaded = config.from_dict(config.TransformerConfig, {"rematerialize": True})
    assert loaded.rematerialize == "full"


@pytest.mark.parametrize(
    ("path", "shape", "resting", "used"),
    [
        ("blocks.attention.query.kernel", (42, 3072, 3072), ("fsdp", "tensor"), (None, "tensor")),
        ("blocks.attention.query.bias", (42, 3072), ("tensor",), ("tensor",)),
        ("blocks.feed_forward.project.kernel", (42, 12288, 3072), ("tensor", "fsdp"), ("tensor",)),
        ("cross_attention.output.kernel", (42, 2048, 3072), ("tensor", "fsdp"), ("tensor",)),
        ("blocks.fuser.beta_temporal.kernel", (42, 3, 768, 3072), ("fsdp", "tensor"), None),
        ("blocks.fuser.beta_spatial.kernel", (42, 3, 3, 128, 768), (None, "fsdp"), ()),
        ("blocks.attention_norm.modulation.kernel", (42, 512, 18432), (None, "fsdp"), ()),
        ("blocks.attention_norm.norm.scale", (42, 3072), (), ()),
        ("blocks.attention.query.kernel", (2, 6, 10), ("fsdp", None), ()),  # 10 is no multiple of 4
    ],
)
def test_variables_lie_as_the_rules_say(path, shape, resting, used):
    mesh = sharded_step.mesh_of(1, 2, 1, 4)

    def full(axes):
        return (*[None] * (len(shape) - len(axes)), *axes)

    assert tuple(placement.spec_of(mesh, f"tora2.transformer.{path}", shape)) == full(resting)
    if used is not None:
        found = tuple(placement.spec_of(mesh, path, shape, whole=True))
        assert [axis for axis in found if axis] == [axis for axis in used if axis]


def test_every_large_array_of_the_5b_model_is_shared():
    """What no rule cuts is small; and nothing that is frozen has an optimizer state."""
    settings = TrainConfig(frozen_dtype="bfloat16", dtype="bfloat16")
    mesh = sharded_step.mesh_of(1, 8, 1, 1)
    _, state = train_state.abstract_state(settings, diffusion.STAGE, mesh)
    arrays = state.trainable | state.frozen
    whole = [path for path, x in arrays.items() if x.sharding.shard_shape(x.shape) == x.shape]
    assert sum(arrays[path].size for path in whole) < 60e6
    assert sum(x.size for x in arrays.values()) > 11e9
    assert {x.dtype for x in state.trainable.values()} == {np.dtype(np.float32)}
    wide = [path for path, x in state.frozen.items() if x.dtype == np.float32]
    assert all(re.search(r"norm|modulation|time_embedding|positions", path) for path in wide)
    moments = sum(x.size for x in jax.tree.leaves(state.optimizer))
    assert moments - 2 * sum(x.size for x in state.trainable.values()) < 10
    kernel = "tora2.transformer.blocks.fuser.gamma_temporal.kernel"
    assert state.optimizer[1][0].mu[kernel].sharding == state.trainable[kernel].sharding


def test_a_step_is_lowered_without_numbers():
    settings = sharded_step.tiny_config(
        dtype="bfloat16", frozen_dtype="bfloat16", accumulate=2, ema_decay=0.9
    )
    settings.model.transformer.rematerialize = "save_attention"
    step = train_state.abstract_step(settings, diffusion.STAGE, sharded_step.mesh_of(1, 2, 2, 2))
    state, metrics = step.lower().out_info
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, step.state)
    assert metrics["loss"].shape == () and "contrastive" in metrics


@pytest.mark.parametrize("sizes", [(1, 1, 2, 1), (2, 1, 1, 2), (1, 1, 4, 2)])
def test_attention_in_chunks_is_the_same_in_parts(sizes):
    """Values and gradients, where 4 heads are exchanged, local, and too few."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, 24, 4, 8)).astype(np.float32) for _ in range(3)]
    attend = partial(attention, max_logits=64)

    @jax.jit
    def run(query, key, value):
        def loss(query, key, value):
            output = parallel.self_attention(attend, query, key, value, 23)
            return jnp.sin(output[:, :23]).sum()

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(query, key, value)

    expected = run(*(jnp.asarray(x[:, :23]) for x in arrays))
    with parallel.use(sharded_step.mesh_of(*sizes)):
        found = run(*arrays)
    assert relative_error(found[0], expected[0]) < BLOCK_TOLERANCE
    for one, two in zip(found[1], expected[1], strict=True):
        assert relative_error(one[:, :23], two) < BLOCK_TOLERANCE


@pytest.mark.long
def test_a_state_is_made_in_place():
    """With the numbers that it has on one device."""
    settings = sharded_step.tiny_config(ema_decay=0.9, frozen_dtype="bfloat16")
    _, plain = train_state.init_state(settings, diffusion.STAGE)
    mesh = sharded_step.mesh_of(1, 4, 1, 2)
    _, target = train_state.abstract_state(settings, diffusion.STAGE, mesh)
    _, state = train_state.init_state(settings, diffusion.STAGE, mesh)
    for one, two, wanted in zip(*map(jax.tree.leaves, (state, plain, target)), strict=True):
        assert (one.sharding, one.dtype) == (wanted.sharding, wanted.dtype)
        np.testing.assert_allclose(
            np.asarray(one, np.float32), np.asarray(two, np.float32), rtol=1e-6, atol=1e-7
        )
