"""Tests to run before trusting a formula: of gradients, Hessians and manifolds.

They are those of Manopt and pymanopt. Along a curve from a point the error of the Taylor polynomial of
degree p shrinks like the power p + 1 of the step: on logarithmic axes it is a line of slope 2 for a right
gradient, 3 for a right Hessian. Run them in float64; in float32 rounding leaves too short a line.

Reference: Boumal, *An Introduction to Optimization on Smooth Manifolds* (2023), sections 4.8 and 6.8.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from ufm_jax.riemannian.manifolds import Manifold, Tree
from ufm_jax.riemannian.objective import Objective, check_arrays

_STEPS = 51
"""Steps at which the error of a polynomial is measured, between 1e-8 and 1 times the first."""

_WINDOW = 10
"""Steps in the stretch of the line whose slope is taken."""


class TaylorCheck(NamedTuple):
    """What `check_gradient` and `check_hessian` found.

    Attributes:
        passed: whether all is as it should be, bool.
        message: one sentence: that it is, or what is wrong; of derivatives perhaps that none can tell.
        slope: of the error on logarithmic axes, where it is steadiest.
        expected_slope: 2 for a gradient, 3 for a Hessian.
        steps: step sizes along the curve, (51,).
        errors: of the polynomial there, (51,).
        residuals: by name, numbers that should be 0: relative lengths of what is not tangent, linear or
            symmetric.
    """

    passed: bool
    message: str
    slope: float
    expected_slope: float
    steps: np.ndarray
    errors: np.ndarray
    residuals: dict[str, float]

    def plot(self, axes: Any) -> None:
        """Draws the errors, and a line of the expected slope, on Matplotlib's `axes`."""
        axes.loglog(self.steps, self.errors)
        reach = self.errors[-1] * (self.steps / self.steps[-1]) ** self.expected_slope
        axes.loglog(self.steps, reach, "--")
        axes.set(xlabel="step", ylabel="error of the Taylor polynomial", title=self.message)
        axes.legend([f"error, slope {self.slope:.2f}", f"slope {self.expected_slope:g}"])


class ManifoldCheck(NamedTuple):
    """What `check_manifold` found.

    Attributes:
        passed: whether all is as it should be, bool.
        message: one sentence: that it is, or what is wrong; of derivatives perhaps that none can tell.
        residuals: by name, numbers that should be 0.
    """

    passed: bool
    message: str
    residuals: dict[str, float]


def check_gradient(
    objective: Objective, point: Tree, key: jax.Array, tangent: Tree | None = None
) -> TaylorCheck:
    """Compares the Riemannian gradient with the cost along a curve, in the metric of the manifold.

    Args:
        objective: whose gradient.
        point: on the manifold, float64; not a critical point, where every multiple of it looks right.
        key: random key of the direction.
        tangent: the direction, a tangent vector; a random one of unit norm if None.

    Returns:
        The `TaylorCheck`: the error of `cost + t <gradient, tangent>` has slope 2, and the gradient is
        tangent.

    Raises:
        ValueError: the point is not one of the objective's, the manifold has no dimension there, or the
            given `tangent` is 0 or not tangent.

    Example:
        >>> class Wrong(ufm.Objective):
        ...     def euclidean_gradient(self, evaluation):
        ...         return 2 * super().euclidean_gradient(evaluation)
        >>> with jax.enable_x64():
        ...     point = jnp.array([0.6, 0.8])
        ...     for kind in (ufm.Objective, Wrong):
        ...         objective = kind(lambda x: x[0] ** 3, ufm.manifolds.Oblique())
        ...         print(ufm.riemannian.check_gradient(objective, point, jax.random.key(0)).message)
        The gradient seems right.
        The gradient is wrong: the error of the linear model has slope 1.00 and not 2.
    """
    point = _point_of(objective, point)
    manifold = objective.manifold
    tangent = _direction(manifold, point, key, tangent)
    evaluation = objective.evaluate(point)
    gradient, ambient = objective.gradient(evaluation), objective.euclidean_gradient(evaluation)
    slope = manifold.inner_product(point, gradient, tangent)
    # Beside the gradient in the ambient space too: at a critical point rounding is all that is left of it.
    normal = optax.tree.norm(_normal_part(manifold, point, gradient))
    size = optax.tree.norm(gradient) + optax.tree.norm(ambient)
    residuals = {"not tangent": float(normal / jnp.where(size > 0, size, 1))}
    return _taylor("gradient", "linear", objective, point, tangent, [slope], residuals)


