"""The landscape's tools against finite differences, dense eigenvalues, closed forms and the lemmas."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, eigsh

import ufm_jax as ufm
from tests.shared.marks import few
from ufm_jax import landscape, saddles, theory

K, N_EACH, DIM = 4, 3, 7
LABELS = ufm.balanced_labels(K, N_EACH)
SHUFFLED = jax.random.permutation(jax.random.key(9), LABELS)
LOSSES = {name: getattr(ufm.losses, name) for name in ("cross_entropy", "focal", "label_smoothing")}
certify = jax.jit(landscape.certify)
multipliers = jax.jit(landscape.multipliers)
negative_curvature = jax.jit(landscape.negative_curvature)
proposition_2 = jax.jit(landscape.proposition_2)
smallest_eigenpair = jax.jit(landscape.smallest_eigenpair)
POINTS = ("random", "minimum", "antipodal", "merged", "rank_one", "reflected")


def problem_at(tau, labels=LABELS, loss=ufm.losses.cross_entropy):
    return ufm.normalized(labels, K, loss=loss, tau=tau)


def test_everything_maps_and_keeps_float32():
    """By shapes and dtypes alone: nothing is compiled."""

    @jax.vmap
    def every(tau, key):
        normalized = problem_at(tau)
        regularized = ufm.regularized(LABELS, K, weight_decay=tau, feature_decay=tau, bias_decay=tau)
        x, z = (problem.random_point(key, DIM, jnp.float32) for problem in (normalized, regularized))
        Z = landscape.certificate_matrix(normalized, x)
        return (
            landscape.logit_gradient(normalized, x),
            Z,
            Z.smallest_eigenpair(),
            landscape.certify(normalized, x)[2:],
            landscape.optimality_gap(normalized, x),
            landscape.optimality_gap(regularized, z),
            landscape.proposition_2(normalized, x),
            landscape.spectrum(normalized, x),
            landscape.eigenpairs(normalized, x),
            saddles.full_rank(normalized, DIM, jnp.float32),
            saddles.merged_classes(normalized, jnp.array([0, 0, 1, 2]), DIM, jnp.float32),
        )

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    found = jax.eval_shape(every, jax.ShapeDtypeStruct((2,), jnp.float32), keys)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("float32")}


def collapse(labels=LABELS, dim=DIM, dtype=None):
    frame = theory.simplex_etf(K, dim, dtype)
    return ufm.Point(frame, frame[labels])


def point_of(kind, problem):
    key = jax.random.key(1)
    if kind == "random":
        return problem.random_point(key, DIM)
    if kind == "minimum":
        return collapse(problem.labels)
    if kind == "antipodal":
        return saddles.antipodal(problem, DIM)
    if kind == "merged":
        return MERGED(problem, jnp.array([0, 0, 1, 2]))
    return saddles.rank_one(problem, key, DIM, reflected=kind == "reflected")


@jax.jit
def MERGED(problem, groups):
    point = saddles.merged_classes(problem, groups, DIM)
    return saddles.find_critical_point(problem, point).point


def dense_eigenvalues(problem, point):
    """From second derivatives of the cost along a retraction, over an orthonormal tangent basis."""
    complements = [np.linalg.svd(x[None])[2][1:] for x in np.concatenate(point)]
    rows = len(complements)
    basis = np.stack(complements)  # (K + N, d - 1, d)

    def along(t):
        moved = jnp.einsum("rj,rjd->rd", t, basis)
        return problem.cost(problem.manifold.retract(point, ufm.Point(moved[:K], moved[K:])))

    size = rows * (DIM - 1)
    hessian = jax.jit(jax.hessian(along))(jnp.zeros((rows, DIM - 1))).reshape(size, size)
    return np.linalg.eigvalsh(hessian)


class TestHessianForm:
    @pytest.mark.parametrize("loss", few(1, **LOSSES))
    def test_equals_the_hessian_vector_product(self, loss):
        @jax.jit
        def both(tau, key):
            problem = problem_at(tau, SHUFFLED, loss)
            keys = jax.random.split(key)
            point = problem.random_point(keys[0], DIM)
            tangent = problem.manifold.random_tangent(keys[1], point)
            product = problem.manifold.inner_product(point, tangent, problem.hessian(point)(tangent))
            return landscape.hessian_form(problem, point, tangent), product

        for seed, tau in enumerate([0.1, 1.0, 3.0, 10.0, 20.0]):
            form, product = both(tau, jax.random.key(seed))
            np.testing.assert_allclose(form, product, rtol=1e-10, atol=1e-12)

    def test_equals_finite_differences_along_geodesics(self):
        @jax.jit
        def both(tau, key):
            problem = problem_at(tau)
            keys = jax.random.split(key)
            point = problem.random_point(keys[0], DIM)
            tangent = problem.manifold.random_tangent(keys[1], point)
            t = 1e-3 / jnp.sqrt(1 + tau)
            costs = jax.vmap(
                lambda s: problem.cost(problem.manifold.exp(point, jax.tree.map(lambda v: s * v, tangent)))
            )(jnp.array([-t, 0, t]))
            return landscape.hessian_form(problem, point, tangent), jnp.diff(costs, 2)[0] / t**2

        for seed, tau in enumerate([0.3, 1.0, 3.0, 10.0]):
            form, differences = both(tau, jax.random.key(seed))
            np.testing.assert_allclose(form, differences, rtol=1e-5)


class TestMultipliers:
    @pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
    def test_their_sums_are_equal_everywhere(self, loss):
        """Lemma 4."""
        problem = problem_at(2.0, SHUFFLED, loss)
        for seed in range(5):
            alpha, beta = landscape.multipliers(problem, problem.random_point(jax.random.key(seed), DIM))
            assert alpha.shape == (K,)
            assert beta.shape == (len(LABELS),)
            assert abs(alpha.sum() - beta.sum()) < 1e-12

    @pytest.mark.parametrize("kind", POINTS[1:])
    def test_they_are_factors_at_critical_points(self, kind):
        """Lemma 2: H g^k = alpha_k w_k and W g_i = beta_i h_i."""
        problem = problem_at(2.0, SHUFFLED)
        point = point_of(kind, problem)
        G = landscape.logit_gradient(problem, point)
        alpha, beta = landscape.multipliers(problem, point)
        np.testing.assert_allclose(G.T @ point.H, alpha[:, None] * point.W, atol=1e-12)
        np.testing.assert_allclose(G @ point.W, beta[:, None] * point.H, atol=1e-12)

    @pytest.mark.parametrize("tau", np.geomspace(0.1, 20, 12))
    def test_closed_form_at_the_global_minimum(self, tau):
        """Errata 1 and 3: relative to their own size, which falls to 1e-11 at tau = 20."""
        problem = problem_at(tau)
        alpha, beta = multipliers(problem, collapse())
        alpha_star, beta_star = theory.multipliers_at_collapse(K, N_EACH, tau)
        np.testing.assert_allclose(alpha, np.full(K, alpha_star), rtol=1e-12)
        np.testing.assert_allclose(beta, np.full(len(LABELS), beta_star), rtol=1e-12)

        c = K * np.exp(-tau / (K - 1)) / (np.exp(tau) + (K - 1) * np.exp(-tau / (K - 1)))
        G = -c / len(LABELS) * np.kron(np.eye(K) - 1 / K, np.ones((1, N_EACH)))
        np.testing.assert_allclose(landscape.logit_gradient(problem, collapse()).T, G, rtol=1e-12)
        norm = np.linalg.norm(G, 2)
        np.testing.assert_allclose([alpha_star, beta_star], [-np.sqrt(3) * norm, -norm / np.sqrt(3)])

    def test_gradient_in_the_logits_is_softmax_minus_one_hot_over_n(self):
        """Errata 1 and 2: with 1/N; grad_W = tau (G^T H - alpha W), and grad_H = tau (G W - beta H)."""
        problem = problem_at(2.0, SHUFFLED)
        W, H = point = point_of("random", problem)
        G = landscape.logit_gradient(problem, point)
        expected = (jax.nn.softmax(2.0 * H @ W.T) - jax.nn.one_hot(SHUFFLED, K)) / len(SHUFFLED)
        np.testing.assert_allclose(G, expected, atol=1e-15)
        alpha, beta = landscape.multipliers(problem, point)
        gradient = problem.gradient(problem.evaluate(point))
        np.testing.assert_allclose(gradient.W, 2.0 * (G.T @ H - alpha[:, None] * W), atol=1e-15)
        np.testing.assert_allclose(gradient.H, 2.0 * (G @ W - beta[:, None] * H), atol=1e-15)


class TestCertificate:
    @pytest.mark.parametrize("tau", [0.05, 1.0, 7.0])
    @pytest.mark.parametrize("kind", POINTS)
    def test_only_the_minimum_is_certified(self, kind, tau):
        problem = problem_at(tau, SHUFFLED)
        verdict = certify(problem, point_of(kind, problem))
        assert bool(verdict.is_critical) == (kind != "random")
        assert bool(verdict.is_global_minimum) == (kind == "minimum")
        assert 0 <= verdict.gradient_norm <= 1
        if kind == "minimum":
            np.testing.assert_allclose([verdict.margin, verdict.gap], 0, atol=1e-13)
        if kind in ("antipodal", "rank_one"):
            np.testing.assert_allclose(verdict.margin, -2 if kind == "antipodal" else -1, atol=1e-12)

    def test_the_gap_bounds_the_distance_to_the_minimum_everywhere(self):
        """docs/landscape.md: at critical points and elsewhere, the cost is at most `gap` above f*."""
        gaps = jax.jit(jax.vmap(lambda tau, x: landscape.certify(problem_at(tau), x).gap, (None, 0)))
        costs = jax.jit(jax.vmap(lambda tau, x: problem_at(tau).cost(x), (None, 0)))
        keys = jax.random.split(jax.random.key(2), 40)
        around = jax.vmap(lambda key: problem_at(1.0).random_point(key, DIM))(keys)
        for tau in (0.1, 1.0, 5.0, 15.0):
            for closeness in (0.0, 0.5, 0.99, 0.9999):
                points = jax.tree.map(
                    lambda x, y, c=closeness: ufm.manifolds.normalize((1 - c) * x + c * y),
                    around,
                    collapse(),
                )
                excess = costs(tau, points) - theory.cross_entropy_minimum(K, tau)
                assert np.all(excess <= gaps(tau, points) + 1e-15)

    @pytest.mark.parametrize(
        "labels", few(1, equal=LABELS, unequal=jnp.array([0] * 6 + [1, 1, 2, 2, 3, 3]))
    )
    def test_the_gap_of_a_convex_loss_bounds_it_too(self, labels, key):
        """Held against the minima known in closed form, and against the lowest of random points."""

        def squared_error(logits, labels):
            return jnp.sum((logits - jax.nn.one_hot(labels, K)) ** 2, -1) / 2

        cone = theory.label_smoothing_cone(K, DIM, 5.0)
        frame = jnp.eye(K, DIM)  # Orthonormal, and optimal for the squared error at every tau up to 1.
        for loss, tau, W in [
            (ufm.losses.label_smoothing, 5.0, cone),
            (squared_error, 0.7, frame),
            (squared_error, 1.0, frame),
        ]:
            problem = problem_at(tau, labels, loss)
            value_and_gap = jax.jit(
                jax.vmap(lambda x: (problem.cost(x), landscape.optimality_gap(problem, x)))  # noqa: B023
            )
            best = ufm.Point(W, W[labels])
            random = [problem.random_point(k, DIM) for k in jax.random.split(key, 30)]
            near = problem.manifold.retract(best, ufm.Point(0.1 * random[0].W, 0.1 * random[0].H))
            values, gaps = value_and_gap(jax.tree.map(lambda *x: jnp.stack(x), best, near, *random))
            if loss is squared_error:
                np.testing.assert_allclose(values[0], (1 - tau) ** 2 / 2, atol=1e-15)
            if labels is LABELS:
                np.testing.assert_allclose(gaps[0], 0, atol=1e-14)
            assert np.all(values - gaps <= values[0] + 1e-14)
            assert np.all(values >= values[0])

    def test_minima_reached_by_solvers_at_usual_tolerances_are_certified(self):
        @jax.jit
        def run(tau, key):
            problem = problem_at(tau)
            start = problem.random_point(key, DIM)
            solver = ufm.solvers.gradient_descent()
            return landscape.certify(
                problem, ufm.minimize(problem, start, solver, max_steps=2000, tolerance=1e-8).point
            )

        for seed, tau in enumerate([0.5, 1.0, 3.0]):
            assert run(tau, jax.random.key(seed)).is_global_minimum

    def test_a_loss_that_has_underflowed_is_minimal(self):
        """Cost and gap are 0 in float64, the verdict does not need them."""
        verdict = certify(problem_at(1000.0), collapse())
        assert problem_at(1000.0).cost(collapse()) == verdict.gap == 0
        assert verdict.is_global_minimum
        np.testing.assert_allclose(verdict.margin, 0, atol=1e-12)


class TestNegativeCurvature:
    @pytest.mark.parametrize("tau", few(1, 2.0, 0.1, 8.0))
    @pytest.mark.parametrize("kind", POINTS[2:])
    def test_saddles_have_a_unit_tangent_direction_of_negative_curvature(self, kind, tau):
        problem = problem_at(tau, SHUFFLED)
        point = point_of(kind, problem)
        direction, curvature = negative_curvature(problem, point)
        inner = problem.manifold.inner_product
        np.testing.assert_allclose(inner(point, direction, direction), 1, rtol=1e-13)
        for x, v in zip(point, direction, strict=True):
            np.testing.assert_allclose(np.sum(x * v, axis=1), 0, atol=1e-14)
        np.testing.assert_allclose(
            curvature, inner(point, direction, problem.hessian(point)(direction)), rtol=1e-9
        )
        assert curvature < 0
        assert curvature >= smallest_eigenpair(problem, point, jax.random.key(0))[0] - 1e-12

    def test_case_1_has_the_curvature_of_the_proof(self):
        """Errata 7: for even K, with |D_W|^2 = K, tau/N ((tau + 2) |H a|^2 - 2 N), perpendicular to w."""
        tau, problem = 3.0, problem_at(3.0)
        point = point_of("reflected", problem)
        (D_W, D_H), curvature = proposition_2(problem, point)
        scale = np.sqrt(K) / np.linalg.norm(D_W)
        a = scale * D_W[0]
        np.testing.assert_allclose(a @ point.W[0], 0, atol=1e-14)
        u = np.array([1, -1, 1, -1])
        np.testing.assert_allclose(scale * D_W, u[:, None] * a, atol=1e-13)
        expected_H = u[LABELS][:, None] * (a - point.H * (point.H @ a)[:, None])
        np.testing.assert_allclose(scale * D_H, expected_H, atol=1e-13)
        N = len(LABELS)
        closed_form = tau / N * ((tau + 2) * np.sum((point.H @ a) ** 2) - 2 * N)
        np.testing.assert_allclose(curvature * scale**2, closed_form, rtol=1e-12)

    def test_case_2_has_the_curvature_of_the_proof(self):
        """Errata 7: tau (-2 |G| - sum alpha u1^2 / sqrt(n) - sqrt(n) sum beta v1^2), over |D|^2."""
        problem = problem_at(3.0)
        point = point_of("merged", problem)
        (D_W, D_H), curvature = proposition_2(problem, point)
        G = landscape.logit_gradient(problem, point)
        root = np.sqrt(N_EACH)
        u1, v1 = np.linalg.norm(D_W, axis=1), np.linalg.norm(D_H, axis=1)
        u1, v1 = u1 / np.linalg.norm(u1), v1 / np.linalg.norm(v1)
        alpha, beta = landscape.multipliers(problem, point)
        form = -2 * np.linalg.norm(G, 2) - np.sum(alpha * u1**2) / root - root * np.sum(beta * v1**2)
        np.testing.assert_allclose(curvature, 3.0 * form / (1 / root + root), rtol=1e-11)
        np.testing.assert_allclose(point.W @ D_H.T, 0, atol=1e-12)
        np.testing.assert_allclose(point.H @ D_W.T, 0, atol=1e-12)

    @pytest.mark.parametrize("tau", [0.1, 1.0, 5.0])
    def test_there_is_none_at_the_minimum(self, tau):
        direction, curvature = negative_curvature(problem_at(tau), collapse())
        assert curvature == 0
        assert all(np.all(leaf == 0) for leaf in direction)

    @pytest.mark.parametrize("classes", few(1, 3, 2))
    @pytest.mark.slow
    def test_equal_classifiers_curve_down_for_every_tau(self, classes):
        """The theorem needs no bound on tau (docs/landscape.md); the features make Proposition 2's fail."""
        dim, unscaled = classes + 1, []
        labels = ufm.balanced_labels(classes, 20)
        for tau in (1.0, 30.0, 1000.0):
            problem = ufm.normalized(labels, classes, tau=tau)
            point = saddles.rank_one(problem, jax.random.key(3), dim)
            direction, curvature = negative_curvature(problem, point)
            assert curvature < 0
            np.testing.assert_allclose(problem.manifold.norm(point, direction), 1, rtol=1e-12)
            # Under `jit` tau is not known, and not checked.
            unscaled.append(proposition_2(problem, point).curvature)
            assert curvature <= unscaled[-1] + 1e-12
        assert unscaled[0] < 0 < unscaled[-1]

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (
                lambda: landscape.negative_curvature(problem_at(1.0), collapse(dim=3)),
                "or as many and at least 3, but dim is 3 and num_classes is 4",
            ),
            (
                lambda: landscape.proposition_2(problem_at(1.0), collapse(dim=4)),
                "more dimensions than classes, but dim is 4 and num_classes is 4",
            ),
            (
                lambda: landscape.proposition_2(problem_at(10.0), collapse()),
                r"tau below 2\(d - 2\)/\(1 \+ \(K mod 2\)/K\) = 10, but tau is 10.0",
            ),
            (
                lambda: landscape.negative_curvature(problem_at(1.0, loss=ufm.losses.focal), collapse()),
                "about cross entropy, but the problem has another loss",
            ),
            (
                lambda: landscape.proposition_2(
                    problem_at(1.0, jnp.array([0, 0, 1, 2, 3])),
                    ufm.Point(collapse().W, collapse().H[:5]),
                ),
                r"classes of equal size, but sizes are \[2, 1, 1, 1\]",
            ),
            (
                lambda: landscape.multipliers(ufm.regularized(LABELS, K), collapse()),
                "normalized problems alone",
            ),
            (
                lambda: landscape.hessian_form(
                    ufm.contrastive(LABELS, K), collapse()._replace(W=None), collapse()
                ),
                "normalized problems alone",
            ),
        ],
    )
    def test_bad_input_is_one_sentence(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


class TestSmallestEigenvalue:
    @pytest.mark.parametrize("kind", few(3, *POINTS))
    def test_equals_dense_eigenvalues(self, kind):
        problem = problem_at(3.0)
        point = point_of(kind, problem)
        expected = dense_eigenvalues(problem, point)
        values, vectors = jax.jit(landscape.eigenpairs)(problem, point)
        np.testing.assert_allclose(values, expected, atol=1e-13)
        flat = np.concatenate([x.reshape(len(values), -1) for x in vectors], axis=1)
        np.testing.assert_allclose(flat @ flat.T, np.eye(len(values)), atol=1e-10)
        products = jax.vmap(problem.hessian(point))(vectors)
        np.testing.assert_allclose(products.W, values[:, None, None] * vectors.W, atol=1e-12)
        value, vector = smallest_eigenpair(problem, point, jax.random.key(0))
        np.testing.assert_allclose(value, expected[0], atol=1e-12)
        np.testing.assert_allclose(problem.manifold.norm(point, vector), 1, rtol=1e-13)
        residual = jax.tree.map(lambda x, v: x - value * v, problem.hessian(point)(vector), vector)
        assert problem.manifold.norm(point, residual) < 1e-8

    @pytest.mark.slow
    def test_equals_scipy_on_a_larger_problem(self):
        labels = ufm.balanced_labels(10, 5)
        problem = ufm.normalized(labels, 10, tau=5.0)
        point = problem.random_point(jax.random.key(4), 24)
        flat, unflatten = ravel_pytree(point)
        hessian = problem.hessian(point)

        @jax.jit
        def on_tangent_space(v):
            tangent = problem.manifold.project(point, unflatten(v))
            return ravel_pytree(problem.manifold.project(point, hessian(tangent)))[0]

        theirs = eigsh(
            LinearOperator((flat.size, flat.size), on_tangent_space, dtype=float),
            k=1,
            which="SA",
            tol=1e-12,
        )[0][0]
        ours = smallest_eigenpair(problem, point, jax.random.key(0))[0]
        np.testing.assert_allclose(ours, theirs, atol=1e-11)

    def test_the_smallest_points_have_one(self):
        problem = ufm.normalized(ufm.balanced_labels(2, 1), 2, tau=1.0)
        point = saddles.antipodal(problem, 2)
        found = jax.jit(landscape.smallest_eigenvalue)(problem, point, jax.random.key(0))
        np.testing.assert_allclose(found, jax.jit(landscape.spectrum)(problem, point)[0], atol=1e-14)
        assert found < 0


def test_a_spurious_minimum_where_d_is_below_k():
    """docs/landscape.md: K = 3, d = 2, tau = 10; its only flat direction is the rotation."""

    @jax.jit
    def run(key):
        problem = ufm.normalized(ufm.balanced_labels(3, 2), 3, tau=10.0)
        start = problem.random_point(key, 2)
        end = ufm.minimize(problem, start, ufm.solvers.trust_region(), max_steps=500, tolerance=1e-12)
        return end.value, end.gradient_norm, landscape.spectrum(problem, end.point)

    ends = [run(key) for key in jax.random.split(jax.random.key(0), 12)]
    spurious = [(value, norm, spectrum) for value, norm, spectrum in ends if value > 0.1]
    assert 0 < len(spurious) < 12
    for value, norm, spectrum in spurious:
        assert np.min(np.abs(value - np.array([0.38365, 0.46113]))) < 5e-6
        assert norm < 1e-9
        assert abs(spectrum[0]) < 1e-9 < 1e-5 < spectrum[1]


def test_zeros_of_the_spectrum_at_the_minimum_are_those_of_the_rotation_group():
    """Rotations of R^d move K points that span K - 1 dimensions in (K-1)(2d-K)/2 directions."""
    eigenvalues = np.asarray(landscape.spectrum(problem_at(2.0), collapse()))
    rotations = (K - 1) * (2 * DIM - K) // 2
    assert np.sum(np.abs(eigenvalues) < 1e-12) == rotations
    assert np.sum(eigenvalues > 1e-3) == eigenvalues.size - rotations


@pytest.mark.parametrize("dtype", few(1, jnp.float32, jnp.float64))
@pytest.mark.slow
def test_everything_works_batched_and_keeps_the_dtype(dtype):
    taus = jnp.array([0.5, 2.0], dtype)

    @jax.jit
    @jax.vmap
    def everything(tau, key):
        problem = problem_at(tau)
        point = saddles.antipodal(problem, DIM, dtype)
        tangent = problem.manifold.random_tangent(key, point)
        return (
            landscape.multipliers(problem, point),
            landscape.hessian_form(problem, point, tangent),
            landscape.certify(problem, point),
            landscape.certify(problem, collapse(dtype=dtype)).is_global_minimum,
            landscape.negative_curvature(problem, point),
            landscape.smallest_eigenpair(problem, point, key),
            saddles.rank_one(problem, key, DIM, dtype),
        )

    found = everything(taus, jax.random.split(jax.random.key(0), 2))
    leaves = [leaf for leaf in jax.tree.leaves(found) if leaf.dtype != bool]
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(dtype)}
    _, _, verdict, at_minimum, constructed, (smallest, _), _ = found
    assert np.all(verdict.is_critical & ~verdict.is_global_minimum & at_minimum)
    assert np.all(constructed.curvature < 0)
    exact = [
        dense_eigenvalues(problem_at(float(t)), saddles.antipodal(problem_at(1.0), DIM))[0] for t in taus
    ]
    np.testing.assert_allclose(smallest, exact, rtol=1e-12 if dtype == jnp.float64 else 1e-5)


