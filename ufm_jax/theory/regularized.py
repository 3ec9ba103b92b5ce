"""Minima of regularized feature models in closed form.

All are of `mean loss + weight_decay/2 |W|^2 + feature_decay/2 |H|^2` with logits `H W^T`, W (K, d) and H
(N, d) free, K classes of n samples. The decays lW and lH enter the value through `sqrt(lW lH)` alone: over
all factorizations `Z = H W^T` the least sum of the decays is `sqrt(lW lH)` times the nuclear norm of Z, so
each model is a convex problem of Z. The value does not depend on d once it is large enough.

References: Zhu et al., *A Geometric Analysis of Neural Collapse with Unconstrained Features*, NeurIPS 2021
(cross entropy); Guo et al., *Cross Entropy versus Label Smoothing*, arXiv 2402.03979 (its explicit form);
Tirer, Bruna, *Extended Unconstrained Features Model*, ICML 2022, and Dang et al., *Neural Collapse in Deep
Linear Networks*, ICML 2023 (squared error, depth).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from ufm_jax import _checks
from ufm_jax._products import matmul, root
from ufm_jax.theory.minima import cross_entropy_minimum, simplex_etf

_BISECTIONS = 200
"""Halvings of an interval: more than the digits of a float64 of any size between 1e-30 and 1e30."""


def regularized_cross_entropy_minimum(
    num_classes: int, samples_per_class: int, weight_decay: ArrayLike, feature_decay: ArrayLike
) -> jax.Array:
    """Global minimum of the regularized UFM under cross entropy, balanced classes, d >= K - 1.

    With `c = sqrt(n lW lH)` it is `log(1 + (K-1) e^-m) + (K-1) c m`, m the margin of
    `regularized_margin`. A free bias changes nothing: it is constant there.

    Args:
        num_classes: K, at least 2.
        samples_per_class: n, at least 1.
        weight_decay: lW, positive.
        feature_decay: lH, positive.

    Returns:
        The value, of the shape that the decays broadcast to; log K where they are too large for collapse.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> print(f"{ufm.theory.regularized_cross_entropy_minimum(10, 5, 1e-3, 1e-3):.4f}")
        0.1427

    Reference: Zhu et al., NeurIPS 2021; Guo et al., arXiv 2402.03979.
    """
    return regularized_label_smoothing_minimum(
        num_classes, samples_per_class, weight_decay, feature_decay, 0.0
    )


def regularized_label_smoothing_minimum(
    num_classes: int,
    samples_per_class: int,
    weight_decay: ArrayLike,
    feature_decay: ArrayLike,
    alpha: ArrayLike,
) -> jax.Array:
    """Global minimum of the regularized UFM under label smoothing, balanced classes, d >= K - 1.

    With `q = alpha (K-1)/K + (K-1) sqrt(n lW lH)` it is `log(1 + (K-1) e^-m) + q m`, m the margin of
    `regularized_margin`.

    Args:
        num_classes: K, at least 2.
        samples_per_class: n, at least 1.
        weight_decay: lW, positive.
        feature_decay: lH, positive.
        alpha: smoothing, in [0, 1].

    Returns:
        The value, of the shape that the numbers broadcast to; log K where the minimum is at zero.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> print(f"{ufm.theory.regularized_label_smoothing_minimum(10, 5, 1e-3, 1e-3, alpha=0.1):.4f}")
        0.5887

    Reference: Guo et al., arXiv 2402.03979.
    """
    m = regularized_margin(num_classes, samples_per_class, weight_decay, feature_decay, alpha)
    q = _slope(num_classes, samples_per_class, weight_decay, feature_decay, alpha)
    return jnp.log1p((num_classes - 1) * jnp.exp(-m)) + q * m


def regularized_margin(
    num_classes: int,
    samples_per_class: int,
    weight_decay: ArrayLike,
    feature_decay: ArrayLike,
    alpha: ArrayLike = 0.0,
) -> jax.Array:
    """The margin at the minimum of the regularized UFM: the lead of the true class's logit over all others.

    It is `log((K-1)(1-q)/q)` with `q = alpha (K-1)/K + (K-1) sqrt(n lW lH)` if `q < (K-1)/K`, and 0
    otherwise, where W = H = 0 is the minimum.

    Args:
        num_classes: K, at least 2.
        samples_per_class: n, at least 1.
        weight_decay: lW, positive.
        feature_decay: lH, positive.
        alpha: label smoothing, in [0, 1]; cross entropy if 0.

    Returns:
        The margin, at least 0, of the shape that the numbers broadcast to.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> print(ufm.theory.regularized_margin(10, 5, weight_decay=1.0, feature_decay=1.0))
        0.0
    """
    return _margin(_slope(num_classes, samples_per_class, weight_decay, feature_decay, alpha), num_classes)


def _margin(q: jax.Array, num_classes: int) -> jax.Array:
    """`log((K-1)(1-q)/q)` below `q = (K-1)/K`; beyond, 0 and its derivative too."""
    limit = (num_classes - 1) / num_classes
    inside = jnp.where(q < limit, q, limit)
    return jnp.where(q < limit, jnp.log((num_classes - 1) * (1 - inside)) - jnp.log(inside), 0)


def regularized_minimizer(
    num_classes: int,
    samples_per_class: int,
    dim: int,
    weight_decay: ArrayLike,
    feature_decay: ArrayLike,
    alpha: ArrayLike = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """A minimizer of the regularized UFM under cross entropy or label smoothing: a neural collapse.

    W is a simplex ETF with `|W|^2 = (K-1) sqrt(n lH/lW) m`, and `h_i = sqrt(lW/(n lH)) w_{y_i}`, samples
    ordered by class. All others are rotations of it.

    Args:
        num_classes: K, at least 2.
        samples_per_class: n, at least 1.
        dim: d, at least K - 1.
        weight_decay: lW, positive, a scalar.
        feature_decay: lH, positive, a scalar.
        alpha: label smoothing, in [0, 1], a scalar; cross entropy if 0.

    Returns:
        W (K, d) and H (nK, d).

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> W, H = ufm.theory.regularized_minimizer(3, 2, dim=4, weight_decay=1e-2, feature_decay=1e-2)
        >>> problem = ufm.regularized(ufm.balanced_labels(3, 2), 3, weight_decay=1e-2, feature_decay=1e-2)
        >>> value = ufm.theory.regularized_cross_entropy_minimum(3, 2, 1e-2, 1e-2)
        >>> print(bool(jnp.allclose(problem.cost(ufm.Point(W, H)), value)))
        True
    """
    for name, value in {
        "weight_decay": weight_decay,
        "feature_decay": feature_decay,
        "alpha": alpha,
    }.items():
        _checks.scalar(name, value)
    m = regularized_margin(num_classes, samples_per_class, weight_decay, feature_decay, alpha)
    ratio = jnp.sqrt(samples_per_class * jnp.asarray(feature_decay) / weight_decay)
    W = root((num_classes - 1) / num_classes * ratio * m) * simplex_etf(num_classes, dim, ratio.dtype)
    return W, jnp.repeat(W / ratio, samples_per_class, axis=0)


def regularized_squared_error_minimum(
    targets: ArrayLike,
    weight_decay: ArrayLike,
    feature_decay: ArrayLike,
    bias: bool = False,
    dim: int | None = None,
) -> jax.Array:
    """Global minimum of the regularized UFM under squared error, `|H W^T (+ b) - Y|^2 / (2N) + decays`.

    With `lam = sqrt(lW lH)` and s_j the singular values of Y (N, K), of Y minus the means of its columns
    where a bias is free, it is the sum over j of `lam s_j - N lam^2/2` where `s_j > N lam`, and of
    `s_j^2/(2N)` elsewhere. Any targets: unbalanced classes, several labels, soft ones.

    Args:
        targets: Y, (N, K).
        weight_decay: lW, a positive scalar.
        feature_decay: lH, a positive scalar.
        bias: whether a free bias b, without decay, is added to the logits.
        dim: d, at least 1: no more than d singular values are fitted; None for as many as there are.

    Returns:
        The value, a scalar.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> targets = jnp.repeat(jnp.eye(3), 4, axis=0)
        >>> print(f"{ufm.theory.regularized_squared_error_minimum(targets, 0.01, 0.01):.4f}")
        0.0582

    Reference: Tirer, Bruna, ICML 2022; Zhou et al., ICML 2022; Dang et al., ICML 2023.
    """
    _checks.count("dim", 1 if dim is None else dim, 1)
    values, _ = _singular_values(targets, bias)
    lam, count = _scalar_rate(weight_decay, feature_decay), len(jnp.asarray(targets))
    fitted = (values > count * lam) & _first(values, dim)
    return jnp.sum(jnp.where(fitted, lam * values - count * lam**2 / 2, values**2 / (2 * count)))


def regularized_squared_error_minimizer(
    targets: ArrayLike,
    dim: int,
    weight_decay: ArrayLike,
    feature_decay: ArrayLike,
    bias: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A minimizer of the regularized UFM under squared error.

    `H W^T` is Y, or Y minus the means of its columns, with its singular values lowered by
    `N sqrt(lW lH)`, and those below it at zero. For one-hot targets without a bias the rows of W are
    orthogonal with `|w_k|^2 = max(sqrt(n_k lH/lW) - N lH, 0)`: small classes vanish first.

    Args:
        targets: Y, (N, K).
        dim: d, at least 1.
        weight_decay: lW, a positive scalar.
        feature_decay: lH, a positive scalar.
        bias: whether a free bias is added to the logits.

    Returns:
        W (K, d), H (N, d) and b (K,), which is zero without a bias. Derivatives in the targets are not
        numbers where singular values are equal, as of one-hot targets of classes of one size.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> targets = jnp.repeat(jnp.eye(2), jnp.array([9, 1]), axis=0)
        >>> W, *_ = ufm.theory.regularized_squared_error_minimizer(targets, 2, 0.1, 0.1)
        >>> print(jnp.sum(W**2, axis=1).round(3))
        [2. 0.]

    Reference: Dang et al., *Neural Collapse in Deep Linear Networks: From Balanced to Imbalanced Data*,
    ICML 2023.
    """
    _checks.count("dim", dim, 1)
    values, (left, right, means) = _singular_values(targets, bias)
    lam, count = _scalar_rate(weight_decay, feature_decay), len(left)
    lowered = root(jnp.where(_first(values, dim), jnp.maximum(values - count * lam, 0), 0))
    balance = (jnp.asarray(feature_decay) / weight_decay) ** 0.25
    columns = min(dim, len(values))
    room = ((0, 0), (0, dim - columns))
    W = jnp.pad(balance * (right * lowered)[:, :columns], room)
    H = jnp.pad((left * lowered)[:, :columns] / balance, room)
    return W, H, means


