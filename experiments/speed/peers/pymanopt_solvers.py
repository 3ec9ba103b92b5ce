"""The same problems in pymanopt, so that its solvers run from the same start. It must be installed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pymanopt
from pymanopt.manifolds import Euclidean, Oblique, Product
from pymanopt.optimizers.optimizer import Optimizer

from ufm_jax import Point, Problem, manifolds


def pymanopt_problem(problem: Problem, dim: int) -> pymanopt.Problem:
    """`problem` in pymanopt: points are lists of matrices, which hold unit vectors as columns."""
    k, n = problem.num_classes, len(problem.labels)
    is_oblique = problem.manifold == manifolds.Oblique()
    parts = [Oblique(dim, k), Oblique(dim, n)] if is_oblique else [Euclidean(dim, k), Euclidean(dim, n)]
    manifold = Product(parts)

    @pymanopt.function.jax(manifold)
    def cost(W: Any, H: Any) -> jax.Array:
        losses = problem.loss(jnp.asarray(problem.tau * (H.T @ W)), problem.labels)
        rates: Any = problem.decay or Point(0.0, 0.0)
        return jnp.mean(losses) + (rates.W * jnp.sum(W**2) + rates.H * jnp.sum(H**2)) / 2

    return pymanopt.Problem(manifold, cost)


def pymanopt_point(point: Point) -> list[np.ndarray]:
    """A start for pymanopt."""
    return [np.asarray(point.W).T, np.asarray(point.H).T]


def pymanopt_optimizer(optimizer: str, steps: int, **arguments: Any) -> Optimizer:
    """`SteepestDescent`, `ConjugateGradient` or `TrustRegions`; by default it stops after `steps` only."""
    if optimizer != "TrustRegions":
        arguments["min_step_size"] = 0
    if optimizer == "ConjugateGradient":
        steps += 1  # It counts the start.
    arguments = {"max_iterations": steps, "min_gradient_norm": 0, "verbosity": 0} | arguments
    return getattr(pymanopt.optimizers, optimizer)(**arguments)
