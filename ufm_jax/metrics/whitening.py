"""The inverse root of the between-class covariance, which NC1 weighs variability by.

It is found from the smaller of the two squares of the class means, K x K or d x d, and where these would
lose too many digits, from the means themselves.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ufm_jax._products import matmul


@jax.jit  # Else both branches would be compiled at every call.
def whitening_of(means: jax.Array, weights: jax.Array, rounded: ArrayLike) -> jax.Array:
    """Rows (R, d) with `rows^T rows = Sigma_B^+ = K (M^T M)^+`, R = min(K, d), for means M (K, d).

    `weights^T M = 0` for positive weights (K,), as centring leaves it. With d < K the Cholesky factor of
    `M^T M` has the rows. Else, with u the unit vector along the weights and s > 0, they are those of
    `(M^+)^T = (M M^T + s u u^T)^-1 M`. This is twenty times cheaper than eigenvalues, wherever the means
    span their space well. Elsewhere M itself is decomposed, since its square has half of its digits; there
    `rounded`, the norm of what M was added up from, a scalar, says which singular values are rounding.
    """
    count, dim = means.shape
    if dim < count:
        gram = matmul(means.T, means)
        scale = jnp.trace(gram) / dim
    else:
        gram = matmul(means, means.T)
        scale = jnp.trace(gram) / count
        unit = weights / jnp.linalg.norm(weights)
        gram += scale * jnp.outer(unit, unit)
    inverse = _inverse_factor(gram)
    # The trace of the inverse bounds it, so this bounds the condition number; NaN is not below it.
    bound = 2 * scale * len(gram) * jnp.sum(inverse**2)

    def by_square():
        return count**0.5 * (inverse if dim < count else matmul(matmul(inverse.T, inverse), means))

    def by_decomposition():
        if jnp.finfo(means.dtype).bits < 64:
            return whitening_in_single_precision(means, rounded)
        # The cutoff that SciPy's pseudo-inverse has for `M^T M`.
        return count**0.5 * _inverse_root(count, means, (dim * jnp.finfo(means.dtype).eps) ** 0.5, 0.0)

    return jax.lax.cond(bound < 1 / jnp.sqrt(jnp.finfo(gram.dtype).eps), by_square, by_decomposition)


@jax.jit
def whitening_in_single_precision(means: jax.Array, rounded: ArrayLike) -> jax.Array:
    """As `whitening_of`, from the means alone, for a dtype in which squares have too few digits.

    The centred means have rank K - 1 at most, since the counts weigh them to zero. Of K singular values the
    last is therefore rounding and counts as zero, as do all up to `max(K, d) eps` times the largest, and
    all within the rounding of the sums, `4 eps` times the norm of what was added.

    Args:
        means: centred, (K, d).
        rounded: the norm of what the means are made of, a scalar.

    Returns:
        The rows, (R, d).
    """
    eps = jnp.finfo(means.dtype).eps
    return len(means) ** 0.5 * _inverse_root(
        len(means) - 1, means, max(means.shape) * eps, 4 * rounded * eps
    )


@jax.jit  # Without another N x R matrix.
def whitened_squares(deviations: jax.Array, rows: jax.Array) -> jax.Array:
    """`h^T Sigma_B^+ h` for deviations h, (N, d), and the rows (R, d) of an inverse root, (N,)."""
    return jnp.sum(matmul(deviations, rows.T) ** 2, -1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _inverse_root(rank: int, means: jax.Array, relative: ArrayLike, absolute: ArrayLike) -> jax.Array:
    """Rows (R, d) with `rows^T rows = (M^T M)^+`, from the singular values of M.

    Zero are those from number `rank` on, up to `relative` times the largest, and up to `absolute`.
    """
    # Of many rows, those of their triangle.
    triangle = jnp.linalg.qr(means, mode="r") if len(means) > means.shape[1] else means
    _, values, rows = jnp.linalg.svd(triangle, full_matrices=False)
    is_zero = values <= jnp.maximum(relative * values[0], absolute)
    is_zero |= jnp.arange(len(values)) >= rank
    return rows * jnp.where(is_zero, 0, 1 / jnp.where(is_zero, 1, values))[:, None]


@_inverse_root.defjvp
def _derivative_of_inverse_root(rank, primals, tangents):
    """Of functions of `rows^T rows` alone, where the rank stays as it is, and of equal values too.

    For a symmetric A of constant rank, `dA^+ = -A^+ dA A^+ + S + S^T` with `S = A^+ A^+ dA (I - A A^+)`.
    """
    (means, *_), (change, *_) = primals, tangents
    rows = _inverse_root(rank, *primals)
    image = matmul(means, rows.T)
    moved = matmul(matmul(change, rows.T).T, means) + matmul(image.T, change)
    along = matmul(matmul(moved, rows.T), rows)
    across = moved - matmul(matmul(matmul(moved, means.T), image), rows)
    return rows, matmul(matmul(rows, rows.T), across) - along / 2


@jax.custom_jvp
def _inverse_factor(gram: jax.Array) -> jax.Array:
    """The inverse of the lower Cholesky factor; NaN where there is none, with derivative 0."""
    return _inverse_of_lower(jnp.linalg.cholesky(gram))


@_inverse_factor.defjvp
def _derivative_of_inverse_factor(primals, tangents):
    inverse = _inverse_factor(*primals)
    safe = jnp.where(jnp.isfinite(inverse), inverse, 0)
    turned = matmul(matmul(safe, tangents[0]), safe.T)
    half = jnp.tril(turned) - jnp.diag(jnp.diag(turned)) / 2
    return inverse, -matmul(half, safe)


def _inverse_of_lower(triangle: jax.Array) -> jax.Array:
    """The inverse of a lower triangular matrix, by blocks.

    On CPUs one solve with all columns would wake the threads of BLAS beside those of XLA: ten times slower.
    """
    size = len(triangle)
    if size <= 16:
        identity = jnp.eye(size, dtype=triangle.dtype)
        return jax.scipy.linalg.solve_triangular(triangle, identity, lower=True)
    half = size // 2
    top, bottom = _inverse_of_lower(triangle[:half, :half]), _inverse_of_lower(triangle[half:, half:])
    corner = -matmul(bottom, matmul(triangle[half:, :half], top))
    return jnp.block([[top, jnp.zeros((half, size - half), triangle.dtype)], [corner, bottom]])
