"""Riemannian optimization: any smooth function of a pytree of arrays, on any manifold.

    objective = Objective(cost, manifolds.Oblique())
    result = minimize(objective, start, solvers.lbfgs())

Everything is a pure function of arrays and works under `jit` and `vmap`, in float32 and float64.
"""

from ufm_jax.riemannian import curvature, manifolds, solvers, transforms
from ufm_jax.riemannian.diagnostics import check_gradient, check_hessian, check_manifold
from ufm_jax.riemannian.minimize import Iterate, Result, Solver, Status, minimize, resume
from ufm_jax.riemannian.objective import Evaluation, Objective

__all__ = [
    "Evaluation",
    "Iterate",
    "Objective",
    "Result",
    "Solver",
    "Status",
    "check_gradient",
    "check_hessian",
    "check_manifold",
    "curvature",
    "manifolds",
    "minimize",
    "resume",
    "solvers",
    "transforms",
]
