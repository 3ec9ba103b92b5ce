"""Tests run in float64 unless they say otherwise, on two CPU devices."""

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 2)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(autouse=True)
def float64_again():
    """The command line sets JAX up for its own run, also where a test calls it in this process."""
    yield
    jax.config.update("jax_enable_x64", True)
