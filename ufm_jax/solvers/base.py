"""What every solver shares: an iterate, the pair of pure functions `init` and `step`, and `minimize`.

Reference: Absil, Mahony, Sepulchre, *Optimization Algorithms on Matrix Manifolds* (2008), chapter 4.
"""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp

from ufm_jax import _checks
from ufm_jax.problems import Evaluation, Point, Problem


class Status(enum.IntEnum):
    """How a minimization ended, as an integer in `Result.status`."""

    CONVERGED = 0
    """The gradient norm is at or below the tolerance."""
    OUT_OF_STEPS = 1
    """All allowed steps were made, and the gradient norm is still above the tolerance."""
    STALLED = 2
    """No further step could be made in this precision, and the gradient norm is above the tolerance."""


class Iterate(NamedTuple):
    """A point with its forward pass and its Riemannian gradient."""

    evaluation: Evaluation
    gradient: Point
    gradient_norm: chex.Array

    @property
    def point(self) -> Point:
        """Where: `Point(W=(K, d), H=(N, d))`."""
        return self.evaluation.point

    @property
    def value(self) -> chex.Array:
        """The cost there, a scalar."""
        return self.evaluation.value


class State(Protocol):
    """What `minimize` reads of a solver's state; a solver adds what it must remember."""

    @property
    def iterate(self) -> Iterate: ...

    @property
    def stalled(self) -> chex.Array: ...


class Solver(NamedTuple):
    """A solver is two pure functions, `init(problem, point)` and `step(problem, state)`, of its state."""

    init: Callable[[Problem, Point], Any]
    step: Callable[[Problem, Any], Any]


class Result(NamedTuple):
    """What `minimize` returns. Every field is an array or a pytree of arrays.

    Attributes:
        point: the last iterate.
        value: its cost.
        gradient_norm: the norm of its Riemannian gradient.
        steps: steps made, int32.
        status: a `Status`, int32.
        history: what `measure` returned, with a leading axis of length `max_steps + 1`: entry t belongs to
            the point after t steps, entry 0 to the start; entries after the last step repeat its value.
            None without `measure`.
    """

    point: Point
    value: chex.Array
    gradient_norm: chex.Array
    steps: chex.Array
    status: chex.Array
    history: Any


def iterate_at(problem: Problem, evaluation: Evaluation) -> Iterate:
    """Completes a forward pass with its gradient: what `init` and `step` of a solver return in their state.

    Args:
        problem: whose cost.
        evaluation: of `problem.evaluate(point)`.

    Returns:
        The `Iterate`.
    """
    return iterate_with(problem, evaluation, problem.euclidean_gradient(evaluation))


def iterate_with(problem: Problem, evaluation: Evaluation, euclidean_gradient: Point) -> Iterate:
    """Completes a forward pass whose gradient in the ambient space is known."""
    gradient = problem.manifold.riemannian_gradient(evaluation.point, euclidean_gradient)
    return Iterate(evaluation, gradient, problem.manifold.norm(evaluation.point, gradient))


def minimize(
    problem: Problem,
    point: Point,
    solver: Solver,
    *,
    max_steps: int = 1000,
    tolerance: chex.Numeric = 1e-6,
    measure: Callable[[Point], Any] | None = None,
) -> Result:
    """Runs `solver` on `problem` from `point` until the gradient is small, steps run out, or it stalls.

    A pure function of arrays: it works under `jit`, under `vmap` (every lane then waits for the slowest)
    and with forward-mode derivatives.

    Args:
        problem: what to minimize.
        point: the start, `Point(W=(K, d), H=(N, d))`, on the problem's manifold; its dtype is kept.
        solver: for example `ufm_jax.solvers.gradient_descent()`.
        max_steps: most steps to make, at least 0, static.
        tolerance: stop once the norm of the Riemannian gradient is at most this; 0 or more.
        measure: a function of the point, recorded at the start and after each step. Under `vmap` each step
            then copies the whole history: record numbers rather than points.

    Returns:
        The `Result`.

    Raises:
        ValueError: negative `max_steps` or `tolerance`, or a point whose shapes do not fit the problem.

    Example:
        >>> problem = ufm.normalized(ufm.balanced_labels(3, 2), num_classes=3)
        >>> start = problem.random_point(jax.random.key(0), dim=4)
        >>> result = ufm.minimize(problem, start, ufm.solvers.gradient_descent(), tolerance=1e-4)
        >>> ufm.Status(int(result.status)).name
        'CONVERGED'
        >>> print(f"{result.value:.4f}, by theory {ufm.theory.cross_entropy_minimum(3, tau=1.0):.4f}")
        0.3690, by theory 0.3690
    """
    _checks.at_least("max_steps", max_steps, 0)
    _checks.at_least("tolerance", tolerance, 0)
    problem.check_point(point)

    recorded = measure or (lambda point: None)

    def proceeds(carry):
        steps, state, _ = carry
        # Written so that a gradient norm of NaN goes on to the solver, which then stalls.
        converged = state.iterate.gradient_norm <= tolerance
        return ~converged & ~state.stalled & (steps < max_steps)

    def advance(carry):
        steps, state, history = carry
        state = solver.step(problem, state)
        steps += jnp.where(state.stalled, 0, 1)
        now = recorded(state.iterate.point)
        return steps, state, jax.tree.map(lambda entries, x: entries.at[steps].set(x), history, now)

    first = jax.tree.map(jnp.asarray, recorded(point))
    history = jax.tree.map(lambda x: jnp.zeros((max_steps + 1, *x.shape), x.dtype).at[0].set(x), first)
    start = (jnp.int32(0), solver.init(problem, point), history)
    steps, state, history = jax.lax.while_loop(proceeds, advance, start)
    if measure is not None:
        last_so_far = jnp.minimum(jnp.arange(max_steps + 1), steps)
        history = jax.tree.map(lambda entries: entries[last_so_far], history)

    iterate = state.iterate
    status = jnp.where(
        iterate.gradient_norm <= tolerance,
        Status.CONVERGED,
        jnp.where(state.stalled, Status.STALLED, Status.OUT_OF_STEPS),
    ).astype(jnp.int32)
    return Result(iterate.point, iterate.value, iterate.gradient_norm, steps, status, history)
