"""Our manifolds through an adapter with pymanopt's method names, beside its own at the same points."""

import jax
import jax.numpy as jnp
import numpy as np
import pymanopt.manifolds as peers
import pytest

from ufm_jax.riemannian.manifolds import Euclidean, Grassmann, Manifold, Oblique, Product, Stiefel


class Adapter:
    """Pymanopt's methods on a manifold of ours: a point is one matrix, or a list of them for a product.

    Pymanopt's oblique manifold holds unit vectors as columns, so matrices are transposed where `columns`.
    """

    def __init__(self, manifold: Manifold, like, key: int, *, columns: bool = False):
        self._ours, self._columns, self._keys = manifold, columns, jax.random.key(key)
        self._like = self._in(like)

    def _in(self, tree):
        return jax.tree.map(lambda x: jnp.asarray(x).T if self._columns else jnp.asarray(x), tree)

    def _out(self, tree):
        return jax.tree.map(lambda x: np.asarray(x).T if self._columns else np.asarray(x), tree)

    def _key(self):
        self._keys, key = jax.random.split(self._keys)
        return key

    @property
    def dim(self):
        return self._ours.dimension(self._like)

    @property
    def typical_dist(self):
        return float(self._ours.typical_distance(self._like))

    def inner_product(self, point, a, b):
        return float(self._ours.inner_product(*map(self._in, (point, a, b))))

    def norm(self, point, a):
        return float(self._ours.norm(*map(self._in, (point, a))))

    def dist(self, a, b):
        return float(self._ours.distance(*map(self._in, (a, b))))

    def projection(self, point, vector):
        return self._out(self._ours.project(*map(self._in, (point, vector))))

    def retraction(self, point, tangent):
        return self._out(self._ours.retract(*map(self._in, (point, tangent))))

    def exp(self, point, tangent):
        return self._out(self._ours.exp(*map(self._in, (point, tangent))))

    def log(self, a, b):
        return self._out(self._ours.log(*map(self._in, (a, b))))

    def transport(self, a, b, tangent):
        return self._out(self._ours.transport(*map(self._in, (a, b, tangent))))

    def euclidean_to_riemannian_gradient(self, point, gradient):
        return self._out(self._ours.riemannian_gradient(*map(self._in, (point, gradient))))

    def euclidean_to_riemannian_hessian(self, *arguments):
        return self._out(self._ours.riemannian_hessian(*map(self._in, arguments)))

    def random_point(self):
        return self._out(self._ours.random_point(self._key(), self._like))

    def random_tangent_vector(self, point):
        return self._out(self._ours.random_tangent(self._key(), self._in(point)))


@pytest.fixture(autouse=True)
def the_same_points():
    """In any test, whichever ran before it."""
    for i, (ours, _) in enumerate(PAIRS.values()):
        ours._keys = jax.random.key(i)


_VECTORS = np.zeros((4, 6))
_PAIR = [np.zeros((5, 3)), np.zeros((2, 3))]
PAIRS = {
    "euclidean": (Adapter(Euclidean(), _VECTORS, 0), peers.Euclidean(4, 6)),
    "oblique": (Adapter(Oblique(), _VECTORS, 1, columns=True), peers.Oblique(4, 6)),
    "stiefel": (Adapter(Stiefel(), np.zeros((6, 3)), 2), peers.Stiefel(6, 3)),
    "stiefels": (Adapter(Stiefel(), np.zeros((2, 6, 3)), 3), peers.Stiefel(6, 3, k=2)),
    "grassmann": (Adapter(Grassmann(), np.zeros((6, 3)), 5), peers.Grassmann(6, 3)),
    "grassmanns": (Adapter(Grassmann(), np.zeros((2, 6, 3)), 6), peers.Grassmann(6, 3, k=2)),
    "product": (
        Adapter(Product([Stiefel(), Euclidean()]), _PAIR, 4),
        peers.Product([peers.Stiefel(5, 3), peers.Euclidean(2, 3)]),
    ),
}
WITH_DISTANCE = ("euclidean", "oblique")


@pytest.fixture(params=PAIRS)
def pair(request):
    return PAIRS[request.param]


def flat(tree):
    # Pymanopt's tangent vectors of a product are lists that JAX does not know as such.
    return np.concatenate([np.ravel(x) for x in (tree if isinstance(tree, list) else [tree])])


