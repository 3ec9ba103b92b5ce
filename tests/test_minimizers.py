"""Where collapse is optimal for label smoothing and focal loss, against solvers and dense sampling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm_jax as ufm
from tests.shared.marks import few
from ufm_jax import theory


def smoothed(num_classes, samples_per_class, tau, alpha):
    return ufm.normalized(
        ufm.balanced_labels(num_classes, samples_per_class),
        num_classes,
        loss=lambda logits, labels: ufm.losses.label_smoothing(logits, labels, alpha),
        tau=tau,
    )


@functools.cache
def best_found(num_classes, starts):
    @jax.jit
    def best(tau, alpha, key):
        problem = smoothed(num_classes, 2, tau, alpha)

        def value(key):
            start = problem.random_point(key, num_classes + 1)
            solver = ufm.solvers.trust_region()
            return ufm.minimize(problem, start, solver, max_steps=300, tolerance=1e-11).value

        return jnp.min(jax.lax.map(value, jax.random.split(key, starts)))

    return best


def check_label_smoothing(seeds, classes):
    """The trust region's best value is the closed form, and never below it."""
    parted = 0
    for seed in seeds:
        draw = np.random.default_rng(seed)
        num_classes = int(draw.choice(classes))
        tau, alpha = np.exp(draw.uniform(np.log(0.1), np.log(20))), draw.uniform(0.01, 0.9)
        found = best_found(num_classes, 4)(tau, alpha, jax.random.key(seed))
        minimum = theory.label_smoothing_minimum(num_classes, tau, alpha)
        assert -1e-10 <= found - minimum <= 1e-8, (seed, num_classes, tau, alpha)
        parted += tau > theory.label_smoothing_threshold(num_classes, alpha)
    assert len(seeds) / 5 < parted < len(seeds)


def test_label_smoothing_minimum_is_what_a_solver_finds():
    check_label_smoothing(range(12), [3])


@pytest.mark.slow
def test_label_smoothing_minimum_is_what_a_solver_finds_in_200_settings():
    check_label_smoothing(range(200), [2, 3, 4, 5, 7])


@pytest.mark.parametrize("num_classes", [2, 3, 6])
@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("tau", few(1, 2.0, 0.2, 15.0))
def test_the_cone_minimizes_label_smoothing(num_classes, alpha, tau):
    W = theory.label_smoothing_cone(num_classes, num_classes + 1, tau, alpha)
    np.testing.assert_allclose(np.linalg.norm(W, axis=1), 1, rtol=1e-14)
    problem = smoothed(num_classes, 2, tau, alpha)
    point = ufm.Point(W, W[problem.labels])
    minimum = theory.label_smoothing_minimum(num_classes, tau, alpha)
    np.testing.assert_allclose(problem.cost(point), minimum, rtol=1e-13)
    gradient = problem.gradient(problem.evaluate(point))
    assert problem.manifold.norm(point, gradient) < 1e-14
    if tau <= theory.label_smoothing_threshold(num_classes, alpha):
        np.testing.assert_array_equal(W, theory.simplex_etf(num_classes, num_classes + 1))
    else:
        assert ufm.metrics.nc2(W) > 1e-2


def test_no_point_is_below_the_minimum_of_label_smoothing():
    """At points near the cone and far from it, in dimensions down to K."""
    for seed in range(200):
        draw = np.random.default_rng(seed)
        k = int(draw.integers(2, 6))
        tau, alpha = np.exp(draw.uniform(-2, 3)), draw.uniform(0, 1)
        W = np.asarray(theory.label_smoothing_cone(k, k, tau, alpha))
        noise = 10 ** draw.uniform(-4, 1)
        rows = [W + noise * draw.normal(size=W.shape) for _ in range(2)]
        W, H = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rows)
        z = tau * H @ W.T
        log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
        target = (1 - alpha) * np.eye(k) + alpha / k
        cost = -np.mean(np.sum(target * log_p, axis=1))
        assert cost >= theory.label_smoothing_minimum(k, tau, alpha) - 1e-12


def focal_of_margin(s, num_classes, gamma):
    loss = jnp.log1p((num_classes - 1) * jnp.exp(-s))
    return (-jnp.expm1(-loss)) ** gamma * loss


def test_the_focal_test_is_that_of_the_tangent_on_all_margins():
    """Its evaluations agree with 20001 samples of the loss and its tangent in 100 random settings."""
    verdicts = []
    slope = jax.jit(jax.value_and_grad(focal_of_margin), static_argnums=1)
    for seed in range(100):
        draw = np.random.default_rng(seed)
        k, gamma = int(draw.choice([2, 5, 30, 100])), draw.uniform(0, 6)
        tau = np.exp(draw.uniform(np.log(0.1), np.log(30)))
        at, s = k * tau / (k - 1), np.linspace(0, 4 * tau, 20001)
        value, derivative = slope(at, k, gamma)
        above = np.asarray(focal_of_margin(s, k, gamma)) - value - derivative * (s - at)
        verdicts.append(bool(theory.focal_is_optimal_at_collapse(k, tau, gamma)))
        assert verdicts[-1] == (above.min() > -1e-12), (k, tau, gamma)
    assert 10 < sum(verdicts) < 90


