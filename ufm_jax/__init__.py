"""ufm-jax: neural collapse with normalized features, as pure functions on JAX arrays."""

from ufm_jax import (
    deep,
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
from ufm_jax.problems import (
    BiasedPoint,
    Point,
    Problem,
    balanced_labels,
    contrastive,
    normalized,
    regularized,
)
from ufm_jax.riemannian import manifolds, solvers, transforms
from ufm_jax.riemannian.minimize import Result, Status, minimize
from ufm_jax.riemannian.objective import Objective

__all__ = [
    "BiasedPoint",
    "Objective",
    "Point",
    "Problem",
    "Result",
    "Status",
    "__version__",
    "balanced_labels",
    "contrastive",
    "deep",
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
