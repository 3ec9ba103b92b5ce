"""What a solver asks of a function on a manifold."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from ufm_jax import _checks
from ufm_jax.riemannian.manifolds import Manifold, Tree


class Evaluation(NamedTuple):
    """A point with the forward pass computed there.

    Attributes:
        point: where.
        value: the cost, a scalar.
        cache: what the objective keeps for the derivatives at this point. Only the objective reads it.

    Example:
        >>> objective = ufm.Objective(lambda x: jnp.sum(x**2), ufm.manifolds.Euclidean())
        >>> evaluation = objective.evaluate(jnp.array([3.0, 4.0]))
        >>> print(evaluation.value, objective.euclidean_gradient(evaluation))
        25.0 [6. 8.]
    """

    point: Tree
    value: jax.Array
    cache: Any


class Objective:
    """A smooth function of a pytree of arrays, to be minimized over a manifold.

    Derivatives are taken by JAX. A subclass that has cheaper ones overrides `evaluate`,
    `euclidean_gradient` and `euclidean_hessian`; what they share belongs into the evaluation's cache. An
    objective is a pytree whose leaves are its `scale` and those of its manifold, so it passes through `jit`
    and `vmap`; the function is static. A subclass that is to pass as well has to be registered as a pytree.

    Args:
        cost: a pytree of floating arrays to a scalar, smooth near the manifold.
        manifold: of `ufm_jax.manifolds`, or of one's own.
        scale: size of the largest numbers that the cost adds up, at least 0. A change of the cost of less
            than a few rounding units of `max(scale, |cost|)` is taken from slopes, which keep their digits.
            None: the size of the cost at the start of a run, but at most 1.

    Raises:
        ValueError: the cost is no function, the manifold is none, or the scale is negative or no scalar.

    Example:
        >>> A = jnp.diag(jnp.array([1.0, 2.0, 3.0]))
        >>> objective = ufm.Objective(lambda x: -jnp.vdot(x, A @ x), ufm.manifolds.Oblique())
        >>> start = jnp.array([0.6, 0.48, 0.64])
        >>> result = ufm.minimize(objective, start, ufm.solvers.trust_region(), tolerance=1e-3)
        >>> print(f"{result.value:.4f}", jnp.abs(result.point).round(3))
        -3.0000 [0. 0. 1.]
    """

    manifold: Manifold
    _rounding_scale: Any = None

    def __init__(
        self, cost: Callable[[Tree], jax.Array], manifold: Manifold, *, scale: float | None = None
    ):
        if not callable(cost):
            raise ValueError(f"cost must be a function of the point, but is {cost!r}.")
        if not isinstance(manifold, Manifold):
            raise ValueError(f"manifold must be one such as ufm.manifolds.Oblique(), but is {manifold!r}.")
        if scale is not None:
            _checks.scalar("scale", scale)
            _checks.at_least("scale", scale, 0)
        self._cost, self.manifold, self._rounding_scale = cost, manifold, scale

    def scale_from(self, value: jax.Array) -> jax.Array:
        """The `scale` of a run that starts at a cost of `value`, a scalar."""
        if self._rounding_scale is None:
            return jnp.minimum(jnp.abs(value), 1)
        return jnp.asarray(self._rounding_scale, value.dtype)

    def with_scale(self, scale: jax.Array) -> Self:
        """The same objective with this `scale`."""
        scaled = copy.copy(self)
        object.__setattr__(scaled, "_rounding_scale", scale)
        return scaled

    def cost(self, point: Tree) -> jax.Array:
        """The function at `point`, a scalar."""
        return self._cost(point)

    def evaluate(self, point: Tree) -> Evaluation:
        """The forward pass at `point`. The default makes the gradient with it."""
        value, gradient = jax.value_and_grad(self.cost)(point)
        return Evaluation(point, jnp.asarray(value), gradient)

    def euclidean_gradient(self, evaluation: Evaluation) -> Tree:
        """The gradient in the ambient space, given the forward pass."""
        return evaluation.cache

    def euclidean_hessian(self, evaluation: Evaluation) -> Callable[[Tree], Tree]:
        """The Hessian in the ambient space, a linear map of vectors, given the forward pass."""
        return jax.linearize(jax.grad(self.cost), evaluation.point)[1]

    def rounding_size(self, evaluation: Evaluation) -> jax.Array:
        """The size of the numbers whose rounding the cost carries, a scalar."""
        return jnp.maximum(self.scale_from(evaluation.value), jnp.abs(evaluation.value))

    def gradient(self, evaluation: Evaluation) -> Tree:
        """The Riemannian gradient, in the metric of the manifold, given the forward pass."""
        return self.manifold.riemannian_gradient(evaluation.point, self.euclidean_gradient(evaluation))

    def hessian(self, point: Tree) -> Callable[[Tree], Tree]:
        """The Riemannian Hessian at `point`, a linear map of tangent vectors.

        In the metric of the manifold, and exact; what depends on the point alone is computed once.
        """
        evaluation = self.evaluate(point)
        return self.hessian_given(evaluation, self.euclidean_gradient(evaluation))

    def hessian_given(self, evaluation: Evaluation, euclidean_gradient: Tree) -> Callable[[Tree], Tree]:
        """`hessian`, given the forward pass and the gradient in the ambient space."""
        euclidean_hessian = self.euclidean_hessian(evaluation)

        def apply(tangent: Tree) -> Tree:
            return self.manifold.riemannian_hessian(
                evaluation.point, euclidean_gradient, euclidean_hessian(tangent), tangent
            )

        return apply

    def check_point(self, point: Tree) -> None:
        """Raises ValueError where `point` cannot be one of this objective.

        Args:
            point: floating arrays of one dtype; whether they lie on the manifold is checked outside `jit`.
        """
        check_arrays(point)
        self.manifold.check_point(point)


def check_arrays(point: Tree) -> None:
    """Raises ValueError where `point` holds something else than floating arrays of one dtype."""
    leaves = jax.tree.leaves(point)
    kinds = sorted({str(getattr(x, "dtype", type(x).__name__)) for x in leaves})
    are_arrays = all(isinstance(x, jax.Array | np.ndarray | np.generic) for x in leaves)
    if len(kinds) != 1 or not are_arrays or not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        found = " and ".join(kinds) or "no array"
        raise ValueError(f"the point must hold floating arrays of one dtype, but has {found}.")


def _objective_of(cost: Callable, parts: tuple[Any, Any]) -> Objective:
    """Without checks: JAX also puts axes, zeros and shapes into a tree."""
    objective = object.__new__(Objective)
    objective._cost, (objective.manifold, objective._rounding_scale) = cost, parts
    return objective


jax.tree_util.register_pytree_node(
    Objective,
    lambda objective: ((objective.manifold, objective._rounding_scale), objective._cost),
    _objective_of,
)
