"""Minimization: what every solver shares, and the loop that runs it.

Reference: Absil, Mahony, Sepulchre, *Optimization Algorithms on Matrix Manifolds* (2008), chapter 4.
"""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ufm_jax import _checks
from ufm_jax.riemannian.manifolds import Tree
from ufm_jax.riemannian.objective import Evaluation, Objective


class Status(enum.IntEnum):
    """How a minimization ended, as an integer in `Result.status`.

    Example:
        >>> objective = ufm.Objective(lambda x: jnp.sum((x - 1) ** 4), ufm.manifolds.Euclidean())
        >>> result = ufm.minimize(objective, jnp.zeros(2), ufm.solvers.gradient_descent(), max_steps=1)
        >>> ufm.Status(int(result.status)).name
        'OUT_OF_STEPS'
    """

    CONVERGED = 0
    """The gradient norm is at or below the tolerance."""
    OUT_OF_STEPS = 1
    """All allowed steps were taken, and the gradient norm is still above the tolerance."""
    STALLED = 2
    """No step that the search tried was possible, and the gradient norm is above the tolerance.

    Mostly precision has ended. Else a line search may need more `max_iterations`, or, where variables are
    far from 1, another `initial_step_size` or a trust region's `max_radius`.
    """
    STOPPED = 3
    """The caller's `until` said so, before the gradient norm was at the tolerance."""
    NOT_FINITE = 4
    """The cost at the start is infinite or not a number: there is nothing to descend from."""


class Iterate(NamedTuple):
    """A point with its forward pass and its Riemannian gradient.

    Attributes:
        evaluation: the forward pass.
        gradient: the Riemannian gradient, in the metric of the manifold.
        gradient_norm: its norm in that metric, a scalar.
        scale: that of `Objective`, in the run whose iterate it is, a scalar.

    Example:
        >>> objective = ufm.Objective(lambda x: jnp.sum(x**2), ufm.manifolds.Euclidean())
        >>> iterate = ufm.solvers.iterate_at(objective, objective.evaluate(jnp.array([3.0, 4.0])))
        >>> print(iterate.value, iterate.gradient, iterate.gradient_norm)
        25.0 [6. 8.] 10.0
    """

    evaluation: Evaluation
    gradient: Tree
    gradient_norm: jax.Array
    scale: jax.Array

    @property
    def point(self) -> Tree:
        """Where."""
        return self.evaluation.point

    @property
    def value(self) -> jax.Array:
        """The cost there, a scalar."""
        return self.evaluation.value


class State(Protocol):
    """What `minimize` reads of a solver's state; a solver adds what it must remember."""

    @property
    def iterate(self) -> Iterate: ...

    @property
    def stalled(self) -> jax.Array: ...


class Solver(Protocol):
    """A solver: two pure functions of its state.

    `step` makes one step, or keeps the iterate and says `stalled`. Solvers are frozen dataclasses, equal
    where their parameters are, so that `jit` compiles a program for each solver once.

    Example:
        >>> objective = ufm.Objective(lambda x: jnp.sum(x**2), ufm.manifolds.Euclidean())
        >>> solver: ufm.solvers.Solver = ufm.solvers.lbfgs()
        >>> state = solver.init(objective, jnp.array([3.0, 4.0]))
        >>> print(solver.step(objective, state).iterate.value < state.iterate.value)
        True
    """

    def init(self, objective: Objective, point: Tree, /) -> Any:
        """The state at the start."""

    def step(self, objective: Objective, state: Any, /) -> Any:
        """The state after one more step."""


class Result(NamedTuple):
    """What `minimize` returns. Every field is an array or a pytree of arrays.

    Attributes:
        point: the last iterate.
        value: its cost.
        gradient_norm: the norm of its Riemannian gradient, in the metric of the manifold.
        steps: number of steps, int32.
        status: a `Status`, int32.
        history: what `measure` or `record` returned, with a leading axis of length `max_steps + 1`: entry t
            belongs to the point after t steps, entry 0 to the start; entries after the last step repeat its
            value. None without them.
        state: the solver's last state: to go on from, with `resume`, or to look into.

    Example:
        >>> objective = ufm.Objective(lambda x: jnp.sum((x - 1) ** 2), ufm.manifolds.Euclidean())
        >>> solver = ufm.solvers.conjugate_gradient()
        >>> result = ufm.minimize(objective, jnp.zeros(2), solver, max_steps=3, measure=lambda x: x[0])
        >>> print(result.steps, result.history.shape)
        3 (4,)
    """

    point: Tree
    value: jax.Array
    gradient_norm: jax.Array
    steps: jax.Array
    status: jax.Array
    history: Any
    state: Any


def iterate_at(objective: Objective, evaluation: Evaluation) -> Iterate:
    """Completes a forward pass with its gradient: what `init` and `step` of a solver return in their state.

    Args:
        objective: whose cost.
        evaluation: of `objective.evaluate(point)`.

    Returns:
        The `Iterate`.

    Example:
        >>> objective = ufm.Objective(lambda x: x[0], ufm.manifolds.Oblique())
        >>> iterate = ufm.solvers.iterate_at(objective, objective.evaluate(jnp.array([0.6, 0.8])))
        >>> print(iterate.gradient.round(3))
        [ 0.64 -0.48]
    """
    return iterate_with(objective, evaluation, objective.euclidean_gradient(evaluation))


