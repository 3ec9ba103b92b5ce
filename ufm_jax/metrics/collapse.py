"""Neural collapse metrics NC1, NC2, NC3 (Appendix E), NC4, CDNV, and training accuracy, as pure functions.

NC2 and NC3 are small differences between numbers near one, and NC1 and CDNV divide by squares of small
numbers. So each metric is evaluated in float64 wherever JAX has it enabled, and returned in the dtype of
W, or of the features where there is no W. Integers and booleans count as JAX's default float, and bfloat16
and float16 as float32. All arrays may be of NumPy, JAX or PyTorch, or nested lists. Nothing factors or
holds a K x K matrix where d is smaller, or holds the scores of all samples.

References: Papyan, Han, Donoho, *Prevalence of Neural Collapse during the Terminal Phase of Deep Learning
Training*, PNAS 2020; Zhu et al., *A Geometric Analysis of Neural Collapse with Unconstrained Features*,
NeurIPS 2021; Galanti, Gyorgy, Hutter, *On the Role of Neural Collapse in Transfer Learning*, ICLR 2022.
"""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ufm_jax import _checks
from ufm_jax._products import matmul, power_of_two, root, share
from ufm_jax.metrics import pairs
from ufm_jax.metrics.classes import (
    Absent,
    Centres,
    GlobalMean,
    Whole,
    bias_of,
    by_class,
    classifier,
    labelled,
    scaled,
    whole,
    widen,
    with_classifier,
)
from ufm_jax.metrics.whitening import whitened_squares, whitening_of


def nc1(
    features: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    global_mean: GlobalMean = "samples",
    over_classes: bool = True,
    per_class: bool = False,
    absent: Absent = "error",
) -> jax.Array:
    """Within-class variability `trace(Sigma_W Sigma_B^+) / K`; 0 when every class has collapsed to a point.

    Sigma_W is the mean of `(h_i - mean of its class)(...)^T` over all samples, Sigma_B the mean of
    `(class mean - global mean)(...)^T` over the classes, and + the pseudo-inverse with the cutoff of
    `scipy.linalg.pinv`. Classes may differ in size. Only the variability along the class means counts:
    where these are exactly equal, Sigma_B is zero, and so is NC1, however widely the features are spread;
    where they differ by rounding errors, it is huge.

    Args:
        features: (N, d).
        labels: classes in 0..K-1, integers (N,), at least one sample of each.
        num_classes: K, at least 2.
        global_mean: of all "samples", as Zhu et al. have it, or the mean of the means of the "classes".
        over_classes: whether to divide by K, as most do and Papyan, Han and Donoho's notebook does not.
        per_class: whether each class has its own value, with its own covariance in place of Sigma_W; their
            mean, weighed by the class sizes, is NC1.
        absent: "skip" leaves out classes without a sample, and K is the number of the others.

    Returns:
        A scalar, at least 0, or (K,); NaN under `jit` where a class has no sample.

    Raises:
        ValueError: a class has no sample, a label is out of range, K < 2 (checked outside `jit`), or an
            option is none of these.

    >>> features = [[2.0, 0.0], [4.0, 0.0], [0.0, 3.0], [0.0, 3.0]]
    >>> print(f"{ufm.metrics.nc1(features, [0, 0, 1, 1], 2):.4f}")
    0.0278
    """
    data = whole(features, labels, num_classes, None, global_mean, absent)
    counts = data.centres.counts
    weights = counts if global_mean == "samples" else jnp.ones_like(counts)
    rows = whitening_of(data.centres.centred, weights, data.centres.rounded)
    squares = whitened_squares(data.deviations, rows)
    divisor = len(counts) if over_classes else 1
    return (_means(squares, data, per_class) / divisor).astype(data.dtype)


def nc1_quotient(
    features: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    global_mean: GlobalMean = "samples",
    absent: Absent = "error",
) -> jax.Array:
    """Within-class variability `trace(Sigma_W) / trace(Sigma_B)`, which no small eigenvalue can blow up.

    Args:
        features: (N, d).
        labels: classes in 0..K-1, integers (N,), at least one sample of each.
        num_classes: K, at least 2.
        global_mean: of all "samples", or the mean of the means of the "classes".
        absent: "skip" leaves out classes without a sample.

    Returns:
        A scalar, at least 0; infinite where all class means are equal, or 0 if nothing varies.

    Raises:
        ValueError: a class has no sample, a label is out of range, K < 2 (checked outside `jit`), or an
            option is none of these.

    >>> features = [[2.0, 0.0], [4.0, 0.0], [0.0, 3.0], [0.0, 3.0]]
    >>> print(f"{ufm.metrics.nc1_quotient(features, [0, 0, 1, 1], 2):.4f}")
    0.1111

    Reference: Tirer, Huang, Niles-Weed, *Perturbation Analysis of Neural Collapse*, ICML 2023.
    """
    data = whole(features, labels, num_classes, None, global_mean, absent)
    within = jnp.sum(data.deviations**2) / len(data.labels)
    return quotient(within, jnp.sum(data.centres.centred**2) / len(data.kept)).astype(data.dtype)