@pytest.mark.parametrize(
    ("gamma", "dtype"),
    few(1, *itertools.product((0.5, 0.0, 1.5), ("float32", "float64"))),
)
@pytest.mark.slow
def test_focal_losses_without_second_derivatives_at_one_have_a_spectrum(gamma, dtype):
    """Where p rounds to 1 at collapse, too; the smallest eigenvalue is the 0 of the rotations."""
    labels, W = ufm.balanced_labels(4, 3), ufm.theory.simplex_etf(4, 8, dtype)

    def smallest(tau):
        loss = functools.partial(ufm.losses.focal, gamma=gamma)
        problem = ufm.normalized(labels, 4, loss=loss, tau=tau)
        return ufm.landscape.smallest_eigenvalue(problem, ufm.Point(W, W[labels]), jax.random.key(0))

    found = jax.jit(jax.vmap(smallest))(jnp.array([1.0, 20.0, 60.0], dtype))
    np.testing.assert_allclose(found, 0, atol={"float32": 1e-6, "float64": 1e-13}[dtype])


def test_the_tolerance_of_a_certificate_decides_what_is_critical():
    labels = ufm.balanced_labels(3, 2)
    problem, W = ufm.normalized(labels, 3), ufm.theory.simplex_etf(3, 4)
    point = ufm.Point(W, W[labels])
    tangent = problem.manifold.random_tangent(jax.random.key(0), point)
    near = problem.manifold.retract(point, jax.tree.map(lambda x: 1e-2 * x, tangent))
    found = {t: ufm.landscape.certify(problem, near, tolerance=t) for t in (1e-6, 0.1)}
    assert 1e-6 < found[0.1].gradient_norm < 0.1
    assert [bool(x.is_critical) for x in found.values()] == [False, True]
    assert [bool(x.is_global_minimum) for x in found.values()] == [False, True]


