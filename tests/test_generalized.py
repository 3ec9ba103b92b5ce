"""Generalized neural collapse: one-vs-rest distances against an active-set solver and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

import ufm_jax as ufm
from tests.shared.formulas import reference_distances, reference_gnc3
from ufm_jax import metrics
from ufm_jax.metrics import one_vs_rest_distances as distances


@pytest.mark.parametrize(("dtype", "precision"), [(np.float32, 2e-5), (np.float64, 2e-11)])
@pytest.mark.parametrize("shape", [(5, 9), (8, 3)])
@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(0.05, 10))
@settings(deadline=None, max_examples=10)
def test_distances_equal_an_active_set_solver(shape, dtype, precision, seed, spread):
    """Few classes and many, all around and, where the spread is small, all on one side."""
    w = np.random.default_rng(seed).normal(size=shape) * spread
    w[:, 0] += 1
    w = w.astype(dtype)
    found = distances(w)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, reference_distances(w), atol=precision)


CUBE = np.stack(np.meshgrid([-1.0, 1], [-1.0, 1], [-1.0, 1]), -1).reshape(8, 3)


@pytest.mark.parametrize(
    ("W", "expected"),
    [
        (np.asarray(ufm.theory.simplex_etf(5, 9)), 5 / 4),
        (np.pad(ufm.theory.regular_polygon(8), ((0, 0), (0, 1))), 1 - np.cos(np.pi / 4)),
        (CUBE, 2 / 3),
        (np.where(np.arange(8)[:, None] == 0, CUBE[1], CUBE), 0),  # The first direction is the second's.
        (np.zeros((8, 3)), 0),
    ],
)
def test_codes_with_known_distances(W, expected):
    assert metrics.gnc2(W) == pytest.approx(expected, abs=1e-11)


@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=10)
def test_distances_feel_no_rotation_no_order_and_no_lengths(seed):
    generator = np.random.default_rng(seed)
    w = generator.normal(size=(8, 3))
    rotation, order = np.linalg.qr(generator.normal(size=(3, 3)))[0], generator.permutation(8)
    lengths = np.exp(generator.normal(size=(8, 1)))
    changed = distances((lengths * w @ rotation)[order])
    np.testing.assert_allclose(changed, distances(w)[order], atol=1e-10)


@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from([np.float32, np.float64]))
@settings(deadline=None, max_examples=15)
def test_gnc3_equals_numpy_and_feels_no_rotation_and_no_scale(seed, dtype):
    generator = np.random.default_rng(seed)
    w, h = generator.normal(size=(5, 9)).astype(dtype), generator.normal(size=(30, 9)).astype(dtype)
    labels = np.repeat(np.arange(5), 6)
    found = metrics.gnc3(jnp.asarray(w), jnp.asarray(h), jnp.asarray(labels))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, reference_gnc3(w, h, labels), rtol=1e-6)
    rotation = np.linalg.qr(generator.normal(size=(9, 9)))[0]
    changed = metrics.gnc3(
        jnp.asarray(3 * w @ rotation), jnp.asarray(0.1 * h @ rotation), jnp.asarray(labels)
    )
    np.testing.assert_allclose(changed, found, rtol=1e-5 if dtype == np.float32 else 1e-10)


def test_gnc3_at_its_ends():
    frame, labels = ufm.theory.simplex_etf(3, 4), ufm.balanced_labels(3, 2)
    assert metrics.gnc3(frame, 7 * frame[labels], labels) < 1e-30
    assert metrics.gnc3(frame, -frame[labels], labels) == pytest.approx(2)
    assert metrics.gnc3(jnp.zeros((3, 4)), frame[labels], labels) == 1
    # The features count as they are, not about their mean.
    assert metrics.gnc3(frame, frame[labels] + 10.0, labels) > 0.5


def test_derivatives_are_those_of_finite_differences():
    W = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)))
    for function in (metrics.gnc2, lambda W: jnp.sum(distances(W) ** 2)):
        check_grads(function, (W,), 1, modes=["fwd", "rev"], rtol=1e-4, eps=1e-4)


def test_distances_work_under_vmap():
    w = np.random.default_rng(0).normal(size=(3, 8, 3))
    np.testing.assert_allclose(jax.vmap(distances)(w), [reference_distances(x) for x in w], atol=2e-11)


def test_a_vector_is_refused():
    with pytest.raises(ValueError, match="W must be a matrix of at least two rows, but has shape"):
        metrics.gnc2(jnp.ones(3))
