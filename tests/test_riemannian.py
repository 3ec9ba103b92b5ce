"""The solvers on functions that have nothing to do with classes, against other solvers and closed forms."""

import dataclasses
import functools
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

import ufm_jax as ufm
from tests.shared.marks import few
from ufm_jax import riemannian
from ufm_jax.riemannian import lbfgs, manifolds
from ufm_jax.riemannian.manifolds import Euclidean, Fixed, Grassmann, Oblique, Product, Stiefel, Weighted

SOLVERS = {
    "gradient_descent": ufm.solvers.gradient_descent(),
    "conjugate_gradient": ufm.solvers.conjugate_gradient(),
    "lbfgs": ufm.solvers.lbfgs(),
    "trust_region": ufm.solvers.trust_region(),
}
RNG = np.random.default_rng(0)


def symmetric(n):
    A = RNG.normal(size=(n, n))
    return A + A.T


MATRIX = symmetric(8)
SCALES = np.array([3.0, 2.0, 1.0])


def test_it_knows_nothing_of_classes():
    folder = Path(riemannian.__file__).parent
    for file in folder.glob("*.py"):
        text = file.read_text()
        code = "\n".join(line for line in text.splitlines() if ">>>" not in line)
        assert not re.search(r"\b(W|H|labels?|classes|num_classes|classifiers?|logits)\b", code), file
        others = re.findall(r"^\s*(?:from|import) (ufm_jax[\w.]*)(?: import (\w+))?", text, re.M)
        for module, name in others:
            assert module.startswith(("ufm_jax.riemannian", "ufm_jax._products")) or name == "_checks", file


# Functions whose minima are known otherwise.


def eigenvectors(X):
    """The span of the leading eigenvectors."""
    return -jnp.trace(X.T @ MATRIX @ X)


def brockett(point):
    """Brockett's cost: its minimum sorts the eigenvectors."""
    return -jnp.sum(SCALES * jnp.diag(point["X"].T @ MATRIX @ point["X"]))


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


GRAPH = np.triu(RNG.random((20, 20)) < 0.3, 1).astype(float)
GRAPH = GRAPH + GRAPH.T
LAPLACIAN = np.diag(GRAPH.sum(1)) - GRAPH


def cut(X):
    """Minus the value of max-cut's relaxation, in the factors of Burer and Monteiro."""
    return -jnp.sum(X * (LAPLACIAN @ X)) / 4


def max_cut_by_admm(iterations=3000):
    """The semidefinite program of max-cut by alternating projections (Boyd et al. 2011, section 5)."""
    n = len(LAPLACIAN)
    Z = U = np.eye(n)
    for _ in range(iterations):
        values, vectors = np.linalg.eigh(Z - U + LAPLACIAN / 4)
        X = (vectors * np.maximum(values, 0)) @ vectors.T
        Z = X + U
        np.fill_diagonal(Z, 1)
        U = U + X - Z
    return np.sum(LAPLACIAN * Z) / 4


LEADING = np.linalg.eigvalsh(MATRIX)[::-1]
FUNCTIONS = {
    "eigenvectors": (eigenvectors, Stiefel(), jnp.zeros((8, 3)), -LEADING[:3].sum()),
    "subspace": (eigenvectors, Grassmann(), jnp.zeros((8, 3)), -LEADING[:3].sum()),
    "brockett": (brockett, Stiefel(), {"X": jnp.zeros((8, 3))}, -SCALES @ LEADING[:3]),
    "rosenbrock": (rosenbrock, Euclidean(), jnp.zeros(10), 0.0),
    "max_cut": (cut, Oblique(), jnp.zeros((20, 8)), None),
}


def solve(cost, manifold, solver, like, tolerance=1e-9):
    objective = ufm.Objective(cost, manifold)

    @jax.jit
    def from_key(key):
        # From afar some end in Rosenbrock's other minimum, near x_1 = -1.
        start = like if cost is rosenbrock else manifold.random_point(key, like)
        return ufm.minimize(objective, start, solver, max_steps=20_000, tolerance=tolerance)

    return from_key(jax.random.key(2))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("function", few(2, *FUNCTIONS))
def test_every_solver_finds_every_minimum(function, solver):
    cost, manifold, like, minimum = FUNCTIONS[function]
    if minimum is None:
        minimum = -max_cut_by_admm()
    tolerance = 1e-6 if (function, solver) == ("rosenbrock", "gradient_descent") else 1e-9
    result = solve(cost, manifold, SOLVERS[solver], like, tolerance)
    assert ufm.Status(int(result.status)) == ufm.Status.CONVERGED
    np.testing.assert_allclose(result.value, minimum, atol=1e-9 if function != "max_cut" else 1e-6)


@pytest.mark.parametrize("solver", few(1, *SOLVERS))
def test_leading_eigenvectors_equal_scipys(solver):
    found = solve(brockett, Stiefel(), SOLVERS[solver], {"X": jnp.zeros((8, 3))}, 1e-11).point["X"]
    _, vectors = scipy.linalg.eigh(MATRIX)
    vectors = vectors[:, ::-1][:, :3]
    np.testing.assert_allclose(found, vectors * np.sign(np.sum(found * vectors, axis=0)), atol=1e-10)


@pytest.mark.parametrize("solver", few(2, *SOLVERS))
def test_a_weighted_metric_has_the_same_minima(solver):
    generator = np.random.default_rng(5)
    weights = {"X": jnp.asarray(3.7), "y": jnp.asarray(generator.uniform(0.1, 10, 5))}
    manifold = Weighted(Product({"X": Stiefel(), "y": Euclidean()}), weights)
    target = generator.normal(size=5)

    def both(point):
        return brockett(point) + jnp.sum(jnp.cosh(point["y"] - target))

    like = {"X": jnp.zeros((8, 3)), "y": jnp.zeros(5)}
    result = solve(both, manifold, SOLVERS[solver], like)
    np.testing.assert_allclose(result.value, -SCALES @ LEADING[:3] + 5, atol=1e-9)
    np.testing.assert_allclose(result.point["y"], target, atol=1e-8)


@pytest.mark.parametrize("solver", few(1, "lbfgs", "conjugate_gradient", "trust_region"))
def test_a_hundred_starts_at_once_are_those_one_by_one(solver):
    objective = ufm.Objective(lambda x: -jnp.vdot(x, MATRIX @ x) / 2, Oblique())
    starts = Oblique().random_point(jax.random.key(1), jnp.zeros((100, 8)))

    def from_start(x):
        return ufm.minimize(objective, x, SOLVERS[solver], max_steps=300, tolerance=1e-8)

    together = jax.jit(jax.vmap(from_start))(starts)
    apart = jax.jit(lambda xs: jax.lax.map(from_start, xs))(starts)
    # The two programs round differently, which a run amplifies: not all take the same number of steps.
    assert np.mean(together.steps == apart.steps) > 0.7
    np.testing.assert_allclose(together.value, apart.value, atol=1e-12)
    np.testing.assert_allclose(together.point, apart.point, atol=1e-6)
    assert np.sum(np.isclose(together.value, -LEADING[0] / 2, atol=1e-9)) > 95


