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
        direction = optax.tree.scale(-1, iterate.gradient)
        search = line_search.init(iterate.value.dtype)
        return ConjugateGradientState(iterate, direction, jnp.array(True), search, jnp.array(False))

    def step(problem: Problem, state: ConjugateGradientState) -> ConjugateGradientState:
        manifold, iterate = problem.manifold, state.iterate
        slope = manifold.inner_product(iterate.point, iterate.gradient, state.direction)
        descends = slope < 0
        steepest = optax.tree.scale(-1, iterate.gradient)
        direction = _select(descends, state.direction, steepest)
        slope = jnp.where(descends, slope, -(iterate.gradient_norm**2))
        is_steepest = state.is_steepest | ~descends

        found = line_search.search(problem, iterate, direction, slope, state.search)
        new = iterate_at(problem, found.evaluation)
        old_gradient = manifold.transport(iterate.point, new.point, iterate.gradient)
        carried = manifold.transport(iterate.point, new.point, direction)
        beta = _BETA_RULES[beta_rule](problem, iterate, new, old_gradient, carried)
        # A quotient of zero by zero, where the gradient did not change, has nothing to say.
        beta = jnp.where(found.moved & jnp.isfinite(beta), beta, 0)
        next_direction = optax.tree.add_scale(optax.tree.scale(-1, new.gradient), beta, carried)
        afresh = line_search.init(iterate.value.dtype)
        search = _select(found.moved | is_steepest, found.state, afresh)
        return ConjugateGradientState(new, next_direction, beta == 0, search, found.exhausted & is_steepest)

    return Solver(init, step)


def _select(condition: chex.Array, a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


# Each rule sees the old and the new iterate, and the old gradient and direction carried to the new point.


def _fletcher_reeves(problem, old, new, old_gradient, direction):
    del problem, old_gradient, direction
    return (new.gradient_norm / old.gradient_norm) ** 2


def _polak_ribiere(problem, old, new, old_gradient, direction):
    del direction
    change = optax.tree.sub(new.gradient, old_gradient)
    inner = problem.manifold.inner_product(new.point, new.gradient, change)
    return jnp.maximum(0, inner / old.gradient_norm**2)


def _hestenes_stiefel(problem, old, new, old_gradient, direction):
    del old
    change = optax.tree.sub(new.gradient, old_gradient)
    inner = problem.manifold.inner_product
    return jnp.maximum(0, inner(new.point, new.gradient, change) / inner(new.point, change, direction))


def _hager_zhang(problem, old, new, old_gradient, direction):
    change = optax.tree.sub(new.gradient, old_gradient)
    manifold, at = problem.manifold, new.point
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
