"""The same problems in pymanopt, so that its solvers run from the same start. It must be installed."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pymanopt
from pymanopt.manifolds import Euclidean, Oblique, Product
from pymanopt.optimizers import line_search as searches
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


def pymanopt_run(
    optimizer: str,
    problem: Problem,
    point: Point,
    iterations: int,
    line_search: dict[str, Any] | None = None,
    **arguments: Any,
) -> tuple[np.ndarray, list[Point]]:
    """The costs of pymanopt's iterates, the start first, and the iterates as points of ours."""
    if line_search is not None:
        arguments["line_searcher"] = searches.BackTrackingLineSearcher(**line_search)
    solver = pymanopt_optimizer(optimizer, iterations, log_verbosity=1, **arguments)
    peer = pymanopt_problem(problem, point.H.shape[1])
    log = solver.run(peer, initial_point=pymanopt_point(point)).log["iterations"]
    points = [Point(*(jnp.asarray(x.T) for x in pair)) for pair in log["point"]]
    return np.array(log["cost"], float), points


def pymanopt_trust_region_costs(problem: Problem, point: Point, counts: Sequence[int]) -> np.ndarray:
    """The cost after each of pymanopt's outer iteration in `counts`: it logs none, so each is a run."""
    peer = pymanopt_problem(problem, point.H.shape[1])

    def cost_after(count):
        solver = pymanopt_optimizer("TrustRegions", count)
        return solver.run(peer, initial_point=pymanopt_point(point)).cost

    return np.array([cost_after(count) for count in counts], float)
