"""Manifolds as pure functions on pytrees of arrays, in pymanopt's vocabulary.

A manifold carries no shapes of its own: the arrays do. It acts on any pytree, leaf by leaf:

- `Euclidean` constrains nothing,
- `Oblique` puts every row (the last axis) on the unit sphere,
- `Stiefel` makes the columns of every matrix (the last two axes) orthonormal,
- `Grassmann` does too, and takes such a matrix for the subspace that its columns span,
- `Fixed` lets nothing move,
- `Product` gives each branch of the pytree a manifold of its own,
- `Weighted` is another manifold with its inner product weighted.

All but the last have the usual inner product. Tangent vectors of `Grassmann` are those of `Stiefel` that
are perpendicular to rotations of the basis.

A manifold of one's own is a subclass of `Manifold` with four methods, each for one array: `project_leaf`,
`retract_leaf`, `random_leaf` and `dimension_leaf`. Everything a solver asks follows from them. Here is the
sphere of radius two, every array one point of it:

    >>> import dataclasses, math
    >>> @jax.tree_util.register_static
    ... @dataclasses.dataclass(frozen=True)
    ... class Sphere(ufm.manifolds.Manifold):
    ...     def project_leaf(self, x, v):
    ...         return v - x * jnp.vdot(x, v) / 4
    ...     def retract_leaf(self, x, v):
    ...         return 2 * (x + v) / jnp.linalg.norm(x + v)
    ...     def random_leaf(self, key, shape, dtype):
    ...         x = jax.random.normal(key, shape, dtype)
    ...         return 2 * x / jnp.linalg.norm(x)
    ...     def dimension_leaf(self, shape):
    ...         return math.prod(shape) - 1
    >>> objective = ufm.Objective(lambda x: x[0] + x[1], Sphere())
    >>> result = ufm.minimize(objective, jnp.array([2.0, 0.0, 0.0]), ufm.solvers.lbfgs(), tolerance=1e-3)
    >>> print(f"{result.value:.4f}")
    -2.8284

References: Boumal, *An Introduction to Optimization on Smooth Manifolds* (2023), chapters 3, 5 and 7;
Absil, Mahony, Sepulchre, *Optimization Algorithms on Matrix Manifolds* (2008).
"""

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from ufm_jax import _checks
from ufm_jax._products import matmul, power_of_two, root

Tree = Any
"""A pytree of arrays: a point, or a vector of the same structure."""

_SMALL = 1e-3
"""Squared chords below which functions of angles are taken from their series, to rounding."""


def normalize(rows: jax.Array) -> jax.Array:
    """Scales every row of `rows` (..., d) to unit length; a zero row becomes the first basis vector.

    The answer for a zero row is a convention that keeps the result on the sphere; its derivative is zero.
    Rows too small or too large for their squares to be representable are handled.

    Args:
        rows: vectors along the last axis, (..., d).

    Returns:
        Unit vectors, (..., d).

    Raises:
        ValueError: the rows are not real numbers.

    Example:
        >>> print(ufm.manifolds.normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]])))
        [[0.6 0.8]
         [1.  0. ]]
    """
    rows = _checks.floating("rows", rows)
    largest = jnp.max(jnp.abs(rows), axis=-1, keepdims=True)
    first = jnp.zeros(rows.shape[-1], rows.dtype).at[0].set(1)
    scaled = jnp.where(largest == 0, first, rows / power_of_two(largest))
    return _unit(scaled)


def _unit(rows: jax.Array) -> jax.Array:
    """`rows / |rows|`, written as XLA would rewrite it in some programs and not in others.

    It is not a number where the square is not finite, so that solvers refuse such a step.
    """
    square = _row_inner(rows, rows)
    return rows * jax.lax.rsqrt(jnp.where(jnp.isfinite(square), square, jnp.nan))


