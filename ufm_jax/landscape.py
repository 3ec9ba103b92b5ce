"""The landscape of the normalized UFM: multipliers, Hessian, optimality certificate, negative curvature.

The paper's Appendix D. It stacks vectors as columns; here they are rows, so its G (K x N) is our
`logit_gradient` transposed. All functions are pure and take one point: batch them with `vmap`. They work in
float32 and float64, and keep the dtype of the point. What is not stated to be for cross entropy holds for
every loss of logits.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ufm_jax import _checks, losses, theory
from ufm_jax._products import matmul
from ufm_jax.problems import Point, Problem
from ufm_jax.riemannian.curvature import eigenpairs, smallest_eigenpair, smallest_eigenvalue, spectrum

__all__ = [
    "Certificate",
    "Multipliers",
    "NegativeCurvature",
    "certify",
    "check_normalized",
    "eigenpairs",
    "hessian_form",
    "logit_gradient",
    "multipliers",
    "negative_curvature",
    "optimality_gap",
    "smallest_eigenpair",
    "smallest_eigenvalue",
    "spectrum",
]


class Multipliers(NamedTuple):
    """The Lagrange multipliers of the unit-norm constraints, equation (19), divided by tau."""

    alpha: chex.Array
    beta: chex.Array


class Certificate(NamedTuple):
    """What `certify` found.

    Attributes:
        is_critical: whether `gradient_norm` is within the tolerance, bool.
        is_global_minimum: whether the point is critical and `margin` is within the tolerance of 0, bool.
        margin: the least slack of the inequalities of Lemma 3, relative to their right sides: the smallest
            of `-alpha_k / (sqrt(n) |G|) - 1` and `-sqrt(n) beta_i / |G| - 1`. Zero at a global minimum and
            negative at every other critical point: -1 where all multipliers are zero, -2 at the
            antipodal point.
        gradient_norm: the norm of the Riemannian gradient over `tau |G| (sqrt(K) + sqrt(N))`, the most that
            the Euclidean gradient can be; in [0, 1].
        gap: `optimality_gap`, the most by which the cost exceeds the global minimum.
    """

    is_critical: chex.Array
    is_global_minimum: chex.Array
    margin: chex.Array
    gradient_norm: chex.Array
    gap: chex.Array


class NegativeCurvature(NamedTuple):
    """What `negative_curvature` found.

    Attributes:
        direction: a tangent vector of unit norm; the zero vector at a global minimum, where there is none.
        curvature: the Hessian form of `direction`; 0 at a global minimum.
    """

    direction: Point
    curvature: chex.Array


def logit_gradient(problem: Problem, point: Point) -> chex.Array:
    """The gradient of the mean loss in the logits, (N, K): the paper's G, equation (16), transposed.

    For cross entropy it is `(softmax - onehot) / N`, also accurate relative to its own size where the
    softmax is one-hot up to rounding.

    Args:
        problem: of `ufm_jax.normalized`, any loss.
        point: `Point(W=(K, d), H=(N, d))` on the spheres.

    Returns:
        G, (N, K).

    Raises:
        ValueError: the problem is not a normalized one, or the point does not fit it.
    """
    _factors(problem, point)
    G = _gradient_of_mean_loss(problem)(problem.scores(point))
    if problem.loss is losses.cross_entropy:
        # The rows sum to zero, and 1 - p loses the digits that the other classes' probabilities have.
        is_label = jax.nn.one_hot(problem.labels, problem.num_classes, dtype=bool)
        G = jnp.where(is_label, -jnp.sum(G, axis=1, where=~is_label, keepdims=True), G)
    return G


def multipliers(problem: Problem, point: Point) -> Multipliers:
    """`alpha_k = <w_k, H g^k>` and `beta_i = <h_i, W g_i>`, equation (19).

    At a critical point `H g^k = alpha_k w_k` and `W g_i = beta_i h_i` (Lemma 2). Everywhere
    `sum alpha = sum beta` (Lemma 4).

    Args:
        problem: of `ufm_jax.normalized`, any loss.
        point: `Point(W=(K, d), H=(N, d))` on the spheres.

    Returns:
        `Multipliers(alpha=(K,), beta=(N,))`.

    Raises:
        ValueError: the problem is not a normalized one.

    Example:
        >>> labels, W = ufm.balanced_labels(3, 2), ufm.theory.simplex_etf(3, dim=4)
        >>> problem = ufm.normalized(labels, num_classes=3)
        >>> alpha, beta = ufm.landscape.multipliers(problem, ufm.Point(W, W[labels]))
        >>> bool(jnp.allclose(alpha.sum(), beta.sum(), atol=1e-6))  # Lemma 4
        True
    """
    return _multipliers(*_factors(problem, point), logit_gradient(problem, point))


def hessian_form(problem: Problem, point: Point, tangent: Point) -> chex.Array:
    """The Riemannian Hessian as a quadratic form, `Hess f[D, D]`, equations (31) and (7).

        g''(M)[dM, dM] + 2 tau <G, D_W^T D_H> - tau sum_k alpha_k |D_Wk|^2 - tau sum_i beta_i |D_Hi|^2

    with `dM = tau (W^T D_H + D_W^T H)`. As a linear map, not a form, it is `problem.hessian(point)`.

    Args:
        problem: of `ufm_jax.normalized`, any loss.
        point: on the spheres, critical or not.
        tangent: D, a tangent vector at `point`.

    Returns:
        The value of the form, a scalar.

    Raises:
        ValueError: the problem is not a normalized one.
    """
    (W, H), (D_W, D_H) = _factors(problem, point), tangent
    G, tau = logit_gradient(problem, point), jnp.asarray(problem.tau, H.dtype)
    dM = tau * (matmul(D_H, W.T) + matmul(H, D_W.T))
    _, dG = jax.jvp(_gradient_of_mean_loss(problem), (problem.scores(point),), (dM,))
    mixed = jnp.sum(G * matmul(D_H, D_W.T))
    alpha, beta = _multipliers(W, H, G)
    of_the_spheres = jnp.sum(alpha * _squares(D_W)) + jnp.sum(beta * _squares(D_H))
    return jnp.sum(dM * dG) + tau * (2 * mixed - of_the_spheres)


def certify(problem: Problem, point: Point, tolerance: float | None = None) -> Certificate:
    """Whether `point` is critical, and whether it is the global minimum (Lemma 3).

    A critical point is a global minimum if and only if `alpha_k <= -sqrt(n) |G|` for all k and
    `beta_i <= -|G| / sqrt(n)` for all i, |G| the spectral norm; at a global minimum these are equalities.
    All quantities are relative, so that the verdict does not depend on how small tau or the loss is.

    Args:
        problem: of `ufm_jax.normalized` with cross entropy, n samples of each class.
        point: `Point(W=(K, d), H=(N, d))` on the spheres. "Only if" is for d >= K - 1.
        tolerance: the most that `gradient_norm` and `-margin` may be, relative; the fourth root of the
            machine epsilon if None (1.2e-4 in float64, 0.019 in float32). The margins of saddles shrink
            like tau as tau goes to 0: below ten times the tolerance, ask for a smaller one.

    Returns:
        The `Certificate`.

    Raises:
        ValueError: the problem is not a normalized one with cross entropy, or its classes have unequal
            sizes (checked outside `jit`).

    Example:
        >>> labels, W = ufm.balanced_labels(3, 2), ufm.theory.simplex_etf(3, dim=4)
        >>> problem = ufm.normalized(labels, num_classes=3)
        >>> certificate = ufm.landscape.certify(problem, ufm.Point(W, W[labels]))
        >>> bool(certificate.is_global_minimum)
        True
        >>> certificate = ufm.landscape.certify(problem, ufm.saddles.antipodal(problem, dim=4))
        >>> bool(certificate.is_critical), bool(certificate.is_global_minimum)
        (True, False)
    """
    _check_cross_entropy(problem)
    (W, H), G = _factors(problem, point), logit_gradient(problem, point)
    tolerance = float(jnp.finfo(G.dtype).eps) ** 0.25 if tolerance is None else tolerance
    tau, K, N = jnp.asarray(problem.tau, G.dtype), problem.num_classes, len(problem.labels)
    root_n = (N / K) ** 0.5
    spectral_norm = jnp.linalg.norm(G, ord=2)
    alpha, beta = _multipliers(W, H, G)

    gradient = Point(matmul(G.T, H) - alpha[:, None] * W, matmul(G, W) - beta[:, None] * H)
    # Where G is zero in this precision, so is the loss: a minimum.
    unit = jnp.where(spectral_norm > 0, spectral_norm, 1)
    gradient_norm = optax.tree.norm(gradient) / (unit * (K**0.5 + N**0.5))
    slack = jnp.minimum(jnp.min(-alpha / (root_n * unit)), jnp.min(-beta * root_n / unit)) - 1
    margin = jnp.where(spectral_norm > 0, slack, 0)
    gap = _gap(alpha, spectral_norm, tau, N)
    is_critical = gradient_norm <= tolerance
    return Certificate(is_critical, is_critical & (margin >= -tolerance), margin, gradient_norm, gap)


def optimality_gap(problem: Problem, point: Point) -> chex.Array:
    """The most by which the cost exceeds the global minimum, at any point, for a loss convex in the logits.

    With M the logits and G the gradient there, convexity says `f(M') >= f(M) + <G, M' - M>` for all M', and
    on the spheres `<G, M'> >= -tau sqrt(K N) |G|`, |G| the spectral norm. So the gap is
    `tau (sum alpha + sqrt(K N) |G|)`. Where it is 0, the point is a global minimum: so it is at the minimum
    of Theorem 1, and for label smoothing and squared errors. Elsewhere a gap above 0 may remain even at a
    minimum; the cost less the gap is still a lower bound of it. Whether the loss is convex is for the
    caller to know: cross entropy, label smoothing, squared errors and hinges are, the focal loss is not.
    Proof: docs/landscape.md.

    Args:
        problem: of `ufm_jax.normalized`, any loss that is convex in the logits, classes of any size.
        point: `Point(W=(K, d), H=(N, d))` on the spheres, critical or not.

    Returns:
        The gap, a scalar at least 0, to within rounding errors of the size of tau |G| sqrt(K N).

    Raises:
        ValueError: the problem is not a normalized one, or the point does not fit it.

    Example:
        >>> labels, W = ufm.balanced_labels(3, 2), ufm.theory.simplex_etf(3, dim=4)
        >>> problem = ufm.normalized(labels, num_classes=3, loss=ufm.losses.label_smoothing)
        >>> print(f"{ufm.landscape.optimality_gap(problem, ufm.Point(W, W[labels])):.4f}")
        0.0000
    """
    (W, H), G = _factors(problem, point), logit_gradient(problem, point)
    alpha, _ = _multipliers(W, H, G)
    return _gap(alpha, jnp.linalg.norm(G, ord=2), jnp.asarray(problem.tau, G.dtype), len(H))


def _gap(alpha: chex.Array, spectral_norm: chex.Array, tau: chex.Array, N: int) -> chex.Array:
    return tau * jnp.maximum(jnp.sum(alpha) + (len(alpha) * N) ** 0.5 * spectral_norm, 0)


def negative_curvature(problem: Problem, point: Point, *, scaled: bool = False) -> NegativeCurvature:
    """A direction of negative curvature at a critical point that is not a global minimum (Proposition 2).

    Case 1, beta = 0: W has equal rows w, and the direction is `D_W = u a^T`, `D_H` the projection of
    `u_{y_i} a`, with `u_k = (-1)^(k+1)` and a unit vector a perpendicular to w in the span of the last two
    eigenvectors of `H^T H`. Case 2, no beta_i zero: `D = (u a^T, v a^T)`, a perpendicular to all of W,
    `u = -u_1 / n^(1/4)`, `v = n^(1/4) v_1` and (u_1, v_1) the leading singular pair of G. By Lemma 5 there
    is no third case.

    Args:
        problem: of `ufm_jax.normalized` with cross entropy, n samples of each class.
        point: a critical point, `Point(W=(K, d), H=(N, d))` with d > K. Elsewhere the direction is
            projected to the tangent space, and its curvature may have any sign.
        scaled: in case 1, scale D_H against D_W so that the curvature of the unit direction is least. It is
            then negative for every tau, and tau is not checked (docs/landscape.md).

    Returns:
        `NegativeCurvature(direction, curvature)`; the zero vector and 0 where `certify` says that the point
        is the global minimum.

    Raises:
        ValueError: the problem is not a normalized one with cross entropy, its classes have unequal sizes,
            d <= K, or tau is not below `theory.strict_saddle_threshold(K, d)` (values are checked outside
            `jit`).
    """
    _check_cross_entropy(problem)
    W, _ = _factors(problem, point)
    _check_conditions(problem, dim=W.shape[1], tau_is_free=scaled)
    # By Lemma 5 some beta_i is zero if and only if the rows of W are equal, and then all are. The rows tell
    # the cases apart where tau makes other points' beta_i vanish next to rounding errors.
    spread = jnp.max(jnp.abs(W - W[:1]))
    directions = [_case_1(problem, point, scaled), _case_2(problem, point)]
    is_case_1 = spread <= float(jnp.finfo(spread.dtype).eps) ** 0.5
    direction = jax.tree.map(lambda one, two: jnp.where(is_case_1, one, two), *directions)
    direction = problem.manifold.project(point, direction)
    exists = ~certify(problem, point).is_global_minimum
    norm = problem.manifold.norm(point, direction)
    direction = optax.tree.scale(jnp.where(exists & (norm > 0), 1 / norm, 0), direction)
    return NegativeCurvature(direction, hessian_form(problem, point, direction))


def _case_1(problem: Problem, point: Point, scaled: bool) -> Point:
    W, H = _factors(problem, point)
    u = 1 - 2 * (jnp.arange(problem.num_classes) % 2).astype(W.dtype)
    _, vectors = jnp.linalg.eigh(matmul(H.T, H))
    plane = vectors[:, :2].T
    # The unit vector of the plane that is perpendicular to w.
    x, y = matmul(plane, W[0])
    coefficients = jnp.where(jnp.hypot(x, y) > 0, jnp.stack([-y, x]), jnp.array([1, 0], x.dtype))
    a = matmul(coefficients / jnp.linalg.norm(coefficients), plane)
    direction = problem.manifold.project(point, Point(u[:, None] * a, u[problem.labels][:, None] * a))
    return _best_scaled(problem, point, direction) if scaled else direction


def _best_scaled(problem: Problem, point: Point, direction: Point) -> Point:
    """The combination of the direction's two parts, each of unit norm, of least curvature."""
    zero = optax.tree.zeros_like(direction)
    parts = [direction._replace(H=zero.H), direction._replace(W=zero.W)]
    parts = [optax.tree.scale(1 / optax.tree.norm(part), part) for part in parts]
    hessian = problem.hessian(point)
    form = jnp.stack([jnp.stack([optax.tree.vdot(a, hessian(b)) for b in parts]) for a in parts])
    weights = jnp.linalg.eigh(form)[1][:, 0]
    return optax.tree.add(*[optax.tree.scale(weights[i], part) for i, part in enumerate(parts)])