def iterate_with(objective: Objective, evaluation: Evaluation, euclidean_gradient: Tree) -> Iterate:
    """Completes a forward pass whose gradient in the ambient space is known."""
    gradient = objective.manifold.riemannian_gradient(evaluation.point, euclidean_gradient)
    norm = objective.manifold.norm(evaluation.point, gradient)
    return Iterate(evaluation, gradient, norm, objective.scale_from(evaluation.value))


def minimize(
    objective: Objective,
    point: Tree,
    solver: Solver,
    *,
    max_steps: int = 1000,
    tolerance: ArrayLike = 1e-6,
    measure: Callable[[Tree], Any] | None = None,
    record: Callable[[Iterate], Any] | None = None,
    until: Callable[[Iterate], jax.Array] | None = None,
) -> Result:
    """Runs `solver` on `objective` from `point` until the gradient is small, steps run out, or it stalls.

    A pure function of arrays: it works under `jit`, under `vmap` (every lane then waits for the slowest)
    and with forward-mode derivatives, which are those of the iterates at fixed steps: near those of the
    minimizer after many steps, and 0 for a start that is the minimizer already. If you call it often, wrap
    it in `jit`: otherwise each call is compiled again. Inside `jax.shard_map` it needs `check_vma=False`.

    Args:
        objective: what to minimize.
        point: the start, a pytree of floating arrays on the objective's manifold; its dtype is kept, but
            that float64 is float32 where JAX has not enabled it.
        solver: for example `ufm_jax.solvers.lbfgs()`.
        max_steps: largest number of steps, at least 0; static with `measure` or `record`.
        tolerance: stop once the norm of the Riemannian gradient, in the metric of the manifold, is at most
            this; 0 or more.
        measure: a function of the point, recorded at the start and after each step. Under `vmap` each step
            then copies the whole history: record numbers rather than points.
        record: the same of the `Iterate`, which knows its value and its gradient; instead of `measure`.
        until: a predicate of the `Iterate`, a boolean scalar: stop as soon as it is true, also at the
            start.

    Returns:
        The `Result`.

    Raises:
        ValueError: `max_steps` or `tolerance` is negative, or no integer and no scalar, `measure` and
            `record` are both given, the cost is no scalar, or the point is not one of the objective's (its
            values are checked outside `jit`).

    Example:
        >>> problem = ufm.normalized(ufm.balanced_labels(3, 2), num_classes=3)
        >>> start = problem.random_point(jax.random.key(0), dim=4)
        >>> result = ufm.minimize(problem, start, ufm.solvers.gradient_descent(), tolerance=1e-4)
        >>> ufm.Status(int(result.status)).name
        'CONVERGED'
        >>> print(f"{result.value:.4f}, by theory {ufm.theory.cross_entropy_minimum(3, tau=1.0):.4f}")
        0.3690, by theory 0.3690
    """
    _check_kinds(objective, solver)
    objective.check_point(point)
    point = jax.tree.map(jnp.asarray, point)
    _check_cost(objective, point)
    if measure is not None:
        if record is not None:
            raise ValueError("measure and record are two ways to say what to keep: give one of them.")
        of_point = measure
        record = lambda iterate: of_point(iterate.point)  # noqa: E731
    _check_limits(max_steps, tolerance)
    return _run(objective, solver.init(objective, point), solver, max_steps, tolerance, record, until)


def _check_kinds(objective: Any, solver: Any) -> None:
    """Raises ValueError where these are something else, such as a function, or a solver's class."""
    if not isinstance(objective, Objective):
        raise ValueError(
            "objective must be a problem or one such as ufm.Objective(cost, ufm.manifolds.Oblique()), "
            f"but is {objective!r}."
        )
    if isinstance(solver, type) or not callable(getattr(solver, "step", None)):
        raise ValueError(f"solver must be one such as ufm.solvers.lbfgs(), but is {solver!r}.")


def _check_cost(objective: Objective, point: Tree) -> None:
    """Raises ValueError where the cost is no scalar of the point's dtype: solvers would stumble on it."""
    dtype = jax.tree.leaves(point)[0].dtype
    found = jax.eval_shape(objective.cost, point)
    if getattr(found, "shape", None) != ():
        what = f"has shape {found.shape}" if hasattr(found, "shape") else f"is a {type(found).__name__}"
        raise ValueError(f"the cost must be a scalar array, but {what}.")
    if found.dtype != dtype:
        raise ValueError(
            f"the cost of a {dtype} point must be {dtype}, but is {found.dtype}: cast its constants."
        )