def check_hessian(
    objective: Objective, point: Tree, key: jax.Array, tangent: Tree | None = None
) -> TaylorCheck:
    """Compares the Riemannian Hessian with the cost along a curve, in the metric of the manifold.

    The curve is the geodesic, where the manifold has `exp`, and else a retraction corrected to second
    order.

    Args:
        objective: whose Hessian.
        point: on the manifold, float64.
        key: random key of the directions.
        tangent: the direction, a tangent vector; a random one of unit norm if None.

    Returns:
        The `TaylorCheck`: the error of the quadratic model has slope 3, and the Hessian is tangent, linear
        and symmetric.

    Raises:
        ValueError: the point is not one of the objective's, the manifold has no dimension there, or the
            given `tangent` is 0 or not tangent.

    Example:
        >>> with jax.enable_x64():
        ...     objective = ufm.Objective(lambda x: x[0] ** 3, ufm.manifolds.Oblique())
        ...     found = ufm.riemannian.check_hessian(objective, jnp.array([0.6, 0.8]), jax.random.key(0))
        >>> print(found.message)
        The Hessian seems right.
    """
    point = _point_of(objective, point)
    manifold = objective.manifold
    of_tangent, of_other = jax.random.split(key)
    tangent = _direction(manifold, point, of_tangent, tangent)
    other = manifold.random_tangent(of_other, point)
    evaluation = objective.evaluate(point)
    hessian = objective.hessian_given(evaluation, objective.euclidean_gradient(evaluation))
    image, other_image = hessian(tangent), hessian(other)

    def inner(a: Tree, b: Tree) -> jax.Array:
        return manifold.inner_product(point, a, b)

    together = hessian(optax.tree.add_scale(tangent, -0.7, other))
    apart = optax.tree.add_scale(image, -0.7, other_image)
    size = manifold.norm(point, image) + manifold.norm(point, other_image)
    scale = float(jnp.where(size > 0, size, 1))
    residuals = {
        "not tangent": _relative(manifold, point, _normal_part(manifold, point, image), image),
        "not linear": float(manifold.norm(point, optax.tree.sub(together, apart))) / scale,
        "not symmetric": abs(float(inner(image, other) - inner(tangent, other_image))) / scale,
    }
    slope = inner(objective.gradient(evaluation), tangent)
    return _taylor(
        "Hessian", "quadratic", objective, point, tangent, [slope, inner(image, tangent)], residuals
    )


