"""Features by class: what all metrics are made of, gathered from whole arrays or a batch at a time.

Sums of a class are about its first sample. What the features of a class share is therefore subtracted
before anything is rounded, and a class that has nearly collapsed keeps its digits, in float32 too.

Reference, for two passes and the shift: Chan, Golub, LeVeque, *Algorithms for Computing the Sample
Variance*, American Statistician 1983.
"""

import functools
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ufm_jax import _checks
from ufm_jax._products import matmul, norm, power_of_two, root

GlobalMean = Literal["samples", "classes"]
"""What the class means are centred by: the mean of all samples, or the mean of the class means."""

Absent = Literal["error", "skip"]
"""What is done with classes that have no sample: an error, or they are left out."""

_MOST_ONE_HOT = 2**23
"""Entries of one-hot rows up to which sums by class are products with them; more would cost too much."""


class Sums(NamedTuple):
    """What one pass over the features gathers.

    Attributes:
        counts: samples of each class, integers (K,): in float32 they would end at 2^24.
        first: the first sample of each class, (K, d); zeros where there is none yet.
        sums: of the differences to it, (K, d).
    """

    counts: jax.Array
    first: jax.Array
    sums: jax.Array


class Centres(NamedTuple):
    """Class means. Lengths of `centred` and of deviations are in units of `unit`.

    Attributes:
        counts: samples of each class, (K,), in the dtype of the means.
        first: the first sample of each class, (K, d).
        shifts: the mean of each class minus that sample, (K, d).
        centred: the class means minus the global mean, over `unit`, (K, d).
        unit: a power of two next to the largest length in sight, a scalar, by which squares neither vanish
            nor overflow.
        global_mean: the mean of all samples, or of the class means, (d,).
    """

    counts: jax.Array
    first: jax.Array
    shifts: jax.Array
    centred: jax.Array
    unit: jax.Array
    global_mean: jax.Array

    @property
    def means(self) -> jax.Array:
        """The mean of each class, (K, d)."""
        return self.first + self.shifts

    @property
    def rounded(self) -> jax.Array:
        """The norm of what `centred` was added up from, a scalar."""
        return norm(self.shifts / self.unit)

    @property
    def frequencies(self) -> jax.Array:
        """The share of each class in the samples, (K,)."""
        return self.counts / jnp.sum(self.counts)


def no_sums(num_classes: int, dim: int, dtype: np.dtype) -> Sums:
    """The sums of no samples."""
    zeros = jnp.zeros((num_classes, dim), dtype)
    return Sums(jnp.zeros(num_classes, jnp.int32), zeros, zeros)


def add(sums: Sums, features: jax.Array, labels: jax.Array) -> Sums:
    """The sums with features (B, d) of classes (B,) in them."""
    num_classes, dtype = len(sums.counts), sums.sums.dtype
    counts = jnp.bincount(labels, length=num_classes).astype(jnp.int32)
    place = jax.ops.segment_min(jnp.arange(len(labels)), labels, num_classes)
    # Where a class has no sample here, the place is out of range, and the row is not used.
    here = features[jnp.minimum(place, len(labels) - 1)].astype(dtype)
    is_new = (sums.counts == 0) & (counts > 0)
    first = jnp.where(is_new[:, None], here, sums.first)
    differences = (features - first[labels]).astype(dtype)
    return Sums(sums.counts + counts, first, sums.sums + by_class(differences, labels, num_classes))


