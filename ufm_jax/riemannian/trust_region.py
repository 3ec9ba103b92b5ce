"""Riemannian trust region with truncated conjugate gradients."""

import dataclasses
import enum
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ufm_jax import _checks
from ufm_jax._products import power_of_two
from ufm_jax.riemannian.line_search import change_of_cost, rounding_error
from ufm_jax.riemannian.manifolds import Tree
from ufm_jax.riemannian.minimize import Iterate, Solver, iterate_with
from ufm_jax.riemannian.objective import Evaluation, Objective

_RESOLUTION = 1e3
"""Rounding units above which a change of the cost is known well enough to judge a model by."""


_SLOPE_RESOLUTION = 8.0
"""Rounding units of a step's length above which its slope is known well enough for the same."""


class InnerStop(enum.IntEnum):
    """Why the last inner iteration of a trust region ended, as an integer in its state.

    Example:
        >>> objective = ufm.Objective(lambda x: jnp.sum((x - 1) ** 2), ufm.manifolds.Euclidean())
        >>> result = ufm.minimize(objective, jnp.zeros(2), ufm.solvers.trust_region(), max_steps=1)
        >>> ufm.solvers.InnerStop(int(result.state.inner_stop)).name
        'BOUNDARY'
    """

    NOT_RUN = -1
    """No step has been taken yet."""
    RESIDUAL = 0
    """The residual of the model's gradient is small enough."""
    BOUNDARY = 1
    """The step left the radius."""
    NEGATIVE_CURVATURE = 2
    """The model is not convex along a direction, which was followed to the radius."""
    MAX_INNER = 3
    """All allowed inner iterations were used."""
    ROUNDING = 4
    """The next step would have raised the model, which only rounding can do."""


class TrustRegionState(NamedTuple):
    """The state of a trust region.

    Attributes:
        iterate: where it is.
        euclidean_gradient: there, in the ambient space.
        radius: of the next step, in the metric of the manifold.
        stalled: whether the radius has shrunk to nothing.
        inner_steps: Hessian products of the last step, int32.
        inner_stop: an `InnerStop`, int32.
    """

    iterate: Iterate
    euclidean_gradient: Tree
    radius: jax.Array
    stalled: jax.Array
    inner_steps: jax.Array
    inner_stop: jax.Array


class _Model(NamedTuple):
    """The state of the truncated conjugate gradients: a step, and what leads on from it.

    `squares` holds |step|^2, <step, direction> and |direction|^2 by recurrence (Conn, Gould, Toint, 7.5.6).
    """

    step: Tree
    hessian_step: Tree
    residual: Tree
    residual_square: jax.Array
    direction: Tree
    squares: tuple[jax.Array, jax.Array, jax.Array]
    value: jax.Array
    iterations: jax.Array
    stop: jax.Array

    @property
    def at_boundary(self) -> jax.Array:
        return (self.stop == InnerStop.BOUNDARY) | (self.stop == InnerStop.NEGATIVE_CURVATURE)


