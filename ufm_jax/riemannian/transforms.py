"""Optax gradient transformations that keep parameters on spheres.

`project_to_sphere` is the paper's way: any optimizer takes its step, and the result is scaled back onto the
sphere. `riemannian_sgd` is its sibling on the manifold, where gradient and momentum are tangent vectors.
Parameters are pytrees; every vector along `axis` of every leaf is one point. To constrain some leaves only,
wrap a link of a chain in `optax.masked`; of a whole optimizer, such as `riemannian_sgd`, make a part of
`optax.partition`, since what is masked would leave the gradients of the others as they are. Here it is the
kernel of a Flax layer, (inputs, outputs), with a vector for each output as a column; PyTorch's weights have
them as rows, as the default says:

    >>> is_direction = {"encoder": False, "head": {"kernel": True, "bias": False}}
    >>> on_sphere = optax.masked(ufm.transforms.project_to_sphere(axis=0), is_direction)
    >>> optimizer = optax.chain(optax.sgd(0.05, momentum=0.9), on_sphere)
    >>> sibling = optax.partition(
    ...     {
    ...         True: ufm.transforms.riemannian_sgd(0.05, momentum=0.9, axis=0),
    ...         False: optax.sgd(0.05, momentum=0.9),
    ...     },
    ...     is_direction,
    ... )

`optax.inject_hyperparams` needs `static_args=("axis", "accumulator_dtype")`, as far as they are arguments.

Reference: Absil, Mahony, Sepulchre, *Optimization Algorithms on Matrix Manifolds* (2008), sections 3.6, 4.1
and 8.1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from ufm_jax import _checks
from ufm_jax.riemannian.manifolds import Oblique, Tree, normalize


def project_to_sphere(radius: float = 1.0, axis: int = -1) -> optax.GradientTransformation:
    """Changes an update so that the updated parameters lie on the sphere.

    Place it last in a chain, after the learning rate. A parameter that starts off the sphere is on it
    after the first update, to the rounding of its own size; a vector that an update makes zero becomes
    `radius` times the first basis vector.

    Args:
        radius: of the sphere, positive.
        axis: axis of each leaf along which its vectors lie.

    Returns:
        A transformation whose `update` needs `params`.

    Raises:
        ValueError: `radius` is not positive, or `update` is called without `params`.

    Example:
        >>> optimizer = optax.chain(optax.sgd(0.1), ufm.transforms.project_to_sphere())
        >>> x = jnp.array([[0.6, 0.8]])
        >>> updates, _ = optimizer.update(jnp.array([[1.0, 0.0]]), optimizer.init(x), x)
        >>> print(optax.apply_updates(x, updates).round(4))
        [[0.53  0.848]]
    """
    _checks.positive("radius", radius)

    def project(x: jax.Array, update: jax.Array) -> jax.Array:
        return radius * _directions(x + update, axis) - x

    def update(updates: Tree, params: Tree | None = None) -> Tree:
        return jax.tree.map(project, _required(params), updates)

    return optax.stateless(update)


class RiemannianTraceState(NamedTuple):
    """Momentum of the step before, tangent at the parameters of that step."""

    trace: Tree


def riemannian_trace(
    decay: float, axis: int = -1, accumulator_dtype: DTypeLike | None = None
) -> optax.GradientTransformation:
    """Momentum on the sphere: `optax.trace` with gradient and momentum in the tangent space.

    At the parameters x the update is `m = P g + decay P m_before`, with P the projection onto the tangent
    space at x; applied to the momentum before it is the transport by projection.

    Args:
        decay: of the momentum, in [0, 1].
        axis: axis of each leaf along which its vectors lie.
        accumulator_dtype: of the momentum that is kept; that of the parameters if None.

    Returns:
        A transformation whose `update` needs `params`, on a sphere of any radius.

    Raises:
        ValueError: `decay` is outside [0, 1], or `update` is called without `params`.

    Example:
        >>> x, gradient = jnp.array([0.6, 0.8]), jnp.array([1.0, 0.0])
        >>> transform = ufm.transforms.riemannian_trace(0.9)
        >>> momentum, _ = transform.update(gradient, transform.init(x), x)
        >>> print(momentum.round(2))
        [ 0.64 -0.48]
    """
    _checks.within("decay", decay, 0, 1)

    def to_tangent(x: jax.Array, v: jax.Array) -> jax.Array:
        points, vectors = (jnp.moveaxis(a, axis, -1) for a in (x, v))
        return jnp.moveaxis(Oblique().project(normalize(points), vectors), -1, axis)

    def init(params: Tree) -> RiemannianTraceState:
        return RiemannianTraceState(optax.tree.zeros_like(params, dtype=accumulator_dtype))

    def update(
        updates: Tree, state: RiemannianTraceState, params: Tree | None = None
    ) -> tuple[Tree, RiemannianTraceState]:
        accumulated = jax.tree.map(lambda g, m: g + decay * m, updates, state.trace)
        momentum = jax.tree.map(to_tangent, _required(params), accumulated)
        kept = jax.tree.map(lambda m, before: m.astype(before.dtype), momentum, state.trace)
        return momentum, RiemannianTraceState(kept)

    return optax.GradientTransformation(init, update)


def riemannian_sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.0,
    radius: float = 1.0,
    axis: int = -1,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformation:
    """Stochastic gradient descent on spheres, with momentum in the tangent space.

    Each step follows `riemannian_trace`, scaled by the learning rate, and is retracted by normalization.

    Args:
        learning_rate: a number or an optax schedule.
        momentum: decay of the momentum, in [0, 1].
        radius: of the sphere, positive.
        axis: axis of each leaf along which its vectors lie.
        accumulator_dtype: of the momentum that is kept; that of the parameters if None.

    Returns:
        A transformation whose `update` needs `params`.

    Raises:
        ValueError: as `project_to_sphere` and `riemannian_trace`.

    Example:
        >>> optimizer = ufm.transforms.riemannian_sgd(0.5, momentum=0.9)
        >>> x = jnp.array([0.6, 0.8])
        >>> updates, _ = optimizer.update(jnp.array([1.0, 0.0]), optimizer.init(x), x)
        >>> print(optax.apply_updates(x, updates).round(3))
        [0.26  0.966]
    """
    return optax.chain(
        riemannian_trace(momentum, axis, accumulator_dtype),
        optax.scale_by_learning_rate(learning_rate),
        project_to_sphere(radius, axis),
    )


def _directions(x: jax.Array, axis: int) -> jax.Array:
    return jnp.moveaxis(normalize(jnp.moveaxis(x, axis, -1)), -1, axis)


def _required(params: Tree | None) -> Tree:
    if params is None:
        raise ValueError("a step on the sphere starts from the parameters: call update with params.")
    return params
