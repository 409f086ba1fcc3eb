"""Settings that must stand before JAX is imported: eight fake CPU devices, full precision.

Nearly all time of the tests is that of XLA's compiler, so it optimizes little (a third of the time,
and the programs are tiny) and keeps what it compiled for the other processes and the next run.
"""

import functools
import importlib.util
import os
import re
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
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import jax
import jaxtyping
import pytest

from tests.support import typechecker

# Annotations that nobody checks go stale: whatever the tests import is held to its own.
jaxtyping.install_import_hook(["tora2_jax", "convert"], f"{typechecker.__name__}.check")

jax.config.update("jax_default_matmul_precision", "highest")

# Marker -> what the files that need it import.
_NEEDS = {
    "torch": re.compile(
        r"(?:import|from) (?:torch|diffusers|peft)\b|importorskip\(\"torch|support.*\b\w+_twins\b"
    ),
    "processes": re.compile(r"import subprocess\b"),
}


@functools.cache
def _needs(path: Path) -> frozenset[str]:
    text = path.read_text()
    return frozenset(name for name, imports in _NEEDS.items() if imports.search(text))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by what their files need, so that `-m "not torch"` leaves them out."""
    for item in items:
        for name in _needs(item.path):
            item.add_marker(name)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Without PyTorch the files that import it are left out, not errors."""
    if importlib.util.find_spec("torch") is None and collection_path.suffix == ".py":
        return True if "torch" in _needs(collection_path) else None
    return None
