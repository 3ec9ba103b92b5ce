"""Losses and problems of targets (N, K) in the place of labels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

import ufm_jax as ufm

LOSSES = {
    "cross_entropy": ufm.losses.cross_entropy,
    "label_smoothing": functools.partial(ufm.losses.label_smoothing, alpha=0.2),
    "squared_error": ufm.losses.squared_error,
}
LABELS = ufm.balanced_labels(4, 2)


def random_targets(seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(4), 8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_one_hot_targets_are_labels(name, dtype):
    logits = np.random.default_rng(0).normal(size=(8, 4)).astype(dtype)
    ours = LOSSES[name](logits, np.eye(4)[LABELS])
    assert ours.dtype == dtype
    np.testing.assert_allclose(
        ours, LOSSES[name](logits, LABELS), rtol=1e-5 if dtype == np.float32 else 1e-14
    )


def test_values_of_soft_targets():
    logits, t = np.random.default_rng(1).normal(size=(8, 4)), random_targets()
    expected = -np.sum(t * log_softmax(logits, axis=1), 1)
    np.testing.assert_allclose(LOSSES["cross_entropy"](logits, t), expected, rtol=1e-14)
    smooth = -np.sum((0.8 * t + 0.05) * log_softmax(logits, axis=1), 1)
    np.testing.assert_allclose(LOSSES["label_smoothing"](logits, t), smooth, rtol=1e-14)
    errors = np.sum((logits - t) ** 2, 1) / 2
    np.testing.assert_allclose(LOSSES["squared_error"](logits, t), errors, rtol=1e-14)


def test_the_minimum_of_any_targets_under_squared_error_in_blocks():
    t = np.random.default_rng(2).normal(size=(8, 4))
    problem = ufm.regularized(t, 4, ufm.losses.squared_error, 0.02, 0.03, block_size=3)
    start = problem.random_point(jax.random.key(0), 5)
    found = ufm.minimize(problem, start, ufm.solvers.lbfgs(), max_steps=2000, tolerance=1e-9)
    theory = ufm.theory.regularized_squared_error_minimum(t, 0.02, 0.03)
    np.testing.assert_allclose(found.value, theory, rtol=0, atol=1e-11)
    whole = ufm.regularized(t, 4, ufm.losses.squared_error, 0.02, 0.03)
    assert ufm.landscape.optimality_gap(whole, found.point) < 1e-7


def test_the_gap_of_soft_targets_closes_at_their_minimum():
    problem = ufm.regularized(random_targets(), 4, weight_decay=0.01, feature_decay=0.02, bias_decay=0.0)
    start = problem.random_point(jax.random.key(0), 5)
    found = ufm.minimize(problem, start, ufm.solvers.lbfgs(), max_steps=2000, tolerance=1e-9)
    assert ufm.landscape.optimality_gap(problem, found.point) < 1e-6
    for i in range(20):
        point = problem.random_point(jax.random.key(i), 5)
        gap = ufm.landscape.optimality_gap(problem, point)
        assert gap >= problem.cost(point) - found.value


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ufm.normalized(random_targets(), 5), r"5 columns, but have shape \(8, 4\)"),
        (lambda: ufm.regularized(np.full((8, 4), np.nan), 4), "targets must be finite"),
        (lambda: ufm.losses.cross_entropy(np.zeros((8, 4)), 2 * random_targets()), "rows of probabilities"),
        (lambda: ufm.normalized(random_targets(), 4, ufm.losses.focal), "labels must be integers of shape"),
        (lambda: ufm.contrastive(random_targets(), 4), "labels must be a non-empty vector of integers"),
        (
            lambda: ufm.saddles.antipodal(ufm.normalized(random_targets(), 4), 5),
            "these saddles need a class a sample",
        ),
        (
            lambda: ufm.landscape.negative_curvature(
                ufm.normalized(random_targets(), 4),
                ufm.normalized(LABELS, 4).random_point(jax.random.key(0), 5),
            ),
            "Theorem 2 is about integer labels",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_normalized_problems_of_soft_targets_have_a_gap():
    problem = ufm.normalized(jnp.asarray(random_targets()), 4)
    point = problem.random_point(jax.random.key(0), 5)
    found = ufm.minimize(problem, point, ufm.solvers.gradient_descent(), max_steps=50)
    assert ufm.landscape.optimality_gap(problem, point) >= problem.cost(point) - found.value
