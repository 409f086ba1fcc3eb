"""Compiled programs are kept for the next start, unless the user has said where or not at all."""

import hashlib
import os
import platform
from pathlib import Path

import jax

_LARGEST = 8 << 30  # bytes of all programs together; the oldest make room


def keep_compiled_programs() -> None:
    """Sets JAX's compilation cache to a folder of the user's, for the programs of this project.

    JAX_COMPILATION_CACHE_DIR, if set, names another; JAX_ENABLE_COMPILATION_CACHE=false keeps
    nothing. Where the folder cannot be made nothing is kept, nor where a process has several CPU
    devices: on them a kept program has lost the order of its exchanges (jaxlib 0.10.2), and they
    wait for each other for ever.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    # JAX gives its config these attributes only when it runs.
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # the latter of a user without a home
        return
    if os.access(folder, os.W_OK | os.X_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", _LARGEST)


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/tora2_jax/compiled/CPU`, by default below `~/.cache`.

    A program for one CPU may use instructions that another lacks, and machines of a cluster share
    the folders of their users.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tora2_jax" / "compiled" / _processor()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        flags = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"