def check_manifold(manifold: Manifold, point: Tree, key: jax.Array) -> ManifoldCheck:
    """Checks at one point that a manifold's methods are what they claim to be.

    The projection is idempotent, symmetric and of the stated rank; the retraction is the identity at 0 and
    has the right velocity; points that it leads to, and random ones, are points of the manifold as far as
    retraction by 0 and projection tell; `riemannian_gradient` is the gradient in the metric; random
    tangents are tangent and of unit norm, and `whiten` gives them coordinates of the same length.

    Args:
        manifold: of this library or of one's own.
        point: on it, float64, of at most a few hundred entries: the projection's rank is counted.
        key: random key of the vectors.

    Returns:
        The `ManifoldCheck`.

    Raises:
        ValueError: the point holds no floating arrays of one dtype, or the manifold has no dimension there.

    Example:
        >>> with jax.enable_x64():
        ...     x = jnp.eye(4)[:, :2]
        ...     found = ufm.riemannian.check_manifold(ufm.manifolds.Stiefel(), x, jax.random.key(0))
        >>> print(found.message)
        The manifold seems right.
    """
    check_arrays(point)
    point = jax.tree.map(jnp.asarray, point)
    manifold.positive_dimension(point)
    keys = jax.random.split(key, 4)
    a, b = (jax.tree.map(lambda x, k=k: jax.random.normal(k, x.shape, x.dtype), point) for k in keys[:2])
    tangent = manifold.random_tangent(keys[2], point)
    projected = manifold.project(point, a)
    zero = optax.tree.zeros_like(point)
    t = float(jnp.finfo(jax.tree.leaves(point)[0].dtype).eps) ** (1 / 3)

    def length(v: Tree) -> float:
        return float(optax.tree.norm(v))

    # Moved by t of the point's own size: in another metric a unit tangent may be of any length.
    size = length(tangent) or 1
    step = t * (length(point) or 1) / size
    ahead, back = (manifold.retract(point, optax.tree.scale(s, tangent)) for s in (step, -step))
    velocity = optax.tree.scale(1 / (2 * step), optax.tree.sub(ahead, back))
    far = manifold.retract(point, tangent)
    random = manifold.random_point(keys[3], point)
    white = optax.tree.norm(manifold.whiten(tangent))
    gradient = manifold.riemannian_gradient(point, a)
    flat, unflatten = ravel_pytree(point)
    matrix = jax.vmap(lambda v: ravel_pytree(manifold.project(point, unflatten(v)))[0])(
        jnp.eye(flat.size, dtype=flat.dtype)
    )

    def moved(x: Tree) -> float:
        return length(optax.tree.sub(manifold.retract(x, zero), x)) / (length(x) or 1)

    def not_idempotent(x: Tree) -> float:
        once = manifold.project(x, a)
        return length(optax.tree.sub(manifold.project(x, once), once))

    residuals = {
        "projection not idempotent": not_idempotent(point),
        "projection not symmetric": abs(
            float(optax.tree.vdot(projected, b) - optax.tree.vdot(a, manifold.project(point, b)))
        ),
        "projection not of the stated dimension": abs(float(jnp.trace(matrix)) - manifold.dimension(point)),
        "retract(x, 0) not x, or x off the manifold": moved(point),
        "retraction off the manifold": max(moved(far), not_idempotent(far)),
        "retraction of another velocity": length(optax.tree.sub(velocity, tangent)) / size,
        "random point off the manifold": max(moved(random), not_idempotent(random)),
        "random tangent not tangent": length(_normal_part(manifold, point, tangent)) / size,
        "random tangent not of unit norm": abs(float(manifold.norm(point, tangent)) - 1),
        "whiten of another length": abs(float(white - manifold.norm(point, tangent))),
        "gradient not that of the metric": abs(
            float(manifold.inner_product(point, gradient, tangent) - optax.tree.vdot(a, tangent))
        )
        / size,
    }
    tolerance = 100 * t**2 * max(1, flat.size**0.5)
    wrong = [f"{name} ({found:.2g})" for name, found in residuals.items() if not found <= tolerance]
    message = f"The manifold is wrong: {'; '.join(wrong)}." if wrong else "The manifold seems right."
    return ManifoldCheck(not wrong, message, residuals)


def _point_of(objective: Objective, point: Tree) -> Tree:
    """The point in JAX's arrays, after its check: they may be narrower than NumPy's."""
    objective.check_point(point)
    return jax.tree.map(jnp.asarray, point)


def _direction(manifold: Manifold, point: Tree, key: jax.Array, tangent: Tree | None) -> Tree:
    """The tangent vector given, after its checks, or a random one of unit norm."""
    manifold.positive_dimension(point)
    if tangent is None:
        return manifold.random_tangent(key, point)
    tangent = jax.tree.map(jnp.asarray, tangent)
    if not manifold.norm(point, tangent) > 0:
        raise ValueError("tangent must be finite and not 0: along 0 nothing changes.")
    off = _relative(manifold, point, _normal_part(manifold, point, tangent), tangent)
    if off > float(jnp.finfo(jax.tree.leaves(point)[0].dtype).eps) ** 0.5:
        raise ValueError(f"tangent must be a tangent vector, but a share of {off:.2g} of it is normal.")
    return tangent


def _normal_part(manifold: Manifold, point: Tree, vector: Tree) -> Tree:
    return optax.tree.sub(vector, manifold.project(point, vector))


def _relative(manifold: Manifold, point: Tree, part: Tree, whole: Tree) -> float:
    size = manifold.norm(point, whole)
    return float(manifold.norm(point, part) / jnp.where(size > 0, size, 1))


