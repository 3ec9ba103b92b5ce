"""How fast collapse comes: the Hessian's spectrum at the minimum, in closed form (docs/rates.md).

K is the number of classes, n of samples of each, N = nK, tau the temperature; U and V are motions of W and
H. Where it collapses, every loss that treats the classes alike and does not see a constant added to all
logits has the Hessian `tau c/N Q(U, V)` of one quadratic form

    Q = n |U|^2 + |V|^2 - 2 sum_i <u_y - u_mean, v_i>
        + theta (K-1)/K sum_i |z_i - z_mean|^2  +  (R - theta) sum_i <p_y, z_i>^2

with y the class of sample i, `z_i = W v_i + U w_y`, `p_y = e_y - 1/K`, and three numbers of the loss: its
slope c, its curvature theta between the other classes, and its curvature R against them. The symmetric
groups split the motions into a dozen kinds, on which Q is a number or a small matrix. The normalized and
the regularized UFM differ in the metric, and in that only the latter can move along its vectors.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ufm_jax import _checks, losses
from ufm_jax._products import matmul

_Loss = Callable[[jax.Array, jax.Array], jax.Array]

_SEEN_BY_NC1 = ("samples inside the span", "samples along their mean")
_SEEN_BY_NC2 = ("symmetric", "standard", "classifiers together inside the span")
_SEEN_BY_NC3 = (*_SEEN_BY_NC2, "antisymmetric")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Modes:
    """The spectrum of a Hessian, by the kinds of motion that its symmetry tells apart (docs/rates.md).

    "The span" is that of W, which is that of the class means; "means" are those of the features.

    Attributes:
        eigenvalues: (M,), in no order.
        multiplicity: of each, at least 1, integers (M,); they sum to the dimension of the manifold. Outputs
            of `jit` have JAX's integers, which without x64 end at 2^31 - 1.
        names: of the motions, M strings. A motion that W and the means both make has several eigenvalues,
            and its name occurs as often.
    """

    eigenvalues: jax.Array
    multiplicity: np.ndarray
    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})


class CollapseRates(NamedTuple):
    """What `collapse_rates` found.

    Attributes:
        step: the length of the step, times the gradient.
        nc1: the factor by which a step multiplies NC1, which is quadratic in the distance to collapse.
        nc2: the same for NC2, which is linear in it.
        nc3: the same for NC3, which is linear in it.
    """

    step: jax.Array
    nc1: jax.Array
    nc2: jax.Array
    nc3: jax.Array


def collapse_spectrum(
    num_classes: int,
    samples_per_class: int,
    dim: int,
    tau: ArrayLike,
    classifier_weight: ArrayLike = 1.0,
    loss: _Loss = losses.cross_entropy,
) -> Modes:
    """The Riemannian Hessian's spectrum at collapse of the normalized UFM, in the metric `w |U|^2 + |V|^2`.

    Args:
        num_classes: K, at least 2.
        samples_per_class: n, at least 1.
        dim: d, at least K - 1.
        tau: temperature, positive, a scalar.
        classifier_weight: w, positive, a scalar; 1 is the paper's metric, n the balanced one.
        loss: symmetric in the classes and blind to a constant added to all logits, as losses of the softmax
            are. Collapse must minimize it: label smoothing does so below `label_smoothing_threshold`.

    Returns:
        The `Modes`.

    Raises:
        ValueError: K < 2, n < 1, d < K - 1, tau or the weight is not positive, or the loss at collapse has
            another form or sign (values are checked outside `jit`).

    Example:
        >>> modes = ufm.theory.collapse_spectrum(num_classes=3, samples_per_class=5, dim=2, tau=1.0)
        >>> for name, count in zip(modes.names, modes.multiplicity):
        ...     print(count, name)
        1 rotation
        12 samples inside the span
        1 antisymmetric
        2 standard
        2 standard
    """
    _check_sizes(num_classes, samples_per_class, dim)
    _checks.positive_scalar("tau", tau)
    _checks.positive_scalar("classifier_weight", classifier_weight)
    K, n = num_classes, samples_per_class
    c, theta, R = _slope_and_curvatures(loss, K, tau)
    modes = _normalized_modes(K, n, dim, theta, R, classifier_weight)
    return _assemble(modes, jnp.asarray(tau) * c / (n * K))


def regularized_collapse_spectrum(
    num_classes: int,
    samples_per_class: int,
    dim: int,
    weight_decay: ArrayLike,
    feature_decay: ArrayLike,
) -> Modes:
    """The Hessian's spectrum where the regularized UFM with cross entropy has collapsed.

    Its minimum is `W = a ETF`, `H = b ETF[labels]` with `K sqrt(n l_W l_H) = c`, the slope of cross entropy
    at the temperature `tau = a b`. Lengths in units of a and b make it the normalized model of that
    temperature in the metric `w = n l_H / l_W`, plus the motions that change the lengths.

    Args:
        num_classes: K, at least 2.
        samples_per_class: n, at least 1.
        dim: d, at least K - 1.
        weight_decay: l_W, positive, a scalar.
        feature_decay: l_H, positive, a scalar.

    Returns:
        The `Modes`, in the Euclidean metric.

    Raises:
        ValueError: K < 2, n < 1, d < K - 1, a decay is not positive, or the decays are so large that
            W = H = 0 is the minimum (values are checked outside `jit`).

    Example:
        >>> for decay in (1e-4, 1e-6):
        ...     modes = ufm.theory.regularized_collapse_spectrum(100, 30, 128, decay, decay)
        ...     print(f"largest eigenvalue: {modes.eigenvalues.max() / decay:.1f} times the decay")
        largest eigenvalue: 14.1 times the decay
        largest eigenvalue: 24.2 times the decay
    """
    _check_sizes(num_classes, samples_per_class, dim)
    _checks.positive_scalar("weight_decay", weight_decay)
    _checks.positive_scalar("feature_decay", feature_decay)
    K, n = num_classes, samples_per_class
    l_W, l_H = 1.0 * jnp.asarray(weight_decay), 1.0 * jnp.asarray(feature_decay)
    c = K * jnp.sqrt(n * l_W) * jnp.sqrt(l_H)
    if _checks.is_concrete(c) and c >= 1:
        raise ValueError(
            "num_classes sqrt(samples_per_class weight_decay feature_decay) must be below 1, but is "
            f"{c:.6g}: W = H = 0 is the minimum."
        )
    tau = (K - 1) / K * jnp.log1p(K * (1 - c) / c)
    _, theta, R = _slope_and_curvatures(losses.cross_entropy, K, tau)
    r = l_H / l_W
    # Two classes leave no x and y; a, the shift of all of W, meets none of the others.
    name, kept = ("standard", [0, 2, 3]) if K > 2 else ("means together inside the span", [3])
    standard = _standard_form(K, theta, R)[np.ix_(kept, kept)]
    weights: list[ArrayLike] = [r, r, 1, 1]
    modes: list[_Mode] = [
        *_modes_of_both_models(K, n, dim - K + 1, theta, r),
        ("samples along their mean", 1 + R, K * (n - 1)),
        ("scale", _pair(R, r), 1),
        ("classifiers together inside the span", 1 / r, K - 1),
        (name, _eigenvalues(standard, [weights[j] for j in kept]), K - 1),
    ]
    return _assemble(modes, l_H)


def contrastive_collapse_spectrum(
    num_classes: int, samples_per_class: int, dim: int, tau: ArrayLike
) -> Modes:
    """The Riemannian Hessian's spectrum at collapse of the supervised contrastive model, equation (40).

    Args:
        num_classes: K, at least 2.
        samples_per_class: n, at least 2.
        dim: d, at least K - 1.
        tau: temperature, positive, a scalar.

    Returns:
        The `Modes`: here `theta = tau^2/(K-1)`.

    Raises:
        ValueError: K < 2, n < 2, d < K - 1, or tau is not positive.
    """
    _check_sizes(num_classes, samples_per_class, dim)
    _checks.at_least("samples_per_class", samples_per_class, 2)
    _checks.positive_scalar("tau", tau)
    K, n, o = num_classes, samples_per_class, dim - num_classes + 1
    square = jnp.asarray(tau) ** 2
    theta = square / (K - 1)
    # The probability of one sample of another class.
    small = jnp.exp(-K * theta)
    q = small / (n - 1 + n * (K - 1) * small)
    own = (K - 1) / (K * (n - 1))
    modes: list[_Mode] = [
        ("rotation", 0, _rotations(K, o)),
        ("samples outside the span", 1 + own, K * (n - 1) * o),
        ("samples inside the span", 1 + own + theta, K * (n - 1) * (K - 2)),
        ("means together outside the span", 1, o),
        ("symmetric", 2 * theta, K * (K - 3) // 2),
        ("standard", (K - 2 + K * theta * (1 - n * q * (K - 2) / 2)) / (K - 1), K - 1 if K > 2 else 0),
    ]
    return _assemble(modes, 2 * square * q)


def collapse_rates(modes: Modes, step: ArrayLike | None = None) -> CollapseRates:
    """The rates of NC1, NC2 and NC3 under gradient descent with a fixed step, near collapse.

    A step multiplies a motion of eigenvalue l by `1 - step l`, and a metric by the factor of the slowest
    motion that it sees to first order; NC1, a square, by its square. Late in a run at large temperatures
    (above 0.7 (K-1) for NC1 where w = n), second order takes over (docs/rates.md).

    Args:
        modes: of any model; its metric is that of the gradient.
        step: positive, a scalar; one over the largest eigenvalue if None, the longest step that reverses no
            motion.

    Returns:
        The `CollapseRates`. A metric that sees no motion to first order has 0: NC1 for n = 1, and on the
        spheres all three for K = 2. Where w = n and tau > K - 1, NC3 falls faster than said, since it does
        not see W and the means move in opposite directions.

    Raises:
        ValueError: the step is not positive, or is not given where all eigenvalues are 0.

    Example:
        >>> modes = ufm.theory.collapse_spectrum(10, 5, dim=32, tau=4.5, classifier_weight=5)
        >>> step, *factors = ufm.theory.collapse_rates(modes)
        >>> print([f"{factor:.4f}" for factor in factors])
        ['0.2500', '0.6667', '0.6667']
    """
    if step is None:
        largest = jnp.max(modes.eigenvalues, initial=0)
        if _checks.is_concrete(largest) and largest == 0:
            raise ValueError(
                "step must be given where no eigenvalue is positive: nothing moves, or the temperature is "
                f"so large that the slope at collapse underflows in {largest.dtype}."
            )
        step = 1 / largest
    _checks.positive_scalar("step", step)
    factors = jnp.abs(1 - step * modes.eigenvalues)

    def slowest(seen: tuple[str, ...]) -> jax.Array:
        is_seen = np.array([name in seen for name in modes.names])
        return jnp.max(factors, where=is_seen, initial=0)

    nc1, nc2, nc3 = (slowest(seen) for seen in (_SEEN_BY_NC1, _SEEN_BY_NC2, _SEEN_BY_NC3))
    return CollapseRates(jnp.asarray(step), nc1**2, nc2, nc3)


def collapse_condition_number(
    num_classes: int, samples_per_class: int, tau: ArrayLike, classifier_weight: ArrayLike = 1.0
) -> jax.Array:
    """The largest eigenvalue of `collapse_spectrum` over the smallest that is no rotation's, for d >= K.

    In the balanced metric, w = n, and for K >= 4 it is `1 + (K-1)/tau` up to tau = (K-1)/2, 3 there, and
    `2 (1 + tau/(K-1))` beyond.

    Args:
        num_classes: K, at least 2.
        samples_per_class: n, at least 1.
        tau: temperature, positive, a scalar.
        classifier_weight: w, positive, a scalar.

    Returns:
        The condition number, a scalar.

    Raises:
        ValueError: K < 2, n < 1, or tau or the weight is not positive.

    Example:
        >>> for weight in (1, 5):
        ...     print(f"{ufm.theory.collapse_condition_number(10, 5, 4.5, classifier_weight=weight):.3f}")
        9.000
        3.000
    """
    K, n = num_classes, samples_per_class
    _check_sizes(K, n, K)
    _checks.positive_scalar("tau", tau)
    _checks.positive_scalar("classifier_weight", classifier_weight)
    c, theta, R = _slope_and_curvatures(losses.cross_entropy, K, tau)
    # Without the unit tau c/N, which underflows long before the ratios change.
    modes = _assemble(_normalized_modes(K, n, K, theta, R, classifier_weight), jnp.ones_like(c))
    moves = np.array([name != "rotation" for name in modes.names])
    return jnp.max(modes.eigenvalues) / jnp.min(modes.eigenvalues, where=moves, initial=jnp.inf)


def best_temperature(num_classes: int, samples_per_class: int, classifier_weight: ArrayLike) -> jax.Array:
    """The temperature at which `collapse_condition_number` is smallest.

    With `s = min(w/n, n/w)` it is `(K-1)/(3-s)` for K >= 4, where the condition number is
    `(4-s)/(3-s) (1 + 1/s)`: (K-1)/2 and 3 in the balanced metric, w = n. For K = 3 it solves an equation
    (docs/rates.md). For K = 2 the condition number is the same at all temperatures.

    Args:
        num_classes: K, at least 2.
        samples_per_class: n, at least 1.
        classifier_weight: w, positive, a scalar.

    Returns:
        The temperature, a scalar.

    Raises:
        ValueError: K < 2, n < 1, or the weight is not positive.

    Example:
        >>> [round(float(ufm.theory.best_temperature(10, 5, weight)), 3) for weight in (1, 5)]
        [3.214, 4.5]
    """
    _check_sizes(num_classes, samples_per_class, num_classes)
    _checks.positive_scalar("classifier_weight", classifier_weight)
    r = jnp.asarray(classifier_weight) / samples_per_class
    s = jnp.minimum(r, 1 / r)
    if num_classes != 3:
        return (num_classes - 1) / (3 - s)

    def residual(theta: jax.Array) -> jax.Array:
        """Negative while the slower standard motion is still slower than all others."""
        c = 3 / (jnp.exp(3 * theta) + 2)
        slow = theta * (1 - c / 2)
        product = jnp.where(r < 1, (1 - s + slow) * theta, (1 - s + theta) * slow)
        return 4 * product - (1 - theta) ** 2

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        middle = (ends[0] + ends[1]) / 2
        below = residual(middle) < 0
        return jnp.where(below, middle, ends[0]), jnp.where(below, ends[1], middle)

    low, high = jax.lax.fori_loop(0, 60, halve, (jnp.zeros_like(r), jnp.ones_like(r)))
    # A step of Newton's, which has the derivative in the weight.
    theta = jax.lax.stop_gradient((low + high) / 2)
    slope = jax.lax.stop_gradient(jax.grad(residual)(theta))
    return 2 * (theta - residual(theta) / slope)


def best_temperature_of_fixed_step(num_classes: int) -> float:
    """The temperature at which NC2 and NC3 fall fastest under a small step that is the same for all.

    The eigenvalue of their slowest motion in the balanced metric, `2 tau c theta/N`, is largest there:
    at `tau = (K-1)/K (2 + y)` with `y e^y = 2 (K-1)/e^2`.

    Args:
        num_classes: K, at least 4.

    Returns:
        The temperature.

    Raises:
        ValueError: K < 4.

    Example:
        >>> [round(ufm.theory.best_temperature_of_fixed_step(K), 2) for K in (10, 100)]
        [2.65, 4.36]
    """
    _checks.at_least("num_classes", num_classes, 4)
    y, log_right = 1.0, math.log(2 * (num_classes - 1)) - 2
    for _ in range(50):  # Newton's method for y + log(y), which is concave.
        y *= (1 + log_right - math.log(y)) / (1 + y)
    return (num_classes - 1) / num_classes * (2 + y)


_Mode = tuple[str, ArrayLike, int]
"""The name of a motion, its eigenvalue or eigenvalues, and how often each of them occurs."""


def _normalized_modes(
    K: int, n: int, dim: int, theta: jax.Array, R: jax.Array, weight: ArrayLike
) -> list[_Mode]:
    """The kinds of motion on the spheres, in units of `tau c/N`."""
    r = jnp.asarray(weight, theta.dtype) / n
    # The diagonals of U W^T and M W^T are zero there, which ties a to x and b to y.
    tie = -((K - 2) ** 0.5)
    tangent = np.array([[1, 0], [tie, 0], [0, 1], [0, tie]]) / (K - 1) ** 0.5
    standard = matmul(matmul(tangent.T, _standard_form(K, theta, R)), tangent)
    return [
        *_modes_of_both_models(K, n, dim - K + 1, theta, r),
        ("standard", _eigenvalues(standard, [r, 1]), K - 1 if K > 2 else 0),
    ]


def _modes_of_both_models(K: int, n: int, o: int, theta: jax.Array, r: jax.Array) -> list[_Mode]:
    """The kinds of motion that keep all lengths, in units of `tau c/N`; the span leaves o dimensions."""
    antisymmetric = (K - 1) * (K - 2) // 2
    return [
        ("rotation", 0, _rotations(K, o)),
        ("samples outside the span", 1, K * (n - 1) * o),
        ("samples inside the span", 1 + theta, K * (n - 1) * (K - 2)),
        ("classifiers together outside the span", 1 / r, o),
        ("means together outside the span", 1, o),
        ("classifiers against means outside the span", 1 + 1 / r, (K - 1) * o),
        ("antisymmetric", (1 + theta) * (1 + 1 / r), antisymmetric),
        ("symmetric", _pair(theta, r), K * (K - 3) // 2),
    ]


def _rotations(K: int, o: int) -> int:
    return (K - 1) * o + (K - 1) * (K - 2) // 2


def _pair(curvature: jax.Array, r: ArrayLike) -> jax.Array:
    """The eigenvalues of `x^2 + y^2 - 2 x y + curvature (x + y)^2` in the metric `r x^2 + y^2`.

    That is the form of a motion which W and the means both make. The smaller one is the determinant over
    the larger, since a small one would lose its digits as a difference.
    """
    trace = (1 + curvature) * (1 + 1 / r)
    apart = jnp.hypot((1 + curvature) * (1 - 1 / r), 2 * (1 - curvature) / jnp.sqrt(r))
    larger = (trace + apart) / 2
    return jnp.stack([4 * curvature / r / larger, larger])


def _standard_form(K: int, theta: jax.Array, R: jax.Array) -> jax.Array:
    """Q on the standard representation of S_K, on unit vectors in the order (x, a, y, b).

    x and y are the symmetric parts of U W^T and M W^T that have a diagonal, M the motion of the means; a
    and b shift all of W and all means inside the span.
    """
    difference, total, own = np.array([[1, 0, -1, 0], [1, 0, 1, 0], [(K - 2) ** 0.5, 0, (K - 2) ** 0.5, 1]])
    a, b = np.diag([0, 1, 0, 0]), np.diag([0, 0, 0, 1])
    between = theta * np.outer(total, total) + (1 + theta) * b
    against = (R - theta) / (K - 1) * np.outer(own, own)
    return between + against + np.outer(difference, difference) + a


def _eigenvalues(form: jax.Array, weights: list[ArrayLike]) -> jax.Array:
    """The eigenvalues of a form in the metric `sum weights_j x_j^2`."""
    scale = 1 / jnp.sqrt(jnp.asarray(weights, form.dtype))
    return jnp.linalg.eigvalsh(scale[:, None] * form * scale)


def _assemble(modes: list[_Mode], unit: jax.Array) -> Modes:
    """All eigenvalues in one vector; kinds of motion that do not occur are left out."""
    occurring = [(name, jnp.atleast_1d(values), count) for name, values, count in modes if count > 0]
    eigenvalues = [jnp.zeros(0, unit.dtype), *(values.astype(unit.dtype) for _, values, _ in occurring)]
    return Modes(
        unit * jnp.concatenate(eigenvalues),
        np.array([count for _, values, count in occurring for _ in values], int),
        tuple(name for name, values, _ in occurring for _ in values),
    )


def _slope_and_curvatures(loss: _Loss, K: int, tau: ArrayLike) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The numbers c, theta and R of a loss at collapse, from its gradient and Hessian in the logits.

    There the gradient is `c (1/K - e_y)`. The Hessian has one eigenvalue for vectors of sum zero over the
    other classes, and one for `e_y - 1/K`; they are `c (K-1)/(K tau)` times theta and R.
    """
    tau = 1.0 * jnp.asarray(tau)
    if loss is losses.cross_entropy:
        small = jnp.exp(-K / (K - 1) * tau)
        q = small / (1 + (K - 1) * small)
        theta = tau / (K - 1)
        return K * q, theta, K * theta * (1 - (K - 1) * q)
    slopes, between, against = _derivatives_at_collapse(loss, K, tau)
    # Entries of another class keep the digits that 1 - p has lost.
    c = K * slopes[1]
    unit = (K - 1) * c / (K * tau)
    if _checks.is_concrete(c):
        _check_slopes(slopes, c, unit)
    return c, between[1] / unit, -K * against[1] / unit


