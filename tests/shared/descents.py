"""Problems on which solvers are held against pymanopt, and its runs on them."""

import jax
import jax.numpy as jnp
import numpy as np
from pymanopt.optimizers import line_search as searches

import ufm_jax as ufm
from experiments.speed.peers.pymanopt_solvers import pymanopt_optimizer, pymanopt_point, pymanopt_problem

K, N_PER_CLASS, DIM = 10, 5, 32
LABELS = ufm.balanced_labels(K, N_PER_CLASS)
PROBLEMS = {
    "normalized, tau=5.0": ufm.normalized(LABELS, K, tau=5.0),
    "regularized": ufm.regularized(LABELS, K),
    **{f"normalized, tau={tau}": ufm.normalized(LABELS, K, tau=tau) for tau in (0.5, 1.0)},
}
"""The first two, which run by default, differ most."""


def costs_of(problem, point, solver, steps):
    return jax.jit(
        lambda x: ufm.minimize(problem, x, solver, max_steps=steps, tolerance=0.0, measure=problem.cost)
    )(point).history


def pymanopt_run(optimizer, problem, point, iterations, line_search=None, **arguments):
    """The costs of pymanopt's iterates, the start first, and the iterates as points of ours."""
    if line_search is not None:
        arguments["line_searcher"] = searches.BackTrackingLineSearcher(**line_search)
    solver = pymanopt_optimizer(optimizer, iterations, log_verbosity=1, **arguments)
    peer = pymanopt_problem(problem, point.H.shape[1])
    log = solver.run(peer, initial_point=pymanopt_point(point)).log["iterations"]
    points = [ufm.Point(*(jnp.asarray(x.T) for x in pair)) for pair in log["point"]]
    return np.array(log["cost"], float), points


def pymanopt_trust_region_costs(problem, point, counts):
    """The cost after each of pymanopt's outer iteration in `counts`: it logs none, so each is a run."""
    peer = pymanopt_problem(problem, point.H.shape[1])

    def cost_after(count):
        solver = pymanopt_optimizer("TrustRegions", count)
        return solver.run(peer, initial_point=pymanopt_point(point)).cost

    return np.array([cost_after(count) for count in counts], float)
