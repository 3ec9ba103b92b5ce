"""Tests run in float64 unless they say otherwise, on two CPU devices."""

import gc
import os
import re
import tempfile

import pytest

# Most of the time goes into compiling. What one process of the tests compiled, its workers and the commands
# that it starts, all others take from here; JAX_COMPILATION_CACHE_DIR keeps it from one run to the next.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _COMPILED = tempfile.TemporaryDirectory(prefix="compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import hypothesis
import jax  # Which reads them.

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 2)


hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

MORE = (
    r"^\s*(from|import) (experiments|nets|notebooks|flax|matplotlib|nbformat|pymanopt|PIL"
    r"|tests\.conftest|tests\.shared\.(descents|pytorch_numbers))\b"
)
"""Imports of what only the clone or its extras have, of what imports that, and of this very line."""


def pytest_addoption(parser):
    parser.addoption("--library", action="store_true", help="only tests that need ufm_jax alone")


def pytest_ignore_collect(collection_path, config):
    """Under --library, leaves out files with imports of `MORE`."""
    if config.getoption("library") and collection_path.suffix == ".py":
        return True if re.search(MORE, collection_path.read_text(encoding="utf-8"), re.M) else None
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
