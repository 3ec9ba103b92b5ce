"""Riemannian nonlinear conjugate gradient."""

from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from ufm_jax.problems import Point, Problem
from ufm_jax.solvers.base import Iterate, Solver, iterate_at
from ufm_jax.solvers.line_search import LineSearch, adaptive

BetaRule = Literal["hestenes_stiefel", "polak_ribiere", "fletcher_reeves", "hager_zhang"]


class ConjugateGradientState(NamedTuple):
    iterate: Iterate
    direction: Point
    slope: chex.Array
    is_steepest: chex.Array
    search: Any
    stalled: chex.Array


def conjugate_gradient(
    beta_rule: BetaRule = "hestenes_stiefel", line_search: LineSearch | None = None
) -> Solver:
    """Riemannian conjugate gradient: each direction is minus the gradient plus beta times the last one.

    With its defaults its steps are those of pymanopt's ConjugateGradient. A direction that is not one of
    descent, or along which the search finds nothing, is replaced by minus the gradient.

    Args:
        beta_rule: formula of beta, by the names of its authors.
        line_search: how to choose the step; `adaptive()` if None.

    Returns:
        The solver, for `minimize`.

    Raises:
        ValueError: an unknown `beta_rule`.

    Reference: Boumal, *An Introduction to Optimization on Smooth Manifolds* (2023); Hager and Zhang,
    *A Survey of Nonlinear Conjugate Gradient Methods*, Pacific J. Optim. 2006.
    """
    if beta_rule not in _BETA_RULES:
        raise ValueError(f"beta_rule must be one of {', '.join(_BETA_RULES)}, but is {beta_rule!r}.")
    line_search = line_search or adaptive()

    def init(problem: Problem, point: Point) -> ConjugateGradientState:
        iterate = iterate_at(problem, problem.evaluate(point))
        return ConjugateGradientState(
            iterate,
            direction=optax.tree.scale(-1, iterate.gradient),
            slope=-(iterate.gradient_norm**2),
            is_steepest=jnp.array(True),
            search=line_search.init(iterate.value.dtype),
            stalled=jnp.array(False),
        )

    def step(problem: Problem, state: ConjugateGradientState) -> ConjugateGradientState:
        manifold, old = problem.manifold, state.iterate
        found = line_search.search(problem, old, state.direction, state.slope, state.search)
        new = iterate_at(problem, found.evaluation)
        carried = manifold.transport(old.point, new.point, state.direction)
        beta = _BETA_RULES[beta_rule](problem, old, new, carried)
        slope = beta * manifold.inner_product(new.point, new.gradient, carried) - new.gradient_norm**2
        # Not so, either, where a quotient of zero by zero has nothing to say.
        is_conjugate = found.moved & (beta != 0) & (slope < 0)
        beta = jnp.where(is_conjugate, beta, 0)
        # A search that failed along a conjugate direction says nothing of the next one.
        is_told = found.moved | state.is_steepest
        afresh = line_search.init(new.value.dtype)
        search = jax.tree.map(lambda a, b: jnp.where(is_told, a, b), found.state, afresh)
        return ConjugateGradientState(
            new,
            direction=optax.tree.add_scale(optax.tree.scale(-1, new.gradient), beta, carried),
            slope=jnp.where(is_conjugate, slope, -(new.gradient_norm**2)),
            is_steepest=~is_conjugate,
            search=search,
            stalled=found.exhausted & state.is_steepest,
        )

    return Solver(init, step)


# Each rule sees the old and the new iterate, and the old direction carried to the new point. The old
# gradient is carried too, by projection: an inner product with a tangent vector sees nothing else of it.


def _change(old: Iterate, new: Iterate) -> Point:
    return optax.tree.sub(new.gradient, old.gradient)


def _fletcher_reeves(problem, old, new, direction):
    del problem, direction
    return (new.gradient_norm / old.gradient_norm) ** 2


def _polak_ribiere(problem, old, new, direction):
    del direction
    inner = problem.manifold.inner_product(new.point, new.gradient, _change(old, new))
    return jnp.maximum(0, inner / old.gradient_norm**2)


def _hestenes_stiefel(problem, old, new, direction):
    change, inner = _change(old, new), problem.manifold.inner_product
    return jnp.maximum(0, inner(new.point, new.gradient, change) / inner(new.point, change, direction))


def _hager_zhang(problem, old, new, direction):
    manifold, at = problem.manifold, new.point
    change = manifold.project(at, _change(old, new))
    denominator = manifold.inner_product(at, change, direction)
    growth = manifold.inner_product(at, change, change) / denominator
    conjugate = manifold.inner_product(at, change, new.gradient)
    beta = (conjugate - 2 * growth * manifold.inner_product(at, direction, new.gradient)) / denominator
    lowest = -1 / (manifold.norm(at, direction) * jnp.minimum(0.01, old.gradient_norm))
    return jnp.maximum(beta, lowest)


_BETA_RULES = {
    "hestenes_stiefel": _hestenes_stiefel,
    "polak_ribiere": _polak_ribiere,
    "fletcher_reeves": _fletcher_reeves,
    "hager_zhang": _hager_zhang,
}
