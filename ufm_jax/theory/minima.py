"""What the paper proves, in closed form: the simplex ETF and the values of the losses at collapse.

K is the number of classes, tau the temperature. All functions of tau accept arrays and broadcast. They are
the paper's (Theorem 1, Appendix E), and where it leaves a minimum open, of docs/label_smoothing.md and
docs/focal.md.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from ufm_jax import _checks
from ufm_jax._products import root

_TAMMES_COSINES = {
    7: 0.2101383127306031,
    8: 0.2612038749637414,
    9: 1 / 3,
    10: 0.4043943252162507,
    11: 0.4472135954999579,
    12: 0.4472135954999579,
    13: 0.5426364868296387,
    14: 0.5639503003605052,
}
"""Cosine of the largest smallest angle between K points of the sphere in three dimensions."""

FOCAL_CLASSES = 16_000
"""Classes up to which collapse minimizes the focal loss at every gamma and tau: proof in docs/focal.md."""


def simplex_etf(num_classes: int, dim: int, dtype: DTypeLike | None = None) -> jax.Array:
    """A simplex equiangular tight frame: K unit rows whose inner products are all `-1/(K-1)`.

    Args:
        num_classes: K, at least 2.
        dim: d, at least K - 1.
        dtype: floating type of the result; JAX's default if None.

    Returns:
        The frame (K, d), centred at zero; its last d - K + 1 columns are zero. Equation (13).

    Raises:
        ValueError: K < 2 or d < K - 1.

    Example:
        >>> frame = ufm.theory.simplex_etf(3, dim=4)
        >>> print((frame @ frame.T).round(2))
        [[ 1.  -0.5 -0.5]
         [-0.5  1.  -0.5]
         [-0.5 -0.5  1. ]]
    """
    _checks.count("num_classes", num_classes, 2)
    if dim < num_classes - 1:
        raise ValueError(
            f"a simplex ETF of {num_classes} classes needs at least {num_classes - 1} dimensions, "
            f"but dim is {dim}."
        )
    # Helmert's orthonormal basis of the complement of the ones vector: column j is proportional to
    # (1, ..., 1, -j, 0, ..., 0), with j ones.
    j = np.arange(1, num_classes)
    helmert = np.where(np.arange(num_classes)[:, None] < j, 1.0, 0.0)
    helmert[j, j - 1] = -j
    helmert /= np.sqrt(j * (j + 1))
    frame = np.zeros((num_classes, dim))
    frame[:, : num_classes - 1] = np.sqrt(num_classes / (num_classes - 1)) * helmert
    return jnp.asarray(frame, jax.dtypes.canonicalize_dtype(dtype or float))


def regular_polygon(num_classes: int, dtype: DTypeLike | None = None) -> jax.Array:
    """The regular polygon: K unit rows in the plane, each 2 pi/K from the next.

    Args:
        num_classes: K, at least 2.
        dtype: floating type of the result; JAX's default if None.

    Returns:
        The rows (K, 2). For K > 3 no simplex ETF fits in the plane, and this is the softmax code (see
        `ufm_jax.metrics.gnc2`).

    Raises:
        ValueError: K < 2.
    """
    _checks.count("num_classes", num_classes, 2)
    angles = 2 * np.pi / num_classes * np.arange(num_classes)
    return jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], -1), dtype=dtype)


def packing_angle(num_classes: int, dim: int) -> float:
    """The largest smallest angle between K unit vectors in d dimensions, where it is known exactly.

    That is the angle of the best spherical packing (the Tammes problem). With it, `1 - cos(angle)` is a
    one-vs-rest distance that K classes can have, and the largest possible one for d = 2 and K <= 2d
    (see `ufm_jax.metrics.gnc2`).

    Args:
        num_classes: K, at least 2.
        dim: d, at least 1. Known are K <= 2d, d = 2, and K <= 14 for d = 3.

    Returns:
        Radians: the simplex ETF's for K <= d + 1, pi/2 up to K = 2d, 2 pi/K for d = 2.

    Raises:
        ValueError: K < 2, d < 1, or the angle is not known.

    References: Rankin, *The Closest Packing of Spherical Caps in n Dimensions*, 1955, for K <= 2d; Schutte,
    van der Waerden 1951 (K = 7, 8, 9), Danzer 1963 (K = 10, 11), Fejes Toth 1943 (K = 12), Musin, Tarasov
    2012 and 2015 (K = 13, 14) for d = 3.
    """
    _checks.count("num_classes", num_classes, 2)
    _checks.count("dim", dim, 1)
    if num_classes <= dim + 1:
        return float(np.arccos(-1 / (num_classes - 1)))
    if num_classes <= 2 * dim:
        return np.pi / 2
    if dim == 2:
        return 2 * np.pi / num_classes
    if dim == 3 and num_classes in _TAMMES_COSINES:
        return float(np.arccos(_TAMMES_COSINES[num_classes]))
    raise ValueError(
        "packing angles are known for num_classes up to 2 dim, for dim 2, and for num_classes up to 14 at "
        f"dim 3, but not for num_classes {num_classes} at dim {dim}."
    )


def cross_entropy_minimum(num_classes: int, tau: ArrayLike) -> jax.Array:
    """Global minimum of the normalized UFM, `log(1 + (K-1) exp(-K tau/(K-1)))`, for d >= K - 1 (Theorem 1).

    For balanced classes. The paper asks for d >= K, but a simplex ETF fits into K - 1 dimensions, and more
    cannot help (docs/focal.md, with gamma = 0).

    Args:
        num_classes: K, at least 2.
        tau: temperature, positive.

    Returns:
        The value, of tau's shape.

    Raises:
        ValueError: K < 2 or tau is not positive.

    Example:
        >>> print(ufm.theory.cross_entropy_minimum(10, jnp.array([0.1, 1.0, 3.0])).round(4))
        [2.2032 1.3769 0.2784]
    """
    return _cross_entropy_at_margin(num_classes, _margin_at_collapse(num_classes, tau))


def multipliers_at_collapse(
    num_classes: int, samples_per_class: int, tau: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """The multipliers alpha_k and beta_i of cross entropy at the global minimum, equations (25) and (26).

    `alpha_k = -c n/N` and `beta_i = -c/N` with `c = K / (exp(K tau/(K-1)) + K - 1)`; the paper has tau = 1
    and drops 1/N. The spectral norm of G there is `c / (K sqrt(n))`.

    Args:
        num_classes: K, at least 2.
        samples_per_class: n, at least 1.
        tau: temperature, positive.

    Returns:
        alpha_k, the same for all k, and beta_i, the same for all i, each of tau's shape.

    Raises:
        ValueError: K < 2, n < 1, or tau is not positive.
    """
    _checks.count("samples_per_class", samples_per_class, 1)
    small = jnp.exp(-_margin_at_collapse(num_classes, tau))  # The other way round it would overflow.
    c = num_classes * small / (1 + (num_classes - 1) * small)
    return -c / num_classes, -c / num_classes / samples_per_class


def strict_saddle_threshold(num_classes: int, dim: int) -> float:
    """The temperature `2(d-2) / (1 + (K mod 2)/K)` below which the paper proves Theorem 2, for d > K.

    Below it every critical point is a global minimum or has negative curvature (Proposition 2). That it
    is not needed is shown in docs/landscape.md.

    Args:
        num_classes: K, at least 2.
        dim: d, at least 1.

    Returns:
        The temperature, a float; 0 or less for d <= 2.

    Raises:
        ValueError: K < 2 or d < 1.

    Example:
        >>> ufm.theory.strict_saddle_threshold(10, dim=32)
        60.0
    """
    _checks.count("num_classes", num_classes, 2)
    _checks.count("dim", dim, 1)
    return 2 * (dim - 2) / (1 + (num_classes % 2) / num_classes)


def focal_at_collapse(num_classes: int, tau: ArrayLike, gamma: ArrayLike = 3.0) -> jax.Array:
    """Focal loss at collapse, `-(1-p)^gamma log p` with `p = 1/(1 + (K-1) exp(-K tau/(K-1)))`.

    Args:
        num_classes: K, at least 2.
        tau: temperature, positive.
        gamma: focusing parameter, at least 0.

    Returns:
        The value, of the broadcast shape of tau and gamma. Whether it is the global minimum is open in
        the paper; see `focal_is_optimal_at_collapse`.

    Raises:
        ValueError: K < 2, tau is not positive, or gamma is negative.
    """
    _checks.at_least("gamma", gamma, 0)
    negative_log_p = cross_entropy_minimum(num_classes, tau)
    rest = -jnp.expm1(-negative_log_p)
    # Where it has underflowed, powers below 1 have no derivative.
    power = jnp.where(rest > 0, rest, 1) ** gamma
    return jnp.where(rest > 0, power * negative_log_p, 0)


def focal_is_optimal_at_collapse(num_classes: int, tau: ArrayLike, gamma: ArrayLike = 3.0) -> jax.Array:
    """Whether collapse is proved to minimize the focal loss over the spheres: sufficient, not necessary.

    With `psi(s)` the focal loss at margin s, it tests whether psi lies on or above its tangent at
    `s* = K tau/(K-1)` for all s >= 0; Jensen's inequality does the rest (docs/focal.md). The test needs no
    sampling. psi is concave up to one inflection and convex from there on, so that it lies above its
    tangent exactly if s* is in the convex part, and either 0 is too or psi(0) is above the tangent.

    Args:
        num_classes: K, at least 2.
        tau: temperature, positive.
        gamma: focusing parameter, at least 0.

    Returns:
        bool, of the broadcast shape of tau and gamma: True, collapse is a global minimum for balanced
        classes and d >= K - 1; False, the test is silent. Another argument proves the same for all tau and
        gamma up to `FOCAL_CLASSES` classes, where this test is silent too.

    Raises:
        ValueError: K < 2, tau is not positive, or gamma is negative.

    Example:
        >>> print(ufm.theory.focal_is_optimal_at_collapse(100, jnp.array([1.0, 5.0]), gamma=3.0))
        [False  True]
    """
    _checks.at_least("gamma", gamma, 0)
    gamma = jnp.asarray(gamma)
    margin = _margin_at_collapse(num_classes, tau)
    value, slope, curvature = _focal_at_margin(num_classes, margin, gamma)
    value_at_zero, _, curvature_at_zero = _focal_at_margin(num_classes, jnp.zeros_like(margin), gamma)
    # Where psi is convex on all of [0, s*] there is no difference of nearby numbers to round.
    return (curvature >= 0) & ((curvature_at_zero >= 0) | (value_at_zero >= value - slope * margin))


def _focal_at_margin(
    num_classes: int, margin: jax.Array, gamma: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """psi, psi' and a positive multiple of psi'' where all other classes' logits are lower by `margin`.

    `psi' = -q^gamma (gamma p L + q)` and `psi'' = p q^gamma S`, with L = -log p, q = 1 - p and
    `S = gamma L ((gamma + 1) p - 1) + (2 gamma + 1) q`.
    """
    L = _cross_entropy_at_margin(num_classes, margin)
    p, q = jnp.exp(-L), -jnp.expm1(-L)
    slope = -(q**gamma) * (gamma * p * L + q)
    return q**gamma * L, slope, gamma * L * ((gamma + 1) * p - 1) + (2 * gamma + 1) * q


def label_smoothing_at_collapse(num_classes: int, tau: ArrayLike, alpha: ArrayLike = 0.1) -> jax.Array:
    """Label smoothing loss at collapse, `log(1 + (K-1) exp(-K tau/(K-1))) + alpha tau` (Appendix E.4).

    Args:
        num_classes: K, at least 2.
        tau: temperature, positive.
        alpha: smoothing parameter in [0, 1].

    Returns:
        The value, of the broadcast shape of tau and alpha.

    Raises:
        ValueError: K < 2, tau is not positive, or alpha is outside [0, 1].
    """
    _checks.within("alpha", alpha, 0, 1)
    return cross_entropy_minimum(num_classes, tau) + alpha * jnp.asarray(tau)


def label_smoothing_minimum(num_classes: int, tau: ArrayLike, alpha: ArrayLike = 0.1) -> jax.Array:
    """Global minimum of the label smoothing loss over the spheres, for balanced classes.

    With `phi(s) = log(1 + (K-1) exp(-s)) + alpha (K-1)/K s` it is `phi(min(s*, K tau/(K-1)))`, where
    `s* = log(1 + K (1 - alpha)/alpha)` minimizes phi. Up to `label_smoothing_threshold` collapse is
    optimal, for d >= K - 1; beyond it a cone around a shared axis is, which needs d >= K.

    Args:
        num_classes: K, at least 2.
        tau: temperature, positive.
        alpha: smoothing parameter in [0, 1].

    Returns:
        The value, of the broadcast shape of tau and alpha.

    Raises:
        ValueError: K < 2, tau is not positive, or alpha is outside [0, 1].
    """
    at_collapse = _margin_at_collapse(num_classes, tau)
    is_collapse = at_collapse <= _label_smoothing_margin(num_classes, alpha)
    # At alpha = 0 the other margin is infinite, and so is its derivative.
    lowest = _label_smoothing_margin(num_classes, jnp.where(is_collapse, 1, alpha))
    margin = jnp.where(is_collapse, at_collapse, lowest)
    slope = jnp.asarray(alpha) * (num_classes - 1) / num_classes
    return _cross_entropy_at_margin(num_classes, margin) + slope * margin


def label_smoothing_threshold(num_classes: int, alpha: ArrayLike = 0.1) -> jax.Array:
    """The temperature `tau* = (K-1) s*/K` up to which collapse minimizes the label smoothing loss.

    Args:
        num_classes: K, at least 2.
        alpha: smoothing parameter in [0, 1].

    Returns:
        The temperature, of alpha's shape; infinite for alpha = 0, and 0 for alpha = 1.

    Raises:
        ValueError: K < 2 or alpha is outside [0, 1].

    Example:
        >>> print(f"{ufm.theory.label_smoothing_threshold(10, alpha=0.1):.3f}")
        4.060
    """
    return (num_classes - 1) / num_classes * _label_smoothing_margin(num_classes, alpha)


def label_smoothing_cone(num_classes: int, dim: int, tau: ArrayLike, alpha: ArrayLike = 0.1) -> jax.Array:
    """A minimizer of label smoothing: the rows of W, with `h_i = w_{y_i}` (docs/label_smoothing.md).

    `W = cos(t) 1 a^T + sin(t) ETF` with a unit vector a perpendicular to the ETF and
    `sin(t)^2 = min(1, tau*/tau)`, tau* the `label_smoothing_threshold`: a simplex ETF up to tau*, and
    beyond it a cone around a that narrows so that the margins stay those that minimize the loss.

    Args:
        num_classes: K, at least 2.
        dim: d, at least K.
        tau: temperature, positive, a scalar.
        alpha: smoothing parameter in [0, 1], a scalar.

    Returns:
        W (K, d), unit rows.

    Raises:
        ValueError: K < 2, d < K, tau is not positive, or alpha is outside [0, 1].

    Example:
        >>> wide, narrow = (ufm.theory.label_smoothing_cone(3, dim=3, tau=tau) for tau in (1.0, 10.0))
        >>> print(f"{wide[0] @ wide[1]:.2f} {narrow[0] @ narrow[1]:.2f}")
        -0.50 0.67
    """
    _checks.positive_scalar("tau", tau)
    _checks.scalar("alpha", alpha)
    dtype = jnp.result_type(tau, alpha, 1.0)
    frame = simplex_etf(num_classes, dim, dtype)
    if dim < num_classes:
        raise ValueError(
            f"a cone of {num_classes} classes needs at least {num_classes} dimensions, but dim is {dim}."
        )
    sine_square = jnp.minimum(1, label_smoothing_threshold(num_classes, alpha) / tau).astype(dtype)
    # The last column of the frame is zero.
    return (root(sine_square) * frame).at[:, -1].set(root(1 - sine_square))


def supervised_contrastive_minimum(num_classes: int, samples_per_class: int, tau: ArrayLike) -> jax.Array:
    """Global minimum of equation (40), `log((n-1) + n(K-1) exp(-tau^2 K/(K-1)))`, for d >= K - 1.

    Args:
        num_classes: K, at least 2.
        samples_per_class: n, at least 2.
        tau: temperature, positive.

    Returns:
        The value, of tau's shape.

    Raises:
        ValueError: K < 2, n < 2, or tau is not positive.

    Reference: Graf, Hofer, Niethammer, Kwitt, *Dissecting Supervised Contrastive Learning*, ICML 2021.
    """
    _checks.count("samples_per_class", samples_per_class, 2)
    n, margin = samples_per_class, _margin_at_collapse(num_classes, tau)
    # Near the value 0 of n = 2 the logarithm of the sum would lose what is added to 1.
    others = n * (num_classes - 1) / (n - 1) * jnp.exp(-jnp.asarray(tau) * margin)
    return math.log(n - 1) + jnp.log1p(others)


def _margin_at_collapse(num_classes: int, tau: ArrayLike) -> jax.Array:
    """The true class's logit minus each other's: `K tau/(K-1)`."""
    _checks.count("num_classes", num_classes, 2)
    _checks.positive("tau", tau)
    return num_classes / (num_classes - 1) * jnp.asarray(tau)


def _cross_entropy_at_margin(num_classes: int, margin: jax.Array) -> jax.Array:
    return jnp.log1p((num_classes - 1) * jnp.exp(-margin))


def _label_smoothing_margin(num_classes: int, alpha: ArrayLike) -> jax.Array:
    _checks.count("num_classes", num_classes, 2)
    _checks.within("alpha", alpha, 0, 1)
    alpha = jnp.asarray(alpha)
    return jnp.log1p(num_classes * (1 - alpha) / alpha)
