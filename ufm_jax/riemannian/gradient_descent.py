"""Riemannian gradient descent."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ufm_jax.riemannian.line_search import Backtracking, LineSearch, check_search
from ufm_jax.riemannian.manifolds import Tree
from ufm_jax.riemannian.minimize import Iterate, Solver, iterate_at
from ufm_jax.riemannian.objective import Objective


class GradientDescentState(NamedTuple):
    iterate: Iterate
    search: Any
    stalled: jax.Array


@dataclasses.dataclass(frozen=True)
class GradientDescent(Solver):
    """Riemannian gradient descent: a line search along minus the gradient (Absil et al., Algorithm 1).

    With the default `backtracking()` its steps are those of pymanopt's SteepestDescent.

    Args:
        line_search: how to choose the step.

    Raises:
        ValueError: `line_search` is none.

    Example:
        >>> objective = ufm.Objective(lambda x: jnp.sum((x - 1) ** 2), ufm.manifolds.Euclidean())
        >>> result = ufm.minimize(objective, jnp.zeros(2), ufm.solvers.gradient_descent())
        >>> print(result.point.round(4))
        [1. 1.]

    Reference: Absil, Mahony, Sepulchre, *Optimization Algorithms on Matrix Manifolds* (2008), chapter 4.
    """

    line_search: LineSearch = Backtracking()

    def __post_init__(self) -> None:
        check_search(self.line_search)

    def init(self, objective: Objective, point: Tree) -> GradientDescentState:
        iterate = iterate_at(objective, objective.evaluate(point))
        return GradientDescentState(iterate, self.line_search.init(iterate.value.dtype), jnp.array(False))

    def step(self, objective: Objective, state: GradientDescentState) -> GradientDescentState:
        iterate = state.iterate
        direction = optax.tree.scale(-1, iterate.gradient)
        slope = -(iterate.gradient_norm**2)
        found = self.line_search.search(objective, iterate, direction, slope, state.search)
        return GradientDescentState(iterate_at(objective, found.evaluation), found.state, found.exhausted)
