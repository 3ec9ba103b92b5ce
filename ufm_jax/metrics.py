"""Neural collapse metrics NC1, NC2, NC3 (Appendix E) and training accuracy, as pure functions.

NC2 and NC3 are small differences between numbers near one, and NC1 divides by squares of small numbers. So
each metric is evaluated in float64 wherever JAX has it enabled, and returned in the dtype of its input.

References: Papyan, Han, Donoho, *Prevalence of Neural Collapse during the Terminal Phase of Deep Learning
Training*, PNAS 2020; Zhu et al., *A Geometric Analysis of Neural Collapse with Unconstrained Features*,
NeurIPS 2021.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ufm_jax import _checks
from ufm_jax._products import matmul


def nc1(features: chex.Array, labels: chex.Array, num_classes: int) -> chex.Array:
    """Within-class variability `trace(Sigma_W Sigma_B^+) / K`; 0 when every class has collapsed to a point.

    Sigma_W is the mean of `(h_i - mean of its class)(...)^T` over all samples, Sigma_B the mean of
    `(class mean - global mean)(...)^T` over the classes, and + the pseudo-inverse with the cutoff of
    `scipy.linalg.pinv`. Classes may differ in size; the global mean is the mean of all samples.

    Args:
        features: (N, d).
        labels: classes in 0..K-1, integers (N,), at least one sample of each.
        num_classes: K, at least 2.

    Returns:
        A scalar, at least 0; NaN under `jit` where a class has no sample.

    Raises:
        ValueError: a class has no sample, a label is out of range or K < 2 (checked outside `jit`).
    """
    means, differences, shifts = _means_and_differences(features, labels, num_classes)
    # Sigma_B^+ = K M^+ (M^+)^T for the K x d matrix M of centred class means.
    counts = _counts(labels, num_classes)
    inverse = _pseudo_inverse(means, counts)
    # The sum of squares about the mean of a class, from that about one of its samples.
    about_samples = jnp.sum(matmul(differences, inverse) ** 2)
    excess = jnp.sum(counts[:, None] * matmul(shifts, inverse) ** 2)
    return (jnp.maximum(about_samples - excess, 0) / len(labels)).astype(features.dtype)


def nc2(W: chex.Array) -> chex.Array:
    """Distance of W from a simplex ETF, `|| W W^T / ||W W^T||_F - (I - 11^T/K)/sqrt(K-1) ||_F`.

    Args:
        W: classifier rows, (K, d), K at least 2.

    Returns:
        A scalar in [0, 2]; 1 for W = 0, where the first term counts as 0.

    Raises:
        ValueError: W is not a matrix of at least two rows.
    """
    wide = _widen(_matrix("W", W))
    return _distance_to_simplex(matmul(wide, wide.T)).astype(W.dtype)


def nc3(W: chex.Array, features: chex.Array, labels: chex.Array) -> chex.Array:
    """Distance from self-duality, `|| W M^T / ||W M^T||_F - (I - 11^T/K)/sqrt(K-1) ||_F`.

    M holds the class means of the features, minus the global mean.

    Args:
        W: classifier rows, (K, d), K at least 2.
        features: (N, d).
        labels: classes in 0..K-1, integers (N,), at least one sample of each.

    Returns:
        A scalar in [0, 2]; 1 where W M^T = 0, which counts as 0 then.

    Raises:
        ValueError: W is not a matrix of at least two rows, a class has no sample, or a label is out of
            range (checked outside `jit`).
    """
    means, _, _ = _means_and_differences(features, labels, _matrix("W", W).shape[0])
    return _distance_to_simplex(matmul(_widen(W), means.T)).astype(W.dtype)


def accuracy(W: chex.Array, features: chex.Array, labels: chex.Array) -> chex.Array:
    """Share of samples whose largest score `<w_k, h>` is the true class's (the first on a tie).

    Args:
        W: classifier rows, (K, d).
        features: (N, d).
        labels: classes, integers (N,).

    Returns:
        A scalar in [0, 1] of W's dtype.
    """
    return jnp.mean(jnp.argmax(matmul(features, W.T), axis=-1) == labels, dtype=W.dtype)


def _widen(x: chex.Array) -> chex.Array:
    return jnp.asarray(x, jnp.promote_types(x.dtype, jax.dtypes.canonicalize_dtype(np.float64)))


def _matrix(name: str, x: chex.Array) -> chex.Array:
    if x.ndim != 2 or x.shape[0] < 2:
        raise ValueError(f"{name} must be a matrix of at least two rows, but has shape {x.shape}.")
    return x


def _means_and_differences(
    features: chex.Array, labels: chex.Array, num_classes: int
) -> tuple[chex.Array, chex.Array, chex.Array]:
    """Class means minus the global mean (K, d), and what they are made of.

    That is the differences of the samples to the first of their class (N, d), and the mean difference of
    each class (K, d). Close numbers subtract exactly, so that a nearly collapsed class keeps its digits and
    a collapsed one gives zero.
    """
    _checks.row_a_label(features, labels)
    _checks.every_class_present(labels, num_classes)
    features = _widen(features)
    counts = _counts(labels, num_classes).astype(features.dtype)[:, None]
    first = jax.ops.segment_min(jnp.arange(len(labels)), labels, num_classes)
    representatives = features[first]
    differences = features - representatives[labels]
    shifts = jax.ops.segment_sum(differences, labels, num_classes) / counts
    means = representatives - representatives[0] + shifts
    return means - jnp.sum(counts * means, 0) / len(labels), differences, shifts


def _counts(labels: chex.Array, num_classes: int) -> chex.Array:
    return jnp.bincount(labels, length=num_classes)


def _pseudo_inverse(means: chex.Array, counts: chex.Array) -> chex.Array:
    """M^+ (d, K) of the centred class means M (K, d), by `M^+ = M^T (M M^T)^+`.

    `counts^T M = 0`, so with u the unit vector along the counts and s > 0, `M^T (M M^T)^+ =
    M^T (M M^T + s u u^T)^-1`: a Cholesky factorization, twenty times cheaper than eigenvalues, wherever
    the means span K - 1 dimensions well.
    """
    gram = matmul(means, means.T)
    unit = counts.astype(gram.dtype) / jnp.linalg.norm(counts.astype(gram.dtype))
    scale = jnp.trace(gram) / len(gram)
    factor = jnp.linalg.cholesky(gram + scale * jnp.outer(unit, unit))
    root = _inverse_of_lower(factor)
    # The trace of the inverse bounds it, so this bounds the condition number; NaN is not below it.
    is_well_conditioned = 2 * scale * len(gram) * jnp.sum(root**2) < 1 / jnp.sqrt(jnp.finfo(gram.dtype).eps)
    inverse = jax.lax.cond(
        is_well_conditioned,
        lambda: matmul(root.T, root),
        lambda: _pseudo_inverse_of_gram(gram, max(means.shape)),
    )
    return matmul(means.T, inverse)


def _inverse_of_lower(triangle: chex.Array) -> chex.Array:
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


def _pseudo_inverse_of_gram(gram: chex.Array, size: int) -> chex.Array:
    """Pseudo-inverse of a positive semi-definite matrix; eigenvalues up to size * eps * largest are 0."""
    values, vectors = jnp.linalg.eigh(gram)
    is_zero = values <= size * jnp.finfo(values.dtype).eps * values[-1]
    inverses = jnp.where(is_zero, 0, 1 / jnp.where(is_zero, 1, values))
    return matmul(vectors * inverses, vectors.T)


def _distance_to_simplex(gram: chex.Array) -> chex.Array:
    k = gram.shape[0]
    norm = jnp.linalg.norm(gram)
    simplex = (jnp.eye(k, dtype=gram.dtype) - 1 / k) / np.sqrt(k - 1)
    return jnp.linalg.norm(gram / jnp.where(norm > 0, norm, 1) - simplex)
