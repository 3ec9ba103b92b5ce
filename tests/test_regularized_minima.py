"""Closed forms of regularized models against SciPy's L-BFGS on NumPy formulas, at random settings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import ufm_jax as ufm
from tests.shared.marks import few
from tests.shared.scipy_minima import mean_loss, one_hot, solve

SEEDS = range(20)
SETTINGS = few(3, *SEEDS)


def balanced(seed):
    """Classes, samples, dimension and two decays over three decades, below the end of collapse or above."""
    generator = np.random.default_rng(seed)
    k, n = int(generator.integers(2, 6)), int(generator.integers(1, 5))
    dim = k - 1 + int(generator.integers(0, 3))
    c = np.exp(generator.uniform(np.log(1e-2), np.log(0.8))) / k
    ratio = np.exp(generator.uniform(-2, 2))
    return k, n, max(dim, 1), c / np.sqrt(n) * ratio, c / np.sqrt(n) / ratio


@pytest.mark.parametrize("alpha", [0.0, 0.15])
@pytest.mark.parametrize("seed", SETTINGS)
def test_cross_entropy_and_label_smoothing(seed, alpha):
    k, n, dim, lW, lH = balanced(seed)
    value, W, H, _ = solve(one_hot([n] * k), dim, lW, lH, "cross entropy", seed, alpha=alpha, tries=2)
    if alpha:
        theory = ufm.theory.regularized_label_smoothing_minimum(k, n, lW, lH, alpha)
    else:
        theory = ufm.theory.regularized_cross_entropy_minimum(k, n, lW, lH)
    np.testing.assert_allclose(value, theory, rtol=0, atol=1e-9)
    assert value > theory - 1e-10
    its_W, its_H = ufm.theory.regularized_minimizer(k, n, dim, lW, lH, alpha)
    scale = max(1, np.abs(its_W @ its_W.T).max())
    np.testing.assert_allclose(W @ W.T, its_W @ its_W.T, rtol=0, atol=2e-5 * scale)
    np.testing.assert_allclose(H @ W.T, its_H @ its_W.T, rtol=0, atol=2e-5 * scale)
    at_it = mean_loss("cross entropy", np.asarray(its_H @ its_W.T), one_hot([n] * k), alpha)[0]
    at_it += lW / 2 * np.sum(np.square(its_W)) + lH / 2 * np.sum(np.square(its_H))
    np.testing.assert_allclose(at_it, theory, rtol=0, atol=1e-14)


@pytest.mark.parametrize("alpha", few(1, 0.0, 0.15))
def test_our_own_solver_finds_the_minima_of_cross_entropy_to_rounding(alpha):
    labels = ufm.balanced_labels(4, 3)
    loss = functools.partial(ufm.losses.label_smoothing, alpha=alpha) if alpha else ufm.losses.cross_entropy

    @jax.jit
    def found(lW, lH, key):
        problem = ufm.regularized(labels, 4, loss, weight_decay=lW, feature_decay=lH)
        start = problem.random_point(key, 5)
        result = ufm.minimize(problem, start, ufm.solvers.trust_region(), max_steps=300, tolerance=1e-12)
        W, H = result.point
        its_W, its_H = ufm.theory.regularized_minimizer(4, 3, 5, lW, lH, alpha)
        theory = ufm.theory.regularized_label_smoothing_minimum(4, 3, lW, lH, alpha)
        apart = jnp.abs(W @ W.T - its_W @ its_W.T).max(), jnp.abs(H @ H.T - its_H @ its_H.T).max()
        return result.value - theory, jnp.stack(apart) / jnp.maximum(1, jnp.abs(W @ W.T).max())

    generator = np.random.default_rng(0)
    for i in SEEDS:
        lW, lH = np.exp(generator.uniform(np.log(1e-4), np.log(0.2), 2))
        gap, apart = found(lW, lH, jax.random.key(i))
        assert abs(gap) < 1e-12
        assert apart.max() < 1e-6


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("seed", SETTINGS)
def test_squared_error(seed, bias):
    generator = np.random.default_rng(seed)
    if seed % 2:
        Y = one_hot(generator.integers(1, 8, int(generator.integers(2, 5))))
    else:
        Y = generator.normal(size=(int(generator.integers(4, 12)), int(generator.integers(2, 5))))
    dim = int(generator.integers(1, Y.shape[1] + 2))
    lW, lH = np.exp(generator.uniform(np.log(1e-3), np.log(0.3), 2))
    theory = ufm.theory.regularized_squared_error_minimum(Y, lW, lH, bias, dim)
    value, W, H, b = solve(Y, dim, lW, lH, "squared error", seed, bias=bias, tries=4)
    np.testing.assert_allclose(value, theory, rtol=0, atol=1e-9)
    assert value > theory - 1e-10
    its_W, its_H, its_b = ufm.theory.regularized_squared_error_minimizer(Y, dim, lW, lH, bias)
    at_it = np.sum((its_H @ its_W.T + its_b - Y) ** 2) / (2 * len(Y))
    at_it += lW / 2 * np.sum(np.square(its_W)) + lH / 2 * np.sum(np.square(its_H))
    np.testing.assert_allclose(at_it, theory, rtol=1e-13)
    values = np.linalg.svd(Y - Y.mean(0) if bias else Y, compute_uv=False)
    if dim >= len(values) or values[dim - 1] - values[dim] > 1e-3:  # Else any of equal ones may be fitted.
        np.testing.assert_allclose(H @ W.T + b, its_H @ its_W.T + its_b, rtol=0, atol=1e-4)
    if seed % 2 and not bias and dim >= Y.shape[1]:
        sizes = Y.sum(0)
        lengths = np.maximum(np.sqrt(sizes * lH / lW) - len(Y) * lH, 0)
        np.testing.assert_allclose(np.sum(np.square(its_W), 1), lengths, atol=1e-12)


@pytest.mark.parametrize("seed", SETTINGS)
def test_nonnegative_features(seed):
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 9, int(generator.integers(2, 5)))
    lW, lH = np.exp(generator.uniform(np.log(1e-3), np.log(0.1), 2))
    theory = ufm.theory.nonnegative_cross_entropy_minimum(sizes, lW, lH)
    value, *_ = solve(
        one_hot(sizes), len(sizes) + 1, lW, lH, "cross entropy", seed, nonnegative=True, tries=5
    )
    np.testing.assert_allclose(value, theory, rtol=0, atol=1e-9)
    assert value > theory - 1e-10


@pytest.mark.parametrize("seed", SETTINGS)
def test_deep_linear_models(seed):
    generator = np.random.default_rng(seed)
    depth = 2 + seed % 4
    Y = one_hot(generator.integers(1, 6, 3))
    decays = np.exp(generator.uniform(np.log(1e-4), np.log(1e-2), depth))
    theory = float(ufm.theory.deep_linear_minimum(Y, decays))
    shapes = [(len(Y), 3), *[(3, 3)] * (depth - 1)]
    sizes = np.cumsum([a * b for a, b in shapes])[:-1]

    def cost(x):
        factors = [part.reshape(s) for part, s in zip(np.split(x, sizes), shapes, strict=True)]
        before = [np.eye(len(Y))]
        for factor in factors:
            before.append(before[-1] @ factor)
        G = (before[-1] - Y) / len(Y)
        value = np.sum((before[-1] - Y) ** 2) / (2 * len(Y))
        after, slopes = np.eye(3), []
        for i in reversed(range(depth)):
            slopes.append((before[i].T @ G @ after.T + decays[i] * factors[i]).ravel())
            value += decays[i] / 2 * np.sum(factors[i] ** 2)
            after = factors[i] @ after
        return value, np.concatenate(slopes[::-1])

    best = np.inf
    for _ in range(8):
        start = generator.normal(size=sum(a * b for a, b in shapes))
        options = {"maxiter": 5000, "maxfun": 10_000, "ftol": 1e-16, "gtol": 1e-10}
        best = min(best, minimize(cost, start, jac=True, method="L-BFGS-B", options=options).fun)
    assert best > theory - 1e-10
    np.testing.assert_allclose(best, theory, rtol=0, atol=1e-8)


def test_depth_two_is_the_shallow_model():
    Y = np.random.default_rng(0).normal(size=(9, 4))
    for bias in (False, True):
        shallow = ufm.theory.regularized_squared_error_minimum(Y, 0.02, 0.005, bias)
        np.testing.assert_allclose(
            ufm.theory.deep_linear_minimum(Y, [0.02, 0.005], bias), shallow, rtol=1e-13
        )


@pytest.mark.parametrize("sizes", [(20, 5, 5), (12, 12, 4, 4), (15, 10, 3, 3, 3)])
def test_the_threshold_of_minority_collapse(sizes):
    smallest, total = min(sizes), sum(sizes)
    minority = [k for k, n in enumerate(sizes) if n == smallest]
    for share, collapsed in ((0.97, False), (1.03, True)):
        # The decays at which the threshold is this share of the smallest size.
        decay = np.sqrt(share * smallest) / total
        np.testing.assert_allclose(
            ufm.theory.minority_collapse_threshold(total, decay, decay), share * smallest
        )
        _, W, _, _ = solve(one_hot(sizes), len(sizes), decay, decay, "cross entropy", 0)
        apart = np.linalg.norm(W[minority[0]] - W[minority[1]])
        assert (apart < 1e-6) if collapsed else (apart > 0.1)


def test_the_layer_peeled_minimum_is_attained_and_not_passed():
    generator = np.random.default_rng(0)
    labels = ufm.balanced_labels(4, 2)
    for _ in SEEDS:
        energies = np.exp(generator.uniform(-1, 2, 2))
        theory = ufm.theory.layer_peeled_minimum(4, *energies)
        W = np.sqrt(energies[0]) * np.asarray(ufm.theory.simplex_etf(4, 5))
        H = np.sqrt(energies[1] / energies[0]) * W[labels]
        cost = mean_loss("cross entropy", H @ W.T, one_hot([2] * 4))[0]
        np.testing.assert_allclose(cost, theory, rtol=1e-13)
        for _ in range(50):
            W, H = generator.normal(size=(4, 5)), generator.normal(size=(8, 5))
            W *= np.sqrt(energies[0] / np.mean(np.sum(W**2, 1)))
            H *= np.sqrt(energies[1] / np.mean(np.sum(H**2, 1)))
            assert mean_loss("cross entropy", H @ W.T, one_hot([2] * 4))[0] > theory


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_of_many_nearest_frames_one_is_returned(rank):
    generator = np.random.default_rng(rank)
    rows = generator.normal(size=(4, rank)) @ generator.normal(size=(rank, 5)) + generator.normal(size=5)
    frame = np.asarray(ufm.theory.nearest_simplex_etf(rows))
    np.testing.assert_allclose(frame @ frame.T, 4 / 3 * (np.eye(4) - 1 / 4), atol=1e-12)
    # The nearest has the largest inner product with the rows, the sum of their singular values.
    values = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
    np.testing.assert_allclose(np.sum(frame * rows), np.sqrt(4 / 3) * values.sum(), atol=1e-12)


def test_the_nearest_simplex_etf_is_nearer_than_random_ones():
    generator = np.random.default_rng(0)
    for _ in SEEDS:
        k = int(generator.integers(2, 6))
        d = k - 1 + int(generator.integers(0, 3))
        Y = generator.normal(size=(k, d))
        frame = np.asarray(ufm.theory.nearest_simplex_etf(Y))
        np.testing.assert_allclose(frame @ frame.T, k / (k - 1) * (np.eye(k) - 1 / k), atol=1e-12)
        standard = np.asarray(ufm.theory.simplex_etf(k, d))
        for _ in range(100):
            rotation, _ = np.linalg.qr(generator.normal(size=(d, d)))
            assert np.linalg.norm(frame - Y) <= np.linalg.norm(standard @ rotation - Y) + 1e-12
        # A frame as it is, is its own nearest.
        np.testing.assert_allclose(ufm.theory.nearest_simplex_etf(3 * frame), frame, atol=1e-12)


def test_the_margin_has_the_derivatives_of_its_two_sides():
    margin = jax.grad(lambda lW: ufm.theory.regularized_margin(3, 2, lW, 0.01))
    assert margin(100.0) == 0
    assert margin(0.01) < 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t: t.regularized_cross_entropy_minimum(1, 2, 0.1, 0.1), "num_classes must be"),
        (lambda t: t.regularized_cross_entropy_minimum(3, 2, 0.0, 0.1), "weight_decay must be positive"),
        (lambda t: t.regularized_label_smoothing_minimum(3, 2, 0.1, 0.1, 1.5), "alpha must lie between"),
        (lambda t: t.regularized_squared_error_minimum(np.eye(3, dtype=int), 1.0, 1.0), "targets must be"),
        (lambda t: t.regularized_squared_error_minimum(np.eye(3), 1.0, 1.0, dim=0), "dim must be"),
        (lambda t: t.deep_linear_minimum(np.eye(3), [0.1]), "decays must be a vector"),
        (lambda t: t.nonnegative_cross_entropy_minimum([3], 0.1, 0.1), "class_sizes must be a vector"),
        (lambda t: t.layer_peeled_minimum(3, -1.0, 1.0), "weight_energy must be positive"),
        (lambda t: t.minority_collapse_threshold(0, 0.1, 0.1), "num_samples must be"),
        (lambda t: t.nearest_simplex_etf(np.ones((5, 3))), "rows must be"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call(ufm.theory)


def test_our_own_solver_finds_the_minima_of_squared_error_to_rounding():
    sizes = np.array([5, 3, 3, 1])
    labels, targets = jnp.repeat(jnp.arange(4), sizes), one_hot(sizes)

    @jax.jit
    def found(lW, lH, key):
        problem = ufm.regularized(labels, 4, ufm.losses.squared_error, weight_decay=lW, feature_decay=lH)
        start = problem.random_point(key, 5)
        result = ufm.minimize(problem, start, ufm.solvers.trust_region(), max_steps=300, tolerance=1e-12)
        W, H = result.point
        its_W, its_H, _ = ufm.theory.regularized_squared_error_minimizer(targets, 5, lW, lH)
        theory = ufm.theory.regularized_squared_error_minimum(targets, lW, lH)
        apart = jnp.abs(W @ W.T - its_W @ its_W.T).max(), jnp.abs(H @ H.T - its_H @ its_H.T).max()
        return result.value - theory, jnp.stack(apart) / jnp.maximum(1, jnp.abs(W @ W.T).max())

    generator = np.random.default_rng(0)
    for i in SEEDS:
        lW, lH = np.exp(generator.uniform(np.log(1e-4), np.log(0.05), 2))
        gap, apart = found(lW, lH, jax.random.key(i))
        assert abs(gap) < 1e-12
        assert apart.max() < 1e-6


def test_squared_error_of_classes_of_any_size_by_our_own_solver():
    """Value and geometry at unequal classes, of which one is too small to be learned."""
    sizes = np.array([9, 4, 1])
    labels = jnp.repeat(jnp.arange(3), sizes)
    problem = ufm.regularized(labels, 3, ufm.losses.squared_error, weight_decay=0.09, feature_decay=0.06)
    start = problem.random_point(jax.random.key(0), 4)
    found = ufm.minimize(problem, start, ufm.solvers.lbfgs(), max_steps=2000, tolerance=1e-10)
    theory = ufm.theory.regularized_squared_error_minimum(one_hot(sizes), 0.09, 0.06)
    np.testing.assert_allclose(found.value, theory, atol=1e-13)
    lengths = np.maximum(np.sqrt(sizes * 0.06 / 0.09) - 14 * 0.06, 0)
    assert lengths[2] == 0
    np.testing.assert_allclose(found.point.W @ found.point.W.T, np.diag(lengths), atol=1e-6)


_SIZES = np.array([20, 5, 2, 1])
_LOSSES = {
    "cross_entropy": ufm.losses.cross_entropy,
    "label_smoothing": functools.partial(ufm.losses.label_smoothing, alpha=0.2),
    "squared_error": ufm.losses.squared_error,
}


@pytest.mark.parametrize("name", few(1, *_LOSSES))
def test_the_gap_bounds_the_distance_to_the_minimum_and_closes_there(name):
    """Classes of any size: at 1000 random points of each loss, and at minima for ten pairs of decays."""
    labels, k = jnp.repeat(jnp.arange(4), _SIZES), 4
    generator = np.random.default_rng(0)
    decays = np.exp(generator.uniform(np.log(3e-3), np.log(0.1), (10, 2)))

    @jax.jit
    def solve_and_bound(lW, lH, key):
        problem = ufm.regularized(labels, k, _LOSSES[name], weight_decay=lW, feature_decay=lH)
        start = problem.random_point(key, 5)
        found = ufm.minimize(problem, start, ufm.solvers.trust_region(), max_steps=300, tolerance=1e-12)
        points = jax.vmap(lambda k, s: jax.tree.map(lambda x: s * x, problem.random_point(k, 5)))(
            jax.random.split(key, 100), jnp.geomspace(0.03, 3, 100)
        )
        at_random = jax.vmap(lambda x: (problem.cost(x), ufm.landscape.optimality_gap(problem, x)))(points)
        return found.value, ufm.landscape.optimality_gap(problem, found.point), *at_random

    for i, (lW, lH) in enumerate(decays):
        minimum, gap, costs, gaps = solve_and_bound(lW, lH, jax.random.key(i))
        assert 0 <= gap < 1e-10
        assert np.all(gaps >= costs - minimum - 1e-10)
        if name == "squared_error":
            theory = ufm.theory.regularized_squared_error_minimum(one_hot(_SIZES), lW, lH)
            np.testing.assert_allclose(minimum, theory, atol=1e-12)


def test_the_gap_of_a_regularized_problem_says_for_which_losses():
    problem = ufm.regularized(ufm.balanced_labels(3, 2), 3, ufm.losses.focal)
    point = problem.random_point(jax.random.key(0), 4)
    with pytest.raises(ValueError, match="known for cross_entropy, label_smoothing, squared_error"):
        ufm.landscape.optimality_gap(problem, point)