@pytest.mark.parametrize(
    ("dtype", "tau", "tolerance"), few(1, ("float32", 0.01, 1e-3), ("float64", 1e-4, 1e-8))
)
def test_a_saddle_of_small_tau_curves_down_once_the_tolerance_allows(dtype, tau, tolerance):
    """Its margin is -tanh(tau), which the default tolerance takes for rounding."""
    problem = ufm.normalized(ufm.balanced_labels(4, 3), 4, tau=tau)
    signs = jnp.array([1, 1, -1, -1])  # Of two pairs of classes merged.
    saddle = ufm.saddles.sign_pattern(problem, signs, signs[problem.labels], 6, dtype)
    assert landscape.negative_curvature(problem, saddle).curvature == 0
    found = landscape.negative_curvature(problem, saddle, tolerance)
    lowest, _ = landscape.certificate_matrix(problem, saddle).smallest_eigenpair()
    np.testing.assert_allclose(found.curvature, tau * lowest, rtol=1e-3)
    assert found.curvature < 0


@pytest.mark.parametrize("function", [landscape.certify, landscape.negative_curvature])
@pytest.mark.parametrize(("tolerance", "message"), [(-1.0, "at least 0, but is -1"), ([1, 2], "a scalar")])
def test_a_tolerance_that_is_none_is_refused(function, tolerance, message):
    problem = ufm.normalized(ufm.balanced_labels(3, 2), 3)
    with pytest.raises(ValueError, match=f"tolerance must be .*{message}"):
        function(problem, ufm.saddles.antipodal(problem, 4), tolerance)
