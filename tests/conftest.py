"""Tests run in float64 unless they say otherwise, on two CPU devices."""

import gc
import os
import re
import tempfile

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 2)

# Most of the time goes into compiling, and many tests compile the same programs. JAX_COMPILATION_CACHE_DIR
# keeps them from one run of the tests to the next.
_COMPILED = tempfile.TemporaryDirectory(prefix="compiled-")
jax.config.update(
    "jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR") or _COMPILED.name
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_addoption(parser):
    parser.addoption("--library", action="store_true", help="only tests that need ufm_jax alone")


def pytest_ignore_collect(collection_path, config):
    """Under --library, leaves out files that import what only the clone or its extras have."""
    if config.getoption("library") and collection_path.suffix == ".py":
        more = r"^\s*(from|import) (experiments|nets|notebooks|flax|matplotlib|nbformat|pymanopt|PIL)\b"
        return True if re.search(more, collection_path.read_text(encoding="utf-8"), re.M) else None
    return None


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(autouse=True)
def float64_again():
    """The command line sets JAX up for its own run, also where a test calls it in this process."""
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.fixture(autouse=True, scope="module")
def programs_end_with_their_module():
    """Each compiled program holds maps of memory, of which Linux gives a process 65,530 (`max_map_count`).

    A process that ran half of the suite came near, and the compiler then ends in a segmentation fault.
    """
    yield
    jax.clear_caches()
    gc.collect()
