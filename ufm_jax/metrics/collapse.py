"""Neural collapse metrics NC1, NC2, NC3 (Appendix E), NC4, CDNV, and training accuracy, as pure functions.

NC2 and NC3 are small differences between numbers near one, and NC1 and CDNV divide by squares of small
numbers. So each metric is evaluated in float64 wherever JAX has it enabled, and returned in the dtype of
W, or of the features where there is no W. Integers and booleans count as JAX's default float, and bfloat16
and float16 as float32. All arrays may be of NumPy, JAX or PyTorch, or nested lists.

References: Papyan, Han, Donoho, *Prevalence of Neural Collapse during the Terminal Phase of Deep Learning
Training*, PNAS 2020; Zhu et al., *A Geometric Analysis of Neural Collapse with Unconstrained Features*,
NeurIPS 2021; Galanti, Gyorgy, Hutter, *On the Role of Neural Collapse in Transfer Learning*, ICLR 2022.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ufm_jax import _checks
from ufm_jax._products import matmul


def nc1(features: ArrayLike, labels: ArrayLike, num_classes: int) -> jax.Array:
    """Within-class variability `trace(Sigma_W Sigma_B^+) / K`; 0 when every class has collapsed to a point.

    Sigma_W is the mean of `(h_i - mean of its class)(...)^T` over all samples, Sigma_B the mean of
    `(class mean - global mean)(...)^T` over the classes, and + the pseudo-inverse with the cutoff of
    `scipy.linalg.pinv`. Classes may differ in size; the global mean is the mean of all samples. Only
    the variability along the class means counts: where these are exactly equal, Sigma_B is zero, and so is
    NC1, however widely the features are spread; where they differ by rounding errors, it is huge.

    Args:
        features: (N, d).
        labels: classes in 0..K-1, integers (N,), at least one sample of each.
        num_classes: K, at least 2.

    Returns:
        A scalar, at least 0; NaN under `jit` where a class has no sample.

    Raises:
        ValueError: a class has no sample, a label is out of range or K < 2 (checked outside `jit`).
    """
    features, labels = labelled(features, labels, num_classes)
    classes = _in_units_of_spread(classes_of(features, labels, num_classes))
    # Sigma_B^+ = K M^+ (M^+)^T for the K x d matrix M of centred class means.
    counts = classes.counts
    inverse = _pseudo_inverse(classes.centred, counts)
    # The sum of squares about the mean of a class, from that about one of its samples.
    about_samples = jnp.sum(matmul(classes.differences, inverse) ** 2)
    excess = jnp.sum(counts[:, None] * matmul(classes.shifts, inverse) ** 2)
    return (jnp.maximum(about_samples - excess, 0) / len(labels)).astype(features.dtype)


def nc2(W: ArrayLike) -> jax.Array:
    """Distance of W from a simplex ETF, `|| W W^T / ||W W^T||_F - (I - 11^T/K)/sqrt(K-1) ||_F`.

    Args:
        W: classifier rows, (K, d), K at least 2.

    Returns:
        A scalar in [0, 2]; 1 for W = 0, where the first term counts as 0.

    Raises:
        ValueError: W is not a matrix of at least two rows.
    """
    W = classifier(W)
    wide = scaled(widen(W))
    return distance_to_simplex(matmul(wide, wide.T)).astype(W.dtype)


def nc3(W: ArrayLike, features: ArrayLike, labels: ArrayLike) -> jax.Array:
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
    W = classifier(W)
    classes = classes_of(*labelled(features, labels, *W.shape), len(W))
    return distance_to_simplex(matmul(scaled(widen(W)), scaled(classes.centred).T)).astype(W.dtype)


def nc4(W: ArrayLike, features: ArrayLike, labels: ArrayLike, bias: ArrayLike | None = None) -> jax.Array:
    """Share of samples that the classifier and the nearest class mean decide alike; 1 at collapse.

    That is `argmax_k <w_k, h> + b_k = argmin_k ||h - mean of class k||`, the first on a tie; the label of a
    sample counts only for the means. Papyan, Han and Donoho plot the share of the others, 1 - NC4.

    Args:
        W: classifier rows, (K, d), K at least 2.
        features: (N, d).
        labels: classes in 0..K-1, integers (N,), at least one sample of each.
        bias: of the classifier, (K,); none if None.

    Returns:
        A scalar in [0, 1] of W's dtype, NaN under `jit` where a class has no sample. W = 0 decides for
        class 0 everywhere.

    Raises:
        ValueError: W is not a matrix of at least two rows, a class has no sample, or a label is out of
            range (checked outside `jit`).
    """
    W = classifier(W)
    features, labels = labelled(features, labels, *W.shape)
    classes = classes_of(features, labels, len(W))
    agree = decisions(W, features, bias) == nearest(classes.means, widen(features))
    return jnp.where(jnp.all(classes.counts > 0), jnp.mean(agree, dtype=W.dtype), jnp.nan)


def cdnv(features: ArrayLike, labels: ArrayLike, num_classes: int) -> jax.Array:
    """Class-distance normalized variance; 0 when every class has collapsed to a point of its own.

    The mean over the pairs i != j of `(Var_i + Var_j) / (2 ||mean_i - mean_j||^2)`, Var_i the mean squared
    distance of the samples of class i to their mean.

    Args:
        features: (N, d).
        labels: classes in 0..K-1, integers (N,), at least one sample of each.
        num_classes: K, at least 2.

    Returns:
        A scalar, at least 0, NaN under `jit` where a class has no sample. A pair of equal means counts as
        infinite, and as 0 if its variances are 0.

    Raises:
        ValueError: a class has no sample, a label is out of range or K < 2 (checked outside `jit`).

    Reference: Galanti, Gyorgy, Hutter, *On the Role of Neural Collapse in Transfer Learning*, ICLR 2022.
    """
    features, labels = labelled(features, labels, num_classes)
    classes = _in_units_of_spread(classes_of(features, labels, num_classes))
    squares = jax.ops.segment_sum(jnp.sum(classes.differences**2, -1), labels, num_classes)
    # About the mean of a class, from about one of its samples.
    variances = jnp.maximum(squares / classes.counts - jnp.sum(classes.shifts**2, -1), 0)
    return cdnv_of(classes.centred, variances).astype(features.dtype)


def accuracy(W: ArrayLike, features: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Share of samples whose largest score `<w_k, h>` is the true class's (the first on a tie).

    Args:
        W: classifier rows, (K, d), K at least 2.
        features: (N, d).
        labels: classes in 0..K-1, integers (N,).

    Returns:
        A scalar in [0, 1] of W's dtype.

    Raises:
        ValueError: a shape is none of these, or a label is out of range (checked outside `jit`).
    """
    W = classifier(W)
    features, labels = labelled(features, labels, *W.shape)
    return jnp.mean(decisions(W, features) == labels, dtype=W.dtype)


