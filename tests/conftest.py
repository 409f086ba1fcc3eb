"""Settings that must stand before JAX is imported: eight fake CPU devices, full precision.

Nearly all time of the tests is that of XLA's compiler, so it optimizes little (a third of the time,
and the programs are tiny) and keeps what it compiled for the other processes and the next run.
"""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false",
        # Eight devices on few and busy cores wait long for each other.
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    )
)
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELIZM"] = "false"

import jax

jax.config.update("jax_default_matmul_precision", "highest")