def _row_inner(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(a * b, axis=-1, keepdims=True)


class Manifold:
    """What solvers ask of a manifold, on pytrees, and what a subclass says for one array (`..._leaf`).

    A subclass writes `project_leaf`, `retract_leaf`, `random_leaf` and `dimension_leaf`; the other
    `..._leaf` methods have defaults or are asked for by no solver. To pass a manifold of one's own through
    `jax.jit` as part of an argument, register its class as a pytree (without arrays:
    `jax.tree_util.register_static`).
    """

    point_ndim: ClassVar[int | None] = None
    """Trailing axes of an array that make one point; weights are constant along them. None: all axes."""

    def project_leaf(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """The orthogonal projection of v, any array shaped like x, onto the tangent space at x.

        The default `riemannian_hessian_leaf` differentiates it in x.
        """
        raise NotImplementedError(_missing(self, "project_leaf"))

    def retract_leaf(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """The end of a curve from x with velocity v, on the manifold; `retract_leaf(x, 0)` is x."""
        raise NotImplementedError(_missing(self, "retract_leaf"))

    def random_leaf(self, key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        """A random point, an array of this shape and dtype."""
        raise NotImplementedError(_missing(self, "random_leaf"))

    def dimension_leaf(self, shape: tuple[int, ...]) -> int:
        """The dimension of the manifold of arrays of this shape."""
        raise NotImplementedError(_missing(self, "dimension_leaf"))

    def riemannian_hessian_leaf(
        self, x: jax.Array, gradient: jax.Array, hessian: jax.Array, v: jax.Array
    ) -> jax.Array:
        """The Riemannian Hessian applied to v, from Euclidean derivatives at x.

        That is the derivative of `project(x, gradient(x))`, projected: `P Hess[v] + P (D_v P) gradient`,
        Boumal (2023), Corollary 5.16.
        """
        _, turned = jax.jvp(lambda y: self.project_leaf(y, gradient), (x,), (v,))
        return self.project_leaf(x, hessian + turned)

    def exp_leaf(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """The point reached after unit time on the geodesic that leaves x with velocity v."""
        raise NotImplementedError(_missing(self, "exp_leaf"))

    def log_leaf(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """The tangent vector at x whose `exp_leaf` is y."""
        raise NotImplementedError(_missing(self, "log_leaf"))

    def squared_distance_leaf(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Squared geodesic distances; axes that make one point are kept with length 1."""
        raise NotImplementedError(_missing(self, "squared_distance_leaf"))

    def typical_distance_leaf(self, shape: tuple[int, ...]) -> float:
        """The scale of the manifold of arrays of this shape: the trust region's largest radius."""
        return math.sqrt(self.dimension_leaf(shape))

    def random_point(self, key: jax.Array, like: Tree) -> Tree:
        """A random point with the shapes and dtypes of `like`, a tree of arrays or `jax.ShapeDtypeStruct`.

        Raises ValueError where it holds something else.
        """
        leaves, treedef = jax.tree.flatten(like)
        if not all(hasattr(x, "shape") and hasattr(x, "dtype") for x in leaves):
            raise ValueError(
                "like must hold arrays or jax.ShapeDtypeStruct, such as jnp.zeros((5, 3)), but is "
                f"{like!r}."
            )
        keys = jax.random.split(key, max(len(leaves), 1))
        points = [self.random_leaf(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=False)]
        return jax.tree.unflatten(treedef, points)

    def random_tangent(self, key: jax.Array, point: Tree) -> Tree:
        """A random tangent vector of unit norm at `point`, no direction more likely than another."""
        # The key may have drawn the point, and the same numbers would be normal to it.
        ambient = Euclidean().random_point(jax.random.fold_in(key, 1), point)
        tangent = self.unwhiten(self.project(point, ambient))
        return optax.tree.scale(1 / self.norm(point, tangent), tangent)

    def project(self, point: Tree, vector: Tree) -> Tree:
        """The orthogonal projection of an ambient `vector` onto the tangent space at `point`."""
        return jax.tree.map(self.project_leaf, point, vector)

    def retract(self, point: Tree, tangent: Tree) -> Tree:
        """Moves from `point` along `tangent`, back onto the manifold."""
        return jax.tree.map(self.retract_leaf, point, tangent)

    def exp(self, point: Tree, tangent: Tree) -> Tree:
        """The point reached after unit time on the geodesic that leaves `point` with velocity `tangent`."""
        return jax.tree.map(self.exp_leaf, point, tangent)

    def log(self, point: Tree, other: Tree) -> Tree:
        """The tangent vector at `point` whose `exp` is `other`; the shortest one."""
        return jax.tree.map(self.log_leaf, point, other)

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
        return jax.tree.map(
            self.riemannian_hessian_leaf, point, euclidean_gradient, euclidean_hessian, tangent
        )

    def inner_product(self, point: Tree, a: Tree, b: Tree) -> jax.Array:
        """The inner product of two tangent vectors at `point`, a scalar."""
        del point
        return optax.tree.vdot(a, b)

    def norm(self, point: Tree, tangent: Tree) -> jax.Array:
        """The length of a tangent vector at `point`, a scalar; its squares neither vanish nor overflow."""
        largest = [jnp.max(jnp.abs(x), initial=0) for x in jax.tree.leaves(tangent)]
        unit = power_of_two(functools.reduce(jnp.maximum, largest))
        scaled = optax.tree.scale(1 / unit, tangent)
        return unit * jnp.sqrt(self.inner_product(point, scaled, scaled))

    def whiten(self, vector: Tree) -> Tree:
        """Coordinates of a tangent vector in which the inner product is the usual one."""
        return vector

    def unwhiten(self, vector: Tree) -> Tree:
        """The tangent vector with these coordinates: undoes `whiten`."""
        return vector

    def squared_distances(self, a: Tree, b: Tree) -> Tree:
        """Squared geodesic distances, of each point of the arrays apart."""
        return jax.tree.map(self.squared_distance_leaf, a, b)

    def squared_distance(self, a: Tree, b: Tree) -> jax.Array:
        """The square of the geodesic distance, a scalar; smooth also where the points are equal."""
        return optax.tree.sum(self.squared_distances(a, b))

    def distance(self, a: Tree, b: Tree) -> jax.Array:
        """The geodesic distance between two points, a scalar; its derivative is 0 where they are equal.

        The distance has a kink there; second derivatives are those of `squared_distance`.
        """
        return root(self.squared_distance(a, b))

    def dimension(self, point: Tree) -> int:
        """The dimension of the manifold of points shaped like `point`."""
        return sum(self.dimension_leaf(x.shape) for x in jax.tree.leaves(point))

    def positive_dimension(self, point: Tree) -> int:
        """The dimension of the manifold at `point`. Raises ValueError where it is 0."""
        if (dimension := self.dimension(point)) < 1:
            raise ValueError(
                "the manifold must have at least one dimension at the point, but has none: 0 is its only "
                "tangent vector."
            )
        return dimension

    def typical_distances(self, point: Tree) -> Tree:
        """The scale of the manifold of each array apart."""
        return jax.tree.map(lambda x: self.typical_distance_leaf(x.shape), point)

    def typical_distance(self, point: Tree) -> jax.Array | float:
        """The scale of the manifold, the trust region's largest radius (pymanopt's `typical_dist`)."""
        return sum(x**2 for x in jax.tree.leaves(self.typical_distances(point))) ** 0.5

    def check_point(self, point: Tree) -> None:
        """Raises ValueError where `point` is off the manifold by more than rounding (outside `jit`).

        The distance is that to `retract(point, 0)`, of each point of an array apart.
        """
        axes = self.point_ndim or 0
        for x in jax.tree.leaves(point):
            if x.ndim < axes:
                raise ValueError(
                    f"an array on {self} must have at least {axes} axes, but one has shape {x.shape}."
                )
        there = self.retract(point, optax.tree.zeros_like(point))
        # Under `jit` also what is made of known arrays is traced.
        if not _checks.is_concrete(point, there):
            return
        for (path, x), y in zip(
            jax.tree_util.tree_leaves_with_path(point), jax.tree.leaves(there), strict=True
        ):
            inside = x.ndim if self.point_ndim is None else self.point_ndim
            distances = jnp.sqrt(jnp.sum((x - y) ** 2, axis=tuple(range(x.ndim - inside, x.ndim))))
            # Where a finite point has none beside it on the manifold, as a zero row, it is off.
            distances = jnp.where(jnp.isfinite(distances) | ~jnp.all(jnp.isfinite(x)), distances, jnp.inf)
            distance = float(jnp.max(distances, initial=0))
            # Entries that are not numbers pass: what comes of them is for the status to say.
            if distance > float(jnp.finfo(x.dtype).eps) ** (1 / 3):
                name = jax.tree_util.keystr(path).lstrip(".") or "the point"
                far = f"is {distance:.3g} away from it"
                where = far if np.isfinite(distance) else "has no nearest point on it"
                raise ValueError(f"the point must lie on the manifold {self}, but {name} {where}.")

    def check_weights(self, point: Tree, weights: Tree) -> None:
        """Raises ValueError where weights, a tree like `point`, do not scale each point as a whole."""
        for x, w in zip(jax.tree.leaves(point), jax.tree.leaves(weights), strict=True):
            shape, inside = np.shape(w), x.ndim if self.point_ndim is None else self.point_ndim
            fits = len(shape) <= x.ndim and all(
                size in (1, x.shape[-i]) if i > inside else size == 1
                for i, size in enumerate(reversed(shape), start=1)
            )
            if not fits:
                allowed = [*x.shape[: x.ndim - inside], *[1] * inside]
                raise ValueError(
                    f"a weight of an array {x.shape} on {self} must be a scalar or broadcast to "
                    f"{tuple(allowed)}, one for each point, but has shape {shape}."
                )


def _is_manifold(x: object) -> bool:
    return isinstance(x, Manifold)


def _check_branches(prefix: Tree, point: Tree, name: str) -> None:
    """Raises ValueError where a tree of manifolds or of weights is no prefix of the point."""
    try:
        jax.tree.broadcast(prefix, point, is_leaf=_is_manifold)
    except ValueError:
        wanted, found = jax.tree.structure(prefix, is_leaf=_is_manifold), jax.tree.structure(point)
        raise ValueError(f"the point must branch as its {name}, {wanted}, but is {found}.") from None


def _missing(manifold: Manifold, method: str) -> str:
    return f"{type(manifold).__name__} does not define {method}."


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Euclidean(Manifold):
    """Euclidean space: every array is free. Random points have standard normal entries.

    Example:
        >>> objective = ufm.Objective(lambda x: jnp.sum((x - 3) ** 2), ufm.manifolds.Euclidean())
        >>> result = ufm.minimize(objective, jnp.zeros(2), ufm.solvers.lbfgs(), tolerance=1e-3)
        >>> print(result.point.round(3))
        [3. 3.]
    """

    point_ndim: ClassVar[int | None] = 0

    def random_leaf(self, key, shape, dtype):
        return jax.random.normal(key, shape, dtype)

    def project_leaf(self, x, v):
        del x
        return v

    def retract_leaf(self, x, v):
        return x + v

    exp_leaf = retract_leaf

    def log_leaf(self, x, y):
        return y - x

    def riemannian_hessian_leaf(self, x, gradient, hessian, v):
        del x, gradient, v
        return hessian

    def squared_distance_leaf(self, x, y):
        return (x - y) ** 2

    def dimension_leaf(self, shape):
        return math.prod(shape)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Fixed(Manifold):
    """A point that stays where it is: constants of a problem. Its tangent space is zero.

    Random points have standard normal entries, so that one has something to replace.

    Example:
        >>> manifold = ufm.manifolds.Product((ufm.manifolds.Euclidean(), ufm.manifolds.Fixed()))
        >>> objective = ufm.Objective(lambda x: jnp.sum((x[0] - x[1]) ** 2), manifold)
        >>> start = (jnp.zeros(2), jnp.array([1.0, 2.0]))
        >>> result = ufm.minimize(objective, start, ufm.solvers.lbfgs(), tolerance=1e-3)
        >>> print(result.point[0].round(3), result.point[1])
        [1. 2.] [1. 2.]
    """

    point_ndim: ClassVar[int | None] = 0

    def random_leaf(self, key, shape, dtype):
        return jax.random.normal(key, shape, dtype)

    def project_leaf(self, x, v):
        del x
        return jnp.zeros_like(v)

    def retract_leaf(self, x, v):
        del v
        return x

    exp_leaf = retract_leaf

    def log_leaf(self, x, y):
        del y
        return jnp.zeros_like(x)

    def riemannian_hessian_leaf(self, x, gradient, hessian, v):
        del x, gradient, hessian
        return jnp.zeros_like(v)

    def squared_distance_leaf(self, x, y):
        # Another constant is out of reach.
        return jnp.where(x == y, 0, jnp.inf).astype(x.dtype)

    def dimension_leaf(self, shape):
        del shape
        return 0


@jax.tree_util.register_static
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

    point_ndim: ClassVar[int | None] = 1

    def random_leaf(self, key, shape, dtype):
        return normalize(jax.random.normal(key, shape, dtype))

    def project_leaf(self, x, v):
        return v - x * _row_inner(x, v)

    def retract_leaf(self, x, v):
        return _unit(x + v)

    def exp_leaf(self, x, v):
        square = _row_inner(v, v)
        moves = square > 0
        length = jnp.sqrt(jnp.where(moves, square, 1))
        cos = jnp.where(moves, jnp.cos(length), 1 - square / 2)
        sinc = jnp.where(moves, jnp.sin(length) / length, 1 - square / 6)
        return x * cos + v * sinc

    def log_leaf(self, x, y):
        square, tangent = self.squared_distance_leaf(x, y), self.project_leaf(x, y - x)
        sine = _row_inner(tangent, tangent)
        # Its length is 0 at antipodes too, where every direction leads to y: there the logarithm is 0.
        is_series = (square < _SMALL) | (sine == 0)
        angle, sine = (jnp.sqrt(jnp.where(is_series, 1, x)) for x in (square, sine))
        series = 1 + square * (1 / 6 + square * (7 / 360 + square * (31 / 15120)))
        return tangent * jnp.where(is_series, series, angle / sine)

    def riemannian_hessian_leaf(self, x, gradient, hessian, v):
        return self.project_leaf(x, hessian) - v * _row_inner(x, gradient)

    def squared_distance_leaf(self, x, y):
        chord, other = _row_inner(x - y, x - y), _row_inner(x + y, x + y)
        is_small, is_antipodal = chord < _SMALL, other == 0
        series = chord * (1 + chord * (1 / 12 + chord * (1 / 90 + chord / 560)))
        # Between arcsin, which loses digits of far points, and arccos, which loses those of near ones.
        angle = 2 * jnp.arctan2(
            jnp.sqrt(jnp.where(is_small, 1, chord)), jnp.sqrt(jnp.where(is_antipodal, 1, other))
        )
        angle = jnp.where(is_antipodal, jnp.pi, angle)
        return jnp.where(is_small, series, angle**2)

    def dimension_leaf(self, shape):
        return math.prod(shape[:-1]) * (shape[-1] - 1)

    def typical_distance_leaf(self, shape):
        return math.pi * math.sqrt(math.prod(shape[:-1]))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Stiefel(Manifold):
    """Orthonormal columns: an array (..., n, p), p <= n, of matrices X with `X^T X = I`.

    The retraction is the Q of `point + tangent = QR` with a positive diagonal of R. Random points are
    uniform (the Q of a Gaussian matrix).

    Example:
        >>> A = jnp.diag(jnp.array([1.0, 2.0, 3.0]))
        >>> objective = ufm.Objective(lambda X: -jnp.trace(X.T @ A @ X), ufm.manifolds.Stiefel())
        >>> start = objective.manifold.random_point(jax.random.key(0), jnp.zeros((3, 2)))
        >>> print(f"{ufm.minimize(objective, start, ufm.solvers.trust_region(), tolerance=1e-3).value:.4f}")
        -5.0000

    Reference: Edelman, Arias, Smith, *The Geometry of Algorithms with Orthogonality Constraints*, SIAM J.
    Matrix Anal. Appl. 1998 (whose embedded metric this is).
    """

    point_ndim: ClassVar[int | None] = 2

    def random_leaf(self, key, shape, dtype):
        """A random point, an array (..., n, p). Raises ValueError where p > n."""
        return _orthonormal(jax.random.normal(key, shape, dtype))

    def project_leaf(self, x, v):
        product = matmul(_transpose(x), v)
        return v - matmul(x, (product + _transpose(product)) / 2)

    def retract_leaf(self, x, v):
        """The Q of `x + v = QR`, an array (..., n, p). Raises ValueError where p > n."""
        return _orthonormal(x + v)

    def exp_leaf(self, x, v):
        # Edelman, Arias, Smith, equation (2.42), with blocks of one size: those of v over its length.
        length = jnp.linalg.norm(jax.lax.stop_gradient(v), axis=(-2, -1), keepdims=True)
        length = jnp.where(length > 0, length, 1)
        unit = v / length
        p, turn, square = x.shape[-1], matmul(_transpose(x), v), matmul(_transpose(unit), v)
        identity = jnp.broadcast_to(length * jnp.eye(p, dtype=x.dtype), turn.shape)
        generator = jnp.block([[turn, -square], [identity, turn]])
        columns = jax.scipy.linalg.expm(generator)[..., :p]
        return matmul(jnp.concatenate([x, unit], -1), matmul(columns, jax.scipy.linalg.expm(-turn)))

    def dimension_leaf(self, shape):
        *batch, n, p = shape
        return math.prod(batch) * (n * p - p * (p + 1) // 2)

    def typical_distance_leaf(self, shape):
        return math.sqrt(math.prod(shape[:-2]) * shape[-1])


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Grassmann(Stiefel):
    """Subspaces: an array (..., n, p), p <= n, of orthonormal columns stands for the space that they span.

    For costs that are the same for all bases of a space, `f(X Q) = f(X)` with Q orthogonal: on `Stiefel`
    their Hessian is singular along such rotations, here tangent vectors are perpendicular to them. Of other
    costs `check_hessian` says that the Hessian is not symmetric. Points, the retraction and the
    exponential are those of `Stiefel`.

    Example:
        >>> A = jnp.diag(jnp.array([1.0, 2.0, 3.0]))
        >>> objective = ufm.Objective(lambda X: -jnp.trace(X.T @ A @ X), ufm.manifolds.Grassmann())
        >>> start = objective.manifold.random_point(jax.random.key(0), jnp.zeros((3, 2)))
        >>> print(f"{ufm.minimize(objective, start, ufm.solvers.trust_region(), tolerance=1e-3).value:.4f}")
        -5.0000

    Reference: Absil, Mahony, Sepulchre, *Riemannian Geometry of Grassmann Manifolds with a View on
    Algorithmic Computation*, Acta Appl. Math. 2004.
    """

    def project_leaf(self, x, v):
        return v - matmul(x, matmul(_transpose(x), v))

    def dimension_leaf(self, shape):
        *batch, n, p = shape
        return math.prod(batch) * p * (n - p)


def _transpose(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, -1, -2)


def _orthonormal(x: jax.Array) -> jax.Array:
    """The Q of `x = QR` whose R has a positive diagonal."""
    if x.ndim < 2 or x.shape[-1] > x.shape[-2]:
        raise ValueError(f"a point on Stiefel has shape (..., n, p) with p <= n, but this has {x.shape}.")
    q, r = jnp.linalg.qr(x)
    signs = jnp.where(jnp.diagonal(r, axis1=-2, axis2=-1) < 0, -1, 1).astype(x.dtype)
    return q * signs[..., None, :]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Product(Manifold):
    """A manifold for each branch: `manifolds` is a pytree of manifolds, a prefix of the points' pytree.

    Example:
        >>> O, E = ufm.manifolds.Oblique(), ufm.manifolds.Euclidean()
        >>> manifold = ufm.manifolds.Product({"direction": O, "offset": E})
        >>> manifold.dimension({"direction": jnp.ones((2, 3)), "offset": jnp.ones(5)})
        9
    """

    manifolds: Tree

    def _map(self, method: str, *trees: Tree) -> Tree:
        return jax.tree.map(
            lambda manifold, *branches: getattr(manifold, method)(*branches),
            self.manifolds,
            *trees,
            is_leaf=_is_manifold,
        )

    def _branches(self, method: str, *trees: Tree) -> list:
        """The results of `method`, one a branch, where the result is a number rather than a vector."""
        return jax.tree.leaves(self._map(method, *trees))

    def random_point(self, key: jax.Array, like: Tree) -> Tree:
        leaves, treedef = jax.tree.flatten(self.manifolds, is_leaf=_is_manifold)
        keys = jax.tree.unflatten(treedef, list(jax.random.split(key, len(leaves))))
        return self._map("random_point", keys, like)

    def project(self, point: Tree, vector: Tree) -> Tree:
        return self._map("project", point, vector)

    def retract(self, point: Tree, tangent: Tree) -> Tree:
        return self._map("retract", point, tangent)

    def exp(self, point: Tree, tangent: Tree) -> Tree:
        return self._map("exp", point, tangent)

    def log(self, point: Tree, other: Tree) -> Tree:
        return self._map("log", point, other)

    def transport(self, start: Tree, end: Tree, tangent: Tree) -> Tree:
        return self._map("transport", start, end, tangent)

    def riemannian_gradient(self, point: Tree, euclidean_gradient: Tree) -> Tree:
        return self._map("riemannian_gradient", point, euclidean_gradient)

    def riemannian_hessian(
        self, point: Tree, euclidean_gradient: Tree, euclidean_hessian: Tree, tangent: Tree
    ) -> Tree:
        return self._map("riemannian_hessian", point, euclidean_gradient, euclidean_hessian, tangent)

    def inner_product(self, point: Tree, a: Tree, b: Tree) -> jax.Array:
        return sum(self._branches("inner_product", point, a, b))

    def whiten(self, vector: Tree) -> Tree:
        return self._map("whiten", vector)

    def unwhiten(self, vector: Tree) -> Tree:
        return self._map("unwhiten", vector)

    def squared_distances(self, a: Tree, b: Tree) -> Tree:
        return self._map("squared_distances", a, b)

    def dimension(self, point: Tree) -> int:
        return sum(self._branches("dimension", point))

    def typical_distances(self, point: Tree) -> Tree:
        return self._map("typical_distances", point)

    def check_point(self, point: Tree) -> None:
        for manifold in jax.tree.leaves(self.manifolds, is_leaf=_is_manifold):
            if not _is_manifold(manifold):
                raise ValueError(f"a Product is of manifolds such as Oblique(), but has {manifold!r}.")
        _check_branches(self.manifolds, point, "manifolds")
        self._map("check_point", point)

    def check_weights(self, point: Tree, weights: Tree) -> None:
        self._map("check_weights", point, weights)


@dataclasses.dataclass(frozen=True)
class Weighted(Manifold):
    """The same manifold with its inner product weighted: `<a, b> = sum weights a b`.

    Points, tangent vectors, projections and retractions are those of `manifold`. The Riemannian gradient
    and Hessian are divided by the weights; norms, distances, radii and random tangents are measured with
    them. A part with a larger weight moves less: weights near the diagonal blocks of the Hessian
    precondition a solver.

    Args:
        manifold: any.
        weights: a prefix of the points' pytree of positive scalars or arrays, which broadcast to the
            arrays of the point. All entries of one point of the manifold (a row on `Oblique`, a matrix on
            `Stiefel`) have one weight: for rows an array (..., 1).

    Raises:
        ValueError: a weight is not positive (checked outside `jit`), or varies within a point.

    Example:
        >>> manifold = ufm.manifolds.Weighted(ufm.manifolds.Oblique(), jnp.array([[4.0], [1.0]]))
        >>> x, v = jnp.eye(2), jnp.array([[0.0, 1.0], [0.0, 0.0]])
        >>> print(manifold.norm(x, v), manifold.riemannian_gradient(x, v)[0])
        2.0 [0.   0.25]

    Reference: Gao, Peng, Yuan, *Optimization on product manifolds under a preconditioned metric*, SIAM J.
    Matrix Anal. Appl. 2025.
    """

    manifold: Manifold
    weights: Tree

    def __post_init__(self) -> None:
        for w in jax.tree.leaves(self.weights):
            _checks.positive("a weight of the metric", w)

    def _scaled(self, vector: Tree, power: float) -> Tree:
        weights = jax.tree.broadcast(self.weights, vector)
        self.manifold.check_weights(vector, weights)
        # With 1.0, integers are promoted to floats.
        return jax.tree.map(
            lambda w, v: jnp.asarray(w, jnp.result_type(v, 1.0)) ** power * v, weights, vector
        )

    def random_point(self, key: jax.Array, like: Tree) -> Tree:
        return self.manifold.random_point(key, like)

    def project(self, point: Tree, vector: Tree) -> Tree:
        return self.manifold.project(point, vector)

    def retract(self, point: Tree, tangent: Tree) -> Tree:
        return self.manifold.retract(point, tangent)

    def exp(self, point: Tree, tangent: Tree) -> Tree:
        return self.manifold.exp(point, tangent)

    def log(self, point: Tree, other: Tree) -> Tree:
        return self.manifold.log(point, other)

    def transport(self, start: Tree, end: Tree, tangent: Tree) -> Tree:
        return self.manifold.transport(start, end, tangent)

    def riemannian_gradient(self, point: Tree, euclidean_gradient: Tree) -> Tree:
        return self._scaled(self.manifold.riemannian_gradient(point, euclidean_gradient), -1)

    def riemannian_hessian(
        self, point: Tree, euclidean_gradient: Tree, euclidean_hessian: Tree, tangent: Tree
    ) -> Tree:
        # A constant factor of the metric on each factor of the manifold leaves its connection as it is.
        hessian = self.manifold.riemannian_hessian(point, euclidean_gradient, euclidean_hessian, tangent)
        return self._scaled(hessian, -1)

    def inner_product(self, point: Tree, a: Tree, b: Tree) -> jax.Array:
        return self.manifold.inner_product(point, self._scaled(a, 1), b)

    def whiten(self, vector: Tree) -> Tree:
        return self._scaled(self.manifold.whiten(vector), 0.5)

    def unwhiten(self, vector: Tree) -> Tree:
        return self._scaled(self.manifold.unwhiten(vector), -0.5)

    def squared_distances(self, a: Tree, b: Tree) -> Tree:
        return self._scaled(self.manifold.squared_distances(a, b), 1)

    def dimension(self, point: Tree) -> int:
        return self.manifold.dimension(point)

    def typical_distances(self, point: Tree) -> Tree:
        def weighted(w: jax.Array, distance: jax.Array | float, x: jax.Array) -> jax.Array:
            # Squares add up over the points of an array, which are of one size.
            w = jnp.asarray(w, x.dtype)
            return distance * (jnp.sum(w) / max(w.size, 1)) ** 0.5

        weights = jax.tree.broadcast(self.weights, point)
        return jax.tree.map(weighted, weights, self.manifold.typical_distances(point), point)

    def check_point(self, point: Tree) -> None:
        self.manifold.check_point(point)
        _check_branches(self.weights, point, "weights")

    def check_weights(self, point: Tree, weights: Tree) -> None:
        self.manifold.check_weights(point, weights)


def _weighted_of(_: None, parts: tuple[Manifold, Tree]) -> Weighted:
    """Without a check: JAX also puts axes, zeros and shapes into a tree."""
    weighted = object.__new__(Weighted)
    for name, part in zip(("manifold", "weights"), parts, strict=True):
        object.__setattr__(weighted, name, part)
    return weighted


jax.tree_util.register_pytree_node(Weighted, lambda x: ((x.manifold, x.weights), None), _weighted_of)