class Classes(NamedTuple):
    """Features by class. Close numbers subtract exactly, so that a nearly collapsed class keeps its digits.

    Attributes:
        counts: samples of each class, (K,).
        means: of each class, (K, d).
        centred: the means minus the mean of all samples, (K, d).
        differences: of each sample to the first of its class, (N, d); zero in a collapsed class.
        shifts: of each class, the mean of its differences, (K, d).
    """

    counts: jax.Array
    means: jax.Array
    centred: jax.Array
    differences: jax.Array
    shifts: jax.Array


def labelled(
    features: ArrayLike, labels: ArrayLike, num_classes: int, dim: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Features (N, d) in float32 or float64 and labels (N,) in int32, after the checks of both."""
    _checks.at_least("num_classes", num_classes, 2)
    features = _checks.real("features", _checks.matrix("features", features, columns=dim))
    return features, _checks.class_labels(labels, num_classes, shape=features.shape[:1])


def classifier(W: ArrayLike) -> jax.Array:
    """W (K, d) in float32 or float64, after its check."""
    return _checks.real("W", _checks.matrix("W", W, rows=2))


def classes_of(features: jax.Array, labels: jax.Array, num_classes: int) -> Classes:
    """The classes of features (N, d) with labels (N,), of which every class needs one."""
    _checks.every_class_present(labels, num_classes)
    features = widen(features)
    counts = jnp.bincount(labels, length=num_classes).astype(features.dtype)
    first = jax.ops.segment_min(jnp.arange(len(labels)), labels, num_classes)
    representatives = features[first]
    differences = features - representatives[labels]
    shifts = jax.ops.segment_sum(differences, labels, num_classes) / counts[:, None]
    from_first = representatives - representatives[0] + shifts
    centred = from_first - jnp.sum(counts[:, None] * from_first, 0) / len(labels)
    return Classes(counts, representatives + shifts, centred, differences, shifts)


def _in_units_of_spread(classes: Classes) -> Classes:
    """The classes with differences in units of the largest: their squares neither vanish nor overflow."""
    parts = (classes.centred, classes.differences)
    largest = jax.lax.stop_gradient(jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in parts])))
    unit = jnp.where(largest > 0, largest, 1)
    return classes._replace(
        centred=classes.centred / unit, differences=classes.differences / unit, shifts=classes.shifts / unit
    )


def decisions(W: jax.Array, features: jax.Array, bias: ArrayLike | None = None) -> jax.Array:
    """The class (N,) of the largest score of each sample (N, d), the first on a tie."""
    scores = matmul(features, W.T)
    if bias is not None:
        bias = _checks.real("bias", bias)
        if bias.shape != W.shape[:1]:
            raise ValueError(f"bias must have an entry a class, {len(W)}, but has shape {bias.shape}.")
        scores = scores + bias
    return jnp.argmax(scores, axis=-1)


def nearest(means: jax.Array, features: jax.Array) -> jax.Array:
    """The class (N,) of the mean (K, d) nearest to each sample (N, d)."""
    # ||h - m||^2 = ||h||^2 - 2 (<h, m> - ||m||^2 / 2), about the middle, where it is rounded least.
    middle = jnp.mean(means, 0)
    means = means - middle
    return jnp.argmax(matmul(features - middle, means.T) - jnp.sum(means**2, -1) / 2, axis=-1)


def cdnv_of(means: jax.Array, variances: jax.Array) -> jax.Array:
    """CDNV of classes with these means (K, d) and variances (K,)."""
    num_classes = len(means)
    sums, squares = variances[:, None] + variances, _squared_distances(means)
    apart = squares != 0
    # A quotient by 0 would spoil derivatives also where it is not used.
    ratios = jnp.where(apart, sums / (2 * jnp.where(apart, squares, 1)), jnp.where(sums == 0, 0, jnp.inf))
    is_pair = ~jnp.eye(num_classes, dtype=bool)
    return jnp.sum(jnp.where(is_pair, ratios, 0)) / (num_classes * (num_classes - 1))


@jax.jit
def _squared_distances(points: jax.Array) -> jax.Array:
    """Between all pairs of rows of (K, d), (K, K).

    Not by products, which would lose the distance of two close points; and compiled, so that the (K, K, d)
    differences are never in memory.
    """
    return jnp.sum((points[:, None] - points) ** 2, -1)


def widen(x: jax.Array) -> jax.Array:
    """`x` in float64 where JAX has it enabled."""
    return jnp.asarray(x, jnp.promote_types(x.dtype, jax.dtypes.canonicalize_dtype(np.float64)))


def scaled(x: jax.Array) -> jax.Array:
    """`x` over its largest entry, so that products of tiny entries do not vanish; zeros stay zeros."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
    return x / jnp.where(largest > 0, largest, 1)


def _pseudo_inverse(means: jax.Array, counts: jax.Array) -> jax.Array:
    """M^+ (d, K) of the centred class means M (K, d), by `M^+ = M^T (M M^T)^+`.

    `counts^T M = 0`, so with u the unit vector along the counts and s > 0, `M^T (M M^T)^+ =
    M^T (M M^T + s u u^T)^-1`: a Cholesky factorization, twenty times cheaper than eigenvalues, wherever
    the means span K - 1 dimensions well. Elsewhere M itself is decomposed, since its square has half of its
    digits.
    """
    gram = matmul(means, means.T)
    unit = counts / jnp.linalg.norm(counts)
    scale = jnp.trace(gram) / len(gram)
    factor = jnp.linalg.cholesky(gram + scale * jnp.outer(unit, unit))
    root = _inverse_of_lower(factor)
    # The trace of the inverse bounds it, so this bounds the condition number; NaN is not below it.
    is_well_conditioned = 2 * scale * len(gram) * jnp.sum(root**2) < 1 / jnp.sqrt(jnp.finfo(gram.dtype).eps)
    return jax.lax.cond(
        is_well_conditioned,
        lambda: matmul(means.T, matmul(root.T, root)),
        lambda: _pseudo_inverse_by_svd(means),
    )


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


def _pseudo_inverse_by_svd(matrix: jax.Array) -> jax.Array:
    """Pseudo-inverse of M (K, d), with the cutoff that SciPy has for its square (d, d)."""
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    cutoff = matrix.shape[1] * jnp.finfo(values.dtype).eps
    is_zero = values**2 <= cutoff * values[0] ** 2
    inverses = jnp.where(is_zero, 0, 1 / jnp.where(is_zero, 1, values))
    return matmul(right.T * inverses, left.T)


def distance_to_simplex(gram: jax.Array) -> jax.Array:
    """Distance of a matrix (K, K), scaled to unit norm, from `(I - 11^T/K)/sqrt(K-1)`."""
    k = gram.shape[0]
    norm = jnp.linalg.norm(gram)
    simplex = (jnp.eye(k, dtype=gram.dtype) - 1 / k) / np.sqrt(k - 1)
    return jnp.linalg.norm(gram / jnp.where(norm > 0, norm, 1) - simplex)