# What `minimize` offers.

QUARTIC = ufm.Objective(lambda x: jnp.sum((x - 1) ** 4 + x**2), Euclidean())
START = jnp.array([3.0, -2.0, 0.5])


@pytest.mark.parametrize("solver", few(2, *SOLVERS))
def test_resuming_is_the_same_as_not_stopping(solver):
    whole = ufm.minimize(
        QUARTIC, START, SOLVERS[solver], max_steps=9, tolerance=0, record=lambda i: i.value
    )
    part = ufm.minimize(QUARTIC, START, SOLVERS[solver], max_steps=4, tolerance=0, record=lambda i: i.value)
    rest = ufm.solvers.resume(
        QUARTIC, part.state, SOLVERS[solver], max_steps=5, tolerance=0, record=lambda i: i.value
    )
    np.testing.assert_allclose(np.append(part.history, rest.history[1:]), whole.history, rtol=1e-12)
    np.testing.assert_allclose(rest.point, whole.point, rtol=1e-12)


def test_until_stops_where_it_says_and_record_sees_the_iterate():
    solver = SOLVERS["conjugate_gradient"]
    result = ufm.minimize(
        QUARTIC,
        START,
        solver,
        record=lambda iterate: (iterate.value, iterate.gradient_norm),
        until=lambda iterate: iterate.value < 5,
    )
    values, norms = result.history
    assert result.status == ufm.Status.STOPPED
    assert values[result.steps] < 5 <= values[result.steps - 1]
    np.testing.assert_allclose(values[0], QUARTIC.cost(START))
    np.testing.assert_allclose(norms[0], np.linalg.norm(jax.grad(QUARTIC.cost)(START)))
    at_once = ufm.minimize(QUARTIC, START, solver, until=lambda iterate: jnp.array(True))
    assert (at_once.status, at_once.steps) == (ufm.Status.STOPPED, 0)
    with pytest.raises(ValueError, match="give one of them"):
        ufm.minimize(QUARTIC, START, solver, record=lambda i: 0, measure=lambda x: 0)


@pytest.mark.parametrize("dtype", few(1, "float32", "float64"))
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_step_to_where_the_cost_is_not_finite_is_refused(solver, bad, dtype):
    """The cost falls towards x = 1 and is no number beyond it."""
    objective = ufm.Objective(lambda x: jnp.where(x[0] > 1, bad, (x[0] - 3) ** 2), Euclidean())

    @jax.jit
    def run(start):
        return ufm.minimize(objective, start, SOLVERS[solver], max_steps=200)

    result = run(jnp.zeros(1, dtype))
    assert np.isfinite(result.value)
    assert 0 < result.point[0] <= 1
    assert result.status == ufm.Status.STALLED
    beyond = run(jnp.full(1, 2, dtype))
    assert (beyond.status, beyond.steps) == (ufm.Status.NOT_FINITE, 0)


def test_solvers_and_losses_are_equal_where_their_parameters_are():
    assert ufm.solvers.gradient_descent() == ufm.solvers.gradient_descent()
    assert ufm.solvers.lbfgs(5) != ufm.solvers.lbfgs()
    labels = ufm.balanced_labels(3, 2)

    def problem(gamma):
        return ufm.normalized(labels, 3, loss=functools.partial(ufm.losses.focal, gamma=gamma))

    assert problem(2.0).loss == problem(2.0).loss != problem(3.0).loss

    @functools.partial(jax.jit, static_argnames="solver")
    @chex.assert_max_traces(n=1)
    def run(problem, start, solver):
        return ufm.minimize(problem, start, solver, max_steps=3).value

    start = problem(2.0).random_point(jax.random.key(0), 4)
    for _ in range(3):
        run(problem(2.0), start, ufm.solvers.conjugate_gradient())


def test_a_point_off_the_manifold_is_refused():
    frame = ufm.theory.simplex_etf(4, 8)
    labels = ufm.balanced_labels(4, 3)
    problem = ufm.normalized(labels, 4)
    far = ufm.Point(10 * frame, 10 * frame[labels])
    with pytest.raises(ValueError, match=r"on the manifold Oblique\(\), but W is 9 away"):
        ufm.minimize(problem, far, SOLVERS["trust_region"])
    with pytest.raises(ValueError, match="on the manifold"):
        ufm.landscape.certify(problem, far)
    jax.jit(lambda point: ufm.minimize(problem, point, SOLVERS["trust_region"], max_steps=1))(far)
    near = jax.tree.map(
        lambda x: jnp.asarray(x, "float32").astype("float64"), ufm.Point(frame, frame[labels])
    )
    ufm.minimize(problem, near, SOLVERS["gradient_descent"], max_steps=1)
    jax.jit(lambda: ufm.minimize(problem, near, SOLVERS["gradient_descent"], max_steps=1))()
    with pytest.raises(ValueError, match="floating arrays of one dtype, but has int"):
        ufm.minimize(QUARTIC, jnp.arange(3), SOLVERS["lbfgs"])
    with pytest.raises(ValueError, match="no array"):
        ufm.minimize(QUARTIC, {}, SOLVERS["lbfgs"])


def test_a_classifier_may_be_free_or_fixed():
    labels = ufm.balanced_labels(3, 2)
    frame = ufm.theory.simplex_etf(3, 4)
    problem = ufm.normalized(labels, 3, classifier=Fixed())
    start = problem.random_point(jax.random.key(0), 4)._replace(W=frame)
    result = ufm.minimize(problem, start, SOLVERS["lbfgs"], tolerance=1e-9)
    np.testing.assert_array_equal(result.point.W, frame)
    np.testing.assert_allclose(result.point.H, frame[labels], atol=1e-7)  # The minimum for this classifier.
    free = ufm.normalized(labels, 3, classifier=Euclidean())
    result = ufm.minimize(free, start, SOLVERS["conjugate_gradient"], max_steps=30)
    assert result.value < 0.1  # Rows of W grow without end.
    np.testing.assert_allclose(jnp.linalg.norm(result.point.H, axis=1), 1)


# The metric.