@dataclasses.dataclass(frozen=True)
class TrustRegion(Solver):
    """Riemannian trust region: each step minimizes a quadratic model of the cost within a radius.

    The model has the exact Hessian, applied to vectors and never formed; Steihaug and Toint's truncated
    conjugate gradients minimize it, and leave along a direction of negative curvature where there is one.
    Where values no longer resolve a decrease, the ratio of actual to predicted decrease takes the actual
    one from slopes, so that steps near the minimum are judged on digits that mean something.

    With `theta=1.0` its steps are those of pymanopt's TrustRegions. That asks for a residual of the square
    of the gradient norm, which is very small where the cost is a mean over many samples: the inner
    iteration then goes on until it meets the slightly negative curvature along symmetries of the cost
    (rotations, for the UFM), follows it to the radius, and the step is refused. With the default, 1/2, the
    trust region needs 1.3 to 9 times fewer Hessian products on the UFM (docs/riemannian.md).

    Args:
        max_radius: largest radius; the manifold's `typical_distance` if None, which in a Euclidean space is
            the root of the dimension, whatever the size of the variables.
        initial_radius: the first, at most the largest; an eighth of it if None.
        rho_prime: accept a step whose decrease is more than this share of the predicted one, in [0, 1/4).
        kappa: the inner iteration ends once its residual is at most
            `|gradient| min(|gradient|^theta, kappa)`, in (0, 1).
        theta: order of convergence less one, positive; pymanopt has 1.
        min_inner: inner iterations before that test, at least 0.
        max_inner: most inner iterations; the manifold's dimension if None.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> objective = ufm.Objective(lambda x: jnp.sum((x - 1) ** 2), ufm.manifolds.Euclidean())
        >>> result = ufm.minimize(objective, jnp.zeros(2), ufm.solvers.trust_region())
        >>> print(result.point.round(4))
        [1. 1.]

    Reference: Absil, Baker, Gallivan, *Trust-Region Methods on Riemannian Manifolds*, Found. Comput. Math.
    2007; Conn, Gould, Toint, *Trust Region Methods* (2000), section 7.5.
    """

    max_radius: float | None = None
    initial_radius: float | None = None
    rho_prime: float = 0.1
    kappa: float = 0.1
    theta: float = 0.5
    min_inner: int = 1
    max_inner: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_radius", "initial_radius"):
            if getattr(self, name) is not None:
                _checks.positive(name, getattr(self, name))
        if not 0 <= self.rho_prime < 0.25:
            raise ValueError(f"rho_prime must be at least 0 and below 1/4, but is {self.rho_prime}.")
        if not 0 < self.kappa < 1:
            raise ValueError(f"kappa must lie between 0 and 1, but is {self.kappa}.")
        _checks.positive("theta", self.theta)
        _checks.count("max_inner", 1 if self.max_inner is None else self.max_inner, 1)
        _checks.count("min_inner", self.min_inner, 0)
        first, largest = self.initial_radius, self.max_radius
        if first is not None and largest is not None and first > largest:
            raise ValueError(f"initial_radius must be at most max_radius = {largest}, but is {first}.")
        _checks.with_plain_numbers(self)

    def _largest_radius(self, objective: Objective, point: Tree) -> jax.Array | float:
        return objective.manifold.typical_distance(point) if self.max_radius is None else self.max_radius

    def init(self, objective: Objective, point: Tree) -> TrustRegionState:
        iterate, euclidean_gradient = _complete(objective, objective.evaluate(point))
        largest = self._largest_radius(objective, point)
        first = largest / 8 if self.initial_radius is None else jnp.minimum(self.initial_radius, largest)
        radius = jnp.asarray(first, iterate.value.dtype)
        nothing_yet = (jnp.int32(0), jnp.int32(InnerStop.NOT_RUN))
        return TrustRegionState(iterate, euclidean_gradient, radius, jnp.array(False), *nothing_yet)

    def step(self, objective: Objective, state: TrustRegionState) -> TrustRegionState:
        manifold, (iterate, euclidean_gradient, radius, *_) = objective.manifold, state
        point, gradient = iterate.point, iterate.gradient
        hessian = objective.hessian_given(iterate.evaluation, euclidean_gradient)
        model = _minimize_model(self, objective, iterate, hessian, radius)

        slope = manifold.inner_product(point, gradient, model.step)
        predicted = slope + manifold.inner_product(point, model.step, model.hessian_step) / 2
        evaluation = objective.evaluate(manifold.retract(point, model.step))
        change_at = change_of_cost(objective, iterate, model.step, slope, resolution=_RESOLUTION)
        rho = change_at(jnp.ones_like(radius), evaluation) / predicted

        unit = rounding_error(objective, iterate)
        resolved = jnp.abs(evaluation.value - iterate.value) > _RESOLUTION * unit
        resolved |= jnp.abs(slope) > _SLOPE_RESOLUTION * unit * manifold.norm(point, model.step)
        promises = (predicted < 0) & jnp.isfinite(rho) & (rho > self.rho_prime)

        kept = (iterate, euclidean_gradient, jnp.array(False))

        def propose() -> tuple[Iterate, Tree, jax.Array]:
            proposed, its_gradient = _complete(objective, evaluation)
            # Where neither says much the gradient must shrink, or rounding errors are followed for ever.
            good = resolved | (proposed.gradient_norm < iterate.gradient_norm)
            return jax.lax.cond(good, lambda: (proposed, its_gradient, jnp.array(True)), lambda: kept)

        new_iterate, new_gradient, accepted = jax.lax.cond(promises, propose, lambda: kept)
        largest = self._largest_radius(objective, point)
        longer = jnp.minimum(2 * radius, largest)
        not_shorter = jnp.where((rho > 0.75) & model.at_boundary, longer, radius)
        new_radius = jnp.where(accepted & (rho >= 0.25), not_shorter, radius / 4)
        exhausted = new_radius < jnp.finfo(radius.dtype).eps * largest
        stop = jnp.where(model.stop == InnerStop.NOT_RUN, InnerStop.MAX_INNER, model.stop)
        return TrustRegionState(
            new_iterate, new_gradient, new_radius, ~accepted & exhausted, model.iterations, stop
        )