def by_class(values: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """Sums (K, ...) of values (B, ...) by class.

    Of few classes by a product with one-hot labels, which adds in a fixed order on every device; scattered
    additions on a GPU do not.
    """
    if len(labels) * num_classes > _MOST_ONE_HOT:
        return jax.ops.segment_sum(values, labels, num_classes)
    return matmul(jax.nn.one_hot(labels, num_classes, dtype=values.dtype).T, values)


@functools.partial(jax.jit, static_argnums=1)
def centres_of(sums: Sums, global_mean: GlobalMean = "samples") -> Centres:
    """The centres of the classes; NaN where a class has no sample."""
    counts = sums.counts.astype(sums.sums.dtype)
    shifts = sums.sums / counts[:, None]
    from_first = sums.first - sums.first[0] + shifts
    weights = counts if global_mean == "samples" else jnp.ones_like(counts)
    middle = jnp.sum(weights[:, None] * from_first, 0) / jnp.sum(weights)
    centred = from_first - middle
    unit = _unit(jnp.maximum(jnp.max(jnp.abs(centred)), jnp.max(jnp.abs(shifts))))
    return Centres(counts, sums.first, shifts, centred / unit, unit, sums.first[0] + middle)


def deviations(centres: Centres, features: jax.Array, labels: jax.Array) -> jax.Array:
    """Features (B, d) minus the means of their classes, in units of `centres.unit`."""
    return (features - centres.first[labels] - centres.shifts[labels]) / centres.unit


class Whole(NamedTuple):
    """Whole features, after the checks, and their classes.

    Attributes:
        features: (N, d), in the widest dtype.
        labels: (N,), places in `kept`.
        centres: of the K' classes that are kept.
        deviations: of the features, (N, d).
        kept: the classes, (K',); all of them, unless those without a sample were to be left out.
        dtype: of the result.
    """

    features: jax.Array
    labels: jax.Array
    centres: Centres
    deviations: jax.Array
    kept: np.ndarray
    dtype: np.dtype

    def rows(self, W: jax.Array) -> jax.Array:
        """The rows of W that belong to the classes that are kept, in the widest dtype."""
        return widen(W if len(self.kept) == len(W) else W[self.kept])


def whole(
    features: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    dim: int | None = None,
    global_mean: GlobalMean = "samples",
    absent: Absent = "error",
) -> Whole:
    """The classes of features (N, d) with labels (N,), after the checks of both."""
    features, labels = labelled(features, labels, num_classes, dim)
    # NumPy's: what is known stays known, also inside `jit`.
    is_known = _checks.is_concrete(labels)
    counts = (
        np.bincount(labels, minlength=num_classes) if is_known else jnp.bincount(labels, length=num_classes)
    )
    kept = kept_classes(counts, absent)
    if len(kept) < num_classes:
        labels = jnp.searchsorted(kept, labels).astype(jnp.int32)
    _checks.one_of("global_mean", global_mean, get_args(GlobalMean))
    dtype, features = features.dtype, widen(features)
    centres, apart = _centres_and_deviations(features, labels, len(kept), global_mean)
    return Whole(features, labels, centres, apart, kept, dtype)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _centres_and_deviations(
    features: jax.Array, labels: jax.Array, num_classes: int, global_mean: GlobalMean
) -> tuple[Centres, jax.Array]:
    sums = add(no_sums(num_classes, features.shape[1], features.dtype), features, labels)
    centres = centres_of(sums, global_mean)
    return centres, deviations(centres, features, labels)


def kept_classes(counts: jax.Array | np.ndarray, absent: Absent) -> np.ndarray:
    """The classes that are measured, (K',): all, or those with a sample, of which there must be two."""
    _checks.one_of("absent", absent, get_args(Absent))
    if not _checks.is_concrete(counts):
        if absent == "skip":
            raise ValueError("absent='skip' needs labels that are known, but here they are traced.")
        return np.arange(len(counts))
    kept = np.flatnonzero(np.asarray(counts))
    if absent == "error":
        hint = "; absent='skip' leaves such classes out"
        _checks.every_class_present(kept, len(counts), hint)
    elif len(kept) < 2:
        raise ValueError(f"at least two classes need a sample, but only {len(kept)} of {len(counts)} do.")
    return kept


def labelled(
    features: ArrayLike, labels: ArrayLike, num_classes: int, dim: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Features (N, d) in float32 or float64 and labels (N,) in int32, after the checks of both."""
    _checks.count("num_classes", num_classes, 2)
    features = _checks.real("features", _checks.matrix("features", features, columns=dim))
    labels = _checks.class_labels(labels, num_classes, shape=features.shape[:1])
    return marked(features, labels, num_classes)


def marked(features: jax.Array, labels: jax.Array, num_classes: int | None) -> tuple[jax.Array, jax.Array]:
    """Features that are NaN, and with them the result, where `jit` hides that a label is of no class."""
    if num_classes is None or _checks.is_concrete(labels):
        return features, labels
    is_known = (labels >= 0) & (labels < num_classes)
    return jnp.where(is_known[:, None], features, jnp.nan), jnp.clip(labels, 0, num_classes - 1)


def vectors_of(name: str, vectors: ArrayLike) -> jax.Array:
    """A matrix of at least two rows in float32 or float64, after its check."""
    return _checks.real(name, _checks.matrix(name, vectors, rows=2))


def classifier(W: ArrayLike) -> jax.Array:
    """W (K, d) in float32 or float64, after its check."""
    return vectors_of("W", W)


def with_classifier(
    W: ArrayLike,
    features: ArrayLike,
    labels: ArrayLike,
    global_mean: GlobalMean = "samples",
    absent: Absent = "error",
) -> tuple[jax.Array, Whole]:
    """W (K, d) and the classes of features (N, d), after the checks of both."""
    W = classifier(W)
    return W, whole(features, labels, len(W), W.shape[1], global_mean, absent)


def bias_of(bias: ArrayLike | None, num_classes: int) -> jax.Array | None:
    """A bias (K,) in float32 or float64, after its check; None if there is none."""
    if bias is None:
        return None
    bias = _checks.real("bias", bias)
    if bias.shape != (num_classes,):
        raise ValueError(f"bias must have an entry a class, {num_classes}, but has shape {bias.shape}.")
    return bias


def widen(x: jax.Array) -> jax.Array:
    """`x` in float64 where JAX has it enabled."""
    return jnp.asarray(x, jnp.promote_types(x.dtype, jax.dtypes.canonicalize_dtype(np.float64)))


def _unit(largest: jax.Array) -> jax.Array:
    """The power of two next to `largest`; infinite next to infinity, which over it is NaN."""
    return jnp.where(jnp.isinf(largest), jnp.inf, power_of_two(largest))


def scaled(x: jax.Array) -> jax.Array:
    """`x` with its largest entry near 1, so that products of tiny entries do not vanish; 0 stays 0."""
    return x / _unit(jnp.max(jnp.abs(x)))


def directions(vectors: jax.Array) -> jax.Array:
    """Rows of length 1; zero rows stay zero."""
    # Squares neither overflow nor vanish.
    vectors = vectors / _unit(jnp.max(jnp.abs(vectors), -1, keepdims=True))
    norms = root(jnp.sum(vectors**2, axis=-1, keepdims=True))
    return vectors / jnp.where(norms == 0, 1, norms)
