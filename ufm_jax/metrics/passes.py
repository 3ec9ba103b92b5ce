"""The two passes over features that all metrics together take, as pure functions of what they gathered.

Sigma_B^+ and the nearest means are known only once every class mean is; so the first pass gathers the
means, and the second what is measured about them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ufm_jax import _checks
from ufm_jax._products import matmul, norm, share
from ufm_jax.metrics import collapse, duality, geometry, pairs
from ufm_jax.metrics.classes import (
    Absent,
    Centres,
    Sums,
    add,
    bias_of,
    by_class,
    centres_of,
    classifier,
    deviations,
    kept_classes,
    marked,
    scaled,
)
from ufm_jax.metrics.generalized import misalignments
from ufm_jax.metrics.whitening import whitened_squares, whitening_in_single_precision, whitening_of


class Totals(NamedTuple):
    """What the second pass gathers, by class; None what it was not asked for.

    Attributes:
        counts: samples, integers (K,).
        whitened: squares of the deviations weighed by Sigma_B^+, (K,).
        squares: squares of the deviations, (K,).
        directional: sums of `ufm_jax.metrics.directional_cdnv`, (K,).
        agreeing: samples that the classifier and the nearest mean decide alike, (K,).
        right: samples that the classifier decides right, (K,).
        scatter: N Sigma_W, (d, d).
        strange: samples of classes that are not kept, none if both passes see the same, a scalar.
    """

    counts: jax.Array
    whitened: jax.Array
    squares: jax.Array
    directional: Any
    agreeing: Any
    right: Any
    scatter: Any
    strange: jax.Array


class FirstPass(NamedTuple):
    """The first pass: the means of the classes. `add` every batch, and go on with `second_pass`.

    Attributes:
        sums: what was gathered.
    """

    sums: Sums

    def add(self, features: ArrayLike, labels: ArrayLike) -> "FirstPass":
        """The pass with a batch in it.

        Args:
            features: (B, d).
            labels: classes in 0..K-1, integers (B,).

        Returns:
            The new pass; this one is as it was.

        Raises:
            ValueError: the features or labels do not fit (values: outside `jit`).
        """
        batch = _batch(features, labels, *self.sums.sums.shape)
        return self if len(batch[1]) == 0 else FirstPass(_add_to_first(self.sums, *batch))

    def classifier_of(
        self, W: ArrayLike | None, bias: ArrayLike | None
    ) -> tuple[jax.Array | None, jax.Array | None]:
        """The classifier W (K, d) and its bias (K,) in the dtype of the sums, if there is one.

        Raises:
            ValueError: they do not fit the features, or there is a bias without W.
        """
        shape, dtype = self.sums.sums.shape, self.sums.sums.dtype
        if W is None:
            if bias is not None:
                raise ValueError("bias needs W, the classifier that it belongs to.")
            return None, None
        rows = classifier(W).astype(dtype)
        if rows.shape != shape:
            raise ValueError(f"W must have shape {shape}, but has shape {rows.shape}.")
        found = bias_of(bias, shape[0])
        return rows, None if found is None else found.astype(dtype)

    def second_pass(
        self,
        W: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        *,
        absent: Absent = "error",
        decisions: bool = True,
        covariance: bool = False,
    ) -> "SecondPass":
        """The start of the second pass, over the same samples in any order and in batches of any size.

        Args:
            W: classifier rows, (K, d); what needs them is NaN if None.
            bias: of the classifier, (K,); none if None.
            absent: "skip" leaves out classes without a sample; not under `jit`.
            decisions: whether every sample is held against every class, for NC4, accuracy and the
                directional CDNV: products of N K d terms, most of the work where K is large.
            covariance: whether the d x d covariance is gathered, for the parts of the squared error.

        Returns:
            The pass, still without a sample.

        Raises:
            ValueError: a class has no sample (checked outside `jit`), or W or the bias do not fit.
        """
        kept = kept_classes(self.sums.counts, absent)
        sums = self.sums
        if len(kept) < len(sums.counts):
            sums = jax.tree.map(lambda x: x[kept], sums)
        dtype, centres = sums.sums.dtype, centres_of(sums)
        rows, bias = self.classifier_of(W, bias)
        zeros = jnp.zeros(len(kept), dtype)
        by_decision = zeros if decisions and rows is not None else None
        dim = sums.sums.shape[1]
        totals = Totals(
            counts=jnp.zeros(len(kept), jnp.int32),
            whitened=zeros,
            squares=zeros,
            directional=zeros if decisions else None,
            agreeing=by_decision,
            right=by_decision,
            scatter=jnp.zeros((dim, dim), dtype) if covariance else None,
            strange=jnp.zeros((), jnp.int32),
        )
        return SecondPass(totals, centres, _whitening(centres), rows, bias, jnp.asarray(kept, jnp.int32))


class SecondPass(NamedTuple):
    """The second pass: what is measured about the means. `add` every batch again, and read `metrics`.

    Attributes:
        totals: what was gathered.
        centres: of the K' classes that are kept.
        whitening: inverse root of Sigma_B, (R, d).
        W: classifier rows, (K, d), or None.
        bias: of the classifier, (K,), or None.
        kept: the classes, (K',).
    """

    totals: Totals
    centres: Centres
    whitening: jax.Array
    W: Any
    bias: Any
    kept: jax.Array

    def add(self, features: ArrayLike, labels: ArrayLike) -> "SecondPass":
        """The pass with a batch in it.

        Args:
            features: (B, d).
            labels: classes in 0..K-1, integers (B,).

        Returns:
            The new pass; this one is as it was.

        Raises:
            ValueError: the features or labels do not fit (values: outside `jit`).
        """
        dim = self.centres.centred.shape[1]
        num_classes = None if self.W is None else len(self.W)
        if self.W is None and _checks.is_concrete(self.kept):
            num_classes = int(self.kept[-1]) + 1
        batch = _batch(features, labels, num_classes, dim)
        return self if len(batch[1]) == 0 else self._replace(totals=_add_to_second(self, *batch))

    def metrics(self, outside: ArrayLike | None = None) -> dict[str, jax.Array]:
        """All metrics but GNC2, under the names that `ufm_jax.metrics.Measurement` has.

        Args:
            outside: features of samples out of distribution, (M, d), for NC5; none if None.

        Returns:
            Scalars, always with the same keys; NaN what was not asked for, or needs W.

        Raises:
            ValueError: the two passes did not go over the same samples (checked outside `jit`).
        """
        self.check()
        if outside is not None:
            columns = self.centres.centred.shape[1]
            rows = _checks.real("outside", _checks.matrix("outside", outside, columns=columns))
            outside = jnp.mean(rows, 0)
        found, _ = found_of(self, outside)
        missing = jnp.asarray(jnp.nan, self.centres.centred.dtype)
        return {name: found.get(name, missing) for name in NAMES}

    def per_class(self) -> dict[str, jax.Array]:
        """What has a value for each class that is kept.

        Returns:
            Arrays (K',): "class" and "samples", the number of each class and of its samples; "nc1", "cdnv",
            "directional_cdnv", "gnc3", "nc4" and "accuracy", whose means (of "nc1", "nc4" and "accuracy"
            weighed by "samples") are the metrics; the "variance" and the "norm_means" of the centred mean;
            "norm_W", and "similarity", the cosine of the row of W and the centred mean. NaN what was not
            asked for, or needs W.

        Raises:
            ValueError: the two passes did not go over the same samples (checked outside `jit`).
        """
        self.check()
        return found_of(self, None)[1]

    @property
    def rows(self) -> jax.Array:
        """The rows of W of the classes that are kept, (K', d)."""
        return self.W if len(self.kept) == len(self.W) else self.W[self.kept]

    def check(self) -> None:
        """Raises ValueError if the two passes did not see as many samples of each class (outside `jit`)."""
        counts, strange = (self.centres.counts, self.totals.counts), self.totals.strange
        if _checks.is_concrete((counts, strange)) and (strange > 0 or np.any(counts[0] != counts[1])):
            first, second = (int(np.sum(np.asarray(x, np.int64))) for x in counts)
            second += int(strange)
            raise ValueError(
                f"both passes must go over the same samples, but the first saw {first} and the second "
                f"{second}, or others of some class."
            )


NAMES = (
    *("nc1", "nc1_quotient", "cdnv", "directional_cdnv"),
    *("nc2_means", "equinorm_means", "equiangularity_means", "maximal_angle_means"),
    *("uniformity_means", "uniformity_variance_means"),
    *("nc0", "nc2", "equinorm_W", "equiangularity_W", "maximal_angle_W"),
    *("nc3", "self_duality", "unc3", "gnc3", "bias_duality"),
    *("nc4", "accuracy", "nc5"),
    *("squared_error", "squared_error_nc1", "squared_error_nc23", "squared_error_perpendicular"),
)
"""The keys of `SecondPass.metrics`."""


def _batch(
    features: ArrayLike, labels: ArrayLike, num_classes: int | None, dim: int
) -> tuple[jax.Array, jax.Array]:
    """A batch as floats and int32, which may be empty, after its checks."""
    features = _checks.real("features", _checks.matrix("features", features, rows=0, columns=dim))
    labels = _checks.class_labels(labels, num_classes, shape=features.shape[:1])
    return marked(features, labels, num_classes)


_add_to_first = jax.jit(add)


@jax.jit
def _add_to_second(second: SecondPass, features: jax.Array, labels: jax.Array) -> Totals:
    totals, centres, count = second.totals, second.centres, len(second.kept)
    places = labels
    if second.W is None or count < len(second.W):
        places = jnp.searchsorted(second.kept, labels)
    is_kept = second.kept[jnp.minimum(places, count - 1)] == labels
    apart = deviations(centres, features, places).astype(centres.centred.dtype)

    def with_sums(total, values):
        return None if total is None else total + by_class(values().astype(total.dtype), places, count)

    if totals.agreeing is not None:
        decided = collapse.decisions(second.W, features.astype(second.W.dtype), second.bias)
        # The features minus the global mean, with the digits that the deviations have.
        about_mean = apart + centres.centred[places]
        agree = decided == second.kept[collapse.nearest(centres.centred, about_mean)]
    return Totals(
        counts=totals.counts
        + jnp.bincount(jnp.where(is_kept, places, count), length=count).astype(jnp.int32),
        whitened=with_sums(totals.whitened, lambda: whitened_squares(apart, second.whitening)),
        squares=with_sums(totals.squares, lambda: jnp.sum(apart**2, -1)),
        directional=with_sums(
            totals.directional, lambda: pairs.directional_sums(centres.centred, apart, places)
        ),
        agreeing=with_sums(totals.agreeing, lambda: agree),
        right=with_sums(totals.right, lambda: decided == labels),
        scatter=None if totals.scatter is None else totals.scatter + matmul(apart.T, apart),
        strange=totals.strange + jnp.sum(~is_kept, dtype=jnp.int32),
    )


def _whitening(centres: Centres) -> jax.Array:
    centred = centres.centred
    if jnp.finfo(centred.dtype).bits >= 64:
        return whitening_of(centred, centres.counts, centres.rounded)
    return whitening_in_single_precision(centred, centres.rounded)


@jax.jit
def found_of(
    second: SecondPass, outside: jax.Array | None
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The metrics that were asked for, and `per_class`, in one program; `outside` is the mean (d,)."""
    per_class = _per_class(second)
    found = _of_features(second, per_class) | _of_classifier(second, per_class)
    if second.totals.agreeing is not None:
        found["nc4"], found["accuracy"] = _shares(second, jnp.sum)
    if outside is not None:
        found["nc5"] = duality.cosines_with(second.centres.means, outside)
    dtype = second.centres.centred.dtype
    return {name: jnp.asarray(value, dtype) for name, value in found.items()}, per_class


def _per_class(second: SecondPass) -> dict[str, jax.Array]:
    centres, totals = second.centres, second.totals
    counts = centres.counts
    variances = totals.squares / counts
    found: dict[str, Any] = {
        "class": second.kept,
        "samples": totals.counts,
        "nc1": totals.whitened / counts / len(counts),
        "variance": variances * centres.unit**2,
        "cdnv": pairs.cdnv_by_class(centres.centred, variances, exponent=1, halved=True),
        "norm_means": jnp.linalg.norm(centres.centred, axis=-1) * centres.unit,
    }
    if totals.directional is not None:
        found["directional_cdnv"] = totals.directional / counts / (len(counts) - 1)
    if second.W is not None:
        found["norm_W"] = norm(second.rows, -1)
        found["similarity"] = duality.similarities_of(second.rows, centres.centred, centres.unit, True)
        found["gnc3"] = misalignments(second.rows, centres.means)
    if totals.agreeing is not None:
        found["nc4"], found["accuracy"] = _shares(second, lambda x: x)
    return found


def _of_features(second: SecondPass, per_class: dict[str, jax.Array]) -> dict[str, jax.Array]:
    centres, totals = second.centres, second.totals
    count, samples = len(centres.counts), jnp.sum(centres.counts)
    found = {
        "nc1": jnp.sum(totals.whitened) / samples / count,
        "nc1_quotient": collapse.quotient(
            jnp.sum(totals.squares) / samples, jnp.sum(centres.centred**2) / count
        ),
        "cdnv": jnp.mean(per_class["cdnv"]),
        "nc2_means": collapse.distance_to_simplex(centres.centred, centres.centred),
    }
    if totals.directional is not None:
        found["directional_cdnv"] = jnp.mean(per_class["directional_cdnv"])
    log = pairs.angles(centres.centred)
    found |= {"uniformity_means": log.log_mean, "uniformity_variance_means": log.log_variance}
    return found | _geometry(centres.centred, log, "means")


def _geometry(vectors: jax.Array, found: pairs.Angles, of: str) -> dict[str, jax.Array]:
    return {
        f"equinorm_{of}": geometry.equinorm(vectors),
        f"equiangularity_{of}": found.cosine_deviation,
        f"maximal_angle_{of}": found.simplex_deviation,
    }


def _of_classifier(second: SecondPass, per_class: dict[str, jax.Array]) -> dict[str, jax.Array]:
    if second.W is None:
        return {}
    centres, rows = second.centres, second.rows
    bias = jnp.zeros_like(rows[:, 0]) if second.bias is None else second.bias[second.kept]
    similarities = duality.similarities_of(rows, centres.centred, centres.unit, cosine=False)
    found = {
        "nc0": geometry.nc0(rows),
        "nc2": collapse.distance_to_simplex(scaled(rows), scaled(rows)),
        "nc3": collapse.distance_to_simplex(scaled(rows), centres.centred),
        "self_duality": duality.square_of_difference(rows, centres.centred),
        "unc3": jnp.var(similarities),
        "gnc3": jnp.mean(per_class["gnc3"]),
        "bias_duality": norm(matmul(rows, centres.global_mean) + bias),
        **_geometry(rows, pairs.angles(rows), "W"),
    }
    if second.totals.scatter is not None:
        within = second.totals.scatter * (centres.unit**2 / jnp.sum(centres.counts))
        with_bias = None if second.bias is None else bias
        parts = duality.squared_error_parts(rows, with_bias, centres, within)
        for name, part in zip(("", "_nc1", "_nc23", "_perpendicular"), parts, strict=True):
            found[f"squared_error{name}"] = part
    return found


def _shares(second: SecondPass, total: Callable[[jax.Array], jax.Array]) -> tuple[jax.Array, jax.Array]:
    """NC4 and accuracy of what `total` puts together; NaN without a sample.

    The first also where the classifier, or the mean of a class, is not finite.
    """
    counts, totals = second.centres.counts, second.totals
    samples = total(counts)
    agreement, accuracy = (
        jnp.where(samples > 0, share(total(x), samples), jnp.nan) for x in (totals.agreeing, totals.right)
    )
    is_known = collapse.are_known(second.centres) & collapse.are_finite(second.W, second.bias)
    return jnp.where(is_known, agreement, jnp.nan), accuracy
