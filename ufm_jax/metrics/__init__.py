"""Neural collapse metrics: NC1 to NC4, CDNV, the generalized ones for K > d + 1, and all at once."""

from ufm_jax.metrics.collapse import accuracy, cdnv, nc1, nc2, nc3, nc4
from ufm_jax.metrics.generalized import gnc2, gnc3, one_vs_rest_distances
from ufm_jax.metrics.measurement import Measurement, measure

__all__ = [
    "Measurement",
    "accuracy",
    "cdnv",
    "gnc2",
    "gnc3",
    "measure",
    "nc1",
    "nc2",
    "nc3",
    "nc4",
    "one_vs_rest_distances",
]