@pytest.mark.parametrize("weight", [5.0, np.array([1.0, 2.0, 7.0])])
def test_the_weighted_hessian_is_a_generalized_eigenproblem(weight):
    labels = ufm.balanced_labels(3, 2)
    problem, plain = (ufm.normalized(labels, 3, classifier_weight=w, tau=2.0) for w in (weight, 1.0))
    point = plain.random_point(jax.random.key(3), 4)
    values, vectors = ufm.landscape.eigenpairs(plain, point)
    basis = jnp.concatenate([vectors.W.reshape(len(values), -1), vectors.H.reshape(len(values), -1)], 1)
    scale = np.concatenate([np.broadcast_to(np.reshape(weight, (-1, 1)), (3, 4)).ravel(), np.ones(24)])
    expected = scipy.linalg.eigh(np.diag(values), (basis * scale) @ basis.T, eigvals_only=True)
    np.testing.assert_allclose(ufm.landscape.spectrum(problem, point), expected, atol=1e-12)
    value, vector = ufm.landscape.smallest_eigenpair(problem, point, jax.random.key(0))
    np.testing.assert_allclose(value, expected[0], atol=1e-10)
    np.testing.assert_allclose(problem.manifold.norm(point, vector), 1, rtol=1e-10)
    chex.assert_trees_all_close(
        problem.hessian(point)(vector), jax.tree.map(lambda x: value * x, vector), atol=1e-6
    )


def test_weights_must_scale_whole_points():
    x = Oblique().random_point(jax.random.key(0), jnp.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"broadcast to \(3, 1\).* has shape \(3, 4\)"):
        Weighted(Oblique(), jnp.ones((3, 4))).norm(x, x)
    with pytest.raises(ValueError, match=r"broadcast to \(1, 1\)"):
        Weighted(Stiefel(), jnp.ones((4, 1))).norm(x.T, x.T)
    with pytest.raises(ValueError, match="positive"):
        Weighted(Oblique(), -1.0)
    labels = ufm.balanced_labels(3, 2)
    with pytest.raises(ValueError, match=r"classifier_weight must be a scalar or have shape \(3,\)"):
        ufm.normalized(labels, 3, classifier_weight=jnp.ones(6))
    with pytest.raises(ValueError, match="weight_decay must be a scalar"):
        ufm.regularized(labels, 3, weight_decay=np.ones(3))
    for loss in (lambda z, y: z, lambda z, y: jnp.sum(z)):
        with pytest.raises(ValueError, match=r"one number a sample, shape \(6,\)"):
            ufm.normalized(labels, 3, loss=loss)


def test_the_smallest_eigenvalue_of_a_zero_hessian_is_zero():
    """At collapse and tau = 300 all slopes are below the smallest float64."""
    labels, frame = ufm.balanced_labels(4, 3), ufm.theory.simplex_etf(4, 8)
    problem = ufm.normalized(labels, 4, tau=300.0)
    value, vector = ufm.landscape.smallest_eigenpair(
        problem, ufm.Point(frame, frame[labels]), jax.random.key(0)
    )
    assert abs(value) < 1e-100
    np.testing.assert_allclose(problem.manifold.norm(None, vector), 1)


@pytest.mark.parametrize("entries", [0, 100])
def test_the_smallest_eigenvalue_of_few_dimensions_beside_many_constants(entries):
    A = jnp.diag(jnp.array([1.0, 2.0, 3.0]))
    manifold = Product((Oblique(), Fixed()))
    objective = ufm.Objective(lambda x: x[0] @ A @ x[0], manifold)
    point = (jnp.array([0.0, 0.0, 1.0]), jnp.zeros(entries))
    for seed in range(3):
        value, (vector, fixed) = riemannian.curvature.smallest_eigenpair(
            objective, point, jax.random.key(seed)
        )
        np.testing.assert_allclose(value, -4, rtol=1e-13)
        np.testing.assert_allclose(jnp.abs(vector), [1, 0, 0], atol=1e-13)
        assert not fixed.any()


def test_lbfgs_goes_on_from_nearly_converged_and_from_far_points():
    A = jnp.diag(jnp.arange(1.0, 11))
    near = ufm.Objective(lambda x: jnp.vdot(x, A @ x) / 2, Euclidean())
    result = ufm.minimize(near, jnp.full(10, 1e-9), ufm.solvers.lbfgs(), tolerance=1e-13)
    assert result.status == ufm.Status.CONVERGED
    far = ufm.Objective(lambda x: jnp.sum((x - 1e6) ** 2), Euclidean())
    result = ufm.minimize(far, jnp.zeros(2), ufm.solvers.lbfgs(), max_steps=10)
    assert result.status == ufm.Status.CONVERGED


@pytest.mark.parametrize("rule", ["hestenes_stiefel", "hager_zhang"])
def test_an_infinite_beta_is_replaced_by_minus_the_gradient(rule):
    """The curvature along the first direction is exactly zero."""
    objective = ufm.Objective(lambda x: x[0] * x[1], Euclidean())
    solver = ufm.solvers.conjugate_gradient(rule)
    first = solver.step(objective, solver.init(objective, jnp.array([1.0, 0.0])))
    assert first.is_steepest
    np.testing.assert_array_equal(first.direction, -first.iterate.gradient)
    assert solver.step(objective, first).iterate.value < first.iterate.value


def test_a_cost_may_be_a_number_of_python():
    result = ufm.minimize(ufm.Objective(lambda x: 1.0, Euclidean()), jnp.ones(2), ufm.solvers.lbfgs())
    assert (result.value, result.status) == (1, ufm.Status.CONVERGED)


def test_lbfgs_keeps_its_scale_where_squares_underflow():
    def steps(size):
        objective = ufm.Objective(lambda x: size * jnp.sum(x**2 * jnp.arange(1, 4)), Euclidean())
        start = jnp.ones(3, jnp.float32)
        return ufm.minimize(objective, start, ufm.solvers.lbfgs(), tolerance=1e-3 * size).steps

    assert steps(np.float32(2.0**-70)) == steps(np.float32(1))


SOLVERS_OF_DERIVATIVES = [
    ufm.solvers.lbfgs(),
    *(ufm.solvers.conjugate_gradient(rule) for rule in ("hestenes_stiefel", "polak_ribiere")),
    ufm.solvers.trust_region(),
]


@pytest.mark.parametrize("solver", SOLVERS_OF_DERIVATIVES)
def test_forward_mode_derivatives_of_the_minimizer_are_those_of_perturbation_theory(solver):
    """The projector on the leading eigenvector of B + tC."""
    B, C = (x + x.T for x in jax.random.normal(jax.random.key(1), (2, 6, 6)))

    def projector(t):
        objective = ufm.Objective(lambda x: -x @ (B + t * C) @ x, Oblique())
        start = jnp.ones(6) / 6**0.5
        x = ufm.minimize(objective, start, solver, tolerance=1e-9).point
        return jnp.outer(x, x)

    values, vectors = np.linalg.eigh(B)
    expected = np.zeros((6, 6))
    for value, vector in zip(values[:-1], vectors.T[:-1], strict=True):
        turn = vector @ C @ vectors[:, -1] / (values[-1] - value)
        expected += turn * (np.outer(vector, vectors[:, -1]) + np.outer(vectors[:, -1], vector))
    derivative = jax.jvp(projector, (0.0,), (1.0,))[1]
    np.testing.assert_allclose(derivative, expected, atol=1e-6)


