"""The whole step on meshes over two real processes: the samples, losses and gradients of one."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from tests.support import sharded_step
from tests.support.tiny_stage import environment
from tora2_jax import parallel
from tora2_jax.train import state as train_state
from tora2_jax.train.stages import diffusion

STEPS = 4
_PROGRAM = """
import json, sys
sys.path[:0] = [{root!r}]
from tests.parallel import test_process_meshes
from tora2_jax.parallel import processes
processes.start({coordinator!r}, 2, int(sys.argv[1]))
print(json.dumps(test_process_meshes.losses({sizes!r}, {order!r})))
processes.leave(0)
"""


def losses(sizes: tuple[int, ...], order: list[int]) -> list[float]:
    """Of some steps from the random state, on four devices in an order."""
    config = sharded_step.tiny_config()
    mesh = sharded_step.mesh_of(*sizes)
    devices = np.array(jax.devices()[:4])[order].reshape(mesh.devices.shape)
    mesh = Mesh(devices, mesh.axis_names, axis_types=mesh.axis_types)
    graph, state = sharded_step.random_state(config, mesh)
    state = state._replace(optimizer=jax.tree.map(jnp.abs, state.optimizer))  # as squares are
    rows = parallel.batch_rows(mesh, config.batch_size)
    found = []
    with parallel.use(mesh):
        step = train_state.compiled_step(config, diffusion.STAGE, graph, state)
        for seed in range(STEPS):
            batch = sharded_step.random_batch(config, seed)
            own = {name: array[rows] for name, array in batch.items()}
            state, metrics = step(state, parallel.global_batch(mesh, config.batch_size, own))
            found.append([float(metrics["loss"]), float(metrics["gradient_norm"])])
    return found


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("sizes", "order"),
    [
        ((1, 4, 1, 1), [0, 2, 3, 1]),  # as on a torus: no process has neighboring samples
        ((2, 1, 2, 1), [0, 2, 1, 3]),  # the stream is cut between the processes
    ],
)
def test_a_step_of_two_processes_is_that_of_one(sizes, order):
    coordinator = f"127.0.0.1:{sharded_step.free_port()}"
    root = str(Path(__file__).resolve().parents[2])
    program = _PROGRAM.format(root=root, coordinator=coordinator, sizes=sizes, order=order)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(index)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(devices=2),
        )
        for index in range(2)
    ]  # fmt: skip
    ended = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], ended
    wanted = losses(sizes, order)
    assert np.isfinite(wanted).all()
    for output, _ in ended:
        np.testing.assert_allclose(json.loads(output.splitlines()[-1]), wanted, rtol=1e-5)
