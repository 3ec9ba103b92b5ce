"""Riemannian trust region with truncated conjugate gradients."""

import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from ufm_jax import _checks
from ufm_jax.problems import Evaluation, Point, Problem
from ufm_jax.solvers.base import Iterate, Solver, iterate_with
from ufm_jax.solvers.line_search import change_of_cost, rounding_error

_RESOLUTION = 1e3
"""Rounding units above which a change of the cost is known well enough to judge a model by."""


_SLOPE_RESOLUTION = 8.0
"""Rounding units of a step's length above which its slope is known well enough for the same."""


class TrustRegionState(NamedTuple):
    iterate: Iterate
    euclidean_gradient: Point
    radius: chex.Array
    stalled: chex.Array


class _Model(NamedTuple):
    """The state of the truncated conjugate gradients: a step, and what leads on from it.

    `squares` holds |step|^2, <step, direction> and |direction|^2 by recurrence (Conn, Gould, Toint, 7.5.6).
    """

    step: Point
    hessian_step: Point
    residual: Point
    residual_square: chex.Array
    direction: Point
    squares: tuple[chex.Array, chex.Array, chex.Array]
    value: chex.Array
    count: chex.Array
    at_boundary: chex.Array
    done: chex.Array


def trust_region(
    max_radius: float | None = None,
    initial_radius: float | None = None,
    rho_prime: float = 0.1,
    kappa: float = 0.1,
    theta: float = 1.0,
    min_inner: int = 1,
    max_inner: int | None = None,
) -> Solver:
    """Riemannian trust region: each step minimizes a quadratic model of the cost within a radius.

    The model has the exact Hessian, applied to vectors and never formed; Steihaug and Toint's truncated
    conjugate gradients minimize it, and leave along a direction of negative curvature where there is one.
    With its defaults its steps are those of pymanopt's TrustRegions. Where values no longer resolve a
    decrease, the ratio of actual to predicted decrease takes the actual one from slopes, so that steps
    near the minimum are judged on digits that mean something.

    Args:
        max_radius: largest radius; the manifold's `typical_distance` if None.
        initial_radius: the first; an eighth of the largest if None.
        rho_prime: accept a step whose decrease is more than this share of the predicted one, in [0, 1/4).
        kappa: the inner iteration ends once its residual is at most
            `|gradient| min(|gradient|^theta, kappa)`, in (0, 1).
        theta: order of convergence less one, positive.
        min_inner: inner iterations before that test is made, at least 0.
        max_inner: most inner iterations; the manifold's dimension if None.

    Returns:
        The solver, for `minimize`; a rejected step counts as a step.

    Raises:
        ValueError: an argument is out of its range.

    Reference: Absil, Baker, Gallivan, *Trust-Region Methods on Riemannian Manifolds*, Found. Comput. Math.
    2007; Conn, Gould, Toint, *Trust Region Methods* (2000), section 7.5.
    """
    for name, radius in [("max_radius", max_radius), ("initial_radius", initial_radius)]:
        if radius is not None:
            _checks.positive(name, radius)
    if not 0 <= rho_prime < 0.25:
        raise ValueError(f"rho_prime must be at least 0 and below 1/4, but is {rho_prime}.")
    if not 0 < kappa < 1:
        raise ValueError(f"kappa must lie between 0 and 1, but is {kappa}.")
    _checks.positive("theta", theta)
    _checks.at_least("max_inner", 1 if max_inner is None else max_inner, 1)

    def largest_radius(problem: Problem, point: Point) -> float:
        return problem.manifold.typical_distance(point) if max_radius is None else max_radius

    def init(problem: Problem, point: Point) -> TrustRegionState:
        iterate, euclidean_gradient = _complete(problem, problem.evaluate(point))
        first = largest_radius(problem, point) / 8 if initial_radius is None else initial_radius
        radius = jnp.asarray(first, iterate.value.dtype)
        return TrustRegionState(iterate, euclidean_gradient, radius, jnp.array(False))

    def step(problem: Problem, state: TrustRegionState) -> TrustRegionState:
        manifold, (iterate, euclidean_gradient, radius, _) = problem.manifold, state
        point, gradient = iterate.point, iterate.gradient
        most_inner = manifold.dimension(point) if max_inner is None else max_inner
        hessian = problem.hessian_given(iterate.evaluation, euclidean_gradient)
        model = _minimize_model(problem, iterate, hessian, radius, kappa, theta, min_inner, most_inner)

        slope = manifold.inner_product(point, gradient, model.step)
        predicted = slope + manifold.inner_product(point, model.step, model.hessian_step) / 2
        evaluation = problem.evaluate(manifold.retract(point, model.step))
        change_at = change_of_cost(problem, iterate, model.step, slope, resolution=_RESOLUTION)
        rho = change_at(jnp.ones_like(radius), evaluation) / predicted

        unit = rounding_error(problem, iterate)
        resolved = jnp.abs(evaluation.value - iterate.value) > _RESOLUTION * unit
        resolved |= jnp.abs(slope) > _SLOPE_RESOLUTION * unit * manifold.norm(point, model.step)
        promises = (predicted < 0) & jnp.isfinite(rho) & (rho > rho_prime)

        kept = (iterate, euclidean_gradient, jnp.array(False))

        def propose() -> tuple[Iterate, Point, chex.Array]:
            proposed, its_gradient = _complete(problem, evaluation)
            # Where neither says much the gradient must shrink, or rounding errors are followed for ever.
            good = resolved | (proposed.gradient_norm < iterate.gradient_norm)
            return jax.lax.cond(good, lambda: (proposed, its_gradient, jnp.array(True)), lambda: kept)

        new_iterate, new_gradient, accepted = jax.lax.cond(promises, propose, lambda: kept)
        longer = jnp.minimum(2 * radius, largest_radius(problem, point))
        not_shorter = jnp.where((rho > 0.75) & model.at_boundary, longer, radius)
        new_radius = jnp.where(accepted & (rho >= 0.25), not_shorter, radius / 4)
        exhausted = new_radius < jnp.finfo(radius.dtype).eps * math.sqrt(manifold.dimension(point))
        return TrustRegionState(new_iterate, new_gradient, new_radius, ~accepted & exhausted)

    return Solver(init, step)


