"""Line searches along a retraction, as pairs of pure functions.

`Backtracking` and `Adaptive` are pymanopt's, step for step, while the cost can resolve a decrease. Near a
minimum it no longer can: the decrease falls under the rounding error of the cost (in float32 at a gradient
norm near 1e-4). There the decrease is taken from slopes by the trapezoidal rule,
`step (slope_0 + slope_step)/2`, which keeps its digits; the sufficient decrease condition on it is the
approximate Wolfe condition of Hager and Zhang, *A New Conjugate Gradient Method with Guaranteed Descent and
an Efficient Line Search*, SIAM J. Optim. 2005, equation (4.1).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from ufm_jax import _checks
from ufm_jax.riemannian.manifolds import Tree
from ufm_jax.riemannian.minimize import Iterate
from ufm_jax.riemannian.objective import Evaluation, Objective

_OF_VALUES = 8.0
"""Rounding units up to which the difference of two costs may be wrong."""


class Found(NamedTuple):
    """What a search returns: where it ended, whether it moved, and whether it could have gone on.

    Attributes:
        evaluation: the new point with its forward pass; the old one if `moved` is false.
        step: how far along the direction it lies, a scalar.
        moved: whether the cost fell.
        exhausted: it did not move, and another search along this direction would not either.
        state: what the search remembers for its next call.

    Example:
        >>> objective = ufm.Objective(lambda x: jnp.sum((x - 1) ** 4), ufm.manifolds.Euclidean())
        >>> start = ufm.solvers.iterate_at(objective, objective.evaluate(jnp.zeros(2)))
        >>> search, direction = ufm.solvers.unit_step(), -start.gradient / 4
        >>> slope = jnp.vdot(start.gradient, direction)
        >>> found = search.search(objective, start, direction, slope, search.init(start.value.dtype))
        >>> print(found.step, found.evaluation.point, found.moved)
        1.0 [1. 1.] True
    """

    evaluation: Evaluation
    step: jax.Array
    moved: jax.Array
    exhausted: jax.Array
    state: Any


class LineSearch(Protocol):
    """Two pure functions: what the search remembers, from the start, and the search itself.

    `direction` is a tangent vector at the iterate, and `slope` the derivative of the cost along it.

    Example:
        >>> search: ufm.solvers.LineSearch = ufm.solvers.backtracking(max_iterations=50)
        >>> solver = ufm.solvers.gradient_descent(search)
    """

    def init(self, dtype: Any, /) -> Any:
        """What the first search is given to remember; the cost is of this dtype."""

    def search(
        self, objective: Objective, iterate: Iterate, direction: Tree, slope: jax.Array, state: Any, /
    ) -> Found:
        """A step along `direction` that lowers the cost."""
        ...


class _Trial(NamedTuple):
    step: jax.Array
    evaluation: Evaluation
    change: jax.Array
    attempts: jax.Array


class _LastChange(NamedTuple):
    """Of the cost, or what would give the next guess; and whether the last search found no step."""

    change: jax.Array
    failed: jax.Array


@dataclasses.dataclass(frozen=True)
class Backtracking(LineSearch):
    """Backtracking from a guess that grows with success, as pymanopt's BackTrackingLineSearcher.

    The first guess moves by `initial_step_size`; each later one is `optimism` times the step at which the
    last change of the cost would repeat itself, Nocedal and Wright (3.60). Where no step from a guess
    lowers the cost, the next search begins with `initial_step_size` again: a change that is nearly 0 by
    chance gives a guess that is too short.

    Args:
        contraction_factor: each failed step is multiplied by this, in (0, 1).
        optimism: factor on the guess, positive.
        sufficient_decrease: accept a step once the cost changes by at most this times step times slope.
        max_iterations: most contractions, at least 0.
        initial_step_size: length of the first step tried, positive.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> objective = ufm.Objective(lambda x: jnp.sum((x - 1) ** 4), ufm.manifolds.Euclidean())
        >>> solver = ufm.solvers.gradient_descent(ufm.solvers.backtracking(contraction_factor=0.7))
        >>> result = ufm.minimize(objective, jnp.zeros(2), solver, tolerance=1e-3)
        >>> ufm.Status(int(result.status)).name
        'CONVERGED'
    """

    contraction_factor: float = 0.5
    optimism: float = 2.0
    sufficient_decrease: float = 1e-4
    max_iterations: int = 25
    initial_step_size: float = 1.0

    def __post_init__(self) -> None:
        _checks.positive("optimism", self.optimism)
        _check(self)

    def init(self, dtype):
        return _LastChange(jnp.zeros((), dtype), jnp.array(False))

    def search(self, objective, iterate, direction, slope, last):
        guess = self.optimism * 2 * last.change / slope
        trial = _contracted(self, objective, iterate, direction, slope, guess)
        moved, from_first = trial.change < 0, last.failed | ~(guess > 0)
        exhausted = ~moved & from_first & _is_last(self, trial.step, objective, iterate, direction)
        # Where the contractions were too few for a first step, the next search goes on with its last.
        as_if = jnp.where(from_first, trial.step * slope / (2 * self.optimism), 0)
        state = _LastChange(jnp.where(moved, trial.change, as_if), ~moved)
        return Found(trial.evaluation, trial.step, moved, exhausted, state)


@dataclasses.dataclass(frozen=True)
class Adaptive(LineSearch):
    """Backtracking from the last step, or twice it, as pymanopt's AdaptiveLineSearcher.

    The next search starts from the step this one accepted if it contracted once, and from twice that
    step otherwise, so that a search tries two steps on average; after a failure, from the last one tried.

    Args:
        contraction_factor: each failed step is multiplied by this, in (0, 1).
        sufficient_decrease: accept a step once the cost changes by at most this times step times slope.
        max_iterations: most contractions, at least 0.
        initial_step_size: length of the first step tried, positive.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> objective = ufm.Objective(lambda x: jnp.sum((x - 1) ** 4), ufm.manifolds.Euclidean())
        >>> solver = ufm.solvers.conjugate_gradient(line_search=ufm.solvers.adaptive(max_iterations=20))
        >>> result = ufm.minimize(objective, jnp.zeros(2), solver, tolerance=1e-3)
        >>> ufm.Status(int(result.status)).name
        'CONVERGED'
    """

    contraction_factor: float = 0.5
    sufficient_decrease: float = 0.5
    max_iterations: int = 10
    initial_step_size: float = 1.0

    def __post_init__(self) -> None:
        _check(self)

    def init(self, dtype):
        return jnp.zeros((), dtype)

    def search(self, objective, iterate, direction, slope, guess):
        trial = _contracted(self, objective, iterate, direction, slope, guess)
        moved = trial.change < 0
        # Ten contractions may be too few for a first step: the next search contracts further.
        exhausted = ~moved & _is_last(self, trial.step, objective, iterate, direction)
        next_guess = jnp.where(moved & (trial.attempts != 2), 2 * trial.step, trial.step)
        return Found(trial.evaluation, trial.step, moved, exhausted, next_guess)


@dataclasses.dataclass(frozen=True)
class UnitStep(LineSearch):
    """Backtracking from step 1, for directions of the right length, as those of L-BFGS.

    The first direction of all has length 1, however near the minimum is: hence sixty contractions.

    Args:
        contraction_factor: each failed step is multiplied by this, in (0, 1).
        sufficient_decrease: accept a step once the cost changes by at most this times step times slope.
        max_iterations: most contractions, at least 0.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> objective = ufm.Objective(lambda x: jnp.sum((x - 1) ** 4), ufm.manifolds.Euclidean())
        >>> solver = ufm.solvers.lbfgs(line_search=ufm.solvers.unit_step(contraction_factor=0.7))
        >>> result = ufm.minimize(objective, jnp.zeros(2), solver, tolerance=1e-3)
        >>> ufm.Status(int(result.status)).name
        'CONVERGED'
    """

    contraction_factor: float = 0.5
    sufficient_decrease: float = 1e-4
    max_iterations: int = 60
    initial_step_size: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        _check(self)

    def init(self, dtype):
        return jnp.ones((), dtype)

    def search(self, objective, iterate, direction, slope, guess):
        trial = _contracted(self, objective, iterate, direction, slope, guess)
        return Found(trial.evaluation, trial.step, trial.change < 0, ~(trial.change < 0), guess)


_Contracting = Backtracking | Adaptive | UnitStep


def check_search(search: Any) -> None:
    """Raises ValueError where this is something else, such as a search's class."""
    if isinstance(search, type) or not callable(getattr(search, "search", None)):
        raise ValueError(f"line_search must be one such as ufm.solvers.backtracking(), but is {search!r}.")