def assert_close(a, b, tolerance=1e-12):
    np.testing.assert_allclose(flat(a), flat(b), rtol=0, atol=tolerance)


def ambient(ours, seed):
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda x: generator.normal(size=x.shape), ours.random_point())


def of_peer(x):
    """A list of arrays as pymanopt's product holds them, and anything else as it is."""
    return peers.product._ProductTangentVector(x) if isinstance(x, list) else x


def test_sizes_are_those_of_pymanopt(pair):
    ours, theirs = pair
    assert ours.dim == theirs.dim


@pytest.mark.parametrize("name", ["oblique", "stiefel", "grassmann"])
def test_the_scale_is_that_of_pymanopt(name):
    ours, theirs = PAIRS[name]
    np.testing.assert_allclose(ours.typical_dist, theirs.typical_dist)


def test_inner_products_norms_projections_and_transports_are_those_of_pymanopt(pair):
    ours, theirs = pair
    x, y = ours.random_point(), ours.random_point()
    u, v = ours.random_tangent_vector(x), ours.random_tangent_vector(x)
    np.testing.assert_allclose(ours.inner_product(x, u, v), theirs.inner_product(x, u, v), atol=1e-14)
    np.testing.assert_allclose(ours.norm(x, u), theirs.norm(x, u))
    vector = ambient(ours, 0)
    projected = ours.projection(x, vector)
    assert_close(projected, theirs.projection(x, of_peer(vector)))
    assert_close(ours.projection(x, projected), projected)
    assert_close(ours.transport(x, y, u), theirs.transport(x, y, of_peer(u)))


def test_derivatives_are_those_of_pymanopt(pair):
    ours, theirs = pair
    x = ours.random_point()
    gradient, hessian, u = ambient(ours, 1), ambient(ours, 2), ours.random_tangent_vector(x)
    assert_close(
        ours.euclidean_to_riemannian_gradient(x, gradient),
        theirs.euclidean_to_riemannian_gradient(x, of_peer(gradient)),
    )
    assert_close(
        ours.euclidean_to_riemannian_hessian(x, gradient, hessian, u),
        theirs.euclidean_to_riemannian_hessian(x, *map(of_peer, (gradient, hessian, u))),
    )


def test_retractions_stay_on_the_manifold_and_agree_with_pymanopt_to_first_order(pair):
    ours, theirs = pair
    x = ours.random_point()
    u = ours.random_tangent_vector(x)
    far = ours.retraction(x, u)
    # A point is on the manifold where a step of length 0 leaves it where it is.
    assert_close(ours.retraction(far, jax.tree.map(np.zeros_like, u)), far, 1e-13)
    t = 1e-6
    small = jax.tree.map(lambda a: t * a, u)
    assert_close(ours.retraction(x, small), jax.tree.map(np.add, x, small), 10 * t**2)
    assert_close(ours.retraction(x, small), theirs.retraction(x, of_peer(small)), 10 * t**2)


def test_geodesics_are_those_of_pymanopt(pair):
    ours, theirs = pair
    x = ours.random_point()
    u = ours.random_tangent_vector(x)
    assert_close(ours.exp(x, u), theirs.exp(x, of_peer(u)), 1e-10)


@pytest.mark.parametrize("name", WITH_DISTANCE)
def test_distances_and_logarithms_are_those_of_pymanopt(name):
    ours, theirs = PAIRS[name]
    x, y = ours.random_point(), ours.random_point()
    np.testing.assert_allclose(ours.dist(x, y), theirs.dist(x, y), rtol=1e-10)
    assert_close(ours.log(x, y), theirs.log(x, y), 1e-10)
    assert_close(ours.exp(x, ours.log(x, y)), y, 1e-10)


def test_random_points_and_tangents_are_on_the_manifold_and_differ(pair):
    ours, theirs = pair
    x, y = ours.random_point(), ours.random_point()
    u, v = ours.random_tangent_vector(x), ours.random_tangent_vector(x)
    assert np.linalg.norm(flat(x) - flat(y)) > 1e-6
    assert np.linalg.norm(flat(u) - flat(v)) > 1e-6
    np.testing.assert_allclose(ours.norm(x, u), 1)
    assert_close(theirs.projection(x, of_peer(u)), u)
    zero = jax.tree.map(np.zeros_like, u)
    assert_close(theirs.retraction(x, of_peer(zero)), x)
