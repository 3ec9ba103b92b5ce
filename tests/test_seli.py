"""SELI against the dual of its margin problem, SciPy, and the minima of small decays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import ufm_jax as ufm


@pytest.mark.parametrize("seed", range(20))
def test_the_dual_proves_that_no_smaller_pair_has_the_margins(seed):
    """`|Z|_* >= <B, Z>` for |B| <= 1; B negative off the labels and of row sums 0 bounds it by margins."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 30, int(generator.integers(2, 7)))
    k, labels = len(sizes), np.repeat(np.arange(len(sizes)), sizes)
    W, features = (np.asarray(x) for x in ufm.theory.seli(sizes, k + seed % 2 - 1))
    H = features[labels]
    np.testing.assert_allclose(features @ W.T, np.eye(k) - 1 / k, atol=1e-13)
    left, values, right = np.linalg.svd(np.eye(k)[labels] - 1 / k, full_matrices=False)
    left, values, right = left[:, : k - 1], values[: k - 1], right[: k - 1]
    np.testing.assert_allclose(W @ W.T, right.T * values @ right, atol=1e-12)
    np.testing.assert_allclose(H @ H.T, left * values @ left.T, atol=1e-12)
    B = left @ right
    np.testing.assert_allclose(B.sum(1), 0, atol=1e-12)
    off = B[np.eye(k)[labels] == 0]
    assert off.max() <= 1e-12
    np.testing.assert_allclose(np.sum(W**2) + np.sum(H**2), -2 * off.sum(), rtol=1e-12)


def test_equal_sizes_are_a_neural_collapse():
    W, features = ufm.theory.seli([7] * 5, 6)
    assert ufm.metrics.nc2(W) < 1e-12
    np.testing.assert_allclose(W, np.sqrt(7) * features, atol=1e-12)


def test_scipy_finds_the_same_pair():
    sizes, dim = np.array([4, 2, 1]), 2
    labels = np.repeat(np.arange(3), sizes)
    others = np.array([[k for k in range(3) if k != y] for y in labels])

    def margins(x):
        W, H = x[: 3 * dim].reshape(3, dim), x[3 * dim :].reshape(-1, dim)
        scores = H @ W.T
        rows = np.arange(len(labels))[:, None]
        return (scores[rows, labels[:, None]] - scores[rows, others]).ravel() - 1

    best = np.inf
    for seed in range(5):
        start = np.random.default_rng(seed).normal(size=(3 + len(labels)) * dim)
        found = minimize(
            lambda x: x @ x,
            start,
            method="SLSQP",
            jac=lambda x: 2 * x,
            constraints={"type": "ineq", "fun": margins},
            options={"maxiter": 500, "ftol": 1e-12},
        )
        best = min(best, found.fun if np.all(margins(found.x) > -1e-8) else np.inf)
    W, features = ufm.theory.seli(sizes, dim)
    np.testing.assert_allclose(best, jnp.sum(W**2) + jnp.sum(features[labels] ** 2), rtol=1e-6)


def test_minima_of_falling_decays_come_nearer():
    """Slowly: the distance falls like one over the logarithm of the decay."""
    sizes = np.array([12, 12, 3, 3])
    labels, dim = jnp.repeat(jnp.arange(4), sizes), 4
    limit, _ = ufm.theory.seli(sizes, dim)
    limit = limit @ limit.T / jnp.linalg.norm(limit @ limit.T)

    @jax.jit
    def distance(decay, key):
        problem = ufm.regularized(labels, 4, weight_decay=decay, feature_decay=decay)
        start = problem.random_point(key, dim)
        found = ufm.minimize(problem, start, ufm.solvers.trust_region(), max_steps=500, tolerance=1e-11)
        gram = found.point.W @ found.point.W.T
        return jnp.linalg.norm(gram / jnp.linalg.norm(gram) - limit)

    far, near, nearer = (float(distance(decay, jax.random.key(0))) for decay in (1e-3, 1e-5, 1e-7))
    assert far > near > nearer
    assert nearer < 0.06


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ufm.theory.seli([3], 4), "class_sizes must be a vector"),
        (lambda: ufm.theory.seli([3, 0], 4), "class_sizes must be positive"),
        (lambda: ufm.theory.seli([3, 1.5], 4), "class_sizes must be whole numbers"),
        (lambda: ufm.theory.seli(["a", "b"], 4), "class_sizes must be an array of real numbers"),
        (lambda: ufm.theory.seli([3, 1, 1], 1), "dim must be"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