def test_weights_of_weights_multiply():
    x = Oblique().random_point(jax.random.key(0), jnp.zeros((5, 3)))
    nested = Weighted(Weighted(Oblique(), 2.0), 3.0)
    np.testing.assert_allclose(nested.typical_distance(x), Weighted(Oblique(), 6.0).typical_distance(x))


def test_a_weighted_product_has_the_scale_of_the_product_of_weighted_manifolds():
    """The weights of constants, and of how many entries an array has, do not count."""
    parts, x = (Oblique(), Fixed(), Stiefel()), (jnp.eye(3), jnp.zeros(10_000), jnp.eye(4)[:, :2])
    weights = (jnp.array([[100.0], [1.0], [4.0]]), 1.0, 9)
    of_product = Weighted(Product(parts), weights).typical_distance(x)
    product_of = Product(tuple(map(Weighted, parts, weights))).typical_distance(x)
    np.testing.assert_allclose([of_product, product_of], (np.pi**2 * 105 + 9 * 2) ** 0.5)
    narrow = jax.eval_shape(Weighted(Product(parts), weights).typical_distance, jax.tree.map(np.float32, x))
    assert narrow.dtype == np.float32


def test_numpy_points_are_taken_in_the_dtype_that_jax_has():
    start = np.zeros(2)
    with jax.enable_x64(False):
        objective = ufm.Objective(lambda x: jnp.sum((x - 1) ** 2), Euclidean())
        assert ufm.minimize(objective, start, ufm.solvers.lbfgs()).point.dtype == np.float32
    narrow = ufm.Objective(lambda x: jnp.sum((x - 1) ** 2).astype(np.float32), Euclidean())
    with pytest.raises(ValueError, match="cost of a float64 point must be float64, but is float32"):
        ufm.minimize(narrow, start, ufm.solvers.lbfgs())


# Diagnostics.

MANIFOLDS = {
    "euclidean": (Euclidean(), jnp.zeros((3, 4))),
    "oblique": (Oblique(), jnp.zeros((3, 4))),
    "stiefel": (Stiefel(), jnp.zeros((2, 5, 3))),
    "grassmann": (Grassmann(), jnp.zeros((2, 5, 3))),
    "product": (
        Product({"a": Oblique(), "b": Stiefel()}),
        {"a": jnp.zeros((2, 3)), "b": jnp.zeros((4, 2))},
    ),
    "weighted": (Weighted(Oblique(), jnp.array([[2.0], [5.0], [0.3]])), jnp.zeros((3, 4))),
    "light": (Weighted(Oblique(), 1e-6), jnp.zeros((3, 4))),
    "heavy": (Weighted(Stiefel(), 1e6), jnp.zeros((5, 3))),
}


@pytest.mark.parametrize("name", MANIFOLDS)
def test_the_manifolds_and_the_derivatives_on_them_are_right(name):
    manifold, like = MANIFOLDS[name]
    keys = jax.random.split(jax.random.key(4), 3)
    point = manifold.random_point(keys[0], like)
    found = riemannian.check_manifold(manifold, point, keys[1])
    assert found.passed, found.message
    target = manifold.random_point(keys[2], like)

    def cost(x):
        of_subspaces = manifold == Grassmann()
        both = [x @ jnp.swapaxes(x, 1, 2) if of_subspaces else x for x in (x, target)]
        return sum(jnp.sum(jnp.sin(a * b) + a**3) for a, b in zip(*map(jax.tree.leaves, both), strict=True))

    for check in (riemannian.check_gradient, riemannian.check_hessian):
        found = check(ufm.Objective(cost, manifold), point, keys[1])
        assert found.passed, found.message
        assert abs(found.slope - found.expected_slope) < 0.1


def test_a_cost_that_depends_on_the_basis_of_a_subspace_is_told(key):
    objective = ufm.Objective(brockett, Grassmann())
    point = {"X": Grassmann().random_point(key, jnp.zeros((8, 3)))}
    found = riemannian.check_hessian(objective, point, jax.random.key(1))
    assert not found.passed
    assert "not symmetric" in found.message


def test_the_hessian_on_subspaces_is_regular_at_the_minimum():
    """The spectrum of -trace(X^T A X) there: twice the differences of eigenvalues."""
    values, vectors = np.linalg.eigh(MATRIX)
    leading = jnp.asarray(vectors[:, -3:])
    expected = np.sort(2 * (values[-3:, None] - values[:-3]).ravel())
    for manifold, zeros in [(Grassmann(), 0), (Stiefel(), 3)]:
        found = ufm.riemannian.curvature.spectrum(ufm.Objective(eigenvectors, manifold), leading)
        np.testing.assert_allclose(found, np.r_[np.zeros(zeros), expected], atol=1e-12)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Wrong(Oblique):
    def project_leaf(self, x, v):
        return v - x * jnp.sum(x * v, axis=-1, keepdims=True) / 2


class WrongHessian(ufm.Objective):
    def euclidean_hessian(self, evaluation):
        return lambda tangent: jax.tree.map(lambda t: t * jnp.arange(t.size).reshape(t.shape), tangent)


def test_the_diagnostics_see_what_is_wrong():
    key, point = jax.random.key(0), Oblique().random_point(jax.random.key(1), jnp.zeros((2, 3)))
    found = riemannian.check_manifold(Wrong(), point, key)
    assert not found.passed
    assert "projection not idempotent" in found.message
    cost = lambda x: jnp.sum(x**3)  # noqa: E731
    found = riemannian.check_hessian(WrongHessian(cost, Oblique()), point, key)
    assert not found.passed
    assert "slope 2.0" in found.message
    figure = pytest.importorskip("matplotlib.figure").Figure()
    found.plot(figure.subplots())


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Leaving(Oblique):
    def retract_leaf(self, x, v):
        return x + v

    def random_leaf(self, key, shape, dtype):
        return jax.random.normal(key, shape, dtype)


def test_a_retraction_that_leaves_the_manifold_is_seen():
    found = riemannian.check_manifold(Leaving(), jnp.array([[0.6, 0.8, 0.0]]), jax.random.key(0))
    assert "retraction off the manifold" in found.message
    assert "random point off the manifold" in found.message


def test_without_a_direction_nothing_is_checked():
    key, line, sphere = jax.random.key(0), jnp.ones((2, 1)), jnp.array([0.6, 0.8])
    objective = ufm.Objective(lambda x: jnp.sum(x**3), Oblique())
    for call in (
        lambda: riemannian.check_gradient(objective, line, key),
        lambda: riemannian.check_hessian(objective, line, key),
        lambda: riemannian.check_manifold(Oblique(), line, key),
        lambda: riemannian.curvature.smallest_eigenvalue(objective, line, key),
    ):
        with pytest.raises(ValueError, match="must have at least one dimension at the point"):
            call()
    assert riemannian.curvature.spectrum(objective, line).shape == (0,)
    for check in (riemannian.check_gradient, riemannian.check_hessian):
        with pytest.raises(ValueError, match="tangent must be finite and not 0"):
            check(objective, sphere, key, tangent=jnp.zeros(2))
        with pytest.raises(ValueError, match="must be a tangent vector, but a share of 1 of it is normal"):
            check(objective, sphere, key, tangent=sphere)
        assert check(objective, sphere, key, tangent=jnp.array([-0.8, 0.6])).passed


