"""The classifier against the class means: NC3 in its other forms, the bias, NC5, and the squared error.

Dtypes and frameworks are those of `ufm_jax.metrics.nc3`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from ufm_jax import _checks
from ufm_jax._products import matmul, norm, root
from ufm_jax.metrics import pairs
from ufm_jax.metrics.classes import (
    Absent,
    Centres,
    GlobalMean,
    Whole,
    bias_of,
    directions,
    whole,
    widen,
    with_classifier,
)


def self_duality(
    W: ArrayLike,
    features: ArrayLike,
    labels: ArrayLike,
    *,
    squared: bool = True,
    global_mean: GlobalMean = "samples",
    absent: Absent = "error",
) -> jax.Array:
    """NC3 as Papyan, Han and Donoho plot it, `|| W/||W||_F - M/||M||_F ||_F^2`; 0 at collapse.

    M holds the class means minus the global mean. `nc3`, the form of Zhu et al., is 0 only if W is a
    simplex ETF too; this one for any W along the means.

    Args:
        W: classifier rows, (K, d), K at least 2.
        features: (N, d).
        labels: classes in 0..K-1, integers (N,), at least one sample of each.
        squared: whether the norm is squared, as in their notebook.
        global_mean: of all "samples", or the mean of the means of the "classes".
        absent: "skip" leaves out classes without a sample, and their rows of W.

    Returns:
        A scalar in [0, 4], or in [0, 2] where it is not squared.

    Raises:
        ValueError: W is not a matrix of at least two rows, a class has no sample, a label is out of
            range (checked outside `jit`), or an option is none of these.

    >>> print(f"{ufm.metrics.self_duality([[1.0, -1.0], [-1.0, 1.0]], np.eye(2), [0, 1]):.4f}")
    0.0000

    Reference: Papyan, Han, Donoho, PNAS 2020, figure 5.
    """
    W, data = with_classifier(W, features, labels, global_mean, absent)
    square = square_of_difference(data.rows(W), data.centres.centred)
    return (square if squared else root(square)).astype(W.dtype)


def similarities(
    W: ArrayLike,
    features: ArrayLike,
    labels: ArrayLike,
    *,
    cosine: bool = False,
    global_mean: GlobalMean = "samples",
    absent: Absent = "error",
) -> jax.Array:
    """The inner product of each row of W with its centred class mean; all equal at collapse.

    Args:
        W: classifier rows, (K, d), K at least 2.
        features: (N, d).
        labels: classes in 0..K-1, integers (N,), at least one sample of each.
        cosine: whether it is the cosine, which is 1 at collapse.
        global_mean: of all "samples", or the mean of the means of the "classes".
        absent: "skip" leaves out classes without a sample, and their rows of W.

    Returns:
        (K,), in W's dtype.

    Raises:
        ValueError: W is not a matrix of at least two rows, a class has no sample, a label is out of
            range (checked outside `jit`), or an option is none of these.

    >>> print(ufm.metrics.similarities([[3.0, -1.0], [-1.0, 1.0]], np.eye(2), [0, 1]))
    [2. 1.]

    Reference: Wu, Papyan, *Linguistic Collapse*, NeurIPS 2024.
    """
    W, data = with_classifier(W, features, labels, global_mean, absent)
    return similarities_of(data.rows(W), data.centres.centred, data.centres.unit, cosine).astype(W.dtype)


def unc3(
    W: ArrayLike,
    features: ArrayLike,
    labels: ArrayLike,
    *,
    cosine: bool = False,
    unbiased: bool = False,
    global_mean: GlobalMean = "samples",
    absent: Absent = "error",
) -> jax.Array:
    """Uniform duality, the variance over the classes of `<w_k, mean of class k>`; 0 at collapse.

    Args:
        W: classifier rows, (K, d), K at least 2.
        features: (N, d).
        labels: classes in 0..K-1, integers (N,), at least one sample of each.
        cosine: whether cosines take the place of inner products.
        unbiased: whether the variance is divided by K - 1 in place of K, as in Wu and Papyan's code.
        global_mean: of all "samples", or the mean of the means of the "classes".
        absent: "skip" leaves out classes without a sample, and their rows of W.

    Returns:
        A scalar, at least 0.

    Raises:
        ValueError: W is not a matrix of at least two rows, a class has no sample, a label is out of
            range (checked outside `jit`), or an option is none of these.

    >>> print(f"{ufm.metrics.unc3([[3.0, -1.0], [-1.0, 1.0]], np.eye(2), [0, 1]):.3f}")
    0.250

    Reference: Wu, Papyan, *Linguistic Collapse*, NeurIPS 2024, UNC3.
    """
    W, data = with_classifier(W, features, labels, global_mean, absent)
    values = similarities_of(data.rows(W), data.centres.centred, data.centres.unit, cosine)
    return jnp.var(values, ddof=int(unbiased)).astype(W.dtype)


def bias_duality(
    W: ArrayLike,
    features: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    global_mean: GlobalMean = "samples",
    absent: Absent = "error",
) -> jax.Array:
    """Collapse of the bias, `|W m + b|` with m the global mean: at collapse the bias takes the mean away.

    Args:
        W: classifier rows, (K, d), K at least 2.
        features: (N, d).
        labels: classes in 0..K-1, integers (N,), at least one sample of each.
        bias: of the classifier, (K,); zero if None.
        global_mean: of all "samples", as Zhu et al. have it, or the mean of the means of the "classes".
        absent: "skip" leaves out classes without a sample, with their rows of W and entries of the bias.

    Returns:
        A scalar, at least 0.

    Raises:
        ValueError: W is not a matrix of at least two rows, a class has no sample, a label is out of
            range (checked outside `jit`), or an option is none of these.

    >>> print(f"{ufm.metrics.bias_duality(np.eye(2), np.eye(2), [0, 1], [-0.5, -0.5]):.3f}")
    0.000

    Reference: Zhu et al., *A Geometric Analysis of Neural Collapse*, NeurIPS 2021.
    """
    W, data = with_classifier(W, features, labels, global_mean, absent)
    offsets = matmul(data.rows(W), data.centres.global_mean) + _bias(data, W, bias)
    return norm(offsets).astype(W.dtype)


def nc5(
    features: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    outside: ArrayLike,
    *,
    global_mean: GlobalMean | None = None,
    absent: Absent = "error",
) -> jax.Array:
    """Orthogonality to what is out of distribution, the mean over k of `|cos(m_k, mean of outside)|`; 0.

    Args:
        features: (N, d).
        labels: classes in 0..K-1, integers (N,), at least one sample of each.
        num_classes: K, at least 2.
        outside: features of samples out of distribution, (M, d).
        global_mean: subtracted from the class means, and not from the mean outside; None, as in NECO, for
            means as they are.
        absent: "skip" leaves out classes without a sample.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: a class has no sample, a label is out of range, K < 2 (checked outside `jit`), shapes do
            not fit, or an option is none of these.

    >>> print(f"{ufm.metrics.nc5(np.eye(2, 3), [0, 1], 2, [[0.0, 0.0, 2.0], [0.0, 1.0, 1.0]]):.4f}")
    0.1581

    Reference: Ammar et al., *NECO: Neural Collapse Based Out-of-Distribution Detection*, ICLR 2024.
    """
    data = whole(features, labels, num_classes, None, global_mean or "samples", absent)
    columns = data.features.shape[1]
    outside = widen(_checks.real("outside", _checks.matrix("outside", outside, columns=columns)))
    vectors = data.centres.means if global_mean is None else data.centres.centred
    return cosines_with(vectors, jnp.mean(outside, 0)).astype(data.dtype)


class SquaredErrorParts(NamedTuple):
    """The squared error of a classifier, in the parts of Han, Papyan and Donoho.

    Attributes:
        total: `mean_i |W h_i + b - y_i|^2 / 2` plus the decay; the sum of the parts.
        nc1: of variability within classes, at the least-squares classifier.
        nc23: of class means that the least-squares classifier does not map to their labels.
        perpendicular: of the distance of the classifier from the least-squares one.
    """

    total: jax.Array
    nc1: jax.Array
    nc23: jax.Array
    perpendicular: jax.Array


def squared_error_decomposition(
    W: ArrayLike,
    features: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    weight_decay: float = 0.0,
    absent: Absent = "error",
) -> SquaredErrorParts:
    """The squared error as `L_NC1 + L_NC2/3 + L_perp`, about the least-squares classifier of the features.

    With x = (h, 1), or h without a bias, V = (W, b), S the mean of `x x^T`, p_k the share of class k and C
    the columns `p_k (m_k, 1)`, the least-squares classifier is `V* = C^T (S + weight_decay I)^+`, and

        L_NC1   = tr(V* (Sigma_W + weight_decay I) V*^T) / 2
        L_NC2/3 = sum_k p_k |V* (m_k, 1) - e_k|^2 / 2
        L_perp  = tr((V - V*) (S + weight_decay I) (V - V*)^T) / 2.

    Their sum is `mean_i |V x_i - y_i|^2 / 2 + weight_decay |V|^2 / 2`. Han, Papyan and Donoho have classes
    of equal size, p_k = 1/K.

    Args:
        W: classifier rows, (K, d), K at least 2.
        features: (N, d).
        labels: classes in 0..K-1, integers (N,), at least one sample of each.
        bias: of the classifier, (K,); without one, the least-squares classifier has none either.
        weight_decay: of classifier and bias, at least 0.
        absent: "skip" leaves out classes without a sample, with their rows of W and entries of the bias.

    Returns:
        Four scalars of W's dtype, each at least 0.

    Raises:
        ValueError: W is not a matrix of at least two rows, a class has no sample, a label is out of
            range, the decay is negative (checked outside `jit`), or an option is none of these.

    >>> parts = ufm.metrics.squared_error_decomposition(2 * np.eye(2), np.eye(2), [0, 1])
    >>> print(f"{parts.total:.1f} = {parts.nc1:.1f} + {parts.nc23:.1f} + {parts.perpendicular:.1f}")
    0.5 = 0.0 + 0.0 + 0.5

    Reference: Han, Papyan, Donoho, *Neural Collapse Under MSE Loss: Proximity to and Dynamics on the
    Central Path*, ICLR 2022.
    """
    _checks.at_least("weight_decay", weight_decay, 0)
    W, data = with_classifier(W, features, labels, "samples", absent)
    scatter = matmul(data.deviations.T, data.deviations) * (data.centres.unit**2 / len(data.labels))
    found = squared_error_parts(
        data.rows(W),
        None if bias is None else _bias(data, W, bias),
        data.centres,
        scatter,
        weight_decay,
    )
    return SquaredErrorParts(*(part.astype(W.dtype) for part in found))


def squared_error_parts(
    W: jax.Array, bias: jax.Array | None, centres: Centres, within: jax.Array, weight_decay: float = 0.0
) -> SquaredErrorParts:
    """The parts, from the class means, centred by that of all samples, and Sigma_W (d, d).

    A bias is eliminated: with m the global mean, c_k = m_k - m, `V (m_k, 1) = W c_k + (W m + b)`, and
    `W*` solves the least squares of deviations from m. What the features share costs no digits then.
    """
    p, m = centres.frequencies, centres.global_mean
    if bias is None:
        c, m, b, shrinkage = centres.means, jnp.zeros_like(m), jnp.zeros_like(p), 0.0
    else:
        c, b, shrinkage = centres.centred * centres.unit, bias, weight_decay / (1 + weight_decay)
    weighted = p[:, None] * c
    covariance = within + matmul(c.T, weighted)
    decay = weight_decay * jnp.eye(len(m), dtype=m.dtype) + shrinkage * jnp.outer(m, m)
    inverse = jnp.linalg.pinv(covariance + decay, rtol=len(m) * jnp.finfo(m.dtype).eps, hermitian=True)
    best = matmul(weighted + shrinkage * jnp.outer(p, m), inverse)
    # V and V* at the global mean, and their biases.
    at_mean = matmul(W, m) + b
    best_at_mean = jnp.zeros_like(b) if bias is None else p + shrinkage * (matmul(best, m) - p)
    best_b = best_at_mean - matmul(best, m)

    def of_means(W, at_mean):
        def of_block(block):
            rows, share, index = block
            errors = matmul(rows, W.T) + at_mean - jax.nn.one_hot(index, len(c), dtype=rows.dtype)
            return share * jnp.sum(errors**2, -1)

        return jnp.sum(pairs.in_blocks(of_block, (c, p, jnp.arange(len(c))), len(c))) / 2

    def quadratic(W, b, matrix):
        return (jnp.sum(matmul(W, matrix) * W) + weight_decay * (jnp.sum(W**2) + jnp.sum(b**2))) / 2

    # The total needs no least-squares classifier, and keeps its digits where that loses some.
    return SquaredErrorParts(
        quadratic(W, b, within) + of_means(W, at_mean),
        quadratic(best, best_b, within),
        of_means(best, best_at_mean),
        quadratic(W - best, b - best_b, covariance) + jnp.sum((at_mean - best_at_mean) ** 2) / 2,
    )


def square_of_difference(ours: jax.Array, theirs: jax.Array) -> jax.Array:
    """`|A/|A| - B/|B||^2` of two matrices; zeros stay zeros."""
    a, b = directions(ours.reshape(1, -1)), directions(theirs.reshape(1, -1))
    return jnp.sum((a - b) ** 2)


def similarities_of(W: jax.Array, centred: jax.Array, unit: jax.Array, cosine: bool) -> jax.Array:
    """Inner products, or cosines, of the rows of W and of means (K, d) in units of `unit`."""
    if cosine:
        return jnp.sum(directions(W) * directions(centred), -1)
    return jnp.sum(W * centred, -1) * unit


def cosines_with(vectors: jax.Array, vector: jax.Array) -> jax.Array:
    """The mean of `|cos|` between rows (K, d) and a vector (d,)."""
    return jnp.mean(jnp.abs(matmul(directions(vectors), directions(vector[None])[0])))


def _bias(data: Whole, W: jax.Array, bias: ArrayLike | None) -> jax.Array:
    """The bias of the classes that are kept, in the widest dtype; zeros if None."""
    found = bias_of(bias, len(W))
    return data.rows(jnp.zeros(len(W)) if found is None else found)
