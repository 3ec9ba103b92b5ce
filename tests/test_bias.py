"""Regularized problems with a bias, free or decayed: minima against SciPy and closed forms, and the gap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import ufm_jax as ufm
from tests.shared.marks import few
from tests.shared.scipy_minima import one_hot, solve

LOSSES = {
    "cross entropy": ufm.losses.cross_entropy,
    "label smoothing": functools.partial(ufm.losses.label_smoothing, alpha=0.2),
    "squared error": ufm.losses.squared_error,
}
SIZES = np.array([20, 5, 2, 1])
LABELS = jnp.repeat(jnp.arange(4), SIZES)
DIM = 5


@functools.partial(jax.jit, static_argnames="name")
def minimum(name, lW, lH, lb, key, labels=LABELS):
    """The minimum found, its gap, and cost and gap at 60 random points, large, small and near it."""
    problem = ufm.regularized(labels, 4, LOSSES[name], lW, lH, bias_decay=lb)
    start = problem.random_point(key, DIM)
    found = ufm.minimize(problem, start, ufm.solvers.trust_region(), max_steps=300, tolerance=1e-12)

    def at(key, size, share):
        x = jax.tree.map(lambda a, b: share * a + size * b, found.point, problem.random_point(key, DIM))
        return problem.cost(x), ufm.landscape.optimality_gap(problem, x)

    sizes = jnp.concatenate([jnp.geomspace(0.03, 3, 30), jnp.geomspace(1e-5, 1e-1, 30)])
    at_random = jax.vmap(at)(jax.random.split(key, 60), sizes, jnp.repeat(jnp.array([0.0, 1.0]), 30))
    return found, ufm.landscape.optimality_gap(problem, found.point), *at_random


@pytest.mark.parametrize("name", few(1, *LOSSES))
def test_minima_of_unequal_classes_are_those_of_scipy_and_the_gap_closes_there(name):
    generator = np.random.default_rng(0)
    for i, lb in enumerate([0.0, 1e-6, 0.05, 0.0, 0.3, 1e-3]):
        lW, lH = np.exp(generator.uniform(np.log(3e-3), np.log(0.06), 2))
        found, gap, costs, gaps = minimum(name, lW, lH, lb, jax.random.key(i))
        assert 0 <= gap < 1e-10
        assert np.all(gaps >= costs - found.value - 1e-10)
        alpha = 0.2 if name == "label smoothing" else 0.0
        settings = {"alpha": alpha, "bias": True, "bias_decay": lb, "tries": 2}
        value, W, H, b = solve(one_hot(SIZES), DIM, lW, lH, name, i, **settings)
        np.testing.assert_allclose(found.value, value, rtol=0, atol=1e-9)
        ours = found.point.H @ found.point.W.T + found.point.b
        centre = 0 if name == "squared error" else 1  # A softmax does not see what all logits share.
        ours, theirs = (x - centre * x.mean(1, keepdims=True) for x in (ours, H @ W.T + b))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_a_free_bias_changes_nothing_for_balanced_classes_and_is_constant():
    labels = jnp.repeat(jnp.arange(4), 3)
    for i, (lW, lH) in enumerate([(0.01, 0.02), (0.05, 1e-3), (0.3, 0.3)]):
        found, gap, *_ = minimum("cross entropy", lW, lH, 0.0, jax.random.key(i), labels)
        theory = ufm.theory.regularized_cross_entropy_minimum(4, 3, lW, lH)
        np.testing.assert_allclose(found.value, theory, rtol=0, atol=1e-11)
        assert gap < 1e-10
        assert np.ptp(found.point.b) < 1e-5
        assert (
            ufm.metrics.measure(found.point.H, labels, found.point.W, bias=found.point.b).nc2 < 1e-4
            or i == 2
        )


def test_a_free_bias_of_the_squared_error_is_the_mean_of_the_targets_less_the_logits():
    for i, (lW, lH) in enumerate([(0.01, 0.02), (0.06, 0.04)]):
        found, *_ = minimum("squared error", lW, lH, 0.0, jax.random.key(i))
        theory = ufm.theory.regularized_squared_error_minimum(one_hot(SIZES), lW, lH, bias=True)
        np.testing.assert_allclose(found.value, theory, rtol=0, atol=1e-11)
        W, H, b = ufm.theory.regularized_squared_error_minimizer(one_hot(SIZES), DIM, lW, lH, bias=True)
        point = found.point
        np.testing.assert_allclose(point.H @ point.W.T + point.b, H @ W.T + b, atol=1e-6)
        problem = ufm.regularized(LABELS, 4, ufm.losses.squared_error, lW, lH, bias_decay=0.0)
        np.testing.assert_allclose(problem.cost(ufm.BiasedPoint(W, H, b)), theory, rtol=1e-13)


def test_without_its_bias_the_problem_is_the_plain_one():
    plain = ufm.regularized(LABELS, 4, weight_decay=0.01, feature_decay=0.02)
    biased = ufm.regularized(LABELS, 4, weight_decay=0.01, feature_decay=0.02, bias_decay=0.0)
    W, H = plain.random_point(jax.random.key(0), DIM)
    at_zero = ufm.BiasedPoint(W, H, jnp.zeros(4))
    np.testing.assert_allclose(biased.cost(at_zero), plain.cost(ufm.Point(W, H)), rtol=1e-15)


def test_samples_over_devices_in_blocks():
    problem = ufm.regularized(LABELS, 4, bias_decay=0.1, block_size=4)
    mesh = Mesh(np.array(jax.devices()[:2]), ("samples",))
    point = ufm.sharding.random_point(problem, mesh, jax.random.key(0), DIM)
    assert point.b.sharding.is_fully_replicated
    assert not point.H.sharding.is_fully_replicated
    found = jax.jit(lambda p, x: p.gradient(p.evaluate(x)))(
        ufm.sharding.shard_problem(problem, mesh), point
    )
    whole = ufm.regularized(LABELS, 4, bias_decay=0.1)
    expected = whole.gradient(whole.evaluate(jax.tree.map(np.asarray, point)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15), found, expected)


def test_points_of_another_kind_are_refused():
    plain, biased = ufm.regularized(LABELS, 4), ufm.regularized(LABELS, 4, bias_decay=0.0)
    W, H, b = biased.random_point(jax.random.key(0), DIM)
    for call, words in [
        (lambda: biased.check_point(ufm.Point(W, H)), r"is a BiasedPoint\(W, H, b\), but this is a Point"),
        (lambda: plain.check_point(ufm.BiasedPoint(W, H, b)), "without a bias, but this is a BiasedPoint"),
        (lambda: biased.check_point(ufm.BiasedPoint(W, H, b[:3])), r"bias of the point must be \(4,\)"),
        (lambda: ufm.regularized(LABELS, 4, bias_decay=-1.0), "bias_decay must be finite and at least 0"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()


def test_the_gap_is_zero_at_minima_where_the_bias_is_stationary_up_to_rounding():
    """What the columns then lack is rounding errors, which must not be divided by each other."""
    labels = ufm.balanced_labels(8, 4)
    loss = functools.partial(ufm.losses.label_smoothing, alpha=0.1)

    @jax.jit
    @jax.vmap
    def gap(decay, key):
        W, H = ufm.theory.regularized_minimizer(8, 4, 8, decay, decay, 0.1)
        b = 1e-15 * jax.random.normal(key, (8,))
        problem = ufm.regularized(labels, 8, loss, decay, decay, bias_decay=0.0)
        return ufm.landscape.optimality_gap(problem, ufm.BiasedPoint(W, H, b))

    assert gap(jnp.geomspace(1e-5, 0.05, 2000), jax.random.split(jax.random.key(0), 2000)).max() < 1e-12