def deep_linear_minimum(
    targets: ArrayLike, decays: ArrayLike | Sequence[ArrayLike], bias: bool = False
) -> jax.Array:
    """Global minimum of a deep linear model under squared error, `|H W_1 ... - Y|^2 / (2N) + decays/2`.

    The logits are the product of L factors, the features first, each with a decay of its own and of inner
    dimensions that do not limit the rank. Each singular value s of Y adds the minimum over x in [0, s] of
    `(s - x)^2/(2N) + L/2 (product of the decays)^(1/L) x^(2/L)`. With L = 2 it is
    `regularized_squared_error_minimum`; beyond, a value is fitted nearly or not at all.

    Args:
        targets: Y, (N, K).
        decays: positive, (L,), one for each factor, L at least 2.
        bias: whether a free bias, without decay, is added to the logits.

    Returns:
        The value, a scalar.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> targets = jnp.repeat(jnp.eye(3), 4, axis=0)
        >>> print(f"{ufm.theory.deep_linear_minimum(targets, [1e-3, 1e-3, 1e-3]):.4f}")
        0.0071

    Reference: Dang et al., *Neural Collapse in Deep Linear Networks*, ICML 2023.
    """
    values, (left, *_) = _singular_values(targets, bias)
    rates, count = _layer_decays(decays, values.dtype), len(left)
    length, is_fitted = _deep_fit(values, rates, count)
    fitted = (values - length ** len(rates)) ** 2 / (2 * count)
    fitted = fitted + len(rates) / 2 * _geometric_mean(rates) * length**2
    return jnp.sum(jnp.where(is_fitted, fitted, values**2 / (2 * count)))


