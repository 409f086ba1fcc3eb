"""Programs of several devices are compiled anew."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="module", autouse=True)
def _compiled_anew():
    """One that the compilation cache kept of another process has lost the order of its exchanges on
    CPU (jaxlib 0.10.2): its devices then wait for each other for ever."""
    for enabled in (False, True):
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()  # whether it is used is asked once
        if not enabled:
            yield
