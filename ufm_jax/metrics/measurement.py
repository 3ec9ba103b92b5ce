"""All metrics of a network at once, from arrays of any framework."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ufm_jax import _checks, theory
from ufm_jax.metrics import collapse, generalized


class _Row(NamedTuple):
    """A row of the printed table."""

    name: str
    at_collapse: str
    meaning: str


_ROWS = {
    "nc1": _Row("NC1", "0", "within-class variability, against that between the classes"),
    "nc2": _Row("NC2", "0", "distance of W from a simplex ETF"),
    "nc3": _Row("NC3", "0", "distance from self-duality of W and the centred class means"),
    "nc4": _Row("NC4", "1", "share decided alike by W and by the nearest class mean"),
    "cdnv": _Row("CDNV", "0", "within-class variance over squared distance, by pairs of classes"),
    "gnc2": _Row("GNC2", "", "smallest one-vs-rest distance of W; larger is better"),
    "gnc3": _Row("GNC3", "0", "1 - cosine between W and the class means, uncentred"),
    "accuracy": _Row("accuracy", "", "share of samples that W classifies right; 1 is all"),
}


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The metrics of one set of features; printed, it is a table.

    Attributes:
        num_classes: K.
        dim: d.
        samples: N.
        nc1: see `ufm_jax.metrics.nc1`; the others likewise.
        cdnv: class-distance normalized variance.
        nc2: of W; it and the following are None without W.
        nc3: of W and the features.
        nc4: of W and the features.
        gnc2: of W.
        gnc3: of W and the features.
        accuracy: of W on the features.
    """

    num_classes: int
    dim: int
    samples: int
    nc1: float
    cdnv: float
    nc2: float | None = None
    nc3: float | None = None
    nc4: float | None = None
    gnc2: float | None = None
    gnc3: float | None = None
    accuracy: float | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.samples} samples, {self.num_classes} classes, {self.dim} dimensions",
            f"{'metric':<9} {'value':>10}  {'at collapse':<11}  meaning",
        ]
        for field, (name, at_collapse, meaning) in _ROWS.items():
            value = getattr(self, field)
            if value is not None:
                expected = self._one_vs_rest_at_collapse() if field == "gnc2" else at_collapse
                lines.append(f"{name:<9} {value:>10.4g}  {expected:<11}  {meaning}")
        if self.nc2 is None:
            lines.append("(NC2, NC3, NC4, GNC2, GNC3 and accuracy need the classifier W.)")
        return "\n".join(lines)

    def _one_vs_rest_at_collapse(self) -> str:
        """The one-vs-rest distance of the best packing, where it is known."""
        try:
            return f"{1 - np.cos(theory.packing_angle(self.num_classes, self.dim)):.4g}"
        except ValueError:
            return ""


def measure(features: Any, labels: Any, W: Any = None, *, bias: Any = None) -> Measurement:
    """All metrics of features and labels, and of a classifier, computed in float64 on arrays of any kind.

    Args:
        features: (N, d): a NumPy or JAX array, a PyTorch tensor (on any device, requiring gradients or
            not), nested lists, or what else `numpy.asarray` takes.
        labels: classes in 0..K-1, integers (N,), at least one sample of each, as any of these.
        W: classifier rows, (K, d), as `torch.nn.Linear.weight` has them, as any of these; K is the largest
            label plus one if None.
        bias: of the classifier, (K,); only NC4 and accuracy depend on it.

    Returns:
        A `Measurement`: floats, which print as a table that says what 0 and 1 mean.

    Raises:
        ValueError: an argument is not an array of numbers of the right shape, has values that are not
            finite, a class has no sample, a label is out of range, or there are fewer than two classes.

    >>> import ufm_jax as ufm
    >>> print(ufm.metrics.measure([[2.0, 0.0], [4.0, 0.0], [0.0, 3.0]], [0, 0, 1]))
    3 samples, 2 classes, 2 dimensions
    metric         value  at collapse  meaning
    NC1          0.03333  0            within-class variability, against that between the classes
    CDNV         0.02778  0            within-class variance over squared distance, by pairs of classes
    (NC2, NC3, NC4, GNC2, GNC3 and accuracy need the classifier W.)
    """
    features = _finite("features", _checks.matrix("features", features))
    if W is not None:
        W = _finite("W", _checks.matrix("W", W, rows=2, columns=features.shape[1]))
    if bias is not None:
        if W is None:
            raise ValueError("bias needs W, the classifier that it belongs to.")
        bias = _finite("bias", _checks.array("bias", bias))
    num_classes = None if W is None else len(W)
    labels = np.asarray(_checks.class_labels(labels, num_classes, shape=features.shape[:1]))
    if num_classes is None:
        num_classes = int(labels.max()) + 1
        if num_classes == 1:
            raise ValueError("labels must be of at least two classes, but are all 0.")
    # What depends on values can be checked only outside `jit`.
    _checks.every_class_present(labels, num_classes)
    # On the host, since a TPU has no float64.
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        found = _all(features, labels, W, bias, num_classes)
        values = {name: float(value) for name, value in found.items()}
    return Measurement(num_classes, features.shape[1], len(features), **values)


@functools.partial(jax.jit, static_argnums=4)
def _all(
    features: jax.Array,
    labels: jax.Array,
    W: jax.Array | None,
    bias: jax.Array | None,
    num_classes: int,
) -> dict[str, jax.Array]:
    found = {
        "nc1": collapse.nc1(features, labels, num_classes),
        "cdnv": collapse.cdnv(features, labels, num_classes),
    }
    if W is None:
        return found
    return found | {
        "nc2": collapse.nc2(W),
        "nc3": collapse.nc3(W, features, labels),
        "nc4": collapse.nc4(W, features, labels, bias),
        "gnc2": generalized.gnc2(W),
        "gnc3": generalized.gnc3(W, features, labels),
        "accuracy": jnp.mean(collapse.decisions(W, features, bias) == labels, dtype=W.dtype),
    }


def _finite(name: str, array: Any) -> np.ndarray:
    """`array` in NumPy's float64, after the check that it is finite."""
    found = np.asarray(array).astype(np.float64)
    if not np.all(np.isfinite(found)):
        raise ValueError(f"{name} must be finite, but {np.sum(~np.isfinite(found))} entries are not.")
    return found
