"""Line searches along a retraction, as pairs of pure functions.

Both searches are pymanopt's, step for step, while the cost can resolve a decrease. Near a minimum it no
longer can: the decrease falls under the rounding error of the cost (in float32 at a gradient norm near
1e-4). There the decrease is taken from slopes by the trapezoidal rule, `step (slope_0 + slope_step)/2`,
which keeps its digits; the sufficient decrease condition on it is the approximate Wolfe condition of Hager
and Zhang, *A New Conjugate Gradient Method with Guaranteed Descent and an Efficient Line Search*, SIAM J.
Optim. 2005, equation (4.1).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from ufm_jax import _checks
from ufm_jax.problems import Evaluation, Point, Problem
from ufm_jax.solvers.base import Iterate


class Found(NamedTuple):
    """What a search returns: where it ended, whether it moved, and whether it could have gone on.

    Attributes:
        evaluation: the new point with its forward pass; the old one if `moved` is false.
        moved: whether the cost fell.
        exhausted: it did not move, and another search along this direction would not either.
        state: what the search remembers for its next call.
    """

    evaluation: Evaluation
    moved: chex.Array
    exhausted: chex.Array
    state: Any


class LineSearch(NamedTuple):
    """Two pure functions: `init(dtype)`, and `search(problem, iterate, direction, slope, state)`.

    `direction` is a tangent vector at the iterate, and `slope` the derivative of the cost along it.
    """

    init: Callable[[Any], Any]
    search: Callable[[Problem, Iterate, Point, chex.Array, Any], Found]


class _Trial(NamedTuple):
    step: chex.Array
    evaluation: Evaluation
    change: chex.Array
    count: chex.Array


def backtracking(
    contraction_factor: float = 0.5,
    optimism: float = 2.0,
    sufficient_decrease: float = 1e-4,
    max_iterations: int = 25,
    initial_step_size: float = 1.0,
) -> LineSearch:
    """Backtracking from a guess that grows with success, as pymanopt's BackTrackingLineSearcher.

    The first guess moves by `initial_step_size`; each later one is `optimism` times the step at which the
    last change of the cost would repeat itself, Nocedal and Wright (3.60).

    Args:
        contraction_factor: each failed step is multiplied by this, in (0, 1).
        optimism: factor on the guess, positive.
        sufficient_decrease: accept a step once the cost changes by at most this times step times slope.
        max_iterations: most contractions, at least 0.
        initial_step_size: length of the first step tried, positive.

    Returns:
        The line search.

    Raises:
        ValueError: an argument is out of its range.
    """
    _checks.positive("optimism", optimism)
    attempts = _contraction(contraction_factor, sufficient_decrease, max_iterations, initial_step_size)

    def init(dtype):
        return jnp.zeros((), dtype)

    def search(problem, iterate, direction, slope, last_change):
        guess = optimism * 2 * last_change / slope
        trial = attempts(problem, iterate, direction, slope, guess)
        return Found(trial.evaluation, trial.change < 0, ~(trial.change < 0), trial.change)

    return LineSearch(init, search)


def adaptive(
    contraction_factor: float = 0.5,
    sufficient_decrease: float = 0.5,
    max_iterations: int = 10,
    initial_step_size: float = 1.0,
) -> LineSearch:
    """Backtracking from the last step, or twice it, as pymanopt's AdaptiveLineSearcher.

    The next search starts from the step this one accepted if it contracted once, and from twice that
    step otherwise, so that a search tries two steps on average.

    Args:
        contraction_factor: each failed step is multiplied by this, in (0, 1).
        sufficient_decrease: accept a step once the cost changes by at most this times step times slope.
        max_iterations: most contractions, at least 0.
        initial_step_size: length of the first step tried, positive.

    Returns:
        The line search.

    Raises:
        ValueError: an argument is out of its range.
    """
    attempts = _contraction(contraction_factor, sufficient_decrease, max_iterations, initial_step_size)

    def init(dtype):
        return jnp.zeros((), dtype)

    def search(problem, iterate, direction, slope, guess):
        trial = attempts(problem, iterate, direction, slope, guess)
        moved = trial.change < 0
        # Ten contractions may be too few for a first step: the next search contracts further.
        length = trial.step * problem.manifold.norm(iterate.point, direction)
        exhausted = ~moved & ~(length > jnp.finfo(length.dtype).eps)
        next_guess = jnp.where(trial.count == 2, trial.step, 2 * trial.step)
        return Found(trial.evaluation, moved, exhausted, next_guess)

    return LineSearch(init, search)


def _contraction(
    contraction_factor: float, sufficient_decrease: float, max_iterations: int, initial_step_size: float
) -> Callable[[Problem, Iterate, Point, chex.Array, chex.Array], _Trial]:
    """What both searches do: contract a guess of the step until the decrease is sufficient.

    A guess that is no positive number is replaced by the step of length `initial_step_size`.
    """
    if not 0 < contraction_factor < 1:
        raise ValueError(f"contraction_factor must lie between 0 and 1, but is {contraction_factor}.")
    _checks.within("sufficient_decrease", sufficient_decrease, 0, 1)
    _checks.at_least("max_iterations", max_iterations, 0)
    _checks.positive("initial_step_size", initial_step_size)

    def attempts(problem, iterate, direction, slope, guess):
        change_at = change_of_cost(problem, iterate, direction, slope)

        def attempt(step, count):
            end = problem.manifold.retract(iterate.point, optax.tree.scale(step, direction))
            evaluation = problem.evaluate(end)
            return _Trial(step, evaluation, change_at(step, evaluation), count)

        def stay(trial):
            return _Trial(trial.step, iterate.evaluation, jnp.zeros_like(trial.change), trial.count + 1)

        def is_rejected(trial):
            # Negated, so that a cost of NaN or infinity is rejected too.
            insufficient = ~(trial.change <= sufficient_decrease * trial.step * slope)
            # The last contraction need only lower the cost; if it does not, the search stays where it was.
            fails = (trial.count == max_iterations + 1) & ~(trial.change < 0)
            return insufficient & ((trial.count <= max_iterations) | fails)

        def contract(trial):
            return jax.lax.cond(
                trial.count <= max_iterations,
                lambda: attempt(contraction_factor * trial.step, trial.count + 1),
                lambda: stay(trial),
            )

        first_step = jax.lax.cond(
            (guess > 0) & jnp.isfinite(guess),
            lambda: guess,
            lambda: initial_step_size / problem.manifold.norm(iterate.point, direction),
        )
        # Derivatives of a run are those of its iterates at fixed steps: how a step is chosen is not smooth.
        first = attempt(jax.lax.stop_gradient(first_step), jnp.int32(1))
        return jax.lax.while_loop(is_rejected, contract, first)

    return attempts


def rounding_error(problem: Problem, iterate: Iterate) -> chex.Array:
    """The rounding unit of the cost: of a mean of differences of scores, each a rounded inner product."""
    size = jnp.maximum(jnp.maximum(problem.score_size(iterate.point), jnp.abs(iterate.value)), 1)
    return jnp.finfo(size.dtype).eps * size


def change_of_cost(
    problem: Problem, iterate: Iterate, direction: Point, slope: chex.Array, *, resolution: float = 8.0
) -> Callable[[chex.Array, Evaluation], chex.Array]:
    """The change of the cost along `direction`: of values where they resolve it, of slopes where not.

    Args:
        problem: whose cost.
        iterate: where the step starts.
        direction: tangent vector there.
        slope: derivative of the cost along it.
        resolution: values resolve a change of more than this many rounding units.

    Returns:
        A function of the step and the evaluation at its end; 0 where that is the same point.
    """
    point, value = iterate.point, iterate.value
    unresolved = resolution * rounding_error(problem, iterate)

    def slope_at(step):
        def cost_along(t):
            return problem.cost(problem.manifold.retract(point, optax.tree.scale(t, direction)))

        return jax.jvp(cost_along, (step,), (jnp.ones_like(step),))[1]

    def change_by_slopes(step, end):
        differs = [
            jnp.any(a != b) for a, b in zip(jax.tree.leaves(point), jax.tree.leaves(end), strict=True)
        ]
        return jnp.where(jnp.any(jnp.stack(differs)), step * (slope + slope_at(step)) / 2, 0)

    def change_at(step, evaluation):
        change = evaluation.value - value
        return jax.lax.cond(
            jnp.abs(change) > unresolved, lambda: change, lambda: change_by_slopes(step, evaluation.point)
        )

    return change_at