def _check(search: _Contracting) -> None:
    if not 0 < search.contraction_factor < 1:
        raise ValueError(
            f"contraction_factor must lie between 0 and 1, but is {search.contraction_factor}."
        )
    _checks.within("sufficient_decrease", search.sufficient_decrease, 0, 1)
    _checks.count("max_iterations", search.max_iterations, 0)
    _checks.positive("initial_step_size", search.initial_step_size)
    _checks.with_plain_numbers(search)


def _contracted(
    search: _Contracting,
    objective: Objective,
    iterate: Iterate,
    direction: Tree,
    slope: jax.Array,
    guess: jax.Array,
) -> _Trial:
    """What all searches do: contract a guess of the step until the decrease is sufficient.

    A guess that is no positive number is replaced by the step of length `initial_step_size`.
    """
    change_at = change_of_cost(objective, iterate, direction, slope)

    def attempt(step, count):
        end = objective.manifold.retract(iterate.point, optax.tree.scale(step, direction))
        evaluation = objective.evaluate(end)
        return _Trial(step, evaluation, change_at(step, evaluation), count)

    def stay(trial):
        return _Trial(trial.step, iterate.evaluation, jnp.zeros_like(trial.change), trial.attempts + 1)

    def is_rejected(trial):
        # Negated, so that a change that is not a number is rejected too.
        insufficient = ~(
            (trial.change <= search.sufficient_decrease * trial.step * slope) & (trial.change < 0)
        )
        # The last contraction need only lower the cost; if it does not, the search stays where it was.
        fails = (trial.attempts == search.max_iterations + 1) & ~(trial.change < 0)
        return insufficient & ((trial.attempts <= search.max_iterations) | fails)

    def contract(trial):
        return jax.lax.cond(
            trial.attempts <= search.max_iterations,
            lambda: attempt(search.contraction_factor * trial.step, trial.attempts + 1),
            lambda: stay(trial),
        )

    first_step = jax.lax.cond(
        (guess > 0) & jnp.isfinite(guess),
        lambda: guess,
        lambda: search.initial_step_size / objective.manifold.norm(iterate.point, direction),
    )
    # Derivatives of a run are those of its iterates at fixed steps: how a step is chosen is not smooth.
    first = attempt(jax.lax.stop_gradient(first_step), jnp.int32(1))
    return jax.lax.while_loop(is_rejected, contract, first)