def test_the_focal_loss_has_one_inflection():
    """docs/focal.md: concave, then convex; its second derivative changes sign once."""
    s = jnp.linspace(-15, 25, 2001)
    second = jax.jit(jax.vmap(jax.grad(jax.grad(focal_of_margin)), (0, None, None)))
    for gamma in (0.5, 1.0, 3.0, 6.0):
        signs = np.sign(np.asarray(second(s, 10.0, gamma)))
        assert np.sum(np.diff(signs) != 0) == 1
        assert signs[0] == -1


@pytest.mark.parametrize("num_classes", [2, 10, 100, theory.FOCAL_CLASSES])
def test_the_focal_loss_is_convex_in_the_squared_margin(num_classes):
    """docs/focal.md: `s psi'' - psi' > 0` for s > 0, from automatic derivatives."""
    s = jnp.geomspace(1e-2, 30, 1001)
    first = jax.grad(focal_of_margin)
    ratio = jax.jit(
        jax.vmap(
            lambda s, gamma: s * jax.grad(first)(s, num_classes, gamma) / first(s, num_classes, gamma),
            (0, None),
        )
    )
    for gamma in (0.3, 1.0, 3.0, 10.0, 50.0, 300.0):
        # psi' < 0, so that the ratio is below 1; relative to psi', which underflows.
        assert np.nanmax(np.asarray(ratio(s, gamma))) < 1


def test_where_collapse_is_proved_optimal_for_the_focal_loss():
    tau = np.geomspace(0.1, 50, 60)
    for k in (2, 3, 10, 16):
        assert np.all(theory.focal_is_optimal_at_collapse(k, tau, 3.0))
    assert not np.any(theory.focal_is_optimal_at_collapse(100, tau[tau <= 2], 3.0))
    assert np.all(theory.focal_is_optimal_at_collapse(100, tau[tau >= 3], 3.0))
    assert np.all(theory.focal_is_optimal_at_collapse(100, tau, 0.0))
    assert np.sum(theory.focal_is_optimal_at_collapse(30, tau, 10.0)) == 59
    table = theory.focal_is_optimal_at_collapse(100, tau[:, None], np.array([0.0, 1.0, 3.0]))
    assert table.shape == (60, 3)


def test_float32_is_not_silent_where_float64_proves_collapse():
    """1500 settings, among them tiny temperatures and gamma = 0, where psi is convex."""
    draw = np.random.default_rng(0)
    for k in (2, 5, 16, 100, 1000):
        tau = np.exp(draw.uniform(np.log(1e-4), np.log(100), 300))
        gamma = draw.uniform(0, 10, 300) * (draw.uniform(size=300) < 0.6)
        exact = theory.focal_is_optimal_at_collapse(k, tau, gamma)
        rounded = theory.focal_is_optimal_at_collapse(k, jnp.float32(tau), jnp.float32(gamma))
        np.testing.assert_array_equal(rounded, exact)
        assert np.all(exact[gamma == 0])


def test_mean_margins_are_bounded_by_numbers_that_are_not_negative():
    """docs/focal.md: `s_i <= s* |w_{y_i} - mean|`, whose mean is at most s*; so the test may end at 0."""
    for seed in range(100):
        draw = np.random.default_rng(seed)
        k, tau = int(draw.integers(2, 8)), np.exp(draw.uniform(-2, 3))
        W, H = (draw.normal(size=(k, 4)) + draw.normal(size=4) for _ in range(2))
        W, H = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (W, H))
        z = tau * H @ W.T
        margins = k / (k - 1) * (np.diag(z) - z.mean(1))
        bounds = k * tau / (k - 1) * np.linalg.norm(W - W.mean(0), axis=1)
        assert np.all(margins <= bounds + 1e-12)
        assert bounds.mean() <= k * tau / (k - 1) + 1e-12


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.label_smoothing_cone(4, 3, 1.0), "needs at least 4 dimensions, but dim is 3"),
        (lambda: theory.label_smoothing_cone(4, 5, 0.0), "tau must be positive"),
        (lambda: theory.focal_is_optimal_at_collapse(3, 1.0, -1.0), "gamma must be finite and at least 0"),
        (lambda: theory.focal_is_optimal_at_collapse(1, 1.0, 1.0), "num_classes must be"),
        (lambda: theory.strict_saddle_threshold(1, 5), "num_classes must be"),
        (lambda: theory.multipliers_at_collapse(3, 0, 1.0), "samples_per_class must be"),
        (lambda: theory.cross_entropy_minimum(2.5, 1.0), "num_classes must be an integer, but is 2.5"),
        (lambda: theory.packing_angle(3, 2.0), "dim must be an integer, but is 2.0"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_point_is_below_collapse_for_the_focal_loss():
    """At random points and near collapse, d = K - 1, also where the tangent test is silent."""
    silent = 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        k, gamma = int(draw.choice([2, 3, 10, 40])), draw.uniform(0, 6)
        tau, noise = np.exp(draw.uniform(-2, 2)), 10 ** draw.uniform(-4, 1)
        rows = [theory.simplex_etf(k, k - 1) + noise * draw.normal(size=(k, k - 1)) for _ in range(2)]
        W, H = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rows)
        z = tau * H @ W.T
        p = np.exp(np.diag(z)) / np.exp(z).sum(1)
        cost = np.mean(-((1 - p) ** gamma) * np.log(p))
        assert cost >= theory.focal_at_collapse(k, tau, gamma) - 1e-12
        silent += not theory.focal_is_optimal_at_collapse(k, tau, gamma)
    assert silent > 10