def _taylor(name, model, objective, point, tangent, derivatives, residuals) -> TaylorCheck:
    """Compares the cost along a curve with the polynomial of these derivatives at 0."""
    degree, curve = len(derivatives), _curve(objective.manifold, point, tangent)
    dtype = jax.tree.leaves(point)[0].dtype
    steps = jnp.logspace(-8, 0, _STEPS, dtype=dtype)

    def cost_at(t: jax.Array) -> jax.Array:
        return objective.cost(curve(t))

    value, costs = objective.cost(point), jax.lax.map(cost_at, steps)
    polynomial = value + steps * derivatives[0]
    if degree == 2:
        polynomial += steps**2 / 2 * derivatives[1]
    errors = np.abs(np.asarray(costs - polynomial))
    # A scale of 1 is the default, and says nothing of a cost that stays far below it.
    scale, size = objective.rounding_size(objective.evaluate(point)), jnp.max(jnp.abs(costs))
    rounding = float(10 * jnp.finfo(dtype).eps * jnp.where(scale > 1, jnp.maximum(scale, size), size))
    slope, is_exact = _steadiest_slope(np.asarray(steps), errors, rounding)
    tolerance = float(jnp.finfo(dtype).eps) ** 0.5
    wrong = [f"it is {what} ({size:.2g})" for what, size in residuals.items() if not size <= tolerance]
    # A model without error, as of a linear cost, has no slope; a steeper one is no fault either.
    if not is_exact and not slope >= degree + 1 - 0.1:
        wrong.append(f"the error of the {model} model has slope {slope:.2f} and not {degree + 1}")
    message = f"The {name} is wrong: {', and '.join(wrong)}." if wrong else f"The {name} seems right."
    changes = np.abs(np.asarray(costs - value))
    if 0 < np.max(changes) <= 1e4 * rounding and np.isnan(slope):
        wrong = ["unknown"]
        message = (
            f"The {name} cannot be told: the cost changes by {np.max(changes):.1g} at most, too little "
            f"beside its rounding of {rounding:.1g}."
        )
    return TaylorCheck(not wrong, message, slope, degree + 1.0, np.asarray(steps), errors, residuals)


def _curve(manifold: Manifold, point: Tree, tangent: Tree) -> Callable[[jax.Array], Tree]:
    """A curve that leaves `point` with velocity `tangent` and without tangential acceleration.

    It is the geodesic, if the manifold has it, else the retraction of a step that is bent against its
    acceleration: along such a curve the Hessian is the second derivative of any cost.
    """
    try:
        jax.eval_shape(manifold.exp, point, tangent)
    except NotImplementedError:
        pass
    else:
        return lambda t: manifold.exp(point, optax.tree.scale(t, tangent))

    def straight(t: jax.Array) -> Tree:
        return manifold.retract(point, optax.tree.scale(t, tangent))

    def velocity(t: jax.Array) -> Tree:
        return jax.jvp(straight, (t,), (jnp.ones_like(t),))[1]

    zero = jnp.zeros((), jax.tree.leaves(point)[0].dtype)
    _, acceleration = jax.jvp(velocity, (zero,), (jnp.ones_like(zero),))
    bend = optax.tree.scale(-0.5, manifold.project(point, acceleration))
    return lambda t: manifold.retract(point, optax.tree.add_scale(optax.tree.scale(t, tangent), t**2, bend))


def _steadiest_slope(steps: np.ndarray, errors: np.ndarray, rounding: float) -> tuple[float, bool]:
    """The slope where the errors, above rounding, are most like a line; and whether none are above it."""
    above = errors > rounding
    if above.sum() < _WINDOW:
        return float("nan"), bool(np.all(errors <= 10 * rounding))
    x, y = np.log10(steps), np.log10(np.maximum(errors, np.finfo(errors.dtype).tiny))
    best, least = float("nan"), np.inf
    for start in range(len(steps) - _WINDOW + 1):
        window = slice(start, start + _WINDOW)
        if not above[window].all():
            continue
        coefficients, residual, *_ = np.polyfit(x[window], y[window], 1, full=True)
        spread = float(residual[0]) if residual.size else 0.0
        if spread < least:
            best, least = float(coefficients[0]), spread
    return best, False
