"""The matrix Z and the theorem of docs/landscape.md: each step of its proofs, and what it ends in."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.flatten_util import ravel_pytree

import ufm_jax as ufm
from tests.shared.marks import few
from ufm_jax import landscape, saddles, theory

K, DIM = 4, 6
EQUAL = ufm.balanced_labels(K, 3)
UNEQUAL = jnp.array([0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3])


@ufm.losses.convex
def squared_error(logits, labels):
    return jnp.sum((logits - jax.nn.one_hot(labels, logits.shape[-1])) ** 2, -1) / 2


@ufm.losses.convex
def one_vs_rest(logits, labels):
    signs = 1 - 2 * jax.nn.one_hot(labels, logits.shape[-1])
    return jnp.sum(jax.nn.softplus(signs * logits), -1)


CONVEX = {
    "cross_entropy": ufm.losses.cross_entropy,
    "label_smoothing": ufm.losses.label_smoothing,
    "squared_error": squared_error,
    "one_vs_rest": one_vs_rest,
}


def problem_at(tau, labels=EQUAL, num_classes=K, loss=ufm.losses.cross_entropy):
    return ufm.normalized(labels, num_classes, loss=loss, tau=tau)


def dense(Z):
    return np.block([[np.diag(-Z.alpha), Z.G.T], [Z.G, np.diag(-Z.beta)]])


def three_bounds(Z):
    """What proves a gap, over tau: Z lowered alike, by N and K, and of mean multipliers."""
    N, num_classes = Z.G.shape
    mean = Z._replace(alpha=np.full(num_classes, Z.alpha.mean()), beta=np.full(N, Z.beta.mean()))
    lowered = np.r_[np.full(num_classes, (N / num_classes) ** 0.5), np.full(N, (num_classes / N) ** 0.5)]

    def bound(matrix, shares):
        least = scipy.linalg.eigh(matrix, np.diag(shares), eigvals_only=True)[0]
        return -least * shares.sum() / 2

    return [
        bound(dense(Z), lowered),
        bound(dense(Z), np.ones(N + num_classes)),
        bound(dense(mean), lowered),
    ]


def dense_hessian(problem, point):
    """All eigenvalues, by SciPy, from second derivatives of the cost along a retraction."""
    num_classes, (rows, dim) = len(point.W), np.concatenate(point).shape
    basis = jnp.stack([np.linalg.svd(x[None])[2][1:] for x in np.concatenate(point)])
    return scipy.linalg.eigvalsh(_second_derivatives(problem, point, basis, num_classes, rows, dim))


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _second_derivatives(problem, point, basis, num_classes, rows, dim):
    def along(t):
        moved = jnp.einsum("rj,rjd->rd", t, basis)
        tangent = ufm.Point(moved[:num_classes], moved[num_classes:])
        return problem.cost(problem.manifold.retract(point, tangent))

    size = rows * (dim - 1)
    return jax.hessian(along)(jnp.zeros((rows, dim - 1))).reshape(size, size)


@functools.cache
def to_a_minimum(loss, num_classes, dim):
    @jax.jit
    def run(tau, labels, key):
        problem = problem_at(tau, labels, num_classes, loss)
        start = problem.random_point(key, dim)
        found = ufm.minimize(problem, start, ufm.solvers.trust_region(), max_steps=300, tolerance=1e-13)
        return found.value, found.gradient_norm, landscape.certify(problem, found.point)

    return run


@functools.cache
def critical_point():
    """A critical point near a random start, of any index, with Z's verdict."""

    @jax.jit
    def run(tau, labels, key):
        problem = problem_at(tau, labels)
        start = problem.random_point(key, DIM)
        found = saddles.find_critical_point(problem, start, tolerance=1e-13)
        return found.point, found.gradient_norm, landscape.certificate_matrix(problem, found.point)

    return run