@functools.partial(jax.jit, static_argnums=(0, 1))
def _derivatives_at_collapse(loss: _Loss, K: int, tau: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For a sample of class 0 the gradient, and the Hessian times `e_1 - e_(K-1)` and times `e_0 - 1/K`."""
    own = jnp.zeros(K, tau.dtype).at[0].add(1) - 1 / K
    others = jnp.zeros(K, tau.dtype).at[1].add(1).at[-1].add(-1)
    gradient = jax.grad(lambda z: jnp.sum(loss(z[None], jnp.zeros(1, jnp.int32))))
    slopes, curvature = jax.linearize(gradient, K / (K - 1) * tau * own)
    return slopes, curvature(others), curvature(own)


def _check_slopes(slopes: jax.Array, c: jax.Array, unit: jax.Array) -> None:
    K = len(slopes)
    if 0 <= unit < 10 * K * jnp.finfo(c.dtype).tiny:
        raise ValueError(
            f"the slope of the loss at collapse, {float(c):.1e}, is 0 or underflows in {c.dtype}: take a "
            "smaller temperature, or a wider type (jax_enable_x64)."
        )
    wanted = c * jnp.where(jnp.arange(K) == 0, 1 / K - 1, 1 / K)
    if not (c > 0 and jnp.allclose(slopes, wanted, rtol=1e-3, atol=10 * jnp.finfo(c.dtype).eps)):
        raise ValueError(
            "the loss must treat the other classes alike, not see a constant added to all logits, and be "
            f"minimized by collapse, but its slopes in the logits there are {np.asarray(slopes)}."
        )


def _check_sizes(num_classes: int, samples_per_class: int, dim: int) -> None:
    _checks.count("num_classes", num_classes, 2)
    _checks.count("samples_per_class", samples_per_class, 1)
    if dim < num_classes - 1:
        raise ValueError(
            f"{num_classes} classes collapse in at least {num_classes - 1} dimensions, but dim is {dim}."
        )
