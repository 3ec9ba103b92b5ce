"""Neural collapse metrics of features that arrive in batches, in float32, without a d x d matrix.

Sigma_B^+ is known only once every class mean is, so the within-class covariance cannot be weighed by it
while the features pass for the first time: an exact one-pass sum would need all of Sigma_W, d x d. So there
are two folds, each over batches in any order:

    >>> W = ufm.theory.simplex_etf(3, dim=4)
    >>> batches = [(W[labels], labels) for labels in jnp.array([[0, 1, 2], [2, 0, 1]])]

    >>> sums = ufm.streaming.class_sums(num_classes=3, dim=4)
    >>> for features, labels in batches:
    ...     sums = ufm.streaming.add_to_class_sums(sums, features, labels)
    >>> centres = ufm.streaming.centres_of(sums)
    >>> scatter = agreeing = 0.0
    >>> for features, labels in batches:
    ...     scatter += ufm.streaming.whitened_scatter(centres, features, labels)
    ...     agreeing += ufm.streaming.agreements(W, centres, features)
    >>> print(f"NC1 {ufm.streaming.nc1(centres, scatter):.4f}, NC3 {ufm.streaming.nc3(W, centres):.4f}")
    NC1 0.0000, NC3 0.0000
    >>> print(f"NC4 {ufm.streaming.nc4(centres, agreeing):.4f}")
    NC4 1.0000

A network runs once: its features are kept, N x d, and both folds go over them (`measure` does it). Where
even those do not fit, the second fold may compute the features again. Memory is O(K d) beside them.

The definitions are those of `ufm_jax.metrics`, and so are the arrays and dtypes that it takes. That module
squares class means to (M M^T)^+, which suits float64; here M is decomposed itself, which loses half as many
digits and so serves float32. All sums are about an origin, the mean of the first batch: what the features
share, as all of them do after a ReLU, is subtracted before anything is rounded, and costs no digits.

Reference, for two passes and the shift: Chan, Golub, LeVeque, *Algorithms for Computing the Sample
Variance*, American Statistician 1983.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import ArrayLike

from ufm_jax import _checks, metrics
from ufm_jax._products import matmul
from ufm_jax.metrics import collapse, generalized


class ClassSums(NamedTuple):
    """What the first fold gathers.

    Attributes:
        counts: samples of each class, (K,).
        sums: of their features minus the origin, (K, d).
        origin: a point amid the features, (d,); any point gives right sums, a near one keeps more digits.
    """

    counts: jax.Array
    sums: jax.Array
    origin: jax.Array


class Centres(NamedTuple):
    """Class means, as the second fold needs them.

    Attributes:
        counts: samples of each class, (K,).
        origin: a point amid the features, (d,).
        shifts: the mean of each class minus the origin, (K, d).
        centred: the same minus the mean of all samples, (K, d).
        whitening: (R, d) with R = min(K, d) and `whitening^T whitening = Sigma_B^+`.
    """

    counts: jax.Array
    origin: jax.Array
    shifts: jax.Array
    centred: jax.Array
    whitening: jax.Array

    @property
    def means(self) -> jax.Array:
        """The mean of each class, (K, d)."""
        return self.origin + self.shifts


def class_sums(num_classes: int, dim: int, dtype: DTypeLike = np.float32) -> ClassSums:
    """Empty sums, to start the first fold from.

    Args:
        num_classes: K, at least 2.
        dim: d, at least 1.
        dtype: floating type of the sums, float32 or float64; they keep it whatever the features have.

    Returns:
        `ClassSums(counts=(K,), sums=(K, d), origin=(d,))` of zeros; the first batch sets the origin.

    Raises:
        ValueError: a size is too small, or `dtype` is another.
    """
    _checks.at_least("num_classes", num_classes, 2)
    _checks.at_least("dim", dim, 1)
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64, but is {np.dtype(dtype)}.")
    return ClassSums(
        jnp.zeros(num_classes, dtype), jnp.zeros((num_classes, dim), dtype), jnp.zeros(dim, dtype)
    )


def add_to_class_sums(sums: ClassSums, features: ArrayLike, labels: ArrayLike) -> ClassSums:
    """One step of the first fold.

    Args:
        sums: of the batches before.
        features: of this batch, (B, d).
        labels: their classes in 0..K-1, integers (B,).

    Returns:
        The sums with the batch in them. A product with one-hot labels adds in a fixed order on every
        device, which scattered additions on a GPU would not.

    Raises:
        ValueError: the features or labels do not fit the sums (values: outside `jit`).
    """
    features, labels = _batch(features, labels, *sums.sums.shape)
    if len(labels) == 0:
        return sums
    dtype = sums.sums.dtype
    one_hot = jax.nn.one_hot(labels, len(sums.counts), dtype=dtype)
    is_first = jnp.sum(sums.counts) == 0
    origin = jnp.where(is_first, jnp.mean(features, 0).astype(dtype), sums.origin)
    about_origin = (features - origin).astype(dtype)
    return ClassSums(sums.counts + jnp.sum(one_hot, 0), sums.sums + matmul(one_hot.T, about_origin), origin)


def centres_of(sums: ClassSums) -> Centres:
    """Class means and the root of the pseudo-inverse of the between-class covariance.

    The centred means M (K, d) have rank K - 1 at most, since the counts weigh them to zero. Of K singular
    values the last is therefore rounding and counts as zero, as do all up to `max(K, d) eps` times the
    largest, and all within the rounding of the sums, `4 eps` times the norm of the means about the origin.
    Derivatives are NaN where two singular values are equal; those of `ufm_jax.metrics.nc1` are not.

    Args:
        sums: of all samples; every class has one, else the means are NaN.

    Returns:
        The centres.
    """
    shifts = sums.sums / sums.counts[:, None]
    centred = shifts - jnp.sum(sums.counts[:, None] * shifts, 0) / jnp.sum(sums.counts)
    _, values, rows = jnp.linalg.svd(centred, full_matrices=False)
    relative = jnp.maximum(max(centred.shape) * values[0], 4 * jnp.linalg.norm(shifts))
    is_zero = values <= relative * jnp.finfo(values.dtype).eps
    is_zero |= jnp.arange(len(values)) >= len(shifts) - 1
    # Sigma_B = M^T M / K, so its inverse root is sqrt(K) / s on the row space of M.
    scales = jnp.where(is_zero, 0, len(shifts) ** 0.5 / jnp.where(is_zero, 1, values))
    return Centres(sums.counts, sums.origin, shifts, centred, scales[:, None] * rows)


def _batch(
    features: ArrayLike, labels: ArrayLike, num_classes: int, dim: int
) -> tuple[jax.Array, jax.Array]:
    """A batch as floats and int32, which may be empty, after its checks."""
    features = _checks.real("features", _checks.matrix("features", features, rows=0, columns=dim))
    return features, _checks.class_labels(labels, num_classes, shape=features.shape[:1])


def deviations(centres: Centres, features: ArrayLike, labels: ArrayLike) -> jax.Array:
    """The features of a batch minus the means of their classes.

    Args:
        centres: of all samples.
        features: of this batch, (B, d).
        labels: their classes in 0..K-1, integers (B,).

    Returns:
        The differences, (B, d).

    Raises:
        ValueError: the features or labels do not fit the centres (values: outside `jit`).
    """
    features, labels = _batch(features, labels, *centres.shifts.shape)
    return features - centres.origin - centres.shifts[labels]


def whitened_scatter(centres: Centres, features: ArrayLike, labels: ArrayLike) -> jax.Array:
    """One step of the second fold: the batch's part of `N trace(Sigma_W Sigma_B^+)`, a scalar.

    Args:
        centres: of all samples.
        features: of this batch, (B, d).
        labels: their classes in 0..K-1, integers (B,).

    Returns:
        The part, a scalar at least 0; the parts of all batches add up.

    Raises:
        ValueError: the features or labels do not fit the centres (values: outside `jit`).
    """
    return jnp.sum(matmul(deviations(centres, features, labels), centres.whitening.T) ** 2)


def class_scatter(centres: Centres, features: ArrayLike, labels: ArrayLike) -> jax.Array:
    """One step of the second fold: the batch's squared distances to their class means, by class (K,).

    Args:
        centres: of all samples.
        features: of this batch, (B, d).
        labels: their classes in 0..K-1, integers (B,).

    Returns:
        The distances, summed by class, (K,); those of all batches add up.

    Raises:
        ValueError: the features or labels do not fit the centres (values: outside `jit`).
    """
    features, labels = _batch(features, labels, *centres.shifts.shape)
    squares = jnp.sum(deviations(centres, features, labels) ** 2, -1)
    return matmul(jax.nn.one_hot(labels, len(centres.counts), dtype=squares.dtype).T, squares)


def agreements(
    W: ArrayLike, centres: Centres, features: ArrayLike, bias: ArrayLike | None = None
) -> jax.Array:
    """One step of the second fold: samples of the batch that W and the nearest class mean decide alike.

    Args:
        W: classifier rows, (K, d).
        centres: of all samples.
        features: of this batch, (B, d).
        bias: of the classifier, (K,); none if None.

    Returns:
        Their number, an integer scalar.

    Raises:
        ValueError: the features, W or the bias do not fit the centres.
    """
    W = _classifier(W, centres)
    features = _checks.real("features", _checks.matrix("features", features, rows=0, columns=W.shape[1]))
    nearest = collapse.nearest(centres.shifts, features - centres.origin)
    return jnp.sum(collapse.decisions(W, features, bias) == nearest)


def _classifier(W: ArrayLike, centres: Centres) -> jax.Array:
    """W as floats, after the check that it fits the centres."""
    W, wanted = collapse.classifier(W), centres.shifts.shape
    if W.shape != wanted:
        raise ValueError(f"W must have shape {wanted}, as the class means, but has shape {W.shape}.")
    return W


def nc1(centres: Centres, scatter: jax.Array) -> jax.Array:
    """Within-class variability `trace(Sigma_W Sigma_B^+) / K` (see `ufm_jax.metrics.nc1`), a scalar.

    Args:
        centres: of all samples.
        scatter: the sum of `whitened_scatter` over all batches, a scalar.

    Returns:
        A scalar, at least 0.
    """
    return scatter / (jnp.sum(centres.counts) * len(centres.counts))


def nc3(W: ArrayLike, centres: Centres) -> jax.Array:
    """Distance from self-duality (see `ufm_jax.metrics.nc3`).

    Args:
        W: classifier rows, (K, d).
        centres: of all samples.

    Returns:
        A scalar in [0, 2].

    Raises:
        ValueError: W does not fit the centres.
    """
    W = _classifier(W, centres)
    gram = matmul(collapse.scaled(W), collapse.scaled(centres.centred).T)
    return collapse.distance_to_simplex(gram).astype(W.dtype)


def nc4(centres: Centres, agreeing: jax.Array) -> jax.Array:
    """Agreement with the nearest class mean (see `ufm_jax.metrics.nc4`).

    Args:
        centres: of all samples.
        agreeing: the sum of `agreements` over all batches, a scalar.

    Returns:
        A scalar in [0, 1]; NaN where a class has no sample.
    """
    return jnp.where(jnp.all(centres.counts > 0), agreeing / jnp.sum(centres.counts), jnp.nan)


def cdnv(centres: Centres, squares: jax.Array) -> jax.Array:
    """Class-distance normalized variance (see `ufm_jax.metrics.cdnv`).

    Args:
        centres: of all samples.
        squares: the sum of `class_scatter` over all batches, (K,).

    Returns:
        A scalar, at least 0.
    """
    return collapse.cdnv_of(centres.centred, squares / centres.counts)


def gnc3(W: ArrayLike, centres: Centres) -> jax.Array:
    """Misalignment of W and class means (see `ufm_jax.metrics.gnc3`).

    Args:
        W: classifier rows, (K, d).
        centres: of all samples.

    Returns:
        A scalar in [0, 2].

    Raises:
        ValueError: W does not fit the centres.
    """
    W = _classifier(W, centres)
    return generalized.misalignment(W, centres.means).astype(W.dtype)


def measure(
    W: ArrayLike,
    features: ArrayLike,
    labels: ArrayLike,
    batch_size: int = 1024,
    bias: ArrayLike | None = None,
) -> dict[str, jax.Array]:
    """The metrics of features kept on the device, in blocks; not GNC2, which is a search and of W alone.

    Args:
        W: classifier rows, (K, d), K at least 2.
        features: (N, d).
        labels: classes in 0..K-1, integers (N,), at least one sample of each.
        batch_size: rows of a block, at least 1; temporary memory is a few blocks.
        bias: of the classifier, (K,), which NC4 asks for decisions; none if None.

    Returns:
        Scalars "nc1", "nc2", "nc3", "nc4", "cdnv" and "gnc3".

    Raises:
        ValueError: W is not a matrix of at least two rows, features are not one with as many columns, a
            label is out of range or a class has no sample (checked outside `jit`), or `batch_size` is less
            than 1.
    """
    _checks.at_least("batch_size", batch_size, 1)
    W = collapse.classifier(W)
    num_classes, dim = W.shape
    # Only a block of them at a time is made wider.
    features = jnp.asarray(_checks.matrix("features", features, columns=dim))
    labels = _checks.class_labels(labels, num_classes, shape=features.shape[:1])
    _checks.every_class_present(labels, num_classes)
    full = len(labels) // batch_size * batch_size

    def fold(step, start):
        def of_block(carry, block):
            return step(carry, *block), None

        blocks = jax.tree.map(lambda x: x[:full].reshape(-1, batch_size, *x.shape[1:]), (features, labels))
        carry, _ = jax.lax.scan(of_block, start, blocks)
        return step(carry, features[full:], labels[full:]) if full < len(labels) else carry

    def second(totals, *block):
        scatter, squares, agreeing = totals
        return (
            scatter + whitened_scatter(centres, *block),
            squares + class_scatter(centres, *block),
            agreeing + agreements(W, centres, block[0], bias),
        )

    dtype = _checks.real_dtype(features.dtype)
    centres = centres_of(fold(add_to_class_sums, class_sums(num_classes, dim, dtype)))
    start = (jnp.zeros((), dtype), jnp.zeros(num_classes, dtype), jnp.array(0))
    scatter, squares, agreeing = fold(second, start)
    return {
        "nc1": nc1(centres, scatter),
        "nc2": metrics.nc2(W),
        "nc3": nc3(W, centres),
        "nc4": nc4(centres, agreeing).astype(W.dtype),
        "cdnv": cdnv(centres, squares),
        "gnc3": gnc3(W, centres),
    }
