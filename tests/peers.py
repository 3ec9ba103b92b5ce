"""Problems handed to pymanopt, so that its solvers can be run from the same start."""

import jax.numpy as jnp
import numpy as np
import pymanopt
from pymanopt.manifolds import Euclidean, Oblique, Product
from pymanopt.optimizers import line_search as searches

from ufm_jax import Point, manifolds


def pymanopt_problem(problem, dim):
    """`problem` in pymanopt: points are lists of matrices, which hold unit vectors as columns."""
    k, n = problem.num_classes, len(problem.labels)
    is_oblique = problem.manifold == manifolds.Oblique()
    parts = [Oblique(dim, k), Oblique(dim, n)] if is_oblique else [Euclidean(dim, k), Euclidean(dim, n)]
    manifold = Product(parts)

    @pymanopt.function.jax(manifold)
    def cost(W, H):
        log_p = problem.tau * H.T @ W
        losses = problem.loss(log_p, problem.labels)
        decay = 0.0
        if problem.decay is not None:
            decay = (problem.decay.W * jnp.sum(W**2) + problem.decay.H * jnp.sum(H**2)) / 2
        return jnp.mean(losses) + decay

    return pymanopt.Problem(manifold, cost)


def pymanopt_run(optimizer, problem, point, iterations, line_search=None, **arguments):
    """The costs of pymanopt's iterates, the start first, and the iterates as points of ours."""
    if line_search is not None:
        arguments["line_searcher"] = searches.BackTrackingLineSearcher(**line_search)
    solver = getattr(pymanopt.optimizers, optimizer)(
        max_iterations=iterations,
        min_gradient_norm=0,
        min_step_size=0,
        verbosity=0,
        log_verbosity=1,
        **arguments,
    )
    start = [np.asarray(point.W).T, np.asarray(point.H).T]
    log = solver.run(pymanopt_problem(problem, point.H.shape[1]), initial_point=start).log["iterations"]
    points = [Point(*(jnp.asarray(x.T) for x in pair)) for pair in log["point"]]
    return np.array(log["cost"], float), points


def pymanopt_trust_region_costs(problem, point, counts):
    """The cost after each of pymanopt's outer iteration in `counts`: it logs none, so each is a run."""
    peer = pymanopt_problem(problem, point.H.shape[1])
    start = [np.asarray(point.W).T, np.asarray(point.H).T]

    def cost_after(count):
        solver = pymanopt.optimizers.TrustRegions(max_iterations=count, min_gradient_norm=0, verbosity=0)
        return solver.run(peer, initial_point=start).cost

    return np.array([cost_after(count) for count in counts], float)