def nc2(W: ArrayLike) -> jax.Array:
    """Distance of W from a simplex ETF, `|| W W^T / ||W W^T||_F - (I - 11^T/K)/sqrt(K-1) ||_F`.

    Given centred class means (`ufm_jax.metrics.class_means`) in place of W, it is the NC2 of class means.

    Args:
        W: classifier rows, (K, d), K at least 2.

    Returns:
        A scalar in [0, 2]; 1 for W = 0, where the first term counts as 0.

    Raises:
        ValueError: W is not a matrix of at least two rows.

    >>> print(f"{ufm.metrics.nc2(np.eye(3)):.4f}")
    0.6058
    """
    W = classifier(W)
    wide = scaled(widen(W))
    return distance_to_simplex(wide, wide).astype(W.dtype)


def nc3(
    W: ArrayLike,
    features: ArrayLike,
    labels: ArrayLike,
    *,
    global_mean: GlobalMean = "samples",
    absent: Absent = "error",
) -> jax.Array:
    """Distance from self-duality, `|| W M^T / ||W M^T||_F - (I - 11^T/K)/sqrt(K-1) ||_F`.

    M holds the class means of the features, minus the global mean. Papyan, Han and Donoho's other form of
    NC3 is `ufm_jax.metrics.self_duality`.

    Args:
        W: classifier rows, (K, d), K at least 2.
        features: (N, d).
        labels: classes in 0..K-1, integers (N,), at least one sample of each.
        global_mean: of all "samples", or the mean of the means of the "classes".
        absent: "skip" leaves out classes without a sample, and their rows of W.

    Returns:
        A scalar in [0, 2]; 1 where W M^T = 0, which counts as 0 then. For K > 2d that is where
        `||W M^T||^2` is below `d eps ||W^T W|| ||M^T M||`, 2.4e-6 of it at d = 20 in float32.

    Raises:
        ValueError: W is not a matrix of at least two rows, a class has no sample, a label is out of
            range (checked outside `jit`), or an option is none of these.

    >>> print(f"{ufm.metrics.nc3(np.eye(3), np.eye(3), [0, 1, 2]):.4f}")
    0.0000
    """
    W, data = with_classifier(W, features, labels, global_mean, absent)
    return distance_to_simplex(scaled(data.rows(W)), data.centres.centred).astype(W.dtype)


def nc4(
    W: ArrayLike,
    features: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    per_class: bool = False,
    absent: Absent = "error",
) -> jax.Array:
    """Share of samples that the classifier and the nearest class mean decide alike; 1 at collapse.

    That is `argmax_k <w_k, h> + b_k = argmin_k ||h - mean of class k||`, the first on a tie; the label of a
    sample counts only for the means. Papyan, Han and Donoho plot the share of the others, 1 - NC4.

    Args:
        W: classifier rows, (K, d), K at least 2.
        features: (N, d).
        labels: classes in 0..K-1, integers (N,), at least one sample of each.
        bias: of the classifier, (K,); none if None.
        per_class: whether each class has its own value.
        absent: "skip" leaves out the means of classes without a sample; the classifier may still decide for
            such a class, and then does not agree.

    Returns:
        A scalar in [0, 1] of W's dtype, or (K,); NaN where features, W or the bias are not finite, and
        under `jit` where a class has no sample. W = 0 decides for class 0 everywhere.

    Raises:
        ValueError: W is not a matrix of at least two rows, a class has no sample, a label is out of
            range (checked outside `jit`), or an option is none of these.

    >>> features = [[2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 2.0]]
    >>> print(f"{ufm.metrics.nc4(np.eye(2), features, [0, 0, 1, 1], bias=[0.0, 1.5]):.3f}")
    0.750
    """
    W, data = with_classifier(W, features, labels, absent=absent)
    bias = bias_of(bias, len(W))
    # About the global mean and in its unit, as the deviations are.
    centred = data.centres.centred
    near = jnp.asarray(data.kept)[nearest(centred, data.deviations + centred[data.labels])]
    agree = (decisions(widen(W), data.features, bias) == near).astype(data.features.dtype)
    is_known = are_known(data.centres) & are_finite(W, bias)
    return jnp.where(is_known, _means(agree, data, per_class), jnp.nan).astype(W.dtype)


