"""Derivatives of closed forms are those of finite differences, also where a form has an edge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ufm_jax import metrics, theory
from ufm_jax.metrics.whitening import whitening_in_single_precision, whitening_of

FRAME, SQUARE, NOISE = (
    jax.random.normal(key, shape)
    for key, shape in zip(jax.random.split(jax.random.key(0), 3), [(4, 6), (3, 3), (14, 3)], strict=True)
)
TARGETS = jnp.repeat(jnp.eye(3), np.array([9, 4, 1]), axis=0)


def weighted(tree):
    """A number that sees every array of a tree, and no rotation of its rows' space."""
    return sum((i + 1) * jnp.sum(x**2) for i, x in enumerate(jax.tree.leaves(tree)))


CASES = {
    "cone, collapsed": (lambda t: jnp.sum(SQUARE * theory.label_smoothing_cone(3, 3, t)), 1.0),
    "cone": (lambda t: jnp.sum(SQUARE * theory.label_smoothing_cone(3, 3, t)), 10.0),
    "best temperature of 3 classes, lighter": (lambda w: theory.best_temperature(3, 5, w), 2.0),
    "best temperature of 3 classes, heavier": (lambda w: theory.best_temperature(3, 5, w), 20.0),
    "best temperature": (lambda w: theory.best_temperature(10, 5, w), 2.0),
    "deep minimum of 2 factors, in the targets": (
        lambda t: theory.deep_linear_minimum(TARGETS + t * NOISE, [1e-3] * 2),
        0.0,
    ),
    "deep minimum of 3 factors, in the targets": (
        lambda t: theory.deep_linear_minimum(TARGETS + t * NOISE, [1e-3] * 3),
        0.0,
    ),
    "deep minimum, in the decays": (lambda t: theory.deep_linear_minimum(TARGETS, [t, 1e-3, t]), 1e-3),
    "deep minimizer of 2 factors": (
        lambda t: weighted(theory.deep_linear_minimizer(TARGETS, 3, [t, 1e-3])),
        1e-3,
    ),
    "deep minimizer of 3 factors": (
        lambda t: weighted(theory.deep_linear_minimizer(TARGETS, 3, [t, 1e-3, t])),
        1e-3,
    ),
    "squared error, a class vanished": (
        lambda t: weighted(theory.regularized_squared_error_minimizer(TARGETS, 3, t, 0.1)),
        0.1,
    ),
    "regularized minimizer": (lambda t: weighted(theory.regularized_minimizer(10, 5, 12, t, 1e-3)), 1e-3),
    "regularized minimizer, at zero": (
        lambda t: weighted(theory.regularized_minimizer(10, 5, 12, t, 1.0)),
        1.0,
    ),
    "nearest simplex, at one": (
        lambda t: jnp.sum(FRAME * theory.nearest_simplex_etf(theory.simplex_etf(4, 6) + t * FRAME**2)),
        0.0,
    ),
    "nearest simplex, at one of full rank": (
        lambda t: jnp.sum(
            FRAME[:, 3:] * theory.nearest_simplex_etf(theory.simplex_etf(4, 3) + t * FRAME[:, :3])
        ),
        0.0,
    ),
    "nearest simplex": (lambda t: jnp.sum(FRAME * theory.nearest_simplex_etf(FRAME + t * FRAME**2)), 0.0),
    "label smoothing": (lambda a: theory.label_smoothing_minimum(10, 5.0, a), 0.3),
    "label smoothing, collapsed": (lambda a: theory.label_smoothing_minimum(10, 1.0, a), 0.1),
    "condition number, underflow": (lambda t: theory.collapse_condition_number(10, 5, t, 5.0), 1000.0),
    "condition number": (lambda t: theory.collapse_condition_number(10, 5, t, 5.0), 4.0),
    "multipliers, underflow": (lambda t: theory.multipliers_at_collapse(10, 5, t)[0], 1000.0),
    "multipliers": (lambda t: theory.multipliers_at_collapse(10, 5, t)[0], 3.0),
    "focal, underflow": (lambda t: theory.focal_at_collapse(10, t, 0.5), 800.0),
    "focal": (lambda t: theory.focal_at_collapse(10, t, 0.5), 2.0),
}