class TestCertificateMatrix:
    def test_its_smallest_eigenpair_is_scipys(self):
        """Random entries, tiny ones, ones that do not meet, and all zero."""
        smallest = jax.jit(landscape.CertificateMatrix.smallest_eigenpair)
        for seed in range(60):
            draw = np.random.default_rng(seed)
            alpha, beta, G = draw.normal(size=5), draw.normal(size=17), draw.normal(size=(17, 5))
            scale = [1.0, 1e-150, 0.0][seed // 2 % 3]
            G *= [1.0, 1e-6, np.exp(8 * draw.normal(size=(17, 1)))][seed % 3]
            if seed % 5 == 1:
                G[np.argmax(beta)] = 0  # The eigenvector may be one sample alone,
            if seed % 5 == 2:
                alpha[2] += 20  # or one class,
                G[:, 2] = 0
            if seed % 5 == 3:
                alpha[:], beta[:] = -1, -1  # or all multipliers may be equal.
            Z = landscape.CertificateMatrix(*(jnp.asarray(scale * x) for x in (alpha, beta, G)))
            value, vector = smallest(Z)
            expected = scipy.linalg.eigvalsh(dense(Z))
            flat, size = np.concatenate(vector), np.abs(expected).max()
            assert abs(value - expected[0]) <= 1e-14 * size
            np.testing.assert_allclose(np.linalg.norm(flat), 1, rtol=1e-13)
            product = np.concatenate(Z.product(vector))
            np.testing.assert_allclose(product, dense(Z) @ flat, atol=1e-14 * size)
            assert np.linalg.norm(product - value * flat) <= 1e-13 * size

    def test_it_takes_3100_rows(self):
        """At K = 100, n = 30, where the dense matrix takes 10 s."""
        problem = problem_at(5.0, ufm.balanced_labels(100, 30), 100)
        point = problem.random_point(jax.random.key(0), 101, jnp.float32)
        Z = jax.jit(landscape.certificate_matrix)(problem, point)
        value, vector = jax.jit(landscape.CertificateMatrix.smallest_eigenpair)(Z)
        product = Z.product(vector)
        residual = jax.tree.map(lambda x, v: x - value * v, product, vector)
        assert np.linalg.norm(np.concatenate(residual)) < 1e-5 * abs(value)
        alpha, beta, G = (np.asarray(x, float) for x in Z)

        def below(shift):
            """How many eigenvalues of Z lie below, by Haynsworth's formula of inertia."""
            D = -beta - shift
            schur = np.diag(-alpha - shift) - G.T @ (G / D[:, None])
            return np.sum(D < 0) + np.sum(np.linalg.eigvalsh(schur) < 0)

        slack = 1e-4 * abs(float(value))
        assert (below(value - slack), below(value + slack)) == (0, 1)

    def test_its_derivative_is_that_of_the_eigenvalue(self):
        draw = np.random.default_rng(0)
        Z, change = (
            landscape.CertificateMatrix(*(jnp.asarray(draw.normal(size=s)) for s in [3, 7, (7, 3)]))
            for _ in range(2)
        )

        @jax.jit
        @jax.value_and_grad
        def value(t):
            return jax.tree.map(lambda x, dx: x + t * dx, Z, change).smallest_eigenpair()[0]

        differences = (value(1e-5)[0] - value(-1e-5)[0]) / 2e-5
        np.testing.assert_allclose(value(0.0)[1], differences, rtol=1e-8)

    def test_along_a_perpendicular_the_hessian_is_z(self):
        """Step 1: `Hess f[D, D] = tau (u; v)^T Z (u; v)` for D = (u a^T, v a^T)."""

        @jax.jit
        def both(tau, key):
            found = []
            for loss, of_loss in zip(CONVEX.values(), jax.random.split(key, 4), strict=True):
                problem = problem_at(tau, UNEQUAL, loss=loss)
                at, of_classes, of_samples = jax.random.split(of_loss, 3)
                inside = problem.random_point(at, DIM - 1)
                point = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 1))), inside)
                a = jnp.eye(DIM)[-1]
                u, v = jax.random.normal(of_classes, (K,)), jax.random.normal(of_samples, UNEQUAL.shape)
                D = ufm.Point(u[:, None] * a, v[:, None] * a)
                product = landscape.certificate_matrix(problem, point).product(ufm.Point(u, v))
                found.append(
                    (landscape.hessian_form(problem, point, D), tau * (u @ product.W + v @ product.H))
                )
            return jnp.array(found)

        for seed, tau in enumerate([0.2, 2.0, 9.0]):
            forms, of_Z = both(tau, jax.random.key(seed)).T
            np.testing.assert_allclose(forms, of_Z, rtol=1e-11)

    def test_the_rows_of_any_point_sum_to_an_inner_product(self):
        """Step 2: the sum over coordinates is `2 <G, M'> / tau - sum alpha - sum beta`."""
        problem = problem_at(2.0, UNEQUAL)
        point, other = (problem.random_point(k, DIM) for k in jax.random.split(jax.random.key(0)))
        Z = landscape.certificate_matrix(problem, point)
        rows = sum(
            u @ Z.product(ufm.Point(u, v)).W + v @ Z.product(ufm.Point(u, v)).H
            for u, v in zip(other.W.T, other.H.T, strict=True)
        )
        inner = jnp.sum(Z.G * problem.scores(other))
        np.testing.assert_allclose(rows, 2 * inner / 2.0 - Z.alpha.sum() - Z.beta.sum(), atol=1e-14)