def rosenbrock_steps(solver):
    objective = ufm.Objective(rosenbrock, Euclidean())
    found = ufm.minimize(objective, jnp.zeros(10), solver, max_steps=3000, tolerance=1e-9)
    assert ufm.Status(int(found.status)) == ufm.Status.CONVERGED
    return int(found.steps)


def test_lbfgs_remembers():
    """Without its memory it takes thousands of steps; with a short one, more than with a long one."""
    long, short = rosenbrock_steps(ufm.solvers.lbfgs(10)), rosenbrock_steps(ufm.solvers.lbfgs(1))
    assert long < 150
    assert short > 1.2 * long


@pytest.mark.parametrize("pairs", [0, 1, 3, 4, 7])
def test_the_two_loops_are_the_bfgs_formula(pairs):
    """H+ = (I - r s y^T) H (I - r y s^T) + r s s^T over the last four pairs, in their order."""
    generator, size, d = np.random.default_rng(pairs), 4, 5
    like = jnp.zeros(d)
    iterate = lbfgs.iterate_at(
        ufm.Objective(lambda x: jnp.sum(x**2), Euclidean()),
        ufm.Objective(lambda x: jnp.sum(x**2), Euclidean()).evaluate(like + 1),
    )
    memory = lbfgs._no_memory(iterate, size)
    told = []
    for _ in range(pairs):
        s = generator.normal(size=d)
        y = s + 0.3 * generator.normal(size=d)
        if s @ y <= 0:
            y = -y
        told.append((s, y))
        memory = lbfgs._with_pair(memory, jnp.asarray(s), jnp.asarray(y), 0.0, Euclidean(), iterate)
    H = np.eye(d) * float(memory.scale)
    if told:
        s, y = told[-1]
        np.testing.assert_allclose(memory.scale, s @ y / (y @ y), rtol=1e-12)
    for s, y in told[-size:]:
        r = 1 / (s @ y)
        turn = np.eye(d) - r * np.outer(s, y)
        H = turn @ H @ turn.T + r * np.outer(s, s)
    v = generator.normal(size=d)
    found = lbfgs._times_inverse_hessian(memory, jnp.asarray(v), jnp.vdot)
    np.testing.assert_allclose(found, H @ v, rtol=1e-10)


def faulty(**methods):
    """The oblique manifold with other methods."""
    made = type("Faulty", (Oblique,), methods)
    return jax.tree_util.register_static(made)()


FAULTS = {
    "projection not symmetric": faulty(
        project_leaf=lambda self, x, v: (
            v - x * jnp.sum(x * v, -1, keepdims=True) + x[..., :1] * v[..., 1:2] * x
        )
    ),
    "projection not of the stated dimension": faulty(dimension_leaf=lambda self, shape: 2 * shape[0]),
    "retract(x, 0) not x, or x off the manifold": faulty(
        retract_leaf=lambda self, x, v: -Oblique().retract_leaf(x, -v)
    ),
    "retraction of another velocity": faulty(
        retract_leaf=lambda self, x, v: Oblique().retract_leaf(x, 2 * v)
    ),
    "random tangent not tangent": faulty(random_tangent=lambda self, key, point: 1.1 * point),
    "random tangent not of unit norm": faulty(
        random_tangent=lambda self, key, point: 2 * Oblique().random_tangent(key, point)
    ),
    "gradient not that of the metric": faulty(
        riemannian_gradient=lambda self, x, g: 2 * Oblique().riemannian_gradient(x, g)
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_a_manifold_is_named(fault):
    point = Oblique().random_point(jax.random.key(1), jnp.zeros((2, 4)))
    found = riemannian.check_manifold(FAULTS[fault], point, jax.random.key(0))
    assert not found.passed
    assert fault in found.message


class WrongDerivatives(ufm.Objective):
    """The squared distance from a point, with a fault put into what is said of it."""

    def __init__(self, fault):
        super().__init__(lambda x: jnp.sum((x - 0.3) ** 2), Oblique())
        self.fault = fault

    def gradient(self, evaluation):
        right = super().gradient(evaluation)
        return right + evaluation.point if self.fault == "gradient not tangent" else right

    def hessian_given(self, evaluation, euclidean_gradient):
        right = super().hessian_given(evaluation, euclidean_gradient)
        x = evaluation.point
        turned = lambda v: Oblique().project(x, jnp.roll(v, 1, -1))  # noqa: E731
        return {
            "not tangent": lambda v: right(v) + x,
            "not linear": lambda v: right(v) * jnp.linalg.norm(v),
            "not symmetric": lambda v: right(v) + turned(v),
        }.get(self.fault, right)


@pytest.mark.parametrize("fault", ["not tangent", "not linear", "not symmetric"])
def test_each_fault_of_a_hessian_is_named(fault):
    point = Oblique().random_point(jax.random.key(1), jnp.zeros((2, 4)))
    found = riemannian.check_hessian(WrongDerivatives(fault), point, jax.random.key(0))
    assert f"it is {fault}" in found.message
    assert riemannian.check_hessian(WrongDerivatives(""), point, jax.random.key(0)).passed


def test_a_gradient_that_is_not_tangent_is_named():
    point = Oblique().random_point(jax.random.key(1), jnp.zeros((2, 4)))
    found = riemannian.check_gradient(WrongDerivatives("gradient not tangent"), point, jax.random.key(0))
    assert "it is not tangent" in found.message


def test_distances_and_logarithms_of_products_and_weights():
    key = jax.random.key(3)
    for manifold, like, factor in [
        (Weighted(Oblique(), 9.0), jnp.zeros((3, 4)), 3.0),
        (Product({"a": Oblique(), "b": Euclidean()}), {"a": jnp.zeros((2, 3)), "b": jnp.zeros(4)}, 1.0),
    ]:
        point = manifold.random_point(jax.random.key(4), like)
        tangent = jax.tree.map(lambda x: 0.3 * x, manifold.random_tangent(key, point))
        end = manifold.exp(point, tangent)
        np.testing.assert_allclose(manifold.norm(point, tangent), 0.3, rtol=1e-12)
        np.testing.assert_allclose(manifold.distance(point, end), 0.3, rtol=1e-10)
        back = manifold.log(point, end)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), back, tangent)
        length = sum(float(jnp.sum(v**2)) for v in jax.tree.leaves(tangent)) ** 0.5
        np.testing.assert_allclose(length * factor, 0.3, rtol=1e-12)