def _complete(objective: Objective, evaluation: Evaluation) -> tuple[Iterate, Tree]:
    """The iterate of a forward pass, and its gradient in the ambient space, which the Hessian needs."""
    euclidean_gradient = objective.euclidean_gradient(evaluation)
    return iterate_with(objective, evaluation, euclidean_gradient), euclidean_gradient


def _minimize_model(
    solver: TrustRegion,
    objective: Objective,
    iterate: Iterate,
    hessian: Callable[[Tree], Tree],
    radius: jax.Array,
) -> _Model:
    """Truncated conjugate gradients on `<gradient, step> + <step, Hessian step>/2` within the radius.

    Steps are in units of the radius and slopes in units of the gradient, powers of two, so that products of
    large or small numbers neither overflow nor vanish.
    """
    manifold, point = objective.manifold, iterate.point
    of_steps, of_slopes = power_of_two(radius), power_of_two(iterate.gradient_norm)
    radius, gradient_norm = radius / of_steps, iterate.gradient_norm / of_slopes
    gradient = optax.tree.scale(1 / of_slopes, iterate.gradient)
    most_inner = manifold.dimension(point) if solver.max_inner is None else solver.max_inner
    most_inner = min(most_inner, 2**31 - 1)  # Iterations are counted in int32.

    def inner(a: Tree, b: Tree) -> jax.Array:
        return manifold.inner_product(point, a, b)

    target = gradient_norm * jnp.minimum(iterate.gradient_norm**solver.theta, solver.kappa)

    def advance(model: _Model) -> _Model:
        step_square, step_direction, direction_square = model.squares
        hessian_direction = optax.tree.scale(of_steps / of_slopes, hessian(model.direction))
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
        # Only rounding can make an interior step raise the model: then it is rejected.
        rises = ~leaves & ~(new_value < model.value)

        residual = optax.tree.add_scale(model.residual, alpha, hessian_direction)
        residual_square = inner(residual, residual)
        reached = (model.iterations >= solver.min_inner) & (jnp.sqrt(residual_square) <= target)
        reached |= residual_square == 0  # There is no further direction.
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
            model.iterations + 1,
            jnp.select(
                [leaves & ~(curvature > 0), leaves, rises, reached],
                [
                    jnp.int32(InnerStop.NEGATIVE_CURVATURE),
                    jnp.int32(InnerStop.BOUNDARY),
                    jnp.int32(InnerStop.ROUNDING),
                    jnp.int32(InnerStop.RESIDUAL),
                ],
                model.stop,
            ),
        )

    zero = optax.tree.zeros_like(gradient)
    square = gradient_norm**2
    nothing = jnp.zeros_like(square)
    start = _Model(
        step=zero,
        hessian_step=zero,
        residual=gradient,
        residual_square=square,
        direction=optax.tree.scale(-1, gradient),
        squares=(nothing, nothing, square),
        value=nothing,
        iterations=jnp.int32(0),
        # At a critical point there is no direction to take.
        stop=jnp.where(square > 0, InnerStop.NOT_RUN, InnerStop.RESIDUAL).astype(jnp.int32),
    )

    def goes_on(model: _Model) -> jax.Array:
        return (model.stop == InnerStop.NOT_RUN) & (model.iterations < most_inner)

    found = jax.lax.while_loop(goes_on, advance, start)
    return found._replace(
        step=optax.tree.scale(of_steps, found.step),
        hessian_step=optax.tree.scale(of_slopes, found.hessian_step),
    )