class TestGap:
    @pytest.mark.parametrize(
        "loss",
        few(1, **CONVEX),
    )
    def test_it_bounds_the_distance_to_the_minimum_and_closes_at_minima(self, loss):
        """Step 3: 1000 points in all, balanced and not; d = K, where minima are found by trust regions."""

        @jax.jit
        @functools.partial(jax.vmap, in_axes=(None, None, 0))
        def value_and_gap(tau, labels, key):
            problem = problem_at(tau, labels, loss=loss)
            point = problem.random_point(key, K)
            return problem.cost(point), landscape.optimality_gap(problem, point)

        for labels in (EQUAL, UNEQUAL):
            for tau in (0.3, 2.0, 6.0):
                keys = jax.random.split(jax.random.key(1), 45)
                ends = [to_a_minimum(loss, K, K)(tau, labels, key) for key in keys[:3]]
                lowest = min(value for value, _, _ in ends)
                for value, _, verdict in ends:
                    assert value <= lowest + 1e-10
                    assert 0 <= verdict.gap < 1e-10
                values, gaps = value_and_gap(tau, labels, keys)
                assert np.all(values - lowest <= gaps)

    @pytest.mark.parametrize("labels", few(1, unequal=UNEQUAL, equal=EQUAL))
    @pytest.mark.slow
    def test_three_dimensions_are_enough_for_four_classes(self, labels):
        """The converse: for cross entropy Z is positive semidefinite at minima, from d = K - 1 on."""
        for tau in (0.3, 2.0):
            ends = [
                to_a_minimum(CONVEX["cross_entropy"], K, dim)(tau, labels, jax.random.key(0))
                for dim in (3, 5)
            ]
            np.testing.assert_allclose(ends[0][0], ends[1][0], atol=1e-12)
            for _, _, verdict in ends:
                assert verdict.is_global_minimum
                assert verdict.gap < 1e-10
                assert verdict.margin > -1e-10

    @pytest.mark.slow
    def test_it_is_exact_where_lemma_3_is_not(self):
        labels = jnp.array([0, 1, 1, 2, 2, 2])
        problem = problem_at(2.0, labels, 3)
        start = problem.random_point(jax.random.key(0), 5)
        point = ufm.minimize(problem, start, ufm.solvers.trust_region(), tolerance=1e-13).point
        alpha, _ = landscape.multipliers(problem, point)
        norm = np.linalg.norm(landscape.logit_gradient(problem, point), 2)
        np.testing.assert_allclose(2.0 * (alpha.sum() + np.sqrt(18) * norm), 0.00667, atol=1e-5)
        assert landscape.optimality_gap(problem, point) < 1e-14

    def test_it_is_differentiable(self):
        problem = problem_at(2.0, UNEQUAL)
        keys = jax.random.split(jax.random.key(3))
        point, direction = (problem.random_point(key, DIM) for key in keys)

        @jax.jit
        @jax.value_and_grad
        def gap(t):
            moved = jax.tree.map(lambda x, v: ufm.manifolds.normalize(x + t * v), point, direction)
            return landscape.optimality_gap(problem, moved)

        differences = (gap(1e-6)[0] - gap(-1e-6)[0]) / 2e-6
        np.testing.assert_allclose(gap(0.0)[1], differences, rtol=1e-6)

    @pytest.mark.parametrize("labels", [EQUAL, UNEQUAL])
    def test_it_is_the_best_of_three_bounds(self, labels):
        """As docs/landscape.md has them: of Z, of Z with the mean multipliers, and of Z scaled by these."""
        won = set()
        for seed in range(6):
            problem = problem_at(2.0, labels)
            around = problem.random_point(jax.random.key(seed), K)
            frame = jnp.eye(K)
            for closeness in (0.0, 0.6, 0.95):
                point = jax.tree.map(
                    lambda x, y, c=closeness: ufm.manifolds.normalize((1 - c) * x + c * y),
                    around,
                    ufm.Point(frame, frame[labels]),
                )
                Z = landscape.certificate_matrix(problem, point)
                bounds = three_bounds(Z)
                won.add(int(np.argmin(bounds)))
                np.testing.assert_allclose(
                    landscape.optimality_gap(problem, point),
                    2.0 * max(0, min(bounds)),
                    rtol=1e-9,
                    atol=1e-14,
                )
        assert len(won) > 1


