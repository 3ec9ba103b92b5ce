"""Riemannian nonlinear conjugate gradient."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ufm_jax import _checks
from ufm_jax.riemannian.line_search import Adaptive, LineSearch, check_search
from ufm_jax.riemannian.manifolds import Tree
from ufm_jax.riemannian.minimize import Iterate, Solver, iterate_at
from ufm_jax.riemannian.objective import Objective

BetaRule = Literal["hestenes_stiefel", "polak_ribiere", "fletcher_reeves", "hager_zhang"]


class ConjugateGradientState(NamedTuple):
    iterate: Iterate
    direction: Tree
    slope: jax.Array
    is_steepest: jax.Array
    search: Any
    stalled: jax.Array


@dataclasses.dataclass(frozen=True)
class ConjugateGradient(Solver):
    """Riemannian conjugate gradient: each direction is minus the gradient plus beta times the last one.

    With its defaults its steps are those of pymanopt's ConjugateGradient. A direction that is not one of
    descent, or along which the search finds nothing, is replaced by minus the gradient.

    Args:
        beta_rule: formula of beta, by the names of its authors.
        line_search: how to choose the step.

    Raises:
        ValueError: an unknown `beta_rule`, or `line_search` is none.

    Example:
        >>> objective = ufm.Objective(lambda x: jnp.sum((x - 1) ** 2), ufm.manifolds.Euclidean())
        >>> result = ufm.minimize(objective, jnp.zeros(2), ufm.solvers.conjugate_gradient("hager_zhang"))
        >>> print(result.point.round(4))
        [1. 1.]

    Reference: Boumal, *An Introduction to Optimization on Smooth Manifolds* (2023); Hager and Zhang,
    *A Survey of Nonlinear Conjugate Gradient Methods*, Pacific J. Optim. 2006.
    """

    beta_rule: BetaRule = "hestenes_stiefel"
    line_search: LineSearch = Adaptive()

    def __post_init__(self) -> None:
        check_search(self.line_search)
        _checks.one_of("beta_rule", self.beta_rule, _BETA_RULES)

    def init(self, objective: Objective, point: Tree) -> ConjugateGradientState:
        iterate = iterate_at(objective, objective.evaluate(point))
        return ConjugateGradientState(
            iterate,
            direction=optax.tree.scale(-1, iterate.gradient),
            slope=-(iterate.gradient_norm**2),
            is_steepest=jnp.array(True),
            search=self.line_search.init(iterate.value.dtype),
            stalled=jnp.array(False),
        )

    def step(self, objective: Objective, state: ConjugateGradientState) -> ConjugateGradientState:
        manifold, old = objective.manifold, state.iterate
        found = self.line_search.search(objective, old, state.direction, state.slope, state.search)
        new = iterate_at(objective, found.evaluation)
        carried = manifold.transport(old.point, new.point, state.direction)
        # Derivatives of a run are those at fixed steps and a fixed mixture: quotients of changes that go to
        # zero have derivatives that do not.
        beta = jax.lax.stop_gradient(_BETA_RULES[self.beta_rule](manifold, old, new, carried))
        slope = beta * manifold.inner_product(new.point, new.gradient, carried) - new.gradient_norm**2
        # Not so, either, where a quotient by zero has nothing to say.
        is_conjugate = found.moved & (beta != 0) & (slope < 0) & jnp.isfinite(slope)
        steepest = optax.tree.scale(-1, new.gradient)
        mixed = optax.tree.add_scale(steepest, beta, carried)
        # A search that failed along a conjugate direction says nothing of the next one.
        is_told = found.moved | state.is_steepest
        afresh = self.line_search.init(new.value.dtype)
        search = optax.tree.where(is_told, found.state, afresh)
        return ConjugateGradientState(
            new,
            # Chosen, since what is not finite would stay so when multiplied by zero.
            direction=optax.tree.where(is_conjugate, mixed, steepest),
            slope=jnp.where(is_conjugate, slope, -(new.gradient_norm**2)),
            is_steepest=~is_conjugate,
            search=search,
            stalled=found.exhausted & state.is_steepest,
        )


# Each rule sees the old and the new iterate, and the old direction carried to the new point. The old
# gradient is carried too, by projection: an inner product with a tangent vector sees nothing else of it.


def _change(old: Iterate, new: Iterate) -> Tree:
    return optax.tree.sub(new.gradient, old.gradient)


def _fletcher_reeves(manifold, old, new, direction):
    del manifold, direction
    return (new.gradient_norm / old.gradient_norm) ** 2


def _polak_ribiere(manifold, old, new, direction):
    del direction
    inner = manifold.inner_product(new.point, new.gradient, _change(old, new))
    return jnp.maximum(0, inner / old.gradient_norm**2)


def _hestenes_stiefel(manifold, old, new, direction):
    change, inner = _change(old, new), manifold.inner_product
    return jnp.maximum(0, inner(new.point, new.gradient, change) / inner(new.point, change, direction))


def _hager_zhang(manifold, old, new, direction):
    at = new.point
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