def deep_linear_minimizer(
    targets: ArrayLike, width: int, decays: ArrayLike | Sequence[ArrayLike], bias: bool = False
) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """A minimizer of the deep linear model under squared error, all layers of one width.

    Along each singular value of the targets, factor l has the singular value `sqrt(rate/l_l) x^(1/L)`,
    rate the geometric mean of the decays l_l and x the singular value of the logits: each factor pays the
    same decay.

    Args:
        targets: Y, (N, K).
        width: inner dimension of all factors, at least the number of singular values, min(N, K).
        decays: positive, (L,), one for each factor, that of the features first, L at least 2.
        bias: whether a free bias, without decay, is added to the logits.

    Returns:
        The weights, (width, width) and the last (K, width), the first layer first, as
        `ufm_jax.deep.DeepPoint` has them; H (N, width); and b (K,), which is zero without a bias.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> labels = ufm.balanced_labels(3, 4)
        >>> weights, H, _ = ufm.theory.deep_linear_minimizer(jnp.eye(3)[labels], 5, [1e-3, 1e-3, 1e-3])
        >>> problem = ufm.deep.problem(labels, 3, [1e-3, 1e-3], 1e-3)
        >>> print(f"{problem.cost(ufm.deep.DeepPoint(tuple(weights), H)):.4f}")
        0.0071

    Reference: Dang et al., *Neural Collapse in Deep Linear Networks*, ICML 2023.
    """
    values, (left, right, means) = _singular_values(targets, bias)
    if width < len(values):
        raise ValueError(
            f"width must be at least the number of singular values, {len(values)}, but is {width}."
        )
    rates = _layer_decays(decays, values.dtype)
    length, is_fitted = _deep_fit(values, rates, len(left))
    lengths = jnp.sqrt(_geometric_mean(rates) / rates)[:, None] * jnp.where(is_fitted, length, 0)
    lengths = jnp.pad(lengths, ((0, 0), (0, width - len(values))))
    room = ((0, 0), (0, width - len(values)))
    weights = [jnp.diag(row) for row in lengths[1:-1]]
    return [*weights, jnp.pad(right, room) * lengths[-1]], jnp.pad(left, room) * lengths[0], means