def test_the_scale_of_a_cost_is_that_of_its_rounding():
    objective = ufm.Objective(lambda x: jnp.sum(x), Euclidean(), scale=1e8)
    assert jax.jit(lambda o, x: o.rounding_size(o.evaluate(x)))(objective, jnp.ones(3)) == 1e8
    assert objective.rounding_size(objective.evaluate(jnp.full(3, 1e9))) == 3e9


def test_the_trust_region_solves_a_model_that_it_can_solve_exactly():
    """Truncated CG ends with residual 0: there is no further direction, and none is taken."""
    objective = ufm.Objective(lambda x: jnp.sum((x - 1) ** 2) / 2, Euclidean())
    found = ufm.minimize(objective, jnp.zeros(100), ufm.solvers.trust_region(), tolerance=1e-10)
    assert ufm.Status(int(found.status)) == ufm.Status.CONVERGED
    assert found.steps <= 5


def test_solvers_take_variables_of_any_size():
    for size in (1e-6, 1e6):
        objective = ufm.Objective(lambda x, size=size: jnp.sum(jnp.cosh(x / size - 1)), Euclidean())
        solver = ufm.solvers.lbfgs()
        found = ufm.minimize(objective, jnp.zeros(2), solver, tolerance=1e-9 / size)
        assert ufm.Status(int(found.status)) == ufm.Status.CONVERGED, size
        assert found.steps < 30
    small = ufm.solvers.trust_region(max_radius=1e-20)
    objective = ufm.Objective(lambda x: jnp.sum(jnp.cosh(x / 1e-20 - 1)), Euclidean())
    found = ufm.minimize(objective, jnp.zeros(2), small, tolerance=1e-9 / 1e-20)
    assert ufm.Status(int(found.status)) == ufm.Status.CONVERGED


@pytest.mark.parametrize("solver", [*SOLVERS, "lbfgs, another search"])
def test_a_start_near_the_minimum_is_no_stall(solver):
    objective = ufm.Objective(lambda x: jnp.sum((x - 1) ** 2), Euclidean())
    start = 1 + jnp.array([1e-9, 2e-9])
    another = ufm.solvers.lbfgs(line_search=ufm.solvers.adaptive())
    found = ufm.minimize(objective, start, SOLVERS.get(solver, another), tolerance=1e-12)
    assert ufm.Status(int(found.status)) == ufm.Status.CONVERGED


def of_branches(manifolds):
    """Minimizes on a product of them, from a point with one branch."""
    objective = ufm.Objective(lambda x: jnp.sum(x["a"] ** 2), ufm.manifolds.Product(manifolds))
    return ufm.minimize(objective, {"a": jnp.ones((1, 1))}, ufm.solvers.lbfgs())


def resumed_with(objective, other):
    """Goes on with another solver than began."""
    begun = ufm.minimize(objective, jnp.ones(2), ufm.solvers.lbfgs(), max_steps=1)
    return ufm.solvers.resume(objective, begun.state, other)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda o: ufm.minimize(o, jnp.zeros(2), ufm.solvers.lbfgs(), max_steps=1e1),
            "max_steps must be an",
        ),
        (
            lambda o: ufm.minimize(o, jnp.zeros(2), ufm.solvers.lbfgs(), tolerance=jnp.ones(2)),
            "be a scalar",
        ),
        (lambda o: ufm.solvers.lbfgs(2.5), "memory_size must be an integer, but is 2.5"),
        (lambda o: ufm.solvers.trust_region(min_inner=2.5), "min_inner must be an integer"),
        (lambda o: ufm.solvers.backtracking(max_iterations=2.5), "max_iterations must be an integer"),
        (
            lambda o: ufm.minimize(
                ufm.Objective(lambda x: x, Euclidean()), jnp.zeros(1), ufm.solvers.lbfgs()
            ),
            r"the cost must be a scalar array, but has shape \(1,\)",
        ),
        (
            lambda o: ufm.minimize(
                ufm.Objective(lambda x: (x[0],), Euclidean()), jnp.zeros(1), ufm.solvers.lbfgs()
            ),
            "the cost must be a scalar array, but is a tuple",
        ),
        (
            lambda o: of_branches({"a": Euclidean(), "b": Oblique()}),
            "must branch as its manifolds.*'a': .*'b'",
        ),
        (lambda o: of_branches((Euclidean(),)), "must branch as its manifolds"),
        (lambda o: of_branches({"a": Weighted(Euclidean(), None)}), "must branch as its weights"),
        (lambda o: resumed_with(o, ufm.solvers.trust_region()), r"the state must be one of TrustRegion\("),
        (lambda o: resumed_with(o, ufm.solvers.lbfgs(3)), r"the state must be one of LBFGS\("),
        (
            lambda o: ufm.solvers.resume(o, jnp.zeros(2), ufm.solvers.lbfgs()),
            r"the state must be one of LBFGS\(",
        ),
    ],
)
def test_arguments_of_the_wrong_kind_are_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call(ufm.Objective(lambda x: jnp.sum(x**2), Euclidean()))


def test_more_dimensions_than_int32_counts():
    like = jax.ShapeDtypeStruct((2**21, 2**11), jnp.float32)
    objective, solver = ufm.Objective(lambda x: jnp.sum(x**2), Oblique()), ufm.solvers.trust_region()
    state = jax.eval_shape(lambda x: solver.step(objective, solver.init(objective, x)), like)
    assert state.iterate.point.shape == like.shape


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("dtype", "size"), few(2, ("float32", 1e-8), ("float64", 1e-17), ("float32", 1e-12))
)
def test_a_small_cost_is_descended(solver, dtype, size):
    """A cost far below 1 is not taken for rounding errors: gradient descent climbed there."""
    A = size * jnp.diag(jnp.arange(1.0, 7.0, dtype=dtype))
    objective = ufm.Objective(lambda x: jnp.vdot(x, A @ x), Oblique())
    start = jnp.full(6, 6**-0.5, dtype)
    tolerance = 1e-3 * size
    found = ufm.minimize(objective, start, SOLVERS[solver], tolerance=tolerance, record=lambda i: i.value)
    assert ufm.Status(int(found.status)) == ufm.Status.CONVERGED
    values = np.asarray(found.history) / size
    assert np.all(np.diff(values) < 1e-5)
    assert values[-1] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_cost_that_cancels_is_followed_below_its_rounding(solver):
    target = jnp.array([0.6, 0.8, 0.0], "float32")
    objective = ufm.Objective(lambda x: 1 - jnp.vdot(x, target), Oblique())
    found = ufm.minimize(objective, jnp.array([0.0, 0.0, 1.0], "float32"), SOLVERS[solver], tolerance=1e-6)
    assert ufm.Status(int(found.status)) == ufm.Status.CONVERGED


