"""The geometry of K vectors: of class means, which `class_means` gives, or of the rows of a classifier.

Neural collapse makes both simplex equiangular tight frames (NC2): their lengths are equal, and so are the
angles between them, as large as K vectors can have them. Each function here takes the vectors, in the
dtypes and frameworks of `ufm_jax.metrics.nc2`, which joins lengths and angles in one number.

    >>> means = ufm.metrics.class_means([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 6.0]], [0, 0, 1, 1], 2)
    >>> print(means)
    [[ 1. -2.]
     [-1.  2.]]
    >>> print(f"{ufm.metrics.equinorm(means):.1f}, {ufm.metrics.maximal_angle(means):.1f}")
    0.0, 0.0

References: Papyan, Han, Donoho, *Prevalence of Neural Collapse during the Terminal Phase of Deep Learning
Training*, PNAS 2020.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from ufm_jax import _checks
from ufm_jax._products import root
from ufm_jax.metrics import pairs
from ufm_jax.metrics.classes import Absent, GlobalMean, scaled, vectors_of, whole, widen

Kernel = Literal["log", "distance"]
"""Of two directions: `log(1 / distance)` or the distance."""


def class_means(
    features: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    global_mean: GlobalMean | None = "samples",
    absent: Absent = "error",
) -> jax.Array:
    """The class means minus the global mean.

    Args:
        features: (N, d).
        labels: classes in 0..K-1, integers (N,), at least one sample of each.
        num_classes: K, at least 2.
        global_mean: of all "samples", or the mean of the means of the "classes", as Papyan, Han and
            Donoho's notebook has it; None leaves the means as they are.
        absent: "skip" leaves out classes without a sample: there is a row for each of the others, in order.

    Returns:
        (K, d), in the dtype of the features; all rows may be NaN where one feature is not finite.

    Raises:
        ValueError: a class has no sample, a label is out of range, K < 2 (checked outside `jit`), or an
            option is none of these.

    >>> print(ufm.metrics.class_means([[1.0, 0.0], [3.0, 4.0], [6.0, 8.0]], [0, 1, 1], 2, global_mean=None))
    [[1.  0. ]
     [4.5 6. ]]
    """
    data = whole(features, labels, num_classes, None, global_mean or "samples", absent)
    centres = data.centres
    means = centres.means if global_mean is None else centres.centred * centres.unit
    return means.astype(data.dtype)


def equinorm(vectors: ArrayLike, *, unbiased: bool = False) -> jax.Array:
    """How much lengths differ: their standard deviation over their mean; 0 for a simplex ETF.

    Args:
        vectors: centred class means or classifier rows, (K, d), K at least 2.
        unbiased: whether the variance is divided by K - 1 in place of K, as in the notebook of Papyan, Han
            and Donoho.

    Returns:
        A scalar, at least 0; 0 if all vectors are zero.

    Raises:
        ValueError: the vectors are not a matrix of at least two rows.

    >>> print(f"{ufm.metrics.equinorm([[3.0, 0.0], [0.0, 1.0]]):.3f}")
    0.500

    Reference: Papyan, Han, Donoho 2020, figure 2.
    """
    vectors = vectors_of("vectors", vectors)
    lengths = root(jnp.sum(scaled(widen(vectors)) ** 2, axis=-1))
    mean = jnp.mean(lengths)
    deviation = root(jnp.sum((lengths - mean) ** 2) / (len(lengths) - unbiased))
    return (deviation / jnp.where(mean > 0, mean, 1)).astype(vectors.dtype)


def equiangularity(vectors: ArrayLike) -> jax.Array:
    """How much angles differ: the standard deviation of the cosine over all pairs; 0 for a simplex ETF.

    Args:
        vectors: centred class means or classifier rows, (K, d), K at least 2.

    Returns:
        A scalar in [0, 1]; a zero vector has cosine 0 with every other.

    Raises:
        ValueError: the vectors are not a matrix of at least two rows.

    >>> print(f"{ufm.metrics.equiangularity([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [0.0, -3.0]]):.4f}")
    0.4714

    Reference: Papyan, Han, Donoho 2020, figure 3.
    """
    vectors = vectors_of("vectors", vectors)
    return pairs.angles(widen(vectors)).cosine_deviation.astype(vectors.dtype)


def maximal_angle(vectors: ArrayLike) -> jax.Array:
    """How far angles are from the largest: the mean of `|cos + 1/(K-1)|` over pairs; 0 for a simplex ETF.

    Args:
        vectors: centred class means or classifier rows, (K, d), K at least 2.

    Returns:
        A scalar in [0, 2]; a zero vector has cosine 0 with every other.

    Raises:
        ValueError: the vectors are not a matrix of at least two rows.

    >>> print(f"{ufm.metrics.maximal_angle(np.eye(3)):.3f}")
    0.500

    Reference: Papyan, Han, Donoho 2020, figure 4.
    """
    vectors = vectors_of("vectors", vectors)
    return pairs.angles(widen(vectors)).simplex_deviation.astype(vectors.dtype)


class Uniformity(NamedTuple):
    """How directions repel each other.

    Attributes:
        mean: of the kernel over all pairs, a scalar.
        variance: of the kernel, a scalar.
    """

    mean: jax.Array
    variance: jax.Array


def uniformity(vectors: ArrayLike, *, kernel: Kernel = "log") -> Uniformity:
    """Hyperspherical uniformity: mean and variance over all pairs of `log(1 / |x_i - x_j|)`, x directions.

    For more classes than a simplex ETF has room for, GNC2 of Liu et al. says that the mean goes to its
    least value. Wu and Papyan plot the variance.

    Args:
        vectors: centred class means or classifier rows, (K, d), K at least 2.
        kernel: "log", or "distance" for `|x_i - x_j|` itself.

    Returns:
        Mean and variance. Two equal directions make the mean of "log" infinite, and the variance NaN.

    Raises:
        ValueError: the vectors are not a matrix of at least two rows, or the kernel is none of these.

    >>> print(f"{ufm.metrics.uniformity(np.eye(3)).mean:.4f} is {-np.log(2) / 2:.4f}")
    -0.3466 is -0.3466

    References: Liu et al., *Generalizing and Decoupling Neural Collapse via Hyperspherical Uniformity Gap*,
    ICLR 2023; Wu, Papyan, *Linguistic Collapse*, NeurIPS 2024.
    """
    _checks.one_of("kernel", kernel, get_args(Kernel))
    vectors = vectors_of("vectors", vectors)
    found = pairs.angles(widen(vectors))
    values = (
        (found.log_mean, found.log_variance)
        if kernel == "log"
        else (found.distance_mean, found.distance_variance)
    )
    return Uniformity(*(value.astype(vectors.dtype) for value in values))


def nc0(W: ArrayLike) -> jax.Array:
    """How far the rows of W are from summing to zero, `|W^T 1|^2 / K`; 0 for a simplex ETF.

    Args:
        W: classifier rows, (K, d), K at least 2.

    Returns:
        A scalar, at least 0. It grows with the square of W.

    Raises:
        ValueError: W is not a matrix of at least two rows.

    >>> print(f"{ufm.metrics.nc0(np.eye(3)):.3f}")
    1.000

    Reference: arXiv 2602.16642, 2026.
    """
    W = vectors_of("W", W)
    return (jnp.sum(jnp.sum(widen(W), 0) ** 2) / len(W)).astype(W.dtype)
