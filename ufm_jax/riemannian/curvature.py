"""The curvature of an objective: eigenvalues and eigenvectors of its Riemannian Hessian.

All are in the metric of the manifold: eigenvectors are unit vectors of it, and eigenvalues say how fast
gradient descent in it converges. Functions of one point are pure: batch them with `vmap`.

Reference: Boumal, *An Introduction to Optimization on Smooth Manifolds* (2023), section 5.5.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.sparse.linalg import lobpcg_standard
from jax.flatten_util import ravel_pytree

from ufm_jax._products import matmul, norm
from ufm_jax.riemannian.manifolds import Tree
from ufm_jax.riemannian.objective import Objective

Map = Callable[[jax.Array], jax.Array]
"""A linear map of flat vectors (D,)."""

_BLOCK = 8
"""Vectors that LOBPCG iterates on."""


def smallest_eigenvalue(objective: Objective, point: Tree, key: jax.Array) -> jax.Array:
    """The smallest eigenvalue of the Riemannian Hessian: the first of `smallest_eigenpair`.

    Args:
        objective: any.
        point: on the objective's manifold of at least one dimension, critical or not.
        key: random key, for the start of the iteration.

    Returns:
        The eigenvalue, a scalar. Negative, it shows that the point is no minimum; zero or positive, it says
        nothing of other minima.

    Example:
        >>> objective = ufm.Objective(lambda x: x[0] * x[1], ufm.manifolds.Euclidean())
        >>> curvature = ufm.riemannian.curvature
        >>> print(f"{curvature.smallest_eigenvalue(objective, jnp.zeros(2), jax.random.key(0)):.3f}")
        -1.000
    """
    return smallest_eigenpair(objective, point, key)[0]


def smallest_eigenpair(
    objective: Objective, point: Tree, key: jax.Array, max_steps: int = 500
) -> tuple[jax.Array, Tree]:
    """The smallest eigenvalue of the Riemannian Hessian and a unit tangent vector that belongs to it.

    LOBPCG on the tangent space with Hessian-vector products alone, eight vectors at a time: with one or two
    it stalls near multiple eigenvalues. Up to 40 dimensions take the matrix in a basis of the tangents.

    Args:
        objective: any.
        point: on the objective's manifold of at least one dimension, critical or not.
        key: random key of the starting vectors.
        max_steps: most iterations, eight Hessian-vector products each.

    Returns:
        The eigenvalue, a scalar, and the eigenvector, shaped like `point`. The value is one of the Hessian
        along a direction, so it is too large if anything: in float64 by about 1e-13 of the largest
        eigenvalue where the smallest stands apart, up to 1e-7 where many others are close. `eigenpairs`
        leaves no doubt.

    Example:
        >>> objective = ufm.Objective(lambda x: x[0] ** 2 - 3 * x[1] ** 2, ufm.manifolds.Euclidean())
        >>> curvature = ufm.riemannian.curvature
        >>> value, vector = curvature.smallest_eigenpair(objective, jnp.zeros(2), jax.random.key(0))
        >>> print(value.round(3), jnp.abs(vector).round(3))
        -6.0 [0. 1.]

    Reference: Knyazev, *Toward the Optimal Preconditioned Eigensolver*, SIAM J. Sci. Comput. 2001.
    """
    operator, project, flat, unflatten = _flat_hessian(objective, point)
    dimension = objective.manifold.positive_dimension(point)
    if dimension <= 5 * _BLOCK:  # More are what LOBPCG needs.
        basis = jax.random.normal(key, (flat.size, dimension), flat.dtype)
        for _ in range(2):  # The first time, rounding leaves parts that are not tangent.
            basis = jnp.linalg.qr(jax.vmap(project, in_axes=1, out_axes=1)(basis))[0]
        matrix = matmul(basis.T, jax.vmap(operator, in_axes=1, out_axes=1)(basis))
        values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
        return values[0], unflatten(matmul(basis, vectors[:, 0]))
    # The wanted eigenvalue becomes the largest of `1 - Hess/shift`; the normal space stays at 0, below.
    start = jax.random.normal(key, (flat.size, _BLOCK), flat.dtype)
    estimate = 2 * _norm_estimate(operator, start[:, 0])
    shift = jnp.where(estimate > 0, estimate, 1)

    def shifted(v: jax.Array) -> jax.Array:
        return project(v) - operator(v) / shift

    eps = float(jnp.finfo(flat.dtype).eps)
    tolerance = max(eps, eps ** (2 / 3) / (10 * flat.size))  # Relative residuals of eps^(2/3).
    columnwise = jax.vmap(shifted, in_axes=1, out_axes=1)
    vector = project(lobpcg_standard(columnwise, start, max_steps, tolerance)[1][:, 0])
    vector = vector / jnp.linalg.norm(vector)
    # The Rayleigh quotient of the Hessian itself: the shift has cost digits.
    return matmul(vector, operator(vector)), unflatten(vector)


def spectrum(objective: Objective, point: Tree) -> jax.Array:
    """All eigenvalues of the Riemannian Hessian, ascending: the first of `eigenpairs`.

    Args:
        objective: any.
        point: on the objective's manifold, critical or not.

    Returns:
        The eigenvalues (D,), as many as the manifold has dimensions.

    Example:
        >>> objective = ufm.Objective(lambda x: x[0] ** 2 - 3 * x[1] ** 2, ufm.manifolds.Euclidean())
        >>> print(ufm.riemannian.curvature.spectrum(objective, jnp.zeros(2)))
        [-6.  2.]
    """
    return eigenpairs(objective, point)[0]


def eigenpairs(objective: Objective, point: Tree) -> tuple[jax.Array, Tree]:
    """All eigenpairs of the Riemannian Hessian, from its dense matrix: for small points.

    Args:
        objective: any.
        point: on the objective's manifold, critical or not.

    Returns:
        The eigenvalues (D,), ascending, as many as the manifold has dimensions, and unit tangent vectors
        that belong to them, a point with a leading axis of length D. Time grows with the cube of the
        entries of the point, memory with their square.

    Example:
        >>> objective = ufm.Objective(lambda x: x[0] ** 2 - 3 * x[1] ** 2, ufm.manifolds.Euclidean())
        >>> values, vectors = ufm.riemannian.curvature.eigenpairs(objective, jnp.zeros(2))
        >>> print(values, jnp.abs(vectors[0]))
        [-6.  2.] [0. 1.]
    """
    operator, project, flat, unflatten = _flat_hessian(objective, point)
    identity = jnp.eye(flat.size, dtype=flat.dtype)
    matrix = jax.vmap(operator)(identity)
    # The normal space goes above all else, and is cut off.
    size = norm(matrix)
    above = 2 * jnp.where(size > 0, size, 1)
    normal = identity - jax.vmap(project)(identity)
    values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2 + above * normal)
    dimension = objective.manifold.dimension(point)
    return values[:dimension], jax.vmap(unflatten)(vectors[:, :dimension].T)


def _flat_hessian(
    objective: Objective, point: Tree
) -> tuple[Map, Map, jax.Array, Callable[[jax.Array], Tree]]:
    """The Hessian and the projection as maps of flat vectors, the point made flat, and the way back.

    Flat vectors hold coordinates in which the inner product is the usual one, so that the Hessian is
    symmetric.
    """
    objective.check_point(point)
    manifold, hessian = objective.manifold, objective.hessian(point)
    flat, unflatten = ravel_pytree(point)

    def project(v: jax.Array) -> jax.Array:
        return ravel_pytree(manifold.project(point, unflatten(v)))[0]

    def operator(v: jax.Array) -> jax.Array:
        tangent = manifold.unwhiten(unflatten(project(v)))
        return project(ravel_pytree(manifold.whiten(hessian(tangent)))[0])

    return operator, project, flat, lambda v: manifold.unwhiten(unflatten(v))


def _norm_estimate(operator: Map, vector: jax.Array) -> jax.Array:
    """The size of the operator's largest eigenvalue, from below, by the power method."""

    def step(_, carry):
        v, _ = carry
        image = operator(v)
        size = norm(image)
        return image / jnp.where(size > 0, size, 1), size

    start = (vector / jnp.linalg.norm(vector), jnp.ones((), vector.dtype))
    return jax.lax.fori_loop(0, 20, step, start)[1]
