"""Solvers against pymanopt, against closed forms, and at the ends of their precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm_jax as ufm
from tests.shared.descents import DIM, LABELS, PROBLEMS, K, costs_of, pymanopt_run
from tests.shared.marks import few
from ufm_jax.riemannian import Status


def relative_difference(a, b):
    length = min(len(a), len(b))
    return np.abs(np.asarray(a)[:length] / np.asarray(b)[:length] - 1)


@pytest.mark.parametrize("problem", few(2, **PROBLEMS))
def test_every_step_of_gradient_descent_is_that_of_pymanopt(problem):
    """From each iterate of pymanopt, with what its line search remembers there, the same next cost."""
    solver = ufm.solvers.gradient_descent()
    start = problem.random_point(jax.random.key(0), DIM)
    costs, points = pymanopt_run("SteepestDescent", problem, start, 31)

    @jax.jit
    def next_cost(point, last_change):
        state = solver.init(problem, point)
        state = state._replace(search=state.search._replace(change=last_change))
        return solver.step(problem, state).iterate.value

    changes = np.diff(costs, prepend=costs[0])
    ours = [next_cost(point, change) for point, change in zip(points[:30], changes[:30], strict=True)]
    np.testing.assert_allclose(ours, costs[1:31], rtol=1e-9)
    assert costs[30] < 0.9 * costs[0]


@pytest.mark.parametrize("problem", few(2, **PROBLEMS))
@pytest.mark.parametrize("seed", few(1, 0, 1, 2))
def test_gradient_descent_follows_pymanopt(problem, seed):
    """Left alone the two agree as long as their arithmetic lets them.

    The iteration is chaotic: rounding errors grow two- to threefold a step, so that pymanopt started one
    unit in the last place away from its own start is as far from itself as we are from it.
    """
    start = problem.random_point(jax.random.key(seed), DIM)
    theirs, _ = pymanopt_run("SteepestDescent", problem, start, 31)
    ours = costs_of(problem, start, ufm.solvers.gradient_descent(), 30)
    nudged = start._replace(W=jnp.nextafter(start.W, jnp.inf))
    perturbed, _ = pymanopt_run("SteepestDescent", problem, nudged, 31)
    apart = relative_difference(ours, theirs)
    growth = np.maximum.accumulate(relative_difference(perturbed, theirs))
    assert np.all(apart[:10] < 1e-9)
    assert np.all(apart[: len(growth)] <= 1e4 * np.maximum(growth[: len(apart)], 1e-13))


def test_line_search_parameters_are_those_of_pymanopt():
    problem = PROBLEMS["normalized, tau=1.0"]
    start = problem.random_point(jax.random.key(2), DIM)
    settings = {
        "contraction_factor": 0.3,
        "optimism": 3.0,
        "sufficient_decrease": 0.2,
        "max_iterations": 5,
        "initial_step_size": 4.0,
    }
    theirs, _ = pymanopt_run("SteepestDescent", problem, start, 12, line_search=settings)
    solver = ufm.solvers.gradient_descent(ufm.solvers.backtracking(**settings))
    np.testing.assert_allclose(costs_of(problem, start, solver, 11), theirs, rtol=1e-9)


@pytest.mark.parametrize("tau", [0.5, 1.0, 5.0])
def test_descent_reaches_the_global_minimum(tau):
    problem = ufm.normalized(LABELS, K, tau=tau)
    point = problem.random_point(jax.random.key(3), DIM)
    result = ufm.minimize(problem, point, ufm.solvers.gradient_descent(), max_steps=2000, tolerance=1e-10)
    assert result.status == Status.CONVERGED
    assert result.gradient_norm <= 1e-10
    assert 0 < result.steps < 2000
    np.testing.assert_allclose(result.value, ufm.theory.cross_entropy_minimum(K, tau), rtol=0, atol=1e-14)
    assert ufm.metrics.nc1(result.point.H, LABELS, K) < 1e-15
    assert ufm.metrics.nc2(result.point.W) < 1e-7
    assert ufm.metrics.nc3(result.point.W, result.point.H, LABELS) < 1e-7


def test_float32_goes_on_where_values_no_longer_resolve_a_decrease():
    problem = ufm.normalized(LABELS, K, tau=1.0)
    descend = jax.jit(
        lambda x: ufm.minimize(problem, x, ufm.solvers.gradient_descent(), max_steps=400, tolerance=0.0)
    )
    for seed in range(10):
        result = descend(problem.random_point(jax.random.key(seed), DIM, jnp.float32))
        assert {x.dtype for x in jax.tree.leaves(result.point)} == {jnp.dtype(jnp.float32)}
        assert result.value.dtype == jnp.float32
        # Values, known to 1e-7, resolve a gradient norm near 1e-4 and an NC2 near 1e-3 here.
        assert result.gradient_norm < 5e-7
        assert ufm.metrics.nc2(result.point.W) <= 1e-5
        assert ufm.metrics.nc3(result.point.W, result.point.H, LABELS) <= 1e-5


def test_float64_goes_on_below_the_resolution_of_values():
    """Values resolve a gradient norm near 1e-9 here; slopes lead on to 1e-13."""
    problem = ufm.normalized(LABELS, K, tau=1.0)
    point = problem.random_point(jax.random.key(0), DIM)
    result = ufm.minimize(problem, point, ufm.solvers.gradient_descent(), max_steps=2000, tolerance=1e-13)
    assert result.status == Status.CONVERGED
    assert ufm.metrics.nc2(result.point.W) < 1e-11


class TestStatus:
    problem = ufm.normalized(LABELS, K, tau=1.0)
    start = problem.random_point(jax.random.key(0), DIM)

    def minimize(self, point, **kwargs):
        return ufm.minimize(self.problem, point, ufm.solvers.gradient_descent(), **kwargs)

    def test_out_of_steps(self):
        result = self.minimize(self.start, max_steps=3, tolerance=1e-8)
        assert (result.status, result.steps) == (Status.OUT_OF_STEPS, 3)

    def test_no_steps_at_all_return_the_start(self):
        result = self.minimize(self.start, max_steps=0, measure=self.problem.cost)
        assert (result.status, result.steps) == (Status.OUT_OF_STEPS, 0)
        jax.tree.map(np.testing.assert_array_equal, result.point, self.start)
        assert result.history.shape == (1,)

    def test_converged_at_the_start_makes_no_step(self):
        frame = ufm.theory.simplex_etf(K, DIM)
        result = self.minimize(ufm.Point(frame, frame[LABELS]), max_steps=10, tolerance=1e-8)
        assert (result.status, result.steps) == (Status.CONVERGED, 0)

    def test_stalled_where_no_step_lowers_the_cost(self):
        broken = ufm.solvers.backtracking(initial_step_size=1e6, max_iterations=0)
        problem = ufm.regularized(LABELS, K)
        result = ufm.minimize(problem, self.start, ufm.solvers.gradient_descent(broken), max_steps=50)
        assert (result.status, result.steps) == (Status.STALLED, 0)
        jax.tree.map(np.testing.assert_array_equal, result.point, self.start)

    def test_a_start_that_is_not_finite_says_so(self):
        bad = jax.tree.map(lambda x: x * jnp.nan, self.start)
        result = self.minimize(bad, max_steps=50)
        assert (result.status, result.steps) == (Status.NOT_FINITE, 0)

    def test_an_underflowed_gradient_is_no_collapse(self):
        """At tau = 100 all is classified and the gradient is gone, long before NC2 is small."""
        problem = ufm.normalized(LABELS, K, tau=100.0)
        point = problem.random_point(jax.random.key(0), DIM)
        result = ufm.minimize(
            problem, point, ufm.solvers.gradient_descent(), max_steps=500, tolerance=1e-12
        )
        assert result.status == Status.CONVERGED
        assert result.value < 1e-12
        assert ufm.metrics.accuracy(*result.point, LABELS) == 1
        assert ufm.metrics.nc2(result.point.W) > 0.1


class TestMinimize:
    problem = ufm.normalized(LABELS, K, tau=5.0)
    start = problem.random_point(jax.random.key(4), DIM)

    def run(self, start, measure=None, steps=40, tolerance=1e-3):
        return ufm.minimize(
            self.problem,
            start,
            ufm.solvers.gradient_descent(),
            max_steps=steps,
            tolerance=tolerance,
            measure=measure,
        )

    def test_history_holds_the_start_every_step_and_then_the_end(self):
        result = self.run(self.start, measure=lambda p: {"cost": self.problem.cost(p), "W": p.W})
        steps = int(result.steps)
        assert 0 < steps < 40
        assert result.history["W"].shape == (41, K, DIM)
        np.testing.assert_array_equal(result.history["W"][0], self.start.W)
        np.testing.assert_array_equal(result.history["W"][steps], result.point.W)
        np.testing.assert_array_equal(result.history["W"][-1], result.point.W)
        assert np.all(np.diff(result.history["cost"][: steps + 1]) < 0)
        for k in (1, 7):
            shorter = self.run(self.start, steps=k)
            np.testing.assert_allclose(shorter.value, result.history["cost"][k], rtol=1e-13)

    def test_measuring_changes_nothing(self):
        plain, measured = self.run(self.start), self.run(self.start, measure=lambda p: p.W[0, 0])
        assert plain.history is None
        assert plain.steps == measured.steps
        np.testing.assert_allclose(plain.point.H, measured.point.H, atol=1e-13)

    def test_jit_and_vmap_give_what_a_call_gives(self):
        starts = [self.problem.random_point(jax.random.key(i), DIM) for i in range(3)]
        together = jax.jit(jax.vmap(self.few_steps))(jax.tree.map(lambda *x: jnp.stack(x), *starts))
        for i, start in enumerate(starts):
            alone = self.few_steps(start)
            assert alone.steps == together.steps[i] == 8
            np.testing.assert_allclose(alone.value, together.value[i], rtol=1e-11)

    def few_steps(self, start):
        return self.run(start, steps=8, tolerance=0.0)

    def test_derivatives_in_forward_mode(self):
        """The minimum's derivative with respect to tau is that of Theorem 1."""

        def found(tau):
            problem = ufm.normalized(LABELS, K, tau=tau)
            return ufm.minimize(
                problem, self.start, ufm.solvers.gradient_descent(), max_steps=300, tolerance=1e-9
            ).value

        derivative = jax.jvp(found, (2.0,), (1.0,))[1]
        expected = jax.grad(lambda tau: ufm.theory.cross_entropy_minimum(K, tau))(2.0)
        np.testing.assert_allclose(derivative, expected, rtol=1e-6)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"W": None}, r"W \(10, d\)"),
            ({"H": jnp.ones((49, DIM))}, r"H \(50, d\)"),
            ({"W": jnp.ones((K, DIM), jnp.float32)}, "of one dtype"),
            ({"W": jnp.ones((K, DIM + 1))}, "of one dtype"),
        ],
    )
    def test_points_that_do_not_fit_are_refused(self, change, message):
        with pytest.raises(ValueError, match=message):
            self.run(self.start._replace(**change))

    def test_points_of_other_kinds_are_refused(self):
        with pytest.raises(ValueError, match=r"is a Point\(W, H\), without a bias, but this is a tuple"):
            self.run((self.start.W, self.start.H))

    @pytest.mark.parametrize(("name", "value"), [("max_steps", -1), ("tolerance", -1.0)])
    def test_bad_arguments_are_refused(self, name, value):
        with pytest.raises(ValueError, match=f"{name} must be finite and at least 0"):
            ufm.minimize(self.problem, self.start, ufm.solvers.gradient_descent(), **{name: value})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"contraction_factor": 1.0}, "contraction_factor must lie between 0 and 1"),
        ({"sufficient_decrease": 2.0}, "sufficient_decrease must lie between 0 and 1"),
        ({"max_iterations": -1}, "max_iterations must be"),
        ({"initial_step_size": 0.0}, "initial_step_size must be positive"),
        ({"optimism": 0.0}, "optimism must be positive"),
    ],
)
def test_bad_line_search_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ufm.solvers.backtracking(**arguments)