def _complete(problem: Problem, evaluation: Evaluation) -> tuple[Iterate, Point]:
    """The iterate of a forward pass, and its gradient in the ambient space, which the Hessian needs."""
    euclidean_gradient = problem.euclidean_gradient(evaluation)
    return iterate_with(problem, evaluation, euclidean_gradient), euclidean_gradient


def _minimize_model(
    problem: Problem,
    iterate: Iterate,
    hessian: Callable[[Point], Point],
    radius: chex.Array,
    kappa: float,
    theta: float,
    min_inner: int,
    max_inner: int,
) -> _Model:
    """Truncated conjugate gradients on `<gradient, step> + <step, Hessian step>/2` within the radius."""
    manifold, point, gradient = problem.manifold, iterate.point, iterate.gradient

    def inner(a: Point, b: Point) -> chex.Array:
        return manifold.inner_product(point, a, b)

    target = iterate.gradient_norm * jnp.minimum(iterate.gradient_norm**theta, kappa)

    def advance(model: _Model) -> _Model:
        step_square, step_direction, direction_square = model.squares
        hessian_direction = hessian(model.direction)
        curvature = inner(model.direction, hessian_direction)
        alpha = model.residual_square / curvature
        new_square = step_square + 2 * alpha * step_direction + alpha**2 * direction_square
        # Also where the curvature is not a number.
        leaves = ~((curvature > 0) & (new_square < radius**2))
        discriminant = step_direction**2 + direction_square * (radius**2 - step_square)
        to_boundary = (jnp.sqrt(jnp.maximum(discriminant, 0)) - step_direction) / direction_square
        alpha = jnp.where(leaves, to_boundary, alpha)

        new_step = optax.tree.add_scale(model.step, alpha, model.direction)
        new_hessian_step = optax.tree.add_scale(model.hessian_step, alpha, hessian_direction)
        new_value = inner(new_step, gradient) + inner(new_step, new_hessian_step) / 2
        # Only rounding can make an interior step raise the model: then it is not made.
        rises = ~leaves & ~(new_value < model.value)

        residual = optax.tree.add_scale(model.residual, alpha, hessian_direction)
        residual_square = inner(residual, residual)
        reached = (model.count >= min_inner) & (jnp.sqrt(residual_square) <= target)
        beta = residual_square / model.residual_square
        direction = optax.tree.add_scale(optax.tree.scale(-1, residual), beta, model.direction)
        # Rounding must not lead out of the tangent space.
        direction = manifold.project(point, direction)
        squares = (
            new_square,
            beta * (step_direction + alpha * direction_square),
            residual_square + beta**2 * direction_square,
        )
        return _Model(
            jax.tree.map(lambda old, new: jnp.where(rises, old, new), model.step, new_step),
            jax.tree.map(lambda old, new: jnp.where(rises, old, new), model.hessian_step, new_hessian_step),
            residual,
            residual_square,
            direction,
            squares,
            new_value,
            model.count + 1,
            leaves,
            leaves | rises | reached,
        )

    zero = optax.tree.zeros_like(gradient)
    square = iterate.gradient_norm**2
    nothing = jnp.zeros_like(square)
    start = _Model(
        step=zero,
        hessian_step=zero,
        residual=gradient,
        residual_square=square,
        direction=optax.tree.scale(-1, gradient),
        squares=(nothing, nothing, square),
        value=nothing,
        count=jnp.int32(0),
        at_boundary=jnp.array(False),
        # At a critical point there is no direction to take.
        done=~(square > 0),
    )
    return jax.lax.while_loop(lambda m: ~m.done & (m.count < max_inner), advance, start)
