"""Conjugate gradient and trust region against pymanopt, and where they are put to the test."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ufm_jax as ufm
from tests.shared.descents import (
    DIM,
    LABELS,
    PROBLEMS,
    K,
    costs_of,
    pymanopt_run,
    pymanopt_trust_region_costs,
)
from tests.shared.marks import few
from tests.shared.problems import PROBLEMS as KINDS
from ufm_jax.riemannian import Status
from ufm_jax.riemannian.line_search import change_of_cost

RULES = {
    "hestenes_stiefel": "HestenesStiefel",
    "polak_ribiere": "PolakRibiere",
    "fletcher_reeves": "FletcherReeves",
    "hager_zhang": "HagerZhang",
}
ALL_SOLVERS = {
    "gradient_descent": ufm.solvers.gradient_descent(),
    "conjugate_gradient": ufm.solvers.conjugate_gradient(),
    "trust_region": ufm.solvers.trust_region(),
}
ALL_PROBLEMS = {
    **PROBLEMS,
    "focal": ufm.normalized(LABELS, K, loss=ufm.losses.focal),
    "label_smoothing": ufm.normalized(LABELS, K, loss=ufm.losses.label_smoothing, tau=3.0),
    "contrastive": ufm.contrastive(LABELS, K),
}

_DIFFERENT = ("decayed bias", "contrastive", "regularized", "free bias")
EVERY_KIND = {name: KINDS[name] for name in sorted(KINDS, key=lambda name: name not in _DIFFERENT)}


@pytest.mark.parametrize("problem", few(2, **PROBLEMS))
def test_conjugate_gradient_makes_the_steps_of_pymanopt(problem):
    point = problem.random_point(jax.random.key(0), DIM)
    theirs, _ = pymanopt_run("ConjugateGradient", problem, point, 20)
    ours = costs_of(problem, point, ufm.solvers.conjugate_gradient(), 20)
    assert len(theirs) == 21
    np.testing.assert_allclose(ours, theirs, rtol=1e-8)


@pytest.mark.parametrize("rule", few(2, *RULES))
def test_every_beta_rule_is_that_of_pymanopt(rule):
    problem = PROBLEMS["normalized, tau=5.0"]
    point = problem.random_point(jax.random.key(1), DIM)
    theirs, _ = pymanopt_run("ConjugateGradient", problem, point, 20, beta_rule=RULES[rule])
    ours = costs_of(problem, point, ufm.solvers.conjugate_gradient(rule), 20)
    np.testing.assert_allclose(ours, theirs, rtol=1e-8)


@pytest.mark.parametrize("problem", few(1, **PROBLEMS))
def test_trust_region_makes_the_steps_of_pymanopt(problem):
    point = problem.random_point(jax.random.key(0), DIM)
    some = [1, 4, 8]  # Each makes a run of its own.
    theirs = pymanopt_trust_region_costs(problem, point, some)
    ours = costs_of(problem, point, ufm.solvers.trust_region(theta=1.0), 8)
    np.testing.assert_allclose(np.asarray(ours)[some], theirs, rtol=1e-8)


@pytest.mark.parametrize("tau", few(1, 5.0, 0.5, 1.0))
def test_trust_region_ends_where_pymanopt_ends(tau):
    problem = ufm.normalized(LABELS, K, tau=tau)
    point = problem.random_point(jax.random.key(0), DIM)
    solver = ufm.solvers.trust_region()
    result = ufm.minimize(problem, point, solver, max_steps=200, tolerance=1e-10)
    assert result.status == Status.CONVERGED
    np.testing.assert_allclose(result.value, ufm.theory.cross_entropy_minimum(K, tau), atol=1e-12)
    if tau == 1.0:  # Elsewhere pymanopt needs minutes: many outer iterations, each of hundreds inside.
        theirs = pymanopt_trust_region_costs(problem, point, [10])
        np.testing.assert_allclose(result.value, theirs[0], atol=1e-12)


def test_trust_region_converges_superlinearly():
    problem = ufm.normalized(LABELS, K, tau=1.0)
    point = problem.random_point(jax.random.key(0), DIM)

    def gradient_norm(x):
        return problem.manifold.norm(x, problem.gradient(problem.evaluate(x)))

    solver = ufm.solvers.trust_region(theta=1.0)
    result = ufm.minimize(problem, point, solver, max_steps=50, tolerance=1e-10, measure=gradient_norm)
    norms = np.asarray(result.history)[: int(result.steps) + 1]
    assert norms[-1] <= 1e-10
    # Each of the last exponents grows by half at least.
    exponents = np.log10(norms[-3:])
    assert exponents[1] < 1.5 * exponents[0] < 0
    assert exponents[2] < 1.5 * exponents[1]


@pytest.mark.parametrize("problem", few(2, **ALL_PROBLEMS))
def test_trust_region_reaches_a_small_gradient_in_float32(problem):
    point = problem.random_point(jax.random.key(0), DIM, jnp.float32)
    result = ufm.minimize(problem, point, ufm.solvers.trust_region(), max_steps=300, tolerance=1e-5)
    assert result.status == Status.CONVERGED
    assert result.value.dtype == jnp.float32


@functools.partial(jax.jit, static_argnums=2)
def six_steps(problem, start, solver):
    """Compiled once for problems that differ in arrays alone, as tau."""
    return ufm.minimize(problem, start, solver, max_steps=6, tolerance=0.0)


@functools.partial(jax.jit, static_argnums=2)
def six_steps_of_each(problem, starts, solver):
    return jax.vmap(lambda start: six_steps(problem, start, solver))(starts)


@pytest.mark.parametrize("solver", ALL_SOLVERS.values(), ids=ALL_SOLVERS)
@pytest.mark.parametrize("problem", few(1, **ALL_PROBLEMS))
def test_every_solver_works_on_every_problem(problem, solver):
    point = problem.random_point(jax.random.key(0), DIM)
    starts = jax.tree.map(lambda x: jnp.stack([x, -x]), point)
    results = six_steps_of_each(problem, starts, solver)
    for i in range(2):
        start = jax.tree.map(lambda x, i=i: x[i], starts)
        assert results.value[i] < problem.cost(start)
        np.testing.assert_allclose(results.value[i], six_steps(problem, start, solver).value, rtol=1e-8)


@pytest.mark.parametrize("problem", few(4, **EVERY_KIND))
def test_hessian_is_the_second_derivative_along_retractions(problem):
    point = problem.random_point(jax.random.key(0), 6)
    tangent = problem.manifold.random_tangent(jax.random.key(1), point)

    def along(t):
        return problem.cost(problem.manifold.retract(point, jax.tree.map(lambda v: t * v, tangent)))

    curvature = problem.manifold.inner_product(point, tangent, problem.hessian(point)(tangent))
    np.testing.assert_allclose(curvature, jax.grad(jax.grad(along))(0.0), rtol=1e-10, atol=1e-13)


class TestCriticalPoints:
    """A rank-one classifier and equal features: a critical point that is no minimum (Proposition 2)."""

    problem = ufm.normalized(LABELS, K, tau=1.0)

    def saddle(self):
        first = jnp.zeros((1, DIM)).at[0, 0].set(1)
        second = jnp.zeros((1, DIM)).at[0, 1].set(1)
        return ufm.Point(jnp.repeat(first, K, 0), jnp.repeat(second, len(LABELS), 0))

    @pytest.mark.parametrize("solver", few(1, **ALL_SOLVERS))
    def test_a_start_at_a_critical_point_stays_without_harm(self, solver):
        start = jax.tree.map(lambda x: x * 0, self.saddle())
        problem = ufm.regularized(LABELS, K)  # W = H = 0 is critical, and the gradient is exactly zero.
        result = ufm.minimize(problem, start, solver, max_steps=20, tolerance=0.0)
        assert (result.status, result.steps) == (Status.CONVERGED, 0)
        stepped = solver.step(problem, solver.init(problem, start))
        assert np.isfinite(stepped.iterate.value)
        assert stepped.stalled or np.all(stepped.iterate.point.W == 0)

    @pytest.mark.parametrize("name", ["conjugate_gradient", "trust_region"])
    def test_a_nudge_leaves_the_saddle_for_the_global_minimum(self, name):
        saddle = self.saddle()
        nudge = self.problem.manifold.random_tangent(jax.random.key(0), saddle)
        start = self.problem.manifold.retract(saddle, jax.tree.map(lambda v: 1e-6 * v, nudge))
        solver = ALL_SOLVERS[name]
        result = ufm.minimize(self.problem, start, solver, max_steps=500, tolerance=1e-9)
        assert result.status == Status.CONVERGED
        np.testing.assert_allclose(result.value, ufm.theory.cross_entropy_minimum(K, 1.0), atol=1e-12)

    def test_negative_curvature_ends_at_the_boundary(self):
        saddle = self.saddle()
        nudge = self.problem.manifold.random_tangent(jax.random.key(0), saddle)
        start = self.problem.manifold.retract(saddle, jax.tree.map(lambda v: 1e-6 * v, nudge))
        solver = ufm.solvers.trust_region(max_radius=0.5, initial_radius=0.25)
        state = solver.init(self.problem, start)
        after = solver.step(self.problem, state)
        moved = self.problem.manifold.distance(start, after.iterate.point)
        np.testing.assert_allclose(moved, 0.25, rtol=0.05)
        assert after.iterate.value < state.iterate.value
        assert after.radius == 0.5

    @pytest.mark.parametrize("solver", few(1, **ALL_SOLVERS))
    def test_an_unreachable_tolerance_ends_in_a_stall_or_out_of_steps(self, solver):
        start = self.problem.random_point(jax.random.key(0), DIM)
        result = ufm.minimize(self.problem, start, solver, max_steps=500, tolerance=0.0)
        assert result.gradient_norm < 1e-13
        is_stalled = result.status == Status.STALLED
        if solver == ALL_SOLVERS["trust_region"]:
            assert (is_stalled, result.steps < 100) == (True, True)
        else:
            assert is_stalled or result.status == Status.OUT_OF_STEPS

    @pytest.mark.parametrize("solver", few(1, **ALL_SOLVERS))
    def test_a_start_that_is_not_a_number_says_so(self, solver):
        start = jax.tree.map(lambda x: x * jnp.nan, self.problem.random_point(jax.random.key(0), DIM))
        result = ufm.minimize(self.problem, start, solver, max_steps=200, tolerance=1e-8)
        assert result.status == Status.NOT_FINITE


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ufm.solvers.conjugate_gradient("newton"), "beta_rule must be one of hestenes_stiefel, "),
        (lambda: ufm.solvers.trust_region(rho_prime=0.3), "rho_prime must be at least 0 and below 1/4"),
        (lambda: ufm.solvers.trust_region(kappa=0.0), "kappa must lie between 0 and 1, but is 0.0"),
        (lambda: ufm.solvers.trust_region(max_radius=-1.0), "max_radius must be positive"),
        (lambda: ufm.solvers.trust_region(theta=0.0), "theta must be positive"),
        (lambda: ufm.solvers.trust_region(max_inner=0), "max_inner must be"),
        (lambda: ufm.solvers.trust_region(min_inner=-1), "min_inner must be"),
        (
            lambda: ufm.solvers.trust_region(max_radius=1.0, initial_radius=2.0),
            "initial_radius must be at most max_radius = 1.0, but is 2.0",
        ),
        (lambda: ufm.solvers.adaptive(contraction_factor=2.0), "contraction_factor must lie between"),
    ],
)
def test_bad_arguments_are_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_trust_region_goes_on_where_values_say_nothing_but_slopes_do():
    """At tau = 4 the cost feels the angles between classes by 1e-11, and by 1e-15 near the minimum."""
    problem = ufm.contrastive(ufm.balanced_labels(3, 3), 3, tau=4.0)

    @jax.jit
    def solve(point):
        return ufm.minimize(problem, point, ufm.solvers.trust_region(), max_steps=300, tolerance=1e-14)

    for seed in (0, 11, 15):
        result = solve(problem.random_point(jax.random.key(seed), 16))
        assert result.status == Status.CONVERGED
        means = result.point.H.reshape(3, 3, -1).mean(1)
        assert ufm.metrics.nc2(means) < 1e-4


def test_slopes_are_not_believed_where_values_contradict_them():
    """Slopes at both ends of a long step promise a decrease, but the cost rises by 100 rounding units."""
    unit = np.finfo(float).eps

    def cost(t):
        return 100 * unit * (2 * t**2 * (3 - 2 * t) - t)

    objective = ufm.Objective(cost, ufm.manifolds.Euclidean())
    start = ufm.solvers.iterate_at(objective, objective.evaluate(jnp.zeros(())))
    change_at = change_of_cost(objective, start, jnp.ones(()), start.gradient, resolution=1e3)
    change = change_at(jnp.ones(()), objective.evaluate(jnp.ones(())))
    assert 90 * unit < change < 110 * unit


@pytest.mark.parametrize(
    ("curvatures", "settings", "expected"),
    [
        ([1.0, 2.0, 3.0], {}, "RESIDUAL"),
        ([1.0, 2.0, 3.0], {"initial_radius": 0.1}, "BOUNDARY"),
        ([1.0, 2.0, -3.0], {}, "NEGATIVE_CURVATURE"),
        ([1.0, 2.0, 3.0], {"max_inner": 1}, "MAX_INNER"),
    ],
)
def test_the_trust_region_says_why_its_inner_iteration_stopped(curvatures, settings, expected):
    """On a quadratic, of which the model is no approximation."""
    objective = ufm.Objective(
        lambda x: jnp.sum(jnp.array(curvatures) * x**2) / 2, ufm.manifolds.Euclidean()
    )
    solver = ufm.solvers.trust_region(**{"initial_radius": 50.0, "max_radius": 100.0} | settings)
    state = solver.init(objective, jnp.ones(3))
    assert state.inner_stop == ufm.solvers.InnerStop.NOT_RUN
    assert solver.step(objective, state).inner_stop == ufm.solvers.InnerStop[expected]


@pytest.mark.slow
def test_an_inner_iteration_of_order_one_half_saves_products_in_both_metrics():
    """The table of docs/riemannian.md at its smallest size."""

    def products(theta, weight, tau):
        problem = ufm.normalized(ufm.balanced_labels(10, 5), 10, tau=tau, classifier_weight=weight)
        solver = ufm.solvers.trust_region(theta=theta)

        @jax.jit
        def of_start(key):
            def record(carry):
                state, total = carry
                state = solver.step(problem, state)
                return state, total + state.inner_steps

            def goes_on(carry):
                iterate = carry[0].iterate
                gradient = ufm.manifolds.Oblique().project(
                    iterate.point, problem.euclidean_gradient(iterate.evaluation)
                )
                return (optax.tree.norm(gradient) > 1e-8) & ~carry[0].stalled

            state = solver.init(problem, problem.random_point(key, 32))
            return jax.lax.while_loop(goes_on, record, (state, 0))[1]

        return sum(int(of_start(jax.random.key(seed))) for seed in range(4))

    found = {
        (theta, weight): sum(products(theta, weight, tau) for tau in (0.2, 1.0, 5.0))
        for theta in (0.5, 1.0)
        for weight in (1.0, 5.0)
    }
    assert found[0.5, 5.0] <= found[0.5, 1.0] < found[1.0, 1.0] / 2
    assert found[0.5, 5.0] < found[1.0, 5.0] / 2
