"""Several processes as one run: how they find each other, agree, wait, and end together.

Every function does nothing, or the plain thing, where there is one process only.
"""

import itertools
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from tora2_jax.config.train import MeshConfig
from tora2_jax.errors import CheckpointError, TrainError
from tora2_jax.parallel import mesh

T = TypeVar("T")

HEARTBEAT = 40  # seconds without a sign of life after which the others end as well
_LEAVING = 20  # seconds to wait for the others at the end
_barriers = itertools.count()  # the same number in every process: all pass the same barriers


def start(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Joins the processes of a run; before anything else asks JAX for its devices.

    Args:
        coordinator: `HOST:PORT` of process 0; None: as the cluster's environment says, if any.
        count: of processes.
        index: of this process, from 0.

    Raises:
        TrainError: some but not all are given, or they make no sense.
        ConnectionError: the processes do not find each other.
    """
    given = (coordinator, count, index)
    if None in given and given != (None, None, None):
        raise TrainError(
            "--coordinator, --processes and --process are given together or not at all"
        )
    if coordinator is None and not in_cluster():
        return
    # JAX's own listener would take SIGTERM away from stop.py.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            *given,
            cluster_detection_method=None if coordinator is None else "deactivate",
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=_LEAVING,
        )
    except ValueError as error:
        raise TrainError(f"the processes of this run: {error}") from error
    except RuntimeError as error:  # another try may find them
        message = f"the processes of this run do not find each other: {error}"
        raise ConnectionError(message) from error
    if jax.default_backend() == "cpu":
        # A program from the cache has lost the order of its exchanges on CPU (jaxlib 0.10.2): two
        # processes then meet in different ones ("distributed collective mismatch") and abort.
        jax.config.update("jax_enable_compilation_cache", False)


def in_cluster() -> bool:
    """Whether the environment is that of one of several processes which JAX can find by itself."""
    environment = os.environ
    if int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_NODELIST" in environment:
        return True  # within srun
    if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return True
    if "JOB_COMPLETION_INDEX" in environment and find_spec("kubernetes"):
        return True  # an indexed job, and jax[k8s] to ask for its size
    tpu = list(Path("/dev").glob("accel*")) or list(Path("/dev/vfio").glob("[0-9]*"))
    platforms = environment.get("JAX_PLATFORMS", "tpu")
    return bool(tpu and find_spec("libtpu") and "tpu" in platforms)


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def agree(value: int) -> int:
    """The largest of the values of all processes. All must call it at the same place."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def wait_for_all() -> None:
    """Returns when every process has come here; RuntimeError if one does not within a day."""
    _wait(f"tora2_{next(_barriers)}", 24 * 3600)


def _wait(barrier: str, seconds: int) -> None:
    ocp.multihost.get_barrier_sync_fn()(key=barrier, timeout_ms=seconds * 1000)


def first_then_others(make: Callable[[], T]) -> T:
    """The result of a function that leaves files behind: process 0 calls it before the others.

    Errors are those of `together`.
    """
    if not is_first():
        together(_nothing)
        return together(make)
    made = together(make)
    together(_nothing)
    return made


def _nothing() -> None:
    return None


def together(make: Callable[[], T]) -> T:
    """The result of a function that every process calls for itself and without the others.

    Raises:
        TrainError, CheckpointError: `make` did, here or (then as TrainError) in another process.
    """
    fault: TrainError | CheckpointError | None = None
    try:
        made = make()
    except (TrainError, CheckpointError) as caught:
        fault = caught
    wait_for_all()
    if not agree(fault is not None):
        return made
    told = of_all("" if fault is None else str(fault))
    if fault is not None:
        raise fault
    first = next(index for index, message in enumerate(told) if message)
    raise TrainError(f"process {first}: {told[first]}")


def of_all(message: str) -> list[str]:
    """The messages of all processes, in their order."""
    if jax.process_count() == 1:
        return [message]
    data = message.encode()
    padded = np.zeros(agree(len(data)), np.uint8)
    padded[: len(data)] = list(data)
    return [bytes(row).rstrip(b"\0").decode() for row in multihost_utils.process_allgather(padded)]


def leave(code: int) -> None:
    """Ends this process with a code, if it is one of several; returns if it is alone.

    Codes 0, 2 and that of a stop are those of all processes. With any other this one has failed
    alone, and waiting for the others, which wait for it, would take minutes and lose the code.
    """
    if not jax.distributed.is_initialized():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if code != 1:
        try:
            _wait("tora2_end", _LEAVING)
            jax.distributed.shutdown()
        except RuntimeError as error:
            sys.stderr.write(f"another process did not end: {error}\n")
    os._exit(code)


def on_first(array: jax.Array) -> jax.Array | np.ndarray | None:
    """An array of the run, whole in the host memory of process 0; None in the others.

    All processes must call it together. Meanwhile each device may hold the whole array. A process
    that is alone gets the array as it lies.
    """
    if jax.process_count() == 1:
        return array
    if not array.is_fully_replicated:
        assert isinstance(array.sharding, NamedSharding)  # as all that a run cuts
        whole = NamedSharding(array.sharding.mesh, PartitionSpec())
        array = jax.jit(_same, out_shardings=whole)(array)
    if is_first():
        return np.asarray(array.addressable_data(0))
    array.block_until_ready()  # or the next ones would be made beside it
    return None


def _same(array: jax.Array) -> jax.Array:
    return array


def alone() -> AbstractContextManager:
    """Context in which programs run on the first device here, if there are other processes."""
    if jax.process_count() == 1:
        return nullcontext()
    return mesh.use(mesh.make_mesh(MeshConfig(data=1), jax.local_devices()))
