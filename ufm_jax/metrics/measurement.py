"""All metrics of a network at once, from arrays of any framework."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from ufm_jax import _checks, theory
from ufm_jax.metrics import classes, generalized
from ufm_jax.metrics.passes import FirstPass, SecondPass, found_of

MOST_CLASSES_FOR_GNC2 = 1000
"""More are left out: GNC2 is a search over K x K weights."""

_BLOCK = 2**23
"""Numbers of features that are made float64, or checked, at a time."""

Batches = Iterable[tuple[Any, Any]] | Callable[[], Iterable[tuple[Any, Any]]]
"""Pairs of features and labels that can be gone over twice, or a function that makes them anew."""


class _Row(NamedTuple):
    """A row of the printed table."""

    name: str
    at_collapse: str
    meaning: str


_GROUPS = {
    "variability within classes": {
        "nc1": _Row("NC1", "0", "covariance within classes, weighed by that between them"),
        "nc1_quotient": _Row("NC1 quotient", "0", "quotient of the traces of the two"),
        "cdnv": _Row("CDNV", "0", "variance over squared distance, by pairs of classes"),
        "directional_cdnv": _Row("directional CDNV", "0", "the same, along the line between two means"),
    },
    "class means, centred": {
        "nc2_means": _Row("NC2 of means", "0", "distance from a simplex ETF"),
        "equinorm_means": _Row("equinorm", "0", "deviation of lengths over their mean"),
        "equiangularity_means": _Row("equiangularity", "0", "deviation of cosines"),
        "maximal_angle_means": _Row("maximal angle", "0", "mean distance of cosines from -1/(K-1)"),
        "uniformity_means": _Row("uniformity", "", "mean of log(1/distance); smaller is better"),
        "uniformity_variance_means": _Row("  its variance", "0", "over pairs of classes"),
    },
    "classifier": {
        "nc0": _Row("NC0", "0", "squared length of the sum of rows, over K"),
        "nc2": _Row("NC2", "0", "distance of W from a simplex ETF"),
        "equinorm_W": _Row("equinorm", "0", "deviation of lengths over their mean"),
        "equiangularity_W": _Row("equiangularity", "0", "deviation of cosines"),
        "maximal_angle_W": _Row("maximal angle", "0", "mean distance of cosines from -1/(K-1)"),
        "gnc2": _Row("GNC2", "", "smallest one-vs-rest distance; larger is better"),
    },
    "classifier and class means": {
        "nc3": _Row("NC3", "0", "distance of W M^T from a simplex ETF"),
        "self_duality": _Row("self-duality", "0", "squared distance of W and M, each of norm 1"),
        "unc3": _Row("UNC3", "0", "variance of <w_k, m_k>, centred"),
        "gnc3": _Row("GNC3", "0", "1 - cosine of w_k and m_k, not centred"),
        "bias_duality": _Row("bias", "0", "length of W m + b, m the mean of all samples"),
    },
    "decisions": {
        "nc4": _Row("NC4", "1", "share decided alike by W and by the nearest class mean"),
        "accuracy": _Row("accuracy", "", "share of samples that W classifies right; 1 is all"),
        "nc5": _Row("NC5", "0", "cosine of class means and the mean outside"),
    },
    "squared error": {
        "squared_error": _Row("total", "", "mean of |W h + b - y|^2 / 2, the sum of:"),
        "squared_error_nc1": _Row("  L_NC1", "0", "variability within classes"),
        "squared_error_nc23": _Row("  L_NC2/3", "", "class means not mapped to their labels"),
        "squared_error_perpendicular": _Row("  L_perp", "0", "W is not the least-squares classifier"),
    },
}


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The metrics of one set of features; printed, it is a table.

    A metric that is None was not measured: it needs W, or an option of `measure`.

    Attributes:
        num_classes: K, of the classes that are measured.
        dim: d.
        samples: N.
        absent_classes: how many classes have no sample and were left out.
        per_class: arrays (K,) by name, for plots; see `ufm_jax.streaming.SecondPass.per_class`.
        nc1: see `ufm_jax.metrics.nc1`; the others likewise, where no other function is named.
        nc1_quotient: of the features.
        cdnv: of the features.
        directional_cdnv: of the features.
        nc2_means: `nc2` of the centred class means; the following five likewise.
        equinorm_means: of the centred class means.
        equiangularity_means: of the centred class means.
        maximal_angle_means: of the centred class means.
        uniformity_means: the mean of `uniformity`.
        uniformity_variance_means: the variance of `uniformity`.
        nc0: of W.
        nc2: of W.
        equinorm_W: of W.
        equiangularity_W: of W.
        maximal_angle_W: of W.
        gnc2: of W, for up to 1000 classes.
        nc3: of W and the features.
        self_duality: of W and the features.
        unc3: of W and the features.
        gnc3: of W and the features.
        bias_duality: of W, its bias and the features.
        nc4: of W, its bias and the features.
        accuracy: of W and its bias on the features.
        nc5: of the features, and others out of distribution.
        squared_error: total of `squared_error_decomposition`, without decay.
        squared_error_nc1: its part nc1.
        squared_error_nc23: its part nc23.
        squared_error_perpendicular: its part perpendicular.
    """

    num_classes: int
    dim: int
    samples: int
    nc1: float
    nc1_quotient: float
    cdnv: float
    nc2_means: float
    equinorm_means: float
    equiangularity_means: float
    maximal_angle_means: float
    uniformity_means: float
    uniformity_variance_means: float
    directional_cdnv: float | None = None
    nc0: float | None = None
    nc2: float | None = None
    equinorm_W: float | None = None
    equiangularity_W: float | None = None
    maximal_angle_W: float | None = None
    gnc2: float | None = None
    nc3: float | None = None
    self_duality: float | None = None
    unc3: float | None = None
    gnc3: float | None = None
    bias_duality: float | None = None
    nc4: float | None = None
    accuracy: float | None = None
    nc5: float | None = None
    squared_error: float | None = None
    squared_error_nc1: float | None = None
    squared_error_nc23: float | None = None
    squared_error_perpendicular: float | None = None
    absent_classes: int = 0
    per_class: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def as_dict(self) -> dict[str, float]:
        """Plain numbers for a logger, as in `wandb.log(found.as_dict())`.

        Returns:
            Floats, always with the same keys in the same order; NaN for what was not measured.
        """
        rows = [name for group in _GROUPS.values() for name in group]
        sizes = ["num_classes", "dim", "samples", "absent_classes"]
        values = {name: getattr(self, name) for name in [*rows, *sizes]}
        return {name: math.nan if value is None else float(value) for name, value in values.items()}

    def __str__(self) -> str:
        absent = f" ({self.absent_classes} without a sample left out)" if self.absent_classes else ""
        lines = [
            f"{self.samples} samples, {self.num_classes} classes{absent}, {self.dim} dimensions",
            f"{'metric':<18} {'value':>10}  {'at collapse':<11}  meaning",
        ]
        for group, rows in _GROUPS.items():
            measured = {name: row for name, row in rows.items() if getattr(self, name) is not None}
            lines += [f"{group}:"] if measured else []
            for field, (name, at_collapse, meaning) in measured.items():
                expected = self._one_vs_rest_at_collapse() if field == "gnc2" else at_collapse
                lines.append(f"  {name:<16} {getattr(self, field):>10.4g}  {expected:<11}  {meaning}")
        if self.nc2 is None:
            lines.append("(What is measured of a classifier needs W.)")
        return "\n".join(lines)

    def _one_vs_rest_at_collapse(self) -> str:
        """The one-vs-rest distance of the best packing, where it is known."""
        try:
            return f"{1 - np.cos(theory.packing_angle(self.num_classes, self.dim)):.4g}"
        except ValueError:
            return ""