def _is_last(
    search: _Contracting, step: jax.Array, objective: Objective, iterate: Iterate, direction: Tree
) -> jax.Array:
    """Whether another search has nothing to try after `step`: shorter ones are no steps, or not allowed."""
    length = step * objective.manifold.norm(iterate.point, direction)
    return (search.max_iterations == 0) | ~(length > jnp.finfo(length.dtype).eps)


def rounding_error(objective: Objective, iterate: Iterate) -> jax.Array:
    """The rounding unit of the cost at an iterate, a scalar."""
    size = objective.rounding_size(iterate.evaluation)
    return jnp.finfo(size.dtype).eps * size


def change_of_cost(
    objective: Objective,
    iterate: Iterate,
    direction: Tree,
    slope: jax.Array,
    *,
    resolution: float = _OF_VALUES,
) -> Callable[[jax.Array, Evaluation], jax.Array]:
    """The change of the cost along `direction`: of values where they resolve it, of slopes where not.

    Args:
        objective: whose cost.
        iterate: where the step starts.
        direction: tangent vector there.
        slope: derivative of the cost along it.
        resolution: values resolve a change of more than this many rounding units.

    Returns:
        A function of the step and the evaluation at its end; 0 where that is the same point, and infinite
        where the cost there is not finite.
    """
    manifold, point, value = objective.manifold, iterate.point, iterate.value
    unit = rounding_error(objective, iterate)

    def slope_at(step, evaluation):
        def along(t):
            return manifold.retract(point, optax.tree.scale(t, direction))

        velocity = jax.jvp(along, (step,), (jnp.ones_like(step),))[1]
        return manifold.inner_product(evaluation.point, objective.gradient(evaluation), velocity)

    def change_by_slopes(step, evaluation):
        ends = jax.tree.leaves(evaluation.point)
        differs = [jnp.any(a != b) for a, b in zip(jax.tree.leaves(point), ends, strict=True)]
        change = step * (slope + slope_at(step, evaluation)) / 2
        return jnp.where(jnp.any(jnp.stack(differs)), change, 0)

    def change_at(step, evaluation):
        change = evaluation.value - value
        # Along a long step the trapezoid may be far off, but not values.
        lowest, highest = change - _OF_VALUES * unit, change + _OF_VALUES * unit
        change = jax.lax.cond(
            jnp.abs(change) > resolution * unit,
            lambda: change,
            lambda: jnp.clip(change_by_slopes(step, evaluation), lowest, highest),
        )
        return jnp.where(jnp.isfinite(evaluation.value), change, jnp.inf)

    return change_at
