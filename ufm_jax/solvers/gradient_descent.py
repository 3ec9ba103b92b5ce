"""Riemannian gradient descent."""

from typing import Any, NamedTuple

import chex
import jax.numpy as jnp
import optax

from ufm_jax.problems import Point, Problem
from ufm_jax.solvers.base import Iterate, Solver, iterate_at
from ufm_jax.solvers.line_search import LineSearch, backtracking


class GradientDescentState(NamedTuple):
    iterate: Iterate
    search: Any
    stalled: chex.Array


def gradient_descent(line_search: LineSearch | None = None) -> Solver:
    """Riemannian gradient descent: a line search along minus the gradient (Absil et al., Algorithm 1).

    With the default `backtracking()` its steps are those of pymanopt's SteepestDescent.

    Args:
        line_search: how to choose the step; `backtracking()` if None.

    Returns:
        The solver, for `minimize`.

    Reference: Absil, Mahony, Sepulchre, *Optimization Algorithms on Matrix Manifolds* (2008), chapter 4.
    """
    line_search = line_search or backtracking()

    def init(problem: Problem, point: Point) -> GradientDescentState:
        iterate = iterate_at(problem, problem.evaluate(point))
        return GradientDescentState(iterate, line_search.init(iterate.value.dtype), jnp.array(False))

    def step(problem: Problem, state: GradientDescentState) -> GradientDescentState:
        iterate = state.iterate
        direction = optax.tree.scale(-1, iterate.gradient)
        found = line_search.search(problem, iterate, direction, -(iterate.gradient_norm**2), state.search)
        return GradientDescentState(iterate_at(problem, found.evaluation), found.state, found.exhausted)

    return Solver(init, step)