@pytest.mark.parametrize("size", [1e-20, 1e-9, 1e18])
def test_the_trust_region_makes_the_same_steps_at_any_size_of_the_cost(size):
    A = jnp.diag(jnp.arange(1.0, 7.0, dtype="float32"))
    start = Oblique().random_point(jax.random.key(1), jnp.zeros(6, "float32"))
    size = 2.0 ** round(np.log2(size))
    found = [
        ufm.minimize(
            ufm.Objective(lambda x, s=s: s * jnp.vdot(x, A @ x), Oblique()),
            start,
            ufm.solvers.trust_region(theta=1e-9),  # The residual asked for is relative.
            max_steps=6,
            tolerance=0,
        ).point
        for s in (1.0, size)
    ]
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)


def test_the_trust_region_takes_variables_whose_squares_vanish():
    size, there = 1e-9, 1e-9 * jnp.array([1.0, -2.0, 3.0], "float32")
    weights = jnp.array([1.0, 4.0, 10.0], "float32")
    objective = ufm.Objective(lambda x: jnp.sum(weights * ((x - there) / size) ** 2) + 1, Euclidean())
    solver = ufm.solvers.trust_region(max_radius=1e-8)
    found = ufm.minimize(objective, jnp.zeros(3, "float32"), solver, tolerance=1e5)
    assert ufm.Status(int(found.status)) == ufm.Status.CONVERGED
    np.testing.assert_allclose(found.point, there, rtol=1e-5)


def test_gradient_descent_tries_a_first_step_again_before_it_stalls():
    """Where the last change was nearly 0 by chance, the guess it gives is shorter than rounding."""
    objective = ufm.Objective(lambda x: jnp.sum((x - 1) ** 2), Euclidean())
    solver = ufm.solvers.gradient_descent()
    state = solver.init(objective, jnp.full(3, 0.5))
    state = state._replace(search=state.search._replace(change=-jnp.asarray(1e-40)))
    stuck = solver.step(objective, state)
    np.testing.assert_array_equal(stuck.iterate.point, state.iterate.point)
    assert not stuck.stalled
    assert solver.step(objective, stuck).iterate.value < state.iterate.value


@pytest.mark.parametrize("contraction_factor", [0.5, 0.95])
def test_an_adaptive_search_that_fails_tries_shorter_steps_next(contraction_factor):
    """Twice the last step was farther out than the first, where ten contractions do not halve it."""
    objective = ufm.Objective(lambda x: 1e4 * jnp.sum(x**2) / 2, Euclidean())
    search = ufm.solvers.adaptive(contraction_factor=contraction_factor)
    solver = ufm.solvers.gradient_descent(search)
    found = ufm.minimize(objective, jnp.ones(2), solver, max_steps=100, tolerance=1e-6)
    assert ufm.Status(int(found.status)) == ufm.Status.CONVERGED


def test_a_step_that_lowers_nothing_is_none():
    """From 1 the step of length 2 on x^2 ends at -1, as high, which a decrease of 0 would call enough."""
    objective = ufm.Objective(lambda x: x**2, Euclidean())
    search = ufm.solvers.backtracking(sufficient_decrease=0.0, initial_step_size=2.0)
    found = ufm.minimize(objective, jnp.array(1.0), ufm.solvers.gradient_descent(search))
    assert ufm.Status(int(found.status)) == ufm.Status.CONVERGED


def test_no_step_is_so_long_that_it_ends_off_the_sphere():
    """In float32 the square of 1e20 is infinite, and a point over it was 0, as low as nothing else."""
    objective = ufm.Objective(lambda x: x @ (jnp.arange(1, 4, dtype=x.dtype) * x), Oblique())
    start = manifolds.normalize(jnp.ones(3, jnp.float32))
    far = ufm.minimize(objective, start, ufm.solvers.from_optax(optax.sgd(1e20)))
    assert ufm.Status(int(far.status)) == ufm.Status.STALLED
    np.testing.assert_array_equal(far.point, start)
    search = ufm.solvers.backtracking(initial_step_size=1e20, max_iterations=100)
    near = ufm.minimize(objective, start, ufm.solvers.gradient_descent(search), tolerance=1e-3)
    np.testing.assert_allclose(near.value, 1, atol=1e-5)


def test_the_first_radius_is_at_most_the_largest():
    objective = ufm.Objective(lambda x: jnp.sum((x - 100) ** 2), Euclidean())
    solver = ufm.solvers.trust_region(initial_radius=10.0)
    assert solver.init(objective, jnp.zeros(4)).radius == 2


def test_a_tangent_of_the_key_that_drew_the_point_is_tangent(key):
    for manifold, shape in [(Oblique(), (4, 3)), (Stiefel(), (4, 2))]:
        point = manifold.random_point(key, jnp.zeros(shape))
        tangent = manifold.random_tangent(key, point)
        np.testing.assert_allclose(manifold.project(point, tangent), tangent, atol=1e-14)
        objective = ufm.Objective(lambda x: jnp.sum(x**3), manifold)
        assert riemannian.check_gradient(objective, point, key).passed
        assert riemannian.check_hessian(objective, point, key).passed


def test_derivatives_are_checked_at_a_critical_point_too():
    A = jnp.diag(jnp.arange(1.0, 6.0)) + 0.1
    point = jnp.linalg.eigh(A)[1][:, 0]
    objective = ufm.Objective(lambda x: jnp.vdot(x, A @ x), Oblique())
    assert riemannian.check_gradient(objective, point, jax.random.key(3)).passed
    assert riemannian.check_hessian(objective, point, jax.random.key(3)).passed


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Positive(Euclidean):
    """Positive numbers, in a metric that varies, of which `whiten` knows nothing."""

    def inner_product(self, point, a, b):
        return jnp.sum(a * b / point**2)

    def riemannian_gradient(self, point, euclidean_gradient):
        return point**2 * euclidean_gradient

    def random_leaf(self, key, shape, dtype):
        return jnp.exp(jax.random.normal(key, shape, dtype))

    def retract_leaf(self, x, v):
        return x * jnp.exp(v / x)


