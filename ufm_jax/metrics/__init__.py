"""Neural collapse metrics: NC0 to NC5 in the forms of the field, the generalized ones, and all at once."""

from ufm_jax.metrics.collapse import accuracy, cdnv, directional_cdnv, nc1, nc1_quotient, nc2, nc3, nc4
from ufm_jax.metrics.duality import (
    SquaredErrorParts,
    bias_duality,
    nc5,
    self_duality,
    similarities,
    squared_error_decomposition,
    unc3,
)
from ufm_jax.metrics.generalized import gnc2, gnc3, one_vs_rest_distances
from ufm_jax.metrics.geometry import (
    Uniformity,
    class_means,
    equiangularity,
    equinorm,
    maximal_angle,
    nc0,
    uniformity,
)
from ufm_jax.metrics.measurement import Measurement, measure

__all__ = [
    "Measurement",
    "SquaredErrorParts",
    "Uniformity",
    "accuracy",
    "bias_duality",
    "cdnv",
    "class_means",
    "directional_cdnv",
    "equiangularity",
    "equinorm",
    "gnc2",
    "gnc3",
    "maximal_angle",
    "measure",
    "nc0",
    "nc1",
    "nc1_quotient",
    "nc2",
    "nc3",
    "nc4",
    "nc5",
    "one_vs_rest_distances",
    "self_duality",
    "similarities",
    "squared_error_decomposition",
    "unc3",
    "uniformity",
]