def _layer_decays(decays: ArrayLike | Sequence[ArrayLike], dtype: DTypeLike) -> jax.Array:
    rates = jnp.asarray(_checks.array("decays", decays), dtype)
    if rates.ndim != 1 or len(rates) < 2:
        raise ValueError(
            f"decays must be a vector of one for each of at least 2 factors, but has shape {rates.shape}."
        )
    _checks.positive("decays", rates)
    return rates


def _geometric_mean(decays: jax.Array) -> jax.Array:
    return jnp.exp(jnp.mean(jnp.log(decays)))


def _deep_fit(values: jax.Array, decays: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Of each singular value the L-th root of that of the logits, if fitted, and whether that is better."""
    depth = len(decays)

    # With x = u^L the slope vanishes at u = 0 and where u^(L-2) (s - u^L) = N rate. The larger root of
    # that, right of the top of the left side, is the only other minimum.
    def excess(u: jax.Array, values: jax.Array, rate: jax.Array) -> jax.Array:
        return u ** (depth - 2) * (values - u**depth) - count * rate

    known, rate = jax.lax.stop_gradient((values, _geometric_mean(decays)))
    top = (known * (depth - 2) / (2 * depth - 2)) ** (1 / depth)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        before = excess(middle, known, rate) > 0
        return jnp.where(before, middle, low), jnp.where(before, high, middle)

    found, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, (top, known ** (1 / depth)))
    at_found = (known - found**depth) ** 2 / (2 * count) + depth / 2 * rate * found**2
    is_fitted = at_found < known**2 / (2 * count)
    # A step of Newton's, which has the derivatives.
    _, slope = jax.jvp(lambda u: excess(u, known, rate), (found,), (jnp.ones_like(found),))
    step = excess(found, values, _geometric_mean(decays)) / jnp.where(is_fitted, slope, 1)
    return found - jnp.where(is_fitted, step, 0), is_fitted


def nonnegative_cross_entropy_minimum(
    class_sizes: ArrayLike, weight_decay: ArrayLike, feature_decay: ArrayLike
) -> jax.Array:
    """Global minimum of the regularized UFM under cross entropy with features >= 0, d >= K.

    Class sizes are any. With `t_k = N sqrt((K-1) lW lH / (K n_k))` and the margin
    `m_k = log((K-1)(1-t_k)/t_k)` if `t_k < (K-1)/K`, else 0, it is the sum over the classes of
    `n_k/N log(1 + (K-1) e^-m_k) + sqrt(lW lH n_k (K-1)/K) m_k`. The class means are orthogonal there.

    Args:
        class_sizes: n_k, positive, (K,), at least two.
        weight_decay: lW, a positive scalar.
        feature_decay: lH, a positive scalar.

    Returns:
        The value, a scalar.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> print(f"{ufm.theory.nonnegative_cross_entropy_minimum([20, 5, 2], 1e-3, 1e-3):.4f}")
        0.0438

    Reference: Dang et al., *Neural Collapse for Cross-entropy Class-Imbalanced Learning with Unconstrained
    ReLU Features Model*, ICML 2024.
    """
    lam = _scalar_rate(weight_decay, feature_decay)
    sizes = jnp.asarray(_checks.array("class_sizes", class_sizes), lam.dtype)
    if sizes.ndim != 1 or len(sizes) < 2:
        raise ValueError(f"class_sizes must be a vector of at least two, but has shape {sizes.shape}.")
    _checks.positive("class_sizes", class_sizes)
    k, total = len(sizes), jnp.sum(sizes)
    limit = (k - 1) / k
    m = _margin(total * lam * jnp.sqrt(limit / sizes), k)
    losses = sizes / total * jnp.log1p((k - 1) * jnp.exp(-m))
    return jnp.sum(losses + lam * jnp.sqrt(limit * sizes) * m)


def layer_peeled_minimum(
    num_classes: int, weight_energy: ArrayLike, feature_energy: ArrayLike
) -> jax.Array:
    """Global minimum of the layer-peeled model, balanced classes, d >= K - 1.

    Cross entropy under `mean |w_k|^2 <= E_W` and `mean |h_i|^2 <= E_H`: the normalized UFM's minimum at
    `tau = sqrt(E_W E_H)`.

    Args:
        num_classes: K, at least 2.
        weight_energy: E_W, positive.
        feature_energy: E_H, positive.

    Returns:
        `log(1 + (K-1) exp(-K tau/(K-1)))`, of the shape that the energies broadcast to.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> print(f"{ufm.theory.layer_peeled_minimum(10, 4.0, 1.0):.4f}")
        0.6807

    Reference: Fang et al., *Exploring Deep Neural Networks via Layer-Peeled Model*, PNAS 2021.
    """
    tau = _root_of_product(
        _positive("weight_energy", weight_energy), _positive("feature_energy", feature_energy)
    )
    return cross_entropy_minimum(num_classes, tau)


def minority_collapse_threshold(
    num_samples: int, weight_decay: ArrayLike, feature_decay: ArrayLike
) -> jax.Array | float:
    """The largest size of a class that collapses onto other small ones: `N^2 lW lH`, under cross entropy.

    Classes of n_B samples, beside larger ones, share one direction of W at the minimum of the regularized
    UFM if and only if n_B is at most this.

    Args:
        num_samples: N, of all classes together, at least 1.
        weight_decay: lW, positive.
        feature_decay: lH, positive.

    Returns:
        The threshold in samples, a float.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> print(f"{ufm.theory.minority_collapse_threshold(100, 0.02, 0.02):.1f}")
        4.0

    Reference: Fang et al., PNAS 2021; Hong, Ling, *Neural Collapse for Unconstrained Feature Model under
    Cross-entropy Loss with Imbalanced Data*, JMLR 2024.
    """
    _checks.at_least("num_samples", num_samples, 1)
    N = float(num_samples)
    return (N * _positive("weight_decay", weight_decay)) * (N * _positive("feature_decay", feature_decay))


def nearest_simplex_etf(rows: ArrayLike) -> jax.Array:
    """The simplex ETF of unit rows nearest to given rows, in the Frobenius norm.

    With `U S V^T` the singular value decomposition of `Y^T (I - 11^T/K)` it is the frame whose transpose is
    `sqrt(K/(K-1)) U V^T (I - 11^T/K)`: the polar factor of the centred rows. Where these have a rank below
    K - 1, several frames are nearest; it is one of them, and derivatives are not numbers.

    Args:
        rows: Y, (K, d), d at least K - 1.

    Returns:
        The frame, (K, d).

    Raises:
        ValueError: the rows are not a matrix of real numbers, or d < K - 1.

    Example:
        >>> frame = ufm.theory.nearest_simplex_etf(jnp.array([[2.0, 0.1], [-1.0, 1.0], [-1.0, -1.0]]))
        >>> print((frame @ frame.T).round(2))
        [[ 1.  -0.5 -0.5]
         [-0.5  1.  -0.5]
         [-0.5 -0.5  1. ]]

    Reference: Markou, Ajanthan, Gould, *Guiding Neural Collapse*, NeurIPS 2024.
    """
    rows = _checks.floating("rows", rows)
    if rows.ndim != 2 or len(rows) < 2 or rows.shape[1] < len(rows) - 1:
        raise ValueError(f"rows must be (K, d), d at least K - 1 and K at least 2, but are {rows.shape}.")
    # Every frame is this one, of K - 1 columns, times orthonormal rows (Procrustes' problem).
    frame = simplex_etf(len(rows), len(rows) - 1, rows.dtype)
    return matmul(frame, _polar_factor(matmul(frame.T, rows)))


@jax.custom_jvp
def _polar_factor(A: jax.Array) -> jax.Array:
    """The orthonormal rows `U V^T` nearest to those of `A = U S V^T`, no more than it has columns."""
    left, _, right = jnp.linalg.svd(A, full_matrices=False)
    return matmul(left, right)


@_polar_factor.defjvp
def _derivative_of_polar_factor(primals, tangents):
    """`U X V^T`, `X (S_i + S_j) = M - M^T` with `M = U^T dA V`, and `U S^-1 U^T dA (I - V V^T)`."""
    (A,), (dA,) = primals, tangents
    left, values, right = jnp.linalg.svd(A, full_matrices=False)
    along = matmul(left.T, dA)
    M = matmul(along, right.T)
    # Sums of singular values, never differences: equal ones do no harm.
    turned = (M - M.T) / (values[:, None] + values)
    off = (along - matmul(M, right)) / values[:, None]
    return matmul(left, right), matmul(left, matmul(turned, right) + off)


def _slope(num_classes, samples_per_class, weight_decay, feature_decay, alpha) -> jax.Array:
    """What the decays and the smoothing charge for a unit of margin, after the checks of all arguments."""
    _checks.count("num_classes", num_classes, 2)
    _checks.count("samples_per_class", samples_per_class, 1)
    _checks.within("alpha", alpha, 0, 1)
    c = jnp.sqrt(samples_per_class) * _rate(weight_decay, feature_decay)
    return (num_classes - 1) * (jnp.asarray(alpha) / num_classes + c)


def _positive(name: str, value: ArrayLike) -> jax.Array:
    _checks.positive(name, value)
    return jnp.asarray(value)


def _rate(weight_decay: ArrayLike, feature_decay: ArrayLike) -> jax.Array:
    """`sqrt(lW lH)`."""
    return _root_of_product(
        _positive("weight_decay", weight_decay), _positive("feature_decay", feature_decay)
    )


def _scalar_rate(weight_decay: ArrayLike, feature_decay: ArrayLike) -> jax.Array:
    """`_rate` where other axes than those of decays are taken."""
    _checks.scalar("weight_decay", weight_decay)
    _checks.scalar("feature_decay", feature_decay)
    return _rate(weight_decay, feature_decay)


def _root_of_product(a: ArrayLike, b: ArrayLike) -> jax.Array:
    """`sqrt(a b)`, also where the product overflows, underflows or is of integers."""
    return jnp.sqrt(1.0 * a) * jnp.sqrt(1.0 * b)


def _singular_values(
    targets: ArrayLike, bias: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    """Of the targets, or of the targets minus their column means; vectors (N, r), (K, r), and the means."""
    if not isinstance(bias, bool | np.bool_):
        raise ValueError(f"bias must be True or False, but is {bias!r}.")
    Y = _checks.matrix("targets", targets)
    if not jnp.issubdtype(Y.dtype, jnp.floating):
        raise ValueError(f"targets must be floating, (N, K), but are {Y.shape} {Y.dtype}.")
    _checks.finite("targets", Y)
    Y = jnp.asarray(Y)
    means = jnp.mean(Y, 0) if bias else jnp.zeros_like(Y[0])
    left, values, right = jnp.linalg.svd(Y - means, full_matrices=False)
    return values, (left, right.T, means)


def _first(values: jax.Array, dim: int | None) -> jax.Array:
    return jnp.arange(len(values)) < (len(values) if dim is None else dim)