def _case_2(problem: Problem, point: Point) -> Point:
    W, H = _factors(problem, point)
    # At such a point H lies in the span of W. Asking for both makes a perpendicular to rounding.
    a = jnp.linalg.eigh(matmul(W.T, W) + matmul(H.T, H))[1][:, 0]
    left, _, right = jnp.linalg.svd(logit_gradient(problem, point), full_matrices=False)
    root = (len(H) / len(W)) ** 0.25
    return Point(-right[0][:, None] * a / root, root * left[:, 0][:, None] * a)


def _multipliers(W: chex.Array, H: chex.Array, G: chex.Array) -> Multipliers:
    scores = matmul(H, W.T)
    return Multipliers(jnp.sum(G * scores, axis=0), jnp.sum(G * scores, axis=1))


def _gradient_of_mean_loss(problem: Problem):
    return jax.grad(lambda scores: jnp.mean(problem.loss(scores, problem.labels)))


def _squares(rows: chex.Array) -> chex.Array:
    return jnp.sum(rows**2, axis=-1)


def _factors(problem: Problem, point: Point) -> tuple[chex.Array, chex.Array]:
    """W and H of a point of a normalized problem."""
    check_normalized(problem)
    problem.check_point(point)
    return point


def check_normalized(problem: Problem) -> None:
    """Raises ValueError where `problem` is not one of `ufm_jax.normalized`.

    Args:
        problem: any problem of this library.

    Raises:
        ValueError: its classifier rows or its features are not unit vectors.
    """
    if not problem.is_normalized:
        raise ValueError(
            "this is known for normalized problems alone, those with unit classifiers and unit features."
        )


def _check_cross_entropy(problem: Problem) -> None:
    if problem.loss is not losses.cross_entropy:
        raise ValueError(
            "Lemma 3 and Proposition 2 are about cross entropy, but the problem has another loss."
        )
    _checks.equal_sizes("Lemma 3 and Proposition 2", problem.labels, problem.num_classes)


def _check_conditions(problem: Problem, dim: int, tau_is_free: bool) -> None:
    """The conditions of Proposition 2."""
    K, tau = problem.num_classes, problem.tau
    if dim <= K:
        raise ValueError(
            f"Proposition 2 needs more dimensions than classes, but dim is {dim} and num_classes is {K}."
        )
    limit = theory.strict_saddle_threshold(K, dim)
    if not tau_is_free and _checks.is_concrete(tau) and not np.all(np.asarray(tau) < limit):
        raise ValueError(
            f"Proposition 2 needs tau below 2(d - 2)/(1 + (K mod 2)/K) = {limit:g}, but tau is {tau}; "
            "with scaled=True no bound is needed."
        )