def test_a_metric_that_whiten_does_not_know_is_named():
    found = riemannian.check_manifold(Positive(), jnp.array([1.0, 2.0, 5.0]), jax.random.key(0))
    assert re.fullmatch(r"The manifold is wrong: whiten of another length \(.*\)\.", found.message)


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class OwnObjective(ufm.Objective):
    """A dataclass, which never calls `Objective.__init__`."""

    target: jax.Array
    manifold = Euclidean()

    def cost(self, point):
        return jnp.sum((point - self.target) ** 2)

    def tree_flatten(self):
        return (self.target,), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def test_an_objective_may_be_a_dataclass_with_data():
    run = jax.jit(lambda o, x: ufm.minimize(o, x, ufm.solvers.lbfgs(), tolerance=1e-8))
    for target in ([1.0, 2.0], [3.0, -4.0]):
        found = run(OwnObjective(jnp.array(target)), jnp.zeros(2))
        np.testing.assert_allclose(found.point, target, atol=1e-7)
    assert run._cache_size() == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda o, x: ufm.minimize(o, x, ufm.solvers.lbfgs),
            r"solver must be one such as ufm.solvers.lbfgs\(\)",
        ),
        (lambda o, x: ufm.minimize(o, x, "lbfgs"), "solver must be one such as .* but is 'lbfgs'"),
        (
            lambda o, x: ufm.minimize(o.cost, x, ufm.solvers.lbfgs()),
            "objective must be a problem or one such",
        ),
        (lambda o, x: ufm.Objective(o.cost, Oblique), "manifold must be one such as ufm.manifolds.Oblique"),
        (lambda o, x: ufm.Objective(Euclidean(), o.cost), "cost must be a function of the point"),
        (lambda o, x: ufm.Objective(o.cost, Euclidean(), scale=-1), "scale must be finite and at least 0"),
        (lambda o, x: Product({"a": Oblique}).check_point({"a": x}), "a Product is of manifolds such as"),
        (
            lambda o, x: Oblique().random_point(jax.random.key(0), (5, 3)),
            "like must hold arrays or jax.Shape",
        ),
        (
            lambda o, x: ufm.minimize(o, x, ufm.solvers.lbfgs(), max_steps=2**31),
            r"max_steps must be below 2\^31 - 1, so that int32 counts them",
        ),
        (
            lambda o, x: ufm.minimize(o, x, ufm.solvers.lbfgs(), until=lambda iterate: iterate.value),
            "until must return a boolean scalar",
        ),
    ],
)
def test_likely_mistakes_are_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call(ufm.Objective(lambda x: jnp.sum(x**2), Euclidean()), jnp.ones(2))


def test_what_a_solver_is_told_makes_a_difference():
    """Each argument in the direction that its docstring says, on Rosenbrock's function."""

    def rosenbrock(x):
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    objective, start = ufm.Objective(rosenbrock, Euclidean()), jnp.linspace(-1, 1, 8)

    def run(solver, steps=6):
        return ufm.minimize(objective, start, solver, max_steps=steps, tolerance=0)

    def inner_steps(**arguments):
        return int(run(ufm.solvers.trust_region(max_radius=100.0, **arguments), 1).state.inner_steps)

    assert inner_steps(kappa=0.9) < inner_steps(kappa=1e-3)
    assert inner_steps(kappa=0.9, max_inner=1) == 1
    assert inner_steps(kappa=0.9, min_inner=4) >= 4 > inner_steps(kappa=0.9, min_inner=0)
    # A step to 1 that is to lower this cost by 1 lowers it by 0.15.
    flat = ufm.Objective(lambda x: jnp.sum(0.85 * x**4 - x), Euclidean())
    for rho_prime, end in [(0.1, 1), (0.2, 0)]:
        solver = ufm.solvers.trust_region(rho_prime=rho_prime, initial_radius=1.0, max_radius=1.0)
        assert ufm.minimize(flat, jnp.zeros(1), solver, max_steps=1).point == end
    # With full caution no pair enters, and the steps are those of steepest descent, of another length.
    never = run(ufm.solvers.lbfgs(caution=1.0))
    assert never.value > 2 * run(ufm.solvers.lbfgs()).value
    assert run(ufm.solvers.lbfgs(1)).value != run(ufm.solvers.lbfgs(10)).value
    for search in (ufm.solvers.adaptive, ufm.solvers.unit_step, ufm.solvers.backtracking):
        usual = run(ufm.solvers.gradient_descent(search())).point
        for arguments in (
            {"contraction_factor": 0.3},
            {"sufficient_decrease": 0.99},
            {"max_iterations": 0},
        ):
            other = run(ufm.solvers.gradient_descent(search(**arguments))).point
            assert not np.allclose(other, usual), (search, arguments)
    usual = run(ufm.solvers.gradient_descent()).point
    for arguments in ({"optimism": 1.1}, {"initial_step_size": 0.37}):
        other = run(ufm.solvers.gradient_descent(ufm.solvers.backtracking(**arguments))).point
        assert not np.allclose(other, usual), arguments


@pytest.mark.parametrize(
    "solver",
    [ufm.solvers.gradient_descent(), ufm.solvers.conjugate_gradient(), ufm.solvers.trust_region()],
    ids=["gradient_descent", "conjugate_gradient", "trust_region"],
)
def test_a_run_in_pieces_is_one_run_where_the_cost_cancels_to_zero(solver):
    """The rounding of a cost is judged by its start, not by the start of each piece."""
    w = jnp.array([1.0, 3.0, 10.0, 30.0], jnp.float32)
    objective = ufm.Objective(
        lambda x: jnp.sum(w * jnp.cosh(x - jnp.float32(0.3))) - jnp.sum(w), Euclidean()
    )
    start = jnp.array([2.0, 1.0, 2.0, 1.0], jnp.float32)
    whole = ufm.minimize(objective, start, solver, max_steps=400)
    piece = jax.jit(lambda state: riemannian.resume(objective, state, solver, max_steps=5))
    found, steps = piece(solver.init(objective, start)), 0
    while (steps := steps + int(found.steps)) < 400 and found.status == ufm.Status.OUT_OF_STEPS:
        found = piece(found.state)
    assert ufm.Status(int(found.status)) == ufm.Status(int(whole.status)) == ufm.Status.CONVERGED
    assert steps == whole.steps
    np.testing.assert_array_equal(found.point, whole.point)


@pytest.mark.parametrize(
    "solver",
    [
        ufm.solvers.gradient_descent(ufm.solvers.backtracking(np.float64(0.5), np.float64(2.0))),
        ufm.solvers.gradient_descent(ufm.solvers.backtracking(initial_step_size=np.float64(0.1))),
        ufm.solvers.conjugate_gradient(line_search=ufm.solvers.adaptive(np.float64(0.5))),
        ufm.solvers.lbfgs(line_search=ufm.solvers.unit_step(np.float64(0.5)), caution=np.float64(1e-8)),
        ufm.solvers.trust_region(max_radius=np.float64(1.0), theta=np.float64(1.0)),
        ufm.solvers.from_optax(optax.sgd(np.float64(0.1), momentum=np.float64(0.9))),
        ufm.solvers.from_optax(optax.adam(np.float64(0.1))),
    ],
)
def test_numbers_of_numpy_do_not_widen_a_run_in_float32(solver):
    objective = ufm.Objective(lambda x: jnp.sum((x - 1) ** 4), Euclidean(), scale=np.float64(10.0))
    start = jax.ShapeDtypeStruct((3,), jnp.float32)
    found = jax.eval_shape(lambda x: ufm.minimize(objective, x, solver, max_steps=3), start)
    assert {x.dtype for x in (found.point, found.value, found.gradient_norm)} == {np.dtype(np.float32)}
