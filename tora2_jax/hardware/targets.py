"""Machines that a program can be compiled for without having them."""

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from tora2_jax.errors import first_line

_GPU_DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: {memory} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""
# Without these libtpu looks for the machine it runs on.
_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # compiles only; another program may have the chips
    # On its own cores for exchanges the compiler (0.0.42) ends the process for tpu7x.
    "LIBTPU_INIT_ARGS": "--xla_tpu_enable_sparse_core_collective_offload_all_reduce=false "
    "--xla_tpu_enable_sparse_core_collective_offload_reduce_scatter=false "
    "--xla_tpu_enable_sparse_core_collective_offload_all_gather=false",
}


class Kind(NamedTuple):
    """What one device of a kind has. Figures are the vendors'."""

    platform: str  # tpu, cuda or cpu
    memory: int  # bytes
    peak: float  # bfloat16 operations per second, dense
    bandwidth: float  # bytes per second, of the memory
    link: float  # bytes per second that a device receives from its neighbors at best
    device_kind: str = ""  # how the names begin that JAX has for it
    devices_per_chip: int = 1


KINDS = {
    "v5e": Kind("tpu", 16 * 2**30, 197e12, 0.82e12, 200e9, "TPU v5 lite"),
    "v5p": Kind("tpu", 95 * 2**30, 459e12, 2.77e12, 600e9, "TPU v5"),
    "v6e": Kind("tpu", 32 * 2**30, 918e12, 1.64e12, 400e9, "TPU v6 lite"),
    "tpu7x": Kind("tpu", 96 * 2**30, 1153e12, 3.7e12, 300e9, "TPU7x", devices_per_chip=2),
    "h100": Kind("cuda", 85_520_809_984, 989e12, 3.35e12, 450e9, "NVIDIA H100"),
    "h200": Kind("cuda", 151_397_597_184, 989e12, 4.8e12, 450e9, "NVIDIA H200"),
    "cpu": Kind("cpu", 0, 0.0, 0.0, 0.0),
}


def peak_of(device_kind: str) -> float:
    """bfloat16 operations per second of a device by its name in JAX; 0 if it is not known."""
    kinds = [kind for kind in KINDS.values() if kind.device_kind]
    fitting = [kind for kind in kinds if device_kind.startswith(kind.device_kind)]
    return max(fitting, key=lambda kind: len(kind.device_kind)).peak if fitting else 0.0


class TargetError(ValueError):
    """A target that is not known, or whose compiler is not installed."""


class Target(NamedTuple):
    """A machine by name, such as `v5p:4x4x4` or `h200:8`."""

    name: str
    kind: Kind
    count: int  # devices


def parse(name: str) -> Target:
    """The machine of that name.

    Raises:
        TargetError: it is none of `KINDS`, or has no size.
    """
    generation, _, size = name.partition(":")
    kind = KINDS.get(generation)
    if kind is None or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
        raise TargetError(
            f"--target: {name!r} is no machine; write KIND:SIZE with one of {', '.join(KINDS)}, "
            "such as v5p:4x4x4, v6e:8x8, tpu7x:2x2x2, h200:8 or cpu:8"
        )
    if kind.platform != "tpu" and "x" in size:
        raise TargetError(f"--target: {name!r}: the size is the number of devices")
    count = math.prod(map(int, size.split("x"))) * kind.devices_per_chip
    return Target(name, kind, count)


def prepare(target: Target) -> bool:
    """Sets up the process before JAX looks for devices; whether the target's compiler is there.

    Where it is not, as many fake CPU devices stand in for the machine.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    if target.kind.platform == "tpu" and importlib.util.find_spec("libtpu"):
        own = os.environ.get("LIBTPU_INIT_ARGS", "")
        os.environ.update(_TPU_ENVIRONMENT)
        os.environ["LIBTPU_INIT_ARGS"] += f" {own}"  # the last one counts
        # Minutes instead of a quarter of an hour for 5B, and nearly the same memory.
        jax.config.update("jax_exec_time_optimization_effort", -1.0)
        return True
    if target.kind.platform == "cuda" and _has_cuda_compiler():
        return True
    jax.config.update("jax_num_cpu_devices", target.count)
    return target.kind.platform == "cpu"


def _has_cuda_compiler() -> bool:
    names = ("jax_cuda13_plugin", "jax_cuda12_plugin")
    return any(importlib.util.find_spec(name) for name in names)


def compiler_options(target: Target, has_compiler: bool) -> dict[str, Any]:
    """For `jax.stages.Lowered.compile`, where the devices are not here."""
    if target.kind.platform == "cuda" and has_compiler:
        # Tiles of Triton's products are chosen on the device, and without it may not be found.
        return {"xla_gpu_enable_triton_gemm": False}
    if target.kind.platform == "cpu" or not has_compiler:  # nobody runs it
        return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return {}


def devices(target: Target, has_compiler: bool) -> list[jax.Device]:
    """The devices of the target, or the fake ones.

    Raises:
        TargetError: the compiler cannot describe the machine.
    """
    if target.kind.platform == "cpu" or not has_compiler:
        return jax.devices("cpu")[: target.count]
    try:
        if target.kind.platform == "tpu":
            machine = topologies.get_topology_desc(target.name, platform="tpu")
        else:
            machine = _gpus(target)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = first_line(error)
        raise TargetError(f"--target: {target.name} cannot be described: {reason}") from error
    return list(machine.devices)


def _gpus(target: Target) -> topologies.TopologyDescription:
    description = _GPU_DESCRIPTION.format(
        bandwidth=round(target.kind.bandwidth), memory=target.kind.memory, name=target.name
    )
    return topologies.get_topology_desc(
        platform="cuda", topology=f"1x1x{target.count}", target_config=description
    )
