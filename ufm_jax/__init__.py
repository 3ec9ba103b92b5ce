"""ufm-jax: neural collapse with normalized features, as pure functions on JAX arrays."""

from ufm_jax import (
    landscape,
    losses,
    metrics,
    riemannian,
    saddles,
    sharding,
    streaming,
    theory,
    trials,
)
from ufm_jax._version import __version__
from ufm_jax.problems import Point, Problem, balanced_labels, contrastive, normalized, regularized
from ufm_jax.riemannian import Objective, Result, Status, manifolds, minimize, solvers, transforms

__all__ = [
    "Objective",
    "Point",
    "Problem",
    "Result",
    "Status",
    "__version__",
    "balanced_labels",
    "contrastive",
    "landscape",
    "losses",
    "manifolds",
    "metrics",
    "minimize",
    "normalized",
    "regularized",
    "riemannian",
    "saddles",
    "sharding",
    "solvers",
    "streaming",
    "theory",
    "transforms",
    "trials",
]
