"""Riemannian solvers: each is a pair of pure functions, `init` and `step`, that `minimize` runs."""

from ufm_jax.solvers.base import Iterate, Result, Solver, Status, minimize
from ufm_jax.solvers.gradient_descent import gradient_descent
from ufm_jax.solvers.line_search import LineSearch, backtracking

__all__ = [
    "Iterate",
    "LineSearch",
    "Result",
    "Solver",
    "Status",
    "backtracking",
    "gradient_descent",
    "minimize",
]