@functools.cache
def at_sign_patterns(num_classes, samples, dim):
    @jax.jit
    def everything(tau, labels, classifier_signs, feature_signs):
        problem = problem_at(tau, labels, num_classes)
        point = saddles.sign_pattern(problem, classifier_signs, feature_signs, dim)
        direction, curvature = landscape.negative_curvature(problem, point)
        product = problem.hessian(point)(direction)
        as_product = problem.manifold.inner_product(point, direction, product)
        return problem, point, curvature, as_product, landscape.certify(problem, point)

    return everything


def check_a_sign_pattern(num_classes, samples, dim, seed):
    draw = np.random.default_rng(seed)
    tau = np.exp(draw.uniform(np.log(0.05), np.log(50)))
    if samples % num_classes == 0 and seed % 2:
        labels = np.repeat(np.arange(num_classes), samples // num_classes)
    else:
        labels = np.concatenate(
            [np.arange(num_classes), draw.integers(num_classes, size=samples - num_classes)]
        )
    of_classes, of_samples = (draw.choice([-1.0, 1.0], size=n) for n in (num_classes, samples))
    if seed % 3 == 0:  # All features with their classifiers, but for one.
        of_samples = of_classes[labels]
        of_samples[draw.integers(samples)] *= -1
    run = at_sign_patterns(num_classes, samples, dim)
    problem, point, curvature, as_product, verdict = run(tau, labels, of_classes, of_samples)
    assert verdict.is_critical
    assert not verdict.is_global_minimum
    assert curvature < 0
    smallest = dense_hessian(problem, point)[0]
    np.testing.assert_allclose(curvature, smallest, rtol=1e-10)
    np.testing.assert_allclose(as_product, smallest, rtol=1e-9)


@pytest.mark.parametrize(
    ("num_classes", "dim", "bound"), [(3, 5, 4.5), (4, 6, 8), (5, 8, 10), (10, 12, 20)]
)
def test_the_bound_of_theorem_2_feels_whether_k_is_odd(num_classes, dim, bound):
    assert theory.strict_saddle_threshold(num_classes, dim) == pytest.approx(bound)


class TestNegativeCurvature:
    def test_the_counterexample_to_proposition_2(self):
        """docs/errata.md: inside all of the theorem's conditions, the paper's direction curves upwards."""
        labels, signs = ufm.balanced_labels(6, 10), jnp.array([1, 1, -1, -1, -1, -1])
        problem = problem_at(0.1, labels, 6)
        assert problem.tau < theory.strict_saddle_threshold(6, 7)
        point = saddles.sign_pattern(problem, signs, signs[labels].at[10].multiply(-1), 7)
        assert problem.manifold.norm(point, problem.gradient(problem.evaluate(point))) < 1e-15
        Z = landscape.certificate_matrix(problem, point)
        assert np.min(np.abs(Z.beta)) > 1e-3
        values = np.linalg.svd(Z.G)[1]
        np.testing.assert_allclose(values[:2], [0.0527095, 0.0527046], atol=5e-8)
        np.testing.assert_allclose(
            problem.cost(point) - theory.cross_entropy_minimum(6, 0.1), 0.019, atol=1e-4
        )
        np.testing.assert_allclose(landscape.proposition_2(problem, point).curvature, 0.000348, atol=5e-7)
        found = landscape.negative_curvature(problem, point).curvature
        np.testing.assert_allclose(found, -0.002555, atol=5e-7)
        np.testing.assert_allclose(found, dense_hessian(problem, point)[0], rtol=1e-10)

    @pytest.mark.slow
    def test_the_papers_construction_depends_on_the_order_of_classes(self):
        """Classes merged into groups of two and four, K = 6: the sign changes, that of ours does not."""

        @jax.jit
        def curvatures(groups):
            problem = problem_at(0.1, ufm.balanced_labels(6, 2), 6)
            point = saddles.merged_classes(problem, groups, 10)
            return (
                landscape.proposition_2(problem, point).curvature,
                landscape.negative_curvature(problem, point).curvature,
            )

        orders = [
            np.isin(np.arange(6), pair).astype(int) for pair in [(0, 1), (0, 3), (2, 4), (1, 5), (4, 5)]
        ]
        paper, ours = np.transpose([curvatures(order) for order in orders])
        assert np.ptp(paper) > 1e-3
        assert np.ptp(ours) < 1e-9
        assert np.all(ours < -1e-3)

    @pytest.mark.parametrize(
        ("num_classes", "samples", "dim"),
        few(2, (3, 12, 5), (3, 3, 3), (5, 10, 5), (4, 20, 7), (6, 12, 8), (8, 8, 9)),
    )
    def test_it_is_the_smallest_eigenvalue_at_sign_patterns(self, num_classes, samples, dim):
        for seed in range(34):
            check_a_sign_pattern(num_classes, samples, dim, seed)

    @pytest.mark.slow
    @pytest.mark.parametrize("first", range(0, 200, 20))
    def test_it_is_the_smallest_eigenvalue_at_sign_patterns_of_200_shapes(self, first):
        jax.clear_caches()  # Each shape is compiled anew, and programs hold maps of memory.
        for seed in range(first, first + 20):
            draw = np.random.default_rng(1000 + seed)
            num_classes = int(draw.integers(3, 9))
            samples = num_classes * int(draw.integers(1, 11))
            check_a_sign_pattern(num_classes, samples, num_classes + int(draw.integers(4)), seed)

    @pytest.mark.slow
    def test_step_4_beta_vanishes_only_where_classifiers_are_equal(self):
        """And step 5: elsewhere the features lie in the span of the classifiers."""
        reached = 0
        for seed in range(12):
            labels = (EQUAL, UNEQUAL)[seed % 2]
            point, norm, Z = critical_point()([0.3, 2.0][seed // 2 % 2], labels, jax.random.key(seed))
            if norm > 1e-12:
                continue
            if np.abs(point.W - point.W[0]).max() < 1e-6:
                np.testing.assert_allclose(Z.beta, 0, atol=1e-9)
                continue
            reached += 1
            span = np.linalg.svd(point.W, full_matrices=False)[2]
            off = point.H - point.H @ span.T @ span
            assert np.abs(Z.beta).min() > 1e-6
            assert np.abs(off).max() < 1e-6
        assert reached >= 4
        rank_one = saddles.rank_one(problem_at(2.0), jax.random.key(0), DIM, reflected=True)
        np.testing.assert_allclose(landscape.multipliers(problem_at(2.0), rank_one).beta, 0, atol=1e-16)

    @pytest.mark.parametrize("labels", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
    def test_step_6_equal_classifiers_curve_down_along_scaled_parts(self, labels):
        """The form is A - s c with the stated bound of c, whatever the class sizes."""
        tau, problem = 50.0, problem_at(50.0, labels)
        line = jnp.eye(1, DIM)
        draw = np.random.default_rng(0)
        H = jnp.asarray(draw.choice([-1.0, 1.0], size=(len(labels), 1))) * line
        if labels is EQUAL:
            point = saddles.rank_one(problem, jax.random.key(0), DIM)
        else:
            point = ufm.Point(jnp.tile(line, (K, 1)), H)
        u = np.array([1, -1, 1, -1])
        a = np.linalg.svd(point.W[:1])[2][1]
        D = problem.manifold.project(point, ufm.Point(u[:, None] * a, u[labels][:, None] * a))
        forms = [
            landscape.hessian_form(problem, point, ufm.Point(D.W, s * D.H)) for s in (0.0, 1.0, 2.0, 7.0)
        ]
        A, c = forms[0], forms[0] - forms[1]
        np.testing.assert_allclose(forms, A - c * np.array([0, 1, 2, 7]), rtol=1e-10, atol=1e-10)
        rest = np.sum(1 - (point.H @ a) ** 2)
        assert c >= 2 * tau / len(labels) * (1 - 1 / K) * rest - 1e-12
        assert landscape.negative_curvature(problem, point).curvature < 0

    @pytest.mark.parametrize(
        ("num_classes", "n", "reversed_samples", "tau"),
        few(1, (3, 3, 1, 2.0), (4, 5, 2, 30.0)),
    )
    @pytest.mark.slow
    def test_step_7_classifiers_of_rank_k(self, num_classes, n, reversed_samples, tau):
        """d = K: alpha = 0, some beta_i > 0, and that feature alone curves down by -tau beta_i."""
        problem = problem_at(tau, ufm.balanced_labels(num_classes, n), num_classes)
        point = saddles.full_rank(problem, num_classes, reversed_samples=reversed_samples)
        assert problem.manifold.norm(point, problem.gradient(problem.evaluate(point))) < 1e-13
        assert np.linalg.matrix_rank(point.W) == num_classes
        alpha, beta, G = landscape.certificate_matrix(problem, point)
        np.testing.assert_allclose(alpha, 0, atol=1e-16)
        np.testing.assert_allclose(G.T @ (G / beta[:, None]), np.diag(alpha), atol=1e-14)
        a = np.linalg.svd(point.W - point.W.mean(0))[2][-1]
        np.testing.assert_allclose(point.H @ a, 0, atol=1e-12)
        i = int(np.argmax(beta))
        assert beta[i] > 0
        alone = ufm.Point(jnp.zeros_like(point.W), jnp.zeros_like(point.H).at[i].set(a))
        form = landscape.hessian_form(problem, point, alone)
        np.testing.assert_allclose(form, -tau * beta[i], rtol=1e-9)
        assert landscape.negative_curvature(problem, point).curvature <= form + 1e-15
        # One dimension more, and the bottom eigenvector of Z is a direction again.
        wider = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 1))), point)
        found = landscape.negative_curvature(problem, wider).curvature
        np.testing.assert_allclose(found, dense_hessian(problem, wider)[0], rtol=1e-10)

    def test_two_classes_in_the_plane_need_not_be_strict(self):
        """docs/landscape.md: where the theorem ends, K = d = 2."""
        for tau in (0.5, 3.0):
            problem = problem_at(tau, jnp.array([0, 1]), 2)
            point = ufm.Point(jnp.eye(2)[jnp.array([0, 0])], jnp.eye(2)[jnp.array([1, 1])])
            eigenvalues = dense_hessian(problem, point)
            np.testing.assert_allclose(eigenvalues, [0, 0, 0, tau**2 / 2], atol=1e-14)
            verdict = landscape.certify(problem, point)
            assert verdict.is_critical & ~verdict.is_global_minimum
            assert problem.cost(point) > theory.cross_entropy_minimum(2, tau) + 0.1
            with pytest.raises(
                ValueError, match="as many and at least 3, but dim is 2 and num_classes is 2"
            ):
                landscape.negative_curvature(problem, point)

    @pytest.mark.slow
    def test_it_is_the_least_in_a_weighted_metric_too(self):
        labels, signs = EQUAL, jnp.array([1.0, 1, -1, -1])
        problem = ufm.normalized(labels, K, tau=1.0, classifier_weight=jnp.array([3.0, 1, 3, 2]))
        point = saddles.sign_pattern(problem, signs, signs[labels].at[0].multiply(-1), 5)
        direction, curvature = landscape.negative_curvature(problem, point)
        np.testing.assert_allclose(problem.manifold.norm(point, direction), 1, rtol=1e-13)
        np.testing.assert_allclose(curvature, landscape.spectrum(problem, point)[0], rtol=1e-10)

    @pytest.mark.slow
    def test_float32_keeps_the_sign_at_a_huge_temperature(self):
        """Logits that all classes share are left out, not cancelled: +225 became -0.05 at tau = 1e6."""
        for seed in range(2):
            problem = problem_at(1e6, ufm.balanced_labels(2, 20), 2)
            point = saddles.rank_one(problem, jax.random.key(seed), 3, jnp.float32)
            found = landscape.negative_curvature(problem, point).curvature
            exact = jax.tree.map(lambda x: ufm.manifolds.normalize(x.astype(jnp.float64)), point)
            assert found < 0
            np.testing.assert_allclose(
                found, landscape.negative_curvature(problem, exact).curvature, rtol=1e-5
            )


