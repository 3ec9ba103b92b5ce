"""Riemannian solvers: each is a pair of pure functions, `init` and `step`, that `minimize` runs."""

from ufm_jax.solvers.base import Iterate, Result, Solver, Status, iterate_at, minimize
from ufm_jax.solvers.conjugate_gradient import conjugate_gradient
from ufm_jax.solvers.gradient_descent import gradient_descent
from ufm_jax.solvers.line_search import Found, LineSearch, adaptive, backtracking
from ufm_jax.solvers.trust_region import trust_region

__all__ = [
    "Found",
    "Iterate",
    "LineSearch",
    "Result",
    "Solver",
    "Status",
    "adaptive",
    "backtracking",
    "conjugate_gradient",
    "gradient_descent",
    "iterate_at",
    "minimize",
    "trust_region",
]