def cdnv(
    features: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    exponent: float = 1,
    halved: bool = True,
    per_class: bool = False,
    absent: Absent = "error",
) -> jax.Array:
    """Class-distance normalized variance; 0 when every class has collapsed to a point of its own.

    The mean over the pairs i != j of `(Var_i + Var_j) / (2 ||mean_i - mean_j||^2)`, Var_i the mean squared
    distance of the samples of class i to their mean.

    Args:
        features: (N, d).
        labels: classes in 0..K-1, integers (N,), at least one sample of each.
        num_classes: K, at least 2.
        exponent: of the squared distance, positive, static; 2 is the form of Wu and Papyan (their
            `dist_exp`).
        halved: whether the sum of the two variances is halved, as Galanti, Gyorgy and Hutter have it; twice
            that is Galanti's form of 2026.
        per_class: whether each class i has its own mean over j.
        absent: "skip" leaves out classes without a sample.

    Returns:
        A scalar, at least 0, or (K,); NaN under `jit` where a class has no sample. A pair of equal means
        counts as infinite, and as 0 if its variances are 0.

    Raises:
        ValueError: a class has no sample, a label is out of range, K < 2 (checked outside `jit`), the
            exponent is not positive, or an option is none of these.

    >>> features = [[2.0, 0.0], [4.0, 0.0], [0.0, 3.0], [0.0, 3.0]]
    >>> print(f"{ufm.metrics.cdnv(features, [0, 0, 1, 1], 2):.4f}")
    0.0278

    References: Galanti, Gyorgy, Hutter, *On the Role of Neural Collapse in Transfer Learning*, ICLR 2022;
    Wu, Papyan, *Linguistic Collapse*, NeurIPS 2024.
    """
    _checks.positive("exponent", exponent)
    data = whole(features, labels, num_classes, None, "samples", absent)
    squares = by_class(jnp.sum(data.deviations**2, -1), data.labels, len(data.kept))
    values = pairs.cdnv_by_class(data.centres.centred, squares / data.centres.counts, exponent, halved)
    values *= data.centres.unit ** (2 - 2 * exponent) if exponent != 1 else 1
    return (values if per_class else jnp.mean(values)).astype(data.dtype)


def directional_cdnv(
    features: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    per_class: bool = False,
    absent: Absent = "error",
) -> jax.Array:
    """CDNV along the lines between class means: only variability towards other classes counts.

    The mean over the pairs i != j of `Var(<u, h> : h of class i) / ||mean_i - mean_j||^2`, with u the unit
    vector along `mean_i - mean_j`. It is at most CDNV, and equal to it if d = 1.

    Args:
        features: (N, d).
        labels: classes in 0..K-1, integers (N,), at least one sample of each.
        num_classes: K, at least 2.
        per_class: whether each class i has its own mean over j.
        absent: "skip" leaves out classes without a sample.

    Returns:
        A scalar, at least 0, or (K,); NaN under `jit` where a class has no sample.

    Raises:
        ValueError: a class has no sample, a label is out of range, K < 2 (checked outside `jit`), or an
            option is none of these.

    >>> features = [[1.0, 1.0], [1.0, -1.0], [-1.0, 0.0], [-1.0, 0.0]]
    >>> print(f"{ufm.metrics.directional_cdnv(features, [0, 0, 1, 1], 2):.3f}")
    0.000

    Reference: Galanti, arXiv 2603.03530, 2026.
    """
    data = whole(features, labels, num_classes, None, "samples", absent)
    sums = pairs.directional_sums(data.centres.centred, data.deviations, data.labels)
    values = _means(sums, data, per_class=True) / (len(data.kept) - 1)
    return (values if per_class else jnp.mean(values)).astype(data.dtype)