@pytest.mark.parametrize("name", CASES)
def test_a_closed_form_has_its_derivative(name):
    function, at = CASES[name]
    step = 1e-5 * (at or 1)
    expected = (function(at + step) - function(at - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(function)(at), expected, rtol=1e-5, atol=1e-9)


def test_label_smoothing_without_smoothing_has_a_derivative():
    value, slope = jax.value_and_grad(lambda a: theory.label_smoothing_minimum(10, 1.0, a))(0.0)
    np.testing.assert_allclose(value, theory.cross_entropy_minimum(10, 1.0), rtol=1e-14)
    np.testing.assert_allclose(slope, 1, rtol=1e-12)  # (K-1)/K of the margin, K tau/(K-1).


def means_of(case):
    """Centred class means (K, d) of four classes, and a direction that keeps their rank."""
    generator = np.random.default_rng(1)
    shape = (4, 3) if case in ("more classes", "a dead dimension") else (4, 6)
    means, change = generator.normal(size=(2, *shape))
    if case == "a dead dimension":
        means[:, 0] = change[:, 0] = 0
    if case == "two equal means":
        means[1], change[1] = means[0], change[0]
    if case == "a simplex":  # All its singular values are equal.
        means = np.asarray(theory.simplex_etf(4, 6))
    return [jnp.asarray(x - x.mean(0)) for x in (means, change)]


@pytest.mark.parametrize("precision", ["double", "single"])
@pytest.mark.parametrize(
    "case", ["fewer classes", "more classes", "a dead dimension", "two equal means", "a simplex"]
)
def test_the_whitening_has_a_derivative(case, precision):
    """Also where the means do not span their space, or their singular values are equal."""
    means, change = means_of(case)
    apart = jnp.asarray(np.random.default_rng(2).normal(size=(5, means.shape[1])))

    def variability(means):
        if precision == "double":
            rows = whitening_of(means, jnp.ones(len(means)), 0.0)
        else:
            rows = whitening_in_single_precision(means, jnp.array(0.0))
        return jnp.sum((apart @ rows.T) ** 2)

    def by_numpy(t):
        moved = np.asarray(means + t * change)
        return len(moved) * np.trace(apart @ np.linalg.pinv(moved.T @ moved, 1e-9) @ apart.T)

    expected = (by_numpy(1e-5) - by_numpy(-1e-5)) / 2e-5
    value, gradient = jax.value_and_grad(variability)(means)
    np.testing.assert_allclose(value, by_numpy(0.0), rtol=1e-9)
    if case == "more classes" and precision == "single":  # Its last value counts as zero: another function.
        return
    np.testing.assert_allclose(jnp.sum(gradient * change), expected, rtol=1e-6)


def test_nc1_has_a_derivative_where_a_unit_is_dead():
    generator = np.random.default_rng(3)
    features = np.maximum(generator.normal(size=(40, 6)), 0)
    features[:, 2] = 0
    gradient = jax.grad(lambda x: metrics.nc1(x, np.arange(40) % 10, 10))(features)
    assert np.all(np.isfinite(gradient))
    assert np.any(gradient != 0)


@pytest.mark.parametrize(
    "metric",
    [metrics.equinorm, metrics.equiangularity, metrics.maximal_angle, metrics.nc2],
)
def test_metrics_of_a_classifier_have_a_derivative_at_a_zero_row(metric):
    W = jnp.asarray(np.random.default_rng(4).normal(size=(4, 5))).at[1].set(0)
    assert np.all(np.isfinite(jax.grad(metric)(W)))


@pytest.mark.parametrize(
    "metric",
    [
        metrics.equiangularity,
        metrics.maximal_angle,
        lambda W: sum(metrics.uniformity(W, kernel="distance")),
    ],
)
def test_metrics_of_directions_have_their_derivative_where_two_are_equal(metric):
    """As under minority collapse."""
    W = jnp.asarray(np.random.default_rng(4).normal(size=(4, 5)))
    W = W.at[1].set(W[0])
    both = jnp.zeros_like(W).at[:2].set(jnp.arange(5.0))  # Moves the two as one.
    slope = (metric(W + 1e-6 * both) - metric(W - 1e-6 * both)) / 2e-6
    np.testing.assert_allclose(jnp.sum(jax.grad(metric)(W) * both), slope, rtol=1e-6)
