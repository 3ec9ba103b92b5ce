"""Each operation of a manifold, as a property at random points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ufm_jax as ufm
from ufm_jax.riemannian.manifolds import Euclidean, Oblique, Product, Weighted, normalize

MANIFOLDS = {
    "oblique": Oblique(),
    "euclidean": Euclidean(),
    "product": Product(ufm.Point(W=Euclidean(), H=Oblique())),
}
# A few shapes only: each compiles every operation anew.
shapes = st.tuples(st.sampled_from([(3, 5, 4), (1, 2, 2)]), st.integers(0, 2**32 - 1)).map(
    lambda drawn: (*drawn[0], drawn[1])
)


def draw(manifold, sizes):
    k, n, d, seed = sizes
    keys = jax.random.split(jax.random.key(seed), 3)
    like = ufm.Point(jnp.zeros((k, d)), jnp.zeros((n, d)))
    point = manifold.random_point(keys[0], like)
    ambient = Euclidean().random_point(keys[1], like)
    return point, ambient, manifold.random_tangent(keys[2], point)


def on_manifold(manifold, point):
    spheres = {"oblique": [point.W, point.H], "euclidean": [], "product": [point.H]}
    name = next(n for n, m in MANIFOLDS.items() if m == manifold)
    return all(np.allclose(np.linalg.norm(x, axis=-1), 1, atol=1e-14) for x in spheres[name])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tree_norm_is_the_norm_of_all_entries(dtype):
    """Also where squares of the entries vanish or overflow, and in a metric, and its derivative."""
    tangent = ufm.Point(jnp.array([[3.0]], dtype), jnp.array([[0.0], [4.0]], dtype))
    empty = ufm.Point(tangent.W, jnp.zeros((0, 1), dtype))
    for size in (float(jnp.finfo(dtype).tiny), 1e-30, 1.0, 1e30):
        scaled = jax.tree.map(lambda x, s=size: s * x, tangent)
        norm = Oblique().norm(scaled, scaled)
        assert norm.dtype == dtype
        np.testing.assert_allclose(norm, 5 * size, rtol=1e-6)
        np.testing.assert_allclose(Weighted(Oblique(), 4.0).norm(scaled, scaled), 10 * size, rtol=1e-6)
    assert Oblique().norm(empty, empty) == 3
    slope = jax.grad(lambda s: Oblique().norm(tangent, jax.tree.map(lambda x: s * x, tangent)))(2.0)
    np.testing.assert_allclose(slope, 5, rtol=1e-6)
    for bad in (jnp.nan, jnp.inf):
        there = tangent._replace(W=jnp.array([[bad]], dtype))
        np.testing.assert_equal(float(Oblique().norm(there, there)), bad)


@pytest.mark.parametrize("solver", [ufm.solvers.gradient_descent(), ufm.solvers.conjugate_gradient()])
def test_a_cost_whose_slopes_underflow_is_not_converged(solver):
    objective = ufm.Objective(lambda x: 1e-30 * jnp.sum((x - 1) ** 2), Euclidean())
    result = ufm.minimize(objective, jnp.zeros(2, "float32"), solver, tolerance=0)
    assert result.status == ufm.Status.STALLED
    assert 0 < result.gradient_norm < 3e-30


@pytest.mark.parametrize("manifold", MANIFOLDS.values(), ids=MANIFOLDS)
class TestProperties:
    @given(sizes=shapes)
    @settings(deadline=None, max_examples=20)
    def test_projection_is_tangent_idempotent_and_orthogonal(self, manifold, sizes):
        point, ambient, tangent = draw(manifold, sizes)
        projected = manifold.project(point, ambient)
        assert on_manifold(manifold, point)
        if manifold == Oblique():
            for x, v in zip(point, projected, strict=True):
                np.testing.assert_allclose(np.sum(np.asarray(x * v), -1), 0, atol=1e-13)
        again = manifold.project(point, projected)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), projected, again)
        rest = jax.tree.map(jnp.subtract, ambient, projected)
        assert abs(manifold.inner_product(point, rest, tangent)) < 1e-12

    @given(sizes=shapes)
    @settings(deadline=None, max_examples=20)
    def test_retraction_stays_and_agrees_with_the_geodesic_to_second_order(self, manifold, sizes):
        point, _, tangent = draw(manifold, sizes)
        errors = []
        for t in (1e-2, 5e-3):
            step = jax.tree.map(lambda v, t=t: t * v, tangent)
            retracted, geodesic = manifold.retract(point, step), manifold.exp(point, step)
            assert on_manifold(manifold, retracted)
            assert on_manifold(manifold, geodesic)
            errors.append(float(manifold.norm(point, jax.tree.map(jnp.subtract, retracted, geodesic))))
        # An error of third order falls eightfold as the step is halved.
        assert errors[0] < 1e-6
        assert errors[1] <= errors[0] / 7 + 1e-15

    @given(sizes=shapes)
    @settings(deadline=None, max_examples=20)
    def test_geodesics_have_the_length_of_their_velocity(self, manifold, sizes):
        point, _, tangent = draw(manifold, sizes)
        end = manifold.exp(point, jax.tree.map(lambda v: 0.3 * v, tangent))
        np.testing.assert_allclose(manifold.distance(point, end), 0.3, rtol=1e-10)
        assert manifold.distance(point, point) == 0

    @given(sizes=shapes)
    @settings(deadline=None, max_examples=20)
    def test_transport_ends_in_the_tangent_space(self, manifold, sizes):
        point, _, tangent = draw(manifold, sizes)
        end = manifold.retract(point, tangent)
        carried = manifold.transport(point, end, tangent)
        again = manifold.project(end, carried)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), carried, again)

    @given(sizes=shapes)
    @settings(deadline=None, max_examples=10)
    def test_gradient_and_hessian_are_derivatives_along_geodesics(self, manifold, sizes):
        point, _, tangent = draw(manifold, sizes)

        def f(p):
            return jnp.sum(jnp.sin(p.W @ p.H.T)) + jnp.sum(p.W**3) + jnp.sum(jnp.cos(2 * p.H))

        def along(t):
            return f(manifold.exp(point, jax.tree.map(lambda v: t * v, tangent)))

        gradient = jax.grad(f)(point)
        hessian = jax.jvp(jax.grad(f), (point,), (tangent,))[1]
        slope = manifold.inner_product(point, manifold.riemannian_gradient(point, gradient), tangent)
        curvature = manifold.inner_product(
            point, manifold.riemannian_hessian(point, gradient, hessian, tangent), tangent
        )
        h = 1e-3
        # Fourth-order central differences.
        values = [along(i * h) for i in (-2, -1, 0, 1, 2)]
        first = np.dot([1, -8, 0, 8, -1], values) / (12 * h)
        second = np.dot([-1, 16, -30, 16, -1], values) / (12 * h**2)
        np.testing.assert_allclose(slope, first, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(curvature, second, rtol=1e-6, atol=1e-6)

    def test_hessian_is_symmetric_and_tangent(self, manifold):
        point, ambient, tangent = draw(manifold, (3, 4, 5, 7))
        other = manifold.project(point, ambient)

        def f(p):
            return jnp.sum(jnp.sin(p.W @ p.H.T))

        def hessian(v):
            along = jax.jvp(jax.grad(f), (point,), (v,))[1]
            return manifold.riemannian_hessian(point, jax.grad(f)(point), along, v)

        left = manifold.inner_product(point, hessian(tangent), other)
        right = manifold.inner_product(point, tangent, hessian(other))
        np.testing.assert_allclose(left, right, rtol=1e-12)
        image = hessian(tangent)
        again = manifold.project(point, image)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), image, again)

    def test_dtype_is_kept_and_operations_work_under_jit_and_vmap(self, manifold, key):
        like = ufm.Point(jnp.zeros((3, 4), jnp.float32), jnp.zeros((5, 4), jnp.float32))

        def move(key):
            point = manifold.random_point(key, like)
            return manifold.retract(point, manifold.random_tangent(key, point))

        moved = jax.jit(jax.vmap(move))(jax.random.split(key, 6))
        assert moved.W.shape == (6, 3, 4)
        assert all(x.dtype == jnp.float32 for x in moved)


def test_dimensions_and_scales_are_those_of_pymanopt():
    pymanopt = pytest.importorskip("pymanopt")
    point = ufm.Point(jnp.ones((3, 4)), jnp.ones((5, 4)))
    oblique = pymanopt.manifolds.Product(
        [pymanopt.manifolds.Oblique(4, 3), pymanopt.manifolds.Oblique(4, 5)]
    )
    euclidean = pymanopt.manifolds.Product(
        [pymanopt.manifolds.Euclidean(3, 4), pymanopt.manifolds.Euclidean(5, 4)]
    )
    for ours, theirs in [(Oblique(), oblique), (Euclidean(), euclidean)]:
        assert ours.dimension(point) == theirs.dim
        assert ours.typical_distance(point) == pytest.approx(theirs.typical_dist)
    mixed = MANIFOLDS["product"]
    assert mixed.dimension(point) == 3 * 4 + 5 * 3
    assert mixed.typical_distance(point) == pytest.approx(np.hypot(np.sqrt(12), np.pi * np.sqrt(5)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_normalize_handles_zero_tiny_and_huge_rows(dtype):
    tiny = float(jnp.finfo(dtype).tiny)
    rows = jnp.array([[0, 0, 0], [tiny, 0, 0], [0, -1 / tiny / 8, 0], [3, 4, 0]], dtype)
    expected = [[1, 0, 0], [1, 0, 0], [0, -1, 0], [0.6, 0.8, 0]]
    np.testing.assert_allclose(normalize(rows), expected, rtol=1e-6)
    assert normalize(rows).dtype == dtype
    derivative = jax.jacobian(normalize)(jnp.zeros((1, 3), dtype))
    np.testing.assert_array_equal(derivative, 0)


class TestSmoothness:
    """Derivatives where a norm inside would have none."""

    x = Oblique().random_point(jax.random.key(0), jnp.zeros((3, 4)))

    def test_exp_at_the_zero_tangent(self):
        v = Oblique().random_tangent(jax.random.key(1), self.x)
        curve = lambda t: Oblique().exp(self.x, t * v)  # noqa: E731
        np.testing.assert_allclose(jax.jacfwd(curve)(0.0), v, atol=1e-15)
        lengths = jnp.sum(v**2, -1, keepdims=True)
        np.testing.assert_allclose(jax.jacfwd(jax.jacfwd(curve))(0.0), -self.x * lengths, atol=1e-15)

    @pytest.mark.parametrize("t", [0.0, 1e-9, 0.01, 0.2, 2.0])
    def test_squared_distance_has_all_derivatives(self, t):
        """Along a geodesic it is a parabola; of several points at once it is the sum of theirs."""
        v = Oblique().random_tangent(jax.random.key(1), self.x)
        square = lambda s: Oblique().squared_distance(self.x, Oblique().exp(self.x, s * v))  # noqa: E731
        found = [square(t), jax.grad(square)(t), jax.grad(jax.grad(square))(t)]
        np.testing.assert_allclose(found, [t**2, 2 * t, 2], rtol=1e-9, atol=1e-12)

    def test_the_square_of_the_distance_is_flat_at_equal_points(self):
        gradient = jax.grad(lambda y: Oblique().distance(self.x, y) ** 2)(self.x)
        np.testing.assert_array_equal(gradient, 0)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_antipodal_points_are_pi_apart(self, dtype):
        x = self.x[:1].astype(dtype)
        np.testing.assert_allclose(Oblique().distance(x, -x), np.pi, rtol=float(jnp.finfo(dtype).eps))

    @pytest.mark.parametrize("t", [1e-9, 0.01, 0.3, 3.0])
    def test_log_undoes_exp(self, t):
        v = jax.tree.map(lambda v: t * v, Oblique().random_tangent(jax.random.key(1), self.x[:1]))
        np.testing.assert_allclose(Oblique().log(self.x[:1], Oblique().exp(self.x[:1], v)), v, rtol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_long_tangent_of_stiefel_ends_on_it(dtype, key):
    """Blocks of the matrix exponential that differ by |v|^2 lost digits from |v| = 100 on, and then all."""
    manifold = ufm.manifolds.Stiefel()
    point = manifold.random_point(key, jnp.zeros((6, 3), dtype))
    tangent = manifold.random_tangent(jax.random.key(1), point)
    for length in (1.0, 100.0, 1500.0):
        end = manifold.exp(point, length * tangent)
        error = np.linalg.norm(end.T @ end - np.eye(3))
        assert error < 1e3 * jnp.finfo(dtype).eps * max(1, length / 10), length


@pytest.mark.parametrize("near", [1e-3, 1e-4, 1e-6, 0.0])
def test_the_logarithm_near_the_antipode_has_the_length_of_the_distance(near):
    x = jnp.array([[0.6, 0.8, 0.0]], jnp.float32)
    y = normalize(-x + near * jnp.array([[0.0, 0.0, 1.0]], jnp.float32))
    log = Oblique().log(x, y)
    if near == 0:
        assert not np.any(log)  # Every direction leads there.
        return
    np.testing.assert_allclose(np.linalg.norm(log), Oblique().distance(x, y), rtol=1e-6)
    np.testing.assert_allclose(Oblique().exp(x, log), y, atol=1e-6)


@pytest.mark.parametrize(
    ("row", "dtype", "is_on"),
    [
        (jnp.zeros(512), "float64", False),
        (1.0001, "float64", False),
        (1.05, "float32", False),
        (1 + 1e-6, "float64", True),
        (1.001, "float32", True),
        (jnp.nan, "float64", True),
    ],
)
def test_one_row_off_the_sphere_is_off_in_any_size(row, dtype, is_on, key):
    """Zero is a critical point of many costs: a start there would be called converged."""
    rows = Oblique().random_point(key, jnp.zeros((500, 512), dtype))
    rows = rows.at[3].set(row if np.ndim(row) else rows[3] * jnp.asarray(row, dtype))
    if is_on:
        Oblique().check_point(rows)
    else:
        with pytest.raises(ValueError, match="must lie on the manifold Oblique"):
            Oblique().check_point(rows)


def test_a_weighted_manifold_is_a_tree_of_anything_and_made_of_positive_numbers():
    weighted = ufm.manifolds.Weighted(Euclidean(), 2.0)
    zero = jax.tree.map(jnp.zeros_like, weighted)
    assert zero.weights == 0
    problem = ufm.normalized(ufm.balanced_labels(3, 2), 3, classifier_weight=2.0)
    point = problem.random_point(jax.random.key(0), 4)
    slope = jax.grad(lambda p: p.cost(point), allow_int=True)(problem)
    assert np.isfinite(slope.tau)
    axes = jax.tree.map(lambda _: 0, weighted)
    norms = jax.vmap(lambda m, v: m.norm(v, v), in_axes=(axes, None))(
        ufm.manifolds.Weighted(Euclidean(), jnp.array([1.0, 4.0])), jnp.array([3.0, 4.0])
    )
    np.testing.assert_allclose(norms, [5, 10])
    for wrong in (0.0, -1, np.float32(-1), np.int64(0), jnp.array([1.0, -2.0])):
        with pytest.raises(ValueError, match="a weight of the metric must be positive"):
            ufm.manifolds.Weighted(Euclidean(), wrong)


def test_weights_of_integer_vectors_are_not_rounded():
    weighted, two = ufm.manifolds.Weighted(Euclidean(), 0.25), jnp.array([2, 0])
    assert weighted.inner_product(two, two, two) == 1.0
