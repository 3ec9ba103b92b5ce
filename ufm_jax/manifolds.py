"""Manifolds on which the unconstrained feature model lives, in pymanopt's vocabulary.

A manifold here acts on any pytree of arrays, leaf by leaf, and carries no shapes of its own: the arrays
do. `Oblique` puts every row (the last axis) on the unit sphere, `Euclidean` constrains nothing, and
`Product` gives each branch of the pytree a manifold of its own. All three are Riemannian submanifolds of
Euclidean space with the usual inner product. Reference: Boumal, *An Introduction to Optimization on Smooth
Manifolds* (2023), chapters 3, 5 and 7; the paper's Appendix B.1.
"""

import dataclasses
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

Tree = Any
"""A pytree of arrays: a point, or a vector of the same structure."""


def normalize(rows: chex.Array) -> chex.Array:
    """Scales every row of `rows` (..., d) to unit length; a zero row becomes the first basis vector.

    The answer for a zero row is a convention that keeps the result on the sphere; its derivative is zero.
    Rows too small or too large for their squares to be representable are handled.

    Args:
        rows: vectors along the last axis, (..., d).

    Returns:
        Unit vectors, (..., d).

    Example:
        >>> print(ufm.manifolds.normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]])))
        [[0.6 0.8]
         [1.  0. ]]
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(rows), axis=-1, keepdims=True))
    first = jnp.zeros(rows.shape[-1], rows.dtype).at[0].set(1)
    scaled = jnp.where(largest == 0, first, rows / _power_of_two(largest))
    return _unit(scaled)


def _unit(rows: chex.Array) -> chex.Array:
    """`rows / |rows|`, written as XLA would rewrite it in some programs and not in others."""
    return rows * jax.lax.rsqrt(_row_inner(rows, rows))


def _power_of_two(size: chex.Array) -> chex.Array:
    """The power of two next to `size`, division by which rounds nothing; within the normal numbers."""
    _, exponent = jnp.frexp(size)
    limits = jnp.finfo(size.dtype)
    return jnp.ldexp(jnp.ones_like(size), jnp.clip(exponent, limits.minexp + 1, limits.maxexp - 3))


def _row_inner(a: chex.Array, b: chex.Array) -> chex.Array:
    return jnp.sum(a * b, axis=-1, keepdims=True)


class Manifold:
    """What every manifold here can do. Subclasses say it for one array; this class maps it over pytrees."""

    def random_point(self, key: chex.PRNGKey, like: Tree) -> Tree:
        """A random point with the shapes and dtypes of `like` (arrays or `jax.ShapeDtypeStruct`)."""
        leaves, treedef = jax.tree.flatten(like)
        keys = jax.random.split(key, max(len(leaves), 1))
        points = [self._random_point(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=False)]
        return jax.tree.unflatten(treedef, points)

    def random_tangent(self, key: chex.PRNGKey, point: Tree) -> Tree:
        """A random tangent vector of unit norm at `point`."""
        tangent = self.project(point, Euclidean().random_point(key, point))
        return optax.tree.scale(1 / self.norm(point, tangent), tangent)

    def project(self, point: Tree, vector: Tree) -> Tree:
        """The orthogonal projection of an ambient `vector` onto the tangent space at `point`."""
        return jax.tree.map(self._project, point, vector)

    def retract(self, point: Tree, tangent: Tree) -> Tree:
        """Moves from `point` along `tangent`, back onto the manifold; agrees with `exp` to second order."""
        return jax.tree.map(self._retract, point, tangent)

    def exp(self, point: Tree, tangent: Tree) -> Tree:
        """The point reached after unit time on the geodesic that leaves `point` with velocity `tangent`."""
        return jax.tree.map(self._exp, point, tangent)

    def transport(self, start: Tree, end: Tree, tangent: Tree) -> Tree:
        """Carries `tangent` at `start` to the tangent space at `end`, by projection (as pymanopt does)."""
        del start
        return self.project(end, tangent)

    def riemannian_gradient(self, point: Tree, euclidean_gradient: Tree) -> Tree:
        """The Riemannian gradient of a function whose Euclidean gradient at `point` is given."""
        return self.project(point, euclidean_gradient)

    def riemannian_hessian(
        self, point: Tree, euclidean_gradient: Tree, euclidean_hessian: Tree, tangent: Tree
    ) -> Tree:
        """The Riemannian Hessian applied to `tangent`, from Euclidean derivatives at `point`.

        `euclidean_hessian` is the Euclidean Hessian already applied to `tangent`. The paper's equation (8).
        """
        return jax.tree.map(self._riemannian_hessian, point, euclidean_gradient, euclidean_hessian, tangent)

    def inner_product(self, point: Tree, a: Tree, b: Tree) -> chex.Array:
        """The inner product of two tangent vectors at `point`, a scalar."""
        del point
        return optax.tree.vdot(a, b)

    def norm(self, point: Tree, tangent: Tree) -> chex.Array:
        """The length of a tangent vector at `point`, a scalar."""
        return jnp.sqrt(self.inner_product(point, tangent, tangent))

    def distance(self, a: Tree, b: Tree) -> chex.Array:
        """The geodesic distance between two points, a scalar."""
        squared = jax.tree.map(lambda x, y: jnp.sum(self._distance(x, y) ** 2), a, b)
        return jnp.sqrt(optax.tree.sum(squared))

    def dimension(self, point: Tree) -> int:
        """The dimension of the manifold of points shaped like `point`."""
        return sum(self._dimension(x.shape) for x in jax.tree.leaves(point))

    def typical_distance(self, point: Tree) -> float:
        """The scale of the manifold, the trust region's largest radius (pymanopt's `typical_dist`)."""
        return math.sqrt(sum(self._typical_distance(x.shape) ** 2 for x in jax.tree.leaves(point)))

    def _random_point(self, key: chex.PRNGKey, shape: tuple[int, ...], dtype: Any) -> chex.Array:
        raise NotImplementedError

    def _project(self, x: chex.Array, v: chex.Array) -> chex.Array:
        raise NotImplementedError

    def _retract(self, x: chex.Array, v: chex.Array) -> chex.Array:
        raise NotImplementedError

    def _exp(self, x: chex.Array, v: chex.Array) -> chex.Array:
        raise NotImplementedError

    def _riemannian_hessian(
        self, x: chex.Array, gradient: chex.Array, hessian: chex.Array, v: chex.Array
    ) -> chex.Array:
        raise NotImplementedError

    def _distance(self, x: chex.Array, y: chex.Array) -> chex.Array:
        raise NotImplementedError

    def _dimension(self, shape: tuple[int, ...]) -> int:
        raise NotImplementedError

    def _typical_distance(self, shape: tuple[int, ...]) -> float:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Euclidean(Manifold):
    """Euclidean space: every array is free. Random points have standard normal entries."""

    def _random_point(self, key, shape, dtype):
        return jax.random.normal(key, shape, dtype)

    def _project(self, x, v):
        del x
        return v

    def _retract(self, x, v):
        return x + v

    _exp = _retract

    def _riemannian_hessian(self, x, gradient, hessian, v):
        del x, gradient, v
        return hessian

    def _distance(self, x, y):
        return x - y

    def _dimension(self, shape):
        return math.prod(shape)

    def _typical_distance(self, shape):
        return math.sqrt(math.prod(shape))


@dataclasses.dataclass(frozen=True)
class Oblique(Manifold):
    """Rows of unit length: an array (..., q, d) is q points on the sphere of R^d.

    The paper's OB(d, q) stores the same points as columns. Random points are uniform on the spheres. The
    retraction normalizes each row of `point + tangent`.

    Example:
        >>> north, east = jnp.array([[0.0, 1.0]]), jnp.array([[1.0, 0.0]])
        >>> print(f"{ufm.manifolds.Oblique().distance(north, east):.4f}")
        1.5708
    """

    def _random_point(self, key, shape, dtype):
        return normalize(jax.random.normal(key, shape, dtype))

    def _project(self, x, v):
        return v - x * _row_inner(x, v)

    def _retract(self, x, v):
        return _unit(x + v)

    def _exp(self, x, v):
        length = jnp.linalg.norm(v, axis=-1, keepdims=True)
        return x * jnp.cos(length) + v * jnp.sinc(length / jnp.pi)

    def _riemannian_hessian(self, x, gradient, hessian, v):
        return self._project(x, hessian) - v * _row_inner(x, gradient)

    def _distance(self, x, y):
        half_chord = jnp.linalg.norm(x - y, axis=-1) / 2
        return 2 * jnp.arcsin(jnp.minimum(half_chord, 1))

    def _dimension(self, shape):
        return math.prod(shape[:-1]) * (shape[-1] - 1)

    def _typical_distance(self, shape):
        return math.pi * math.sqrt(math.prod(shape[:-1]))


@dataclasses.dataclass(frozen=True)
class Product(Manifold):
    """A manifold for each branch: `manifolds` is a pytree of manifolds, a prefix of the points' pytree.

    `Product(Point(W=Euclidean(), H=Oblique()))` normalizes features and leaves the classifier free.
    """

    manifolds: Tree

    def _map(self, method: str, *trees: Tree) -> Tree:
        return jax.tree.map(
            lambda manifold, *branches: getattr(manifold, method)(*branches),
            self.manifolds,
            *trees,
            is_leaf=lambda x: isinstance(x, Manifold),
        )

    def _branches(self, method: str, *trees: Tree) -> list:
        """The results of `method`, one a branch, where the result is a number rather than a vector."""
        return jax.tree.leaves(self._map(method, *trees))

    def random_point(self, key: chex.PRNGKey, like: Tree) -> Tree:
        leaves, treedef = jax.tree.flatten(self.manifolds, is_leaf=lambda x: isinstance(x, Manifold))
        keys = jax.tree.unflatten(treedef, list(jax.random.split(key, len(leaves))))
        return self._map("random_point", keys, like)

    def project(self, point: Tree, vector: Tree) -> Tree:
        return self._map("project", point, vector)

    def retract(self, point: Tree, tangent: Tree) -> Tree:
        return self._map("retract", point, tangent)

    def exp(self, point: Tree, tangent: Tree) -> Tree:
        return self._map("exp", point, tangent)

    def riemannian_hessian(
        self, point: Tree, euclidean_gradient: Tree, euclidean_hessian: Tree, tangent: Tree
    ) -> Tree:
        return self._map("riemannian_hessian", point, euclidean_gradient, euclidean_hessian, tangent)

    def distance(self, a: Tree, b: Tree) -> chex.Array:
        return jnp.linalg.norm(jnp.stack(self._branches("distance", a, b)))

    def dimension(self, point: Tree) -> int:
        return sum(self._branches("dimension", point))

    def typical_distance(self, point: Tree) -> float:
        return math.hypot(*self._branches("typical_distance", point))