def measure(
    features: Any,
    labels: Any,
    W: Any = None,
    *,
    bias: Any = None,
    num_classes: int | None = None,
    outside: Any = None,
    absent: classes.Absent = "error",
    decisions: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Measurement:
    """All metrics of features and labels, and of a classifier, computed in float64 on arrays of any kind.

    Features are made float64 a block at a time, and nothing holds a K x K matrix where d is smaller, or the
    scores of all samples.

    Args:
        features: (N, d): a NumPy or JAX array, a PyTorch tensor (on any device, requiring gradients or
            not), nested lists, or what else `numpy.asarray` takes.
        labels: classes in 0..K-1, integers (N,), at least one sample of each, as any of these.
        W: classifier rows, (K, d), as `torch.nn.Linear.weight` has them, as any of these.
        bias: of the classifier, (K,); it enters decisions, its own metric and the squared error.
        num_classes: K; if None, that of W, or the largest label plus one.
        outside: features of samples out of distribution, (M, d), for NC5; not measured if None.
        absent: "skip" leaves out classes without a sample, such as words that never occur, and tells how
            many; see `nc1`, `nc3` and `nc4`.
        decisions: whether every sample is held against every class, for NC4, accuracy and the directional
            CDNV: N K d products, most of the work for thousands of classes.
        progress: called with a line of text after each block, such as `print`; None for silence.

    Returns:
        A `Measurement`: floats, which print as a table that says what 0 and 1 mean.

    Raises:
        ValueError: an argument is not an array of numbers of the right shape, has values that are not
            finite, a class has no sample, a label is out of range, or there are fewer than two classes.

    >>> import ufm_jax as ufm
    >>> print(ufm.metrics.measure([[2.0, 0.0], [4.0, 0.0], [0.0, 3.0], [-1.0, 0.0]], [0, 0, 1, 2]))
    4 samples, 3 classes, 2 dimensions
    metric                  value  at collapse  meaning
    variability within classes:
      NC1                 0.05729  0            covariance within classes, weighed by that between them
      NC1 quotient        0.09449  0            quotient of the traces of the two
      CDNV                0.01968  0            variance over squared distance, by pairs of classes
      directional CDNV    0.01505  0            the same, along the line between two means
    class means, centred:
      NC2 of means         0.5212  0            distance from a simplex ETF
      equinorm             0.1229  0            deviation of lengths over their mean
      equiangularity       0.4498  0            deviation of cosines
      maximal angle        0.4075  0            mean distance of cosines from -1/(K-1)
      uniformity          -0.5028               mean of log(1/distance); smaller is better
        its variance      0.03331  0            over pairs of classes
    (What is measured of a classifier needs W.)
    """
    features = _checks.matrix("features", features)
    if W is not None:
        W = _checks.matrix("W", W, rows=2, columns=features.shape[1])
    if outside is not None:
        outside = _checks.matrix("outside", outside, columns=features.shape[1])
    if num_classes is None and W is not None:
        num_classes = len(W)
    if num_classes is not None:
        _checks.count("num_classes", num_classes, 2)
    labels = np.asarray(_checks.class_labels(labels, num_classes, shape=features.shape[:1]))
    if num_classes is None:
        num_classes = int(labels.max()) + 1
        if num_classes == 1:
            raise ValueError("labels must be of at least two classes, but are all 0.")
    # Before anything is made that large.
    classes.kept_classes(np.bincount(labels, minlength=num_classes), absent)
    size = max(1, _BLOCK // features.shape[1])

    def blocks():
        for start in range(0, len(labels), size):
            part = slice(start, start + size)
            yield np.asarray(features[part]).astype(np.float64), labels[part]

    return measured(
        blocks,
        num_classes,
        W,
        bias,
        dtype=np.dtype(np.float64),
        outside=outside,
        absent=absent,
        decisions=decisions,
        progress=progress,
    )


def measured(
    batches: Batches,
    num_classes: int,
    W: Any,
    bias: Any,
    *,
    dtype: Any,
    outside: Any,
    absent: classes.Absent,
    decisions: bool,
    progress: Callable[[str], None] | None,
) -> Measurement:
    """All metrics, by two passes over batches: float64 on the host, or float32 where the features are."""
    if dtype == np.float64:
        W = None if W is None else _finite("W", _checks.array("W", W))
        bias = None if bias is None else _finite("bias", _checks.array("bias", bias))
    outside = None if outside is None else _finite("outside", _checks.matrix("outside", outside))
    _checks.one_of("absent", absent, get_args(classes.Absent))
    first = None
    for features, labels in _each(batches, "first", progress, dtype):
        with _in(dtype):
            if dtype == np.float64:
                _check_finite("features", features)
            if first is None:
                first = FirstPass(classes.no_sums(num_classes, features.shape[1], dtype))
                first.classifier_of(W, bias)  # Before a network has gone over all samples.
            first = first.add(features, labels)
    if first is None:
        raise ValueError("batches must hold at least one batch, but are empty.")
    with _in(dtype):
        second = first.second_pass(W, bias, absent=absent, decisions=decisions, covariance=W is not None)
    for features, labels in _each(batches, "second", progress, dtype):
        with _in(dtype):
            second = second.add(features, labels)
    if progress is not None:
        progress("pairs of classes")
    with _in(dtype):
        return _measurement(second, num_classes, outside)


@contextlib.contextmanager
def _in(dtype: Any) -> Iterator[None]:
    """Where a dtype is computed: float64 on the host, since a TPU has none, whatever JAX is set to.

    Not around what makes the batches, which may be a network.
    """
    if dtype != np.float64:
        yield
        return
    with jax.enable_x64(True), jax.default_device(_host()):
        yield


def _host() -> jax.Device:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise RuntimeError(
            "float64 is computed on the host, whose platform 'cpu' JAX was told to leave out: name it too, "
            "as in JAX_PLATFORMS=cuda,cpu."
        ) from error


def _measurement(second: SecondPass, num_classes: int, outside: Any) -> Measurement:
    second.check()
    if outside is not None:
        columns = second.centres.centred.shape[1]
        outside = np.mean(_checks.matrix("outside", outside, columns=columns), 0)
        outside = jnp.asarray(outside, second.centres.centred.dtype)
    found, per_class = found_of(second, outside)
    values: dict[str, Any] = dict(found)
    if second.W is not None and len(second.kept) <= MOST_CLASSES_FOR_GNC2:
        values["gnc2"] = generalized.gnc2(second.rows)
    return Measurement(
        num_classes=len(second.kept),
        dim=second.centres.centred.shape[1],
        samples=int(np.sum(np.asarray(second.totals.counts, np.int64))),
        absent_classes=num_classes - len(second.kept),
        per_class={name: np.asarray(value) for name, value in per_class.items()},
        **{name: float(value) for name, value in values.items()},
    )


def _each(
    batches: Batches, which: str, progress: Callable[[str], None] | None, dtype: Any
) -> Iterable[tuple[Any, Any]]:
    """The batches of one pass, in NumPy's arrays for float64."""
    if not callable(batches) and iter(batches) is batches:
        raise ValueError(
            "batches are gone over twice, but are an iterator, which ends after once: give a list, a data "
            "loader, or a function that returns such an iterator."
        )
    seen = 0
    for batch in batches() if callable(batches) else batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(
                f"each batch must be a pair of features and labels, but one is a {type(batch).__name__}"
                + (f" of {len(batch)}." if hasattr(batch, "__len__") else ".")
            )
        features, labels = batch
        features, labels = _checks.matrix("features", features, rows=0), _checks.array("labels", labels)
        yield (np.asarray(features), np.asarray(labels)) if dtype == np.float64 else (features, labels)
        if progress is not None:
            seen += len(labels)
            progress(f"{which} pass: {seen} samples")


def _finite(name: str, array: Any) -> np.ndarray:
    """`array` in NumPy's float64, after the check that it is finite."""
    found = np.asarray(array).astype(np.float64)
    _check_finite(name, np.atleast_1d(found))
    return found


def _check_finite(name: str, array: Any) -> None:
    """Checks a block of rows at a time."""
    size = max(1, _BLOCK // max(1, array[:1].size))
    blocks = (np.asarray(array[start : start + size]) for start in range(0, len(array), size))
    count = sum(int(np.sum(~np.isfinite(block.astype(np.float64)))) for block in blocks)
    if count:
        raise ValueError(f"{name} must be finite, but {count} entries are not.")