class TestCertify:
    @pytest.mark.parametrize(
        ("dtype", "taus"), [(jnp.float64, (1.0, 400.0, 2000.0)), (jnp.float32, (1.0, 60.0, 300.0))]
    )
    def test_the_verdict_does_not_depend_on_how_small_the_loss_is(self, dtype, taus):
        """An orthonormal frame is no critical point, also where squares of G underflow, and G itself."""
        W = jnp.eye(3, dtype=dtype)
        certify = jax.jit(lambda tau: landscape.certify(problem_at(tau, jnp.arange(3), 3), ufm.Point(W, W)))
        for tau in taus:
            verdict = certify(dtype(tau))
            assert not verdict.is_critical
            np.testing.assert_allclose(verdict.gradient_norm, 1 / 3, rtol=1e-5)
            np.testing.assert_allclose(verdict.margin, -1 / 3, rtol=1e-5)

    @pytest.mark.parametrize(
        ("dtype", "taus"), [(jnp.float64, (1.0, 400.0, 2000.0)), (jnp.float32, (1.0, 60.0, 300.0))]
    )
    def test_one_hot_targets_are_classes_at_any_temperature(self, dtype, taus):
        W, key = jnp.eye(3, dtype=dtype), jax.random.key(0)
        orthonormal, random = ufm.Point(W, W), problem_at(1.0, jnp.arange(3), 3).random_point(key, 3, dtype)
        for tau in taus:
            of_targets, of_labels = (
                problem_at(tau, jnp.eye(3, dtype=dtype), 3),
                problem_at(tau, jnp.arange(3), 3),
            )
            for point in (orthonormal, random):
                found, expected = (landscape.certify(x, point) for x in (of_targets, of_labels))
                assert not found.is_critical
                for a, b in zip(found, expected, strict=True):
                    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-37)

    def test_rows_of_a_class_beside_soft_ones(self):
        """Each row of G is the softmax minus its target, whatever the rows beside it are."""
        targets = jnp.array([[1.0, 0, 0], [0.2, 0.3, 0.5], [0, 0, 1.0]])
        problem = problem_at(2.0, targets, 3)
        point = problem.random_point(jax.random.key(0), 3)
        scores = 2 * point.H @ point.W.T
        expected = (jax.nn.softmax(scores) - targets) / 3
        np.testing.assert_allclose(landscape.logit_gradient(problem, point), expected, atol=1e-15)
        met = problem_at(1.0, jnp.full((3, 3), 1 / 3), 3)
        verdict = landscape.certify(met, ufm.Point(point.W[:1].repeat(3, 0), point.H))
        assert verdict.is_global_minimum
        np.testing.assert_allclose(verdict.gap, 0, atol=1e-14)

    def test_its_margin_is_never_below_that_of_lemma_3(self):
        @jax.jit
        @jax.vmap
        def margins(key):
            problem = problem_at(2.0)
            point = problem.random_point(key, DIM)
            alpha, beta, G = landscape.certificate_matrix(problem, point)
            slack = jnp.minimum(jnp.min(-alpha) / 3**0.5, jnp.min(-beta) * 3**0.5)
            return landscape.certify(problem, point).margin, slack / jnp.linalg.norm(G, ord=2) - 1

        ours, of_lemma_3 = margins(jax.random.split(jax.random.key(0), 50))
        assert np.all(ours >= of_lemma_3 - 1e-13)

    def test_a_loss_says_that_it_is_convex(self):
        point = problem_at(1.0).random_point(jax.random.key(0), DIM)
        smoothed = functools.partial(ufm.losses.label_smoothing, alpha=0.2)
        assert landscape.certify(problem_at(1.0, loss=smoothed), point).gap > 0
        with pytest.raises(ValueError, match="needs a loss that says that it is convex in the logits"):
            landscape.certify(problem_at(1.0, loss=ufm.losses.focal), point)
        unmarked = problem_at(1.0, loss=lambda z, y: squared_error(z, y))
        with pytest.raises(ValueError, match="needs a loss that says"):
            landscape.certify(unmarked, point)
        assert landscape.optimality_gap(unmarked, point) > 0
        for loss in (ufm.losses.focal, functools.partial(ufm.losses.focal, gamma=1.0)):
            with pytest.raises(
                ValueError, match="needs a loss that is convex in the logits, which this one"
            ):
                landscape.optimality_gap(problem_at(1.0, loss=loss), point)


