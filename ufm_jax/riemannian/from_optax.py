"""Any Optax transformation as a solver."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ufm_jax.riemannian.manifolds import Tree
from ufm_jax.riemannian.minimize import Iterate, Solver, iterate_at
from ufm_jax.riemannian.objective import Objective


class FromOptaxState(NamedTuple):
    iterate: Iterate
    optimizer: Any
    stalled: jax.Array


@dataclasses.dataclass(frozen=True)
class FromOptax(Solver):
    """An Optax transformation as a solver, for example SGD with momentum or Adam, as networks are trained.

    Each update is made from the Riemannian gradient, projected to the tangent space and retracted. In
    Euclidean space that is Optax itself. There is no line search: the cost may rise, and a step to where it
    is not finite is rejected and ends the run.

    Optax makes a new function at each call, so two of these are equal only if they share a transformation:
    where it is a static argument of `jit`, make it once.

    Args:
        transformation: whose `update` needs the gradient and the parameters alone. What decays parameters
            (`optax.adamw`) has no effect on a sphere.

    Raises:
        ValueError: it is not an Optax transformation.

    Example:
        >>> problem = ufm.regularized(ufm.balanced_labels(3, 2), 3, weight_decay=0.01, feature_decay=0.01)
        >>> start = problem.random_point(jax.random.key(0), dim=4)
        >>> adam = ufm.solvers.from_optax(optax.adam(0.05))
        >>> result = ufm.minimize(problem, start, adam, max_steps=2000, tolerance=1e-4)
        >>> ufm.Status(int(result.status)).name
        'CONVERGED'
    """

    transformation: optax.GradientTransformation

    def __post_init__(self) -> None:
        if not isinstance(self.transformation, optax.GradientTransformation):
            raise ValueError(
                f"transformation must be Optax's, as optax.adam(0.01), but is {self.transformation!r}."
            )

    def init(self, objective: Objective, point: Tree) -> FromOptaxState:
        iterate = iterate_at(objective, objective.evaluate(point))
        return FromOptaxState(iterate, self.transformation.init(point), jnp.array(False))

    def step(self, objective: Objective, state: FromOptaxState) -> FromOptaxState:
        old, manifold = state.iterate, objective.manifold
        updates, optimizer = self.transformation.update(old.gradient, state.optimizer, old.point)
        # As `optax.apply_updates`: numbers of a transformation may be wider than the point.
        updates, optimizer = _cast(updates, old.point), _cast(optimizer, state.optimizer)
        tangent = manifold.project(old.point, updates)
        new = iterate_at(objective, objective.evaluate(manifold.retract(old.point, tangent)))
        is_finite = jnp.isfinite(new.value)
        kept = optax.tree.where(is_finite, new, old)
        return FromOptaxState(kept, optimizer, ~is_finite)


def _cast(tree: Tree, like: Tree) -> Tree:
    def cast(x: Any, y: Any) -> Any:
        dtype = jnp.result_type(y)
        return x if jnp.result_type(x) == dtype else jnp.asarray(x, dtype)

    return jax.tree.map(cast, tree, like)