def resume(
    objective: Objective,
    state: Any,
    solver: Solver,
    *,
    max_steps: int = 1000,
    tolerance: ArrayLike = 1e-6,
    record: Callable[[Iterate], Any] | None = None,
    until: Callable[[Iterate], jax.Array] | None = None,
) -> Result:
    """`minimize` from a state of the solver: continues where another call ended, as if it were one run.

    Calls of a few steps each return to Python in between, to show progress, to save, or to keep to a time.

    Args:
        objective: as of the call that gave the state.
        state: `Result.state`, or `solver.init(objective, point)`.
        solver: the same one.
        max_steps: largest number of steps in this call, at least 0; static with a `record`.
        tolerance: of the gradient norm, at least 0, as in `minimize`.
        record: as in `minimize`.
        until: as in `minimize`.

    Returns:
        The `Result`, whose `steps` and `history` count from the state.

    Raises:
        ValueError: `max_steps` or `tolerance` is none of `minimize`, or the state is none of this solver.

    Example:
        >>> objective = ufm.Objective(lambda x: jnp.sum((x - 1) ** 4), ufm.manifolds.Euclidean())
        >>> solver = ufm.solvers.conjugate_gradient()
        >>> result = ufm.minimize(objective, jnp.zeros(2), solver, max_steps=3, tolerance=1e-3)
        >>> while result.status == ufm.Status.OUT_OF_STEPS:
        ...     result = ufm.solvers.resume(objective, result.state, solver, max_steps=3, tolerance=1e-3)
        >>> ufm.Status(int(result.status)).name
        'CONVERGED'
    """
    _check_kinds(objective, solver)
    _check_limits(max_steps, tolerance)
    _check_state(objective, state, solver)
    return _run(objective, state, solver, max_steps, tolerance, record, until)


def _check_state(objective: Objective, state: Any, solver: Solver) -> None:
    """Raises ValueError where `state` is not shaped as those of `solver`."""

    def shape(tree: Any) -> Any:
        return jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)]

    iterate = getattr(state, "iterate", None)
    wanted = None
    if isinstance(iterate, Iterate):
        wanted = jax.eval_shape(lambda point: solver.init(objective, point), iterate.point)
    if shape(state) != shape(wanted):
        raise ValueError(
            f"the state must be one of {solver} on this objective, as `Result.state`, but is not."
        )


def _check_limits(max_steps: int, tolerance: ArrayLike) -> None:
    if _checks.is_concrete(max_steps):
        _checks.count("max_steps", max_steps, 0)
        if max_steps >= 2**31 - 1:
            raise ValueError(
                f"max_steps must be below 2^31 - 1, so that int32 counts them, but is {max_steps}."
            )
    _checks.scalar("tolerance", tolerance)
    _checks.at_least("tolerance", tolerance, 0)


def _run(
    objective: Objective,
    state: Any,
    solver: Solver,
    max_steps: int,
    tolerance: ArrayLike,
    record: Callable[[Iterate], Any] | None,
    until: Callable[[Iterate], jax.Array] | None,
) -> Result:
    """The loop: steps of `solver` from `state` until one of the reasons to end."""
    objective = objective.with_scale(state.iterate.scale)
    recorded = record or (lambda iterate: None)

    def converged(iterate):
        return (iterate.gradient_norm <= tolerance) & jnp.isfinite(iterate.value)

    def stopped(iterate):
        found = False if until is None else until(iterate)
        if jnp.shape(found) != () or jnp.result_type(found) != np.bool_:
            raise ValueError(f"until must return a boolean scalar, but returns {found!r}.")
        return jnp.asarray(found)

    def proceeds(carry):
        steps, state, _ = carry
        iterate = state.iterate
        # Written so that a gradient norm of NaN goes on to the solver, which then stalls.
        ended = converged(iterate) | stopped(iterate) | ~jnp.isfinite(iterate.value)
        return ~ended & ~state.stalled & (steps < max_steps)

    def advance(carry):
        steps, state, history = carry
        state = solver.step(objective, state)
        steps += jnp.where(state.stalled, 0, 1)
        now = recorded(state.iterate)
        return steps, state, jax.tree.map(lambda entries, x: entries.at[steps].set(x), history, now)

    first = jax.tree.map(jnp.asarray, recorded(state.iterate))
    history = jax.tree.map(lambda x: jnp.zeros((max_steps + 1, *x.shape), x.dtype).at[0].set(x), first)
    steps, state, history = jax.lax.while_loop(proceeds, advance, (jnp.int32(0), state, history))
    if record is not None:
        last_so_far = jnp.minimum(jnp.arange(max_steps + 1), steps)
        history = jax.tree.map(lambda entries: entries[last_so_far], history)

    iterate = state.iterate
    how = [
        (~jnp.isfinite(iterate.value), Status.NOT_FINITE),
        (converged(iterate), Status.CONVERGED),
        (stopped(iterate), Status.STOPPED),
        (state.stalled, Status.STALLED),
    ]
    status = jnp.select([x for x, _ in how], [jnp.int32(s) for _, s in how], jnp.int32(Status.OUT_OF_STEPS))
    return Result(iterate.point, iterate.value, iterate.gradient_norm, steps, status, history, state)