def accuracy(
    W: ArrayLike,
    features: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None = None,
) -> jax.Array:
    """Share of samples whose largest score `<w_k, h> + b_k` is the true class's (the first on a tie).

    Args:
        W: classifier rows, (K, d), K at least 2.
        features: (N, d).
        labels: classes in 0..K-1, integers (N,).
        bias: of the classifier, (K,); none if None.

    Returns:
        A scalar in [0, 1] of W's dtype; a score that is not a number decides for no class.

    Raises:
        ValueError: a shape is none of these, or a label is out of range (checked outside `jit`).

    >>> print(ufm.metrics.accuracy(np.eye(2), [[2.0, 1.0], [3.0, 1.0]], [0, 1]))
    0.5
    """
    W = classifier(W)
    features, labels = labelled(features, labels, *W.shape)
    bias = bias_of(bias, len(W))
    return share(jnp.sum(decisions(W, features, bias) == labels), len(labels)).astype(W.dtype)


def are_finite(W: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Whether a classifier is made of numbers, and so decides."""
    return jnp.all(jnp.isfinite(W)) & (True if bias is None else jnp.all(jnp.isfinite(bias)))


def _means(values: jax.Array, data: Whole, per_class: bool) -> jax.Array:
    """The mean of values (N,) over all samples, or over those of each class."""
    if per_class:
        return share(by_class(values, data.labels, len(data.kept)), data.centres.counts)
    return share(jnp.sum(values), len(values))


@jax.jit
def decisions(W: jax.Array, features: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """The class (N,) of the largest score of each sample (N, d), the first on a tie; -1 if one is NaN."""
    # In units of powers of two, which round nothing, products neither vanish nor overflow.
    unit_W = power_of_two(jnp.max(jnp.abs(W)))

    def of_block(features):
        unit = power_of_two(jnp.max(jnp.abs(features), -1, keepdims=True))
        scores = matmul(features / unit, (W / unit_W).T)
        if bias is not None:
            scores += bias / unit_W / unit
        return jnp.where(jnp.any(jnp.isnan(scores), -1), -1, jnp.argmax(scores, -1))

    return pairs.in_blocks(of_block, features, len(W))


def are_known(centres: Centres) -> jax.Array:
    """Whether every class has a mean: a sample, and finite ones."""
    return jnp.all(centres.counts > 0) & jnp.all(jnp.isfinite(centres.centred))


@jax.jit
def nearest(means: jax.Array, features: jax.Array) -> jax.Array:
    """The class (N,) of the mean (K, d) nearest to each sample (N, d)."""
    # ||h - m||^2 = ||h||^2 - 2 (<h, m> - ||m||^2 / 2), about the middle, where it is rounded least.
    middle = jnp.mean(means, 0)
    means = means - middle
    half = jnp.sum(means**2, -1) / 2

    def of_block(features):
        return jnp.argmax(matmul(features - middle, means.T) - half, axis=-1)

    return pairs.in_blocks(of_block, features, len(means))


def quotient(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """The quotient of two numbers that are at least 0; 0 / 0 is 0."""
    is_zero = denominator == 0
    return jnp.where(
        is_zero, jnp.where(numerator == 0, 0, jnp.inf), numerator / jnp.where(is_zero, 1, denominator)
    )


@jax.jit
def distance_to_simplex(A: jax.Array, B: jax.Array) -> jax.Array:
    """Distance of `A B^T` (K, K), scaled to unit norm, from `(I - 11^T/K)/sqrt(K-1)`.

    With d below K/2 the distance is at least 0.76, since the rank is too small, and is computed from d x d
    products; else from the K x K matrix, whose entries it is the small difference of.
    """
    k, dim = A.shape
    if 2 * dim < k:
        P, Q = matmul(A.T, A), matmul(B.T, B)
        squares = jnp.sum(P * Q)
        # What remains where the columns of A and B are orthogonal is rounding; what is no number stays so.
        is_zero = squares <= dim * jnp.finfo(A.dtype).eps * jnp.sqrt(jnp.sum(P**2) * jnp.sum(Q**2))
        norm = jnp.sqrt(jnp.where(is_zero, 1, squares))
        on_simplex = (jnp.sum(A * B) - jnp.sum(jnp.sum(A, 0) * jnp.sum(B, 0)) / k) / np.sqrt(k - 1)
        cosine = jnp.where(is_zero, 0, on_simplex / norm)
        return root(jnp.where(is_zero, 1, 2) - 2 * cosine)
    gram = matmul(A, B.T)
    norm = root(jnp.sum(gram**2))
    simplex = (jnp.eye(k, dtype=gram.dtype) - 1 / k) / np.sqrt(k - 1)
    return root(jnp.sum((gram / jnp.where(norm > 0, norm, 1) - simplex) ** 2))