@pytest.mark.slow
def test_the_whole_certificate_is_batched_with_other_labels_and_temperatures():
    keys = jax.random.split(jax.random.key(0), 4)
    labels = jnp.stack([EQUAL, UNEQUAL, EQUAL[::-1], UNEQUAL[::-1]])
    taus = jnp.array([0.1, 1.0, 5.0, 20.0])

    def both(tau, labels, key):
        problem = problem_at(tau, labels)
        point = problem.random_point(key, DIM)
        return landscape.certify(problem, point), landscape.negative_curvature(problem, point)

    batched = jax.jit(jax.vmap(both))(taus, labels, keys)
    single = jax.jit(both)
    for i in range(4):
        one = single(taus[i], labels[i], keys[i])
        for a, b in zip(jax.tree.leaves(batched), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(ravel_pytree(a[i])[0], ravel_pytree(b)[0], rtol=1e-6, atol=1e-12)


def test_a_minimum_against_soft_targets_can_be_denied():
    """Part 2 of the theorem is about classes; here all 16 points of d = 1 are looked at."""
    problem = ufm.normalized(jnp.array([[0.6, 0.4], [0.4, 0.6]]), 2)
    signs = jnp.array(list(itertools.product([-1.0, 1.0], repeat=4)))
    points = [ufm.Point(x[:2, None], x[2:, None]) for x in signs]
    costs = [float(problem.cost(point)) for point in points]
    equal = points[-1]
    np.testing.assert_allclose([min(costs), problem.cost(equal)], np.log(2), rtol=1e-14)
    verdict = ufm.landscape.certify(problem, equal)
    assert bool(verdict.is_critical)
    assert not bool(verdict.is_global_minimum)
    np.testing.assert_allclose(ufm.landscape.optimality_gap(problem, equal), 0.2)
