"""Solvers and line searches by the names that they are called by: `minimize(objective, start, lbfgs())`.

Each is a frozen dataclass, equal to another with the same parameters (of `from_optax`: the same object).
"""

from ufm_jax.riemannian.conjugate_gradient import ConjugateGradient
from ufm_jax.riemannian.from_optax import FromOptax
from ufm_jax.riemannian.gradient_descent import GradientDescent
from ufm_jax.riemannian.lbfgs import LBFGS
from ufm_jax.riemannian.line_search import Adaptive, Backtracking, Found, LineSearch, UnitStep
from ufm_jax.riemannian.minimize import Iterate, Result, Solver, Status, iterate_at, minimize, resume
from ufm_jax.riemannian.trust_region import InnerStop, TrustRegion

gradient_descent = GradientDescent
conjugate_gradient = ConjugateGradient
lbfgs = LBFGS
from_optax = FromOptax
trust_region = TrustRegion
adaptive = Adaptive
backtracking = Backtracking
unit_step = UnitStep

__all__ = [
    "Found",
    "InnerStop",
    "Iterate",
    "LineSearch",
    "Result",
    "Solver",
    "Status",
    "adaptive",
    "backtracking",
    "conjugate_gradient",
    "from_optax",
    "gradient_descent",
    "iterate_at",
    "lbfgs",
    "minimize",
    "resume",
    "trust_region",
    "unit_step",
]
