"""The same problems in GeoJAX, so that its solvers run from the same start. It must be installed."""

from typing import Any

import jax
from geojax.geometry import Oblique, Product
from geojax.optimization import LBFGS, ConjugateGradient, Minimize, TrustRegions

from ufm_jax import Point, Problem

SOLVERS = {"lbfgs": LBFGS, "conjugate_gradient": ConjugateGradient, "trust_region": TrustRegions}


def geojax_run(
    solver: str, problem: Problem, point: Point, tolerance: float, seconds: float
) -> tuple[int, Point]:
    """Steps and end of a run of GeoJAX, which holds unit vectors as columns.

    It compiles no whole solver, so the functions that it calls are compiled for it.
    """

    def cost(x: tuple[jax.Array, jax.Array]) -> jax.Array:
        return problem.cost(Point(W=x[0].T, H=x[1].T))

    start: Any = (point.W.T, point.H.T)
    run = Minimize(
        M=Product(tuple(Oblique(size=x.shape) for x in start)),
        cost=jax.jit(cost),
        egrad=jax.jit(jax.grad(cost)),
        ehess_vec=jax.jit(lambda x, v: jax.jvp(jax.grad(cost), (x,), (v,))[1]),
        x0=start,
        solver=SOLVERS[solver](
            tolgradnorm=tolerance, maxtime=seconds, maxiter=100_000, minstepsize=0.0, verbosity=0
        ),
    )
    (W, H), _, history = run.solve()
    return history[-1].iter, Point(W.T, H.T)
