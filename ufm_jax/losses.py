"""Losses of a classifier's logits, per sample and in optax's style, and the contrastive loss of features.

Each takes logits (..., K) and integer labels (...), and returns a loss (...) of the logits' dtype. Cross
entropy, label smoothing and the squared error also take targets (..., K), floats, in the place of labels.
Under `jit`, which hides values, the loss of a label outside 0..K-1 is NaN, and its derivative 0.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from ufm_jax import _checks
from ufm_jax._products import matmul


def convex(loss: Callable) -> Callable:
    """Marks a loss as convex in the logits: `landscape.certify` asks for that, and takes your word.

    Args:
        loss: a function of logits (..., K) and labels (...), marked in place; also as a decorator.

    Returns:
        The same function.

    Example:
        >>> @ufm.losses.convex
        ... def one_vs_rest(logits, labels):
        ...     signs = 1 - 2 * jax.nn.one_hot(labels, logits.shape[-1])
        ...     return jnp.sum(jax.nn.softplus(signs * logits), axis=-1)
        >>> ufm.losses.is_convex(one_vs_rest)
        True

    Reference: what a convex loss proves of a point is in docs/landscape.md.
    """
    loss.is_convex = True  # type: ignore[attr-defined]
    return loss


def is_convex(loss: Callable) -> bool | None:
    """Whether a loss is marked by `convex`; for a `functools.partial`, whether it or what it calls is.

    Args:
        loss: a function of logits (..., K) and labels (...).

    Returns:
        bool, or None where nobody has said. Cross entropy, label smoothing and the squared error are
        marked; the focal loss is marked as not convex.

    Example:
        >>> ufm.losses.is_convex(ufm.losses.cross_entropy), ufm.losses.is_convex(ufm.losses.focal)
        (True, False)

    Reference: what a convex loss proves of a point is in docs/landscape.md.
    """
    while (said := getattr(loss, "is_convex", None)) is None and hasattr(loss, "func"):
        loss = loss.func
    return said


@convex
def cross_entropy(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Cross entropy `-log softmax(logits)[label]`, Appendix B.3.

    As everywhere it is a difference, right to a rounding error of the logits: smaller values are 0.
    `focal` with gamma = 0 is the same function, keeps the digits of small values, and takes longer.

    Args:
        logits: scores of the classes, (..., K).
        labels: true classes in 0..K-1, integers (...); or probabilities (..., K).

    Returns:
        The loss of each sample, (...).

    Raises:
        ValueError: the labels do not fit the logits (values: outside `jit`).

    Example:
        >>> logits, labels = jnp.array([[2.0, 0.0], [0.0, 2.0]]), jnp.array([0, 0])
        >>> print(ufm.losses.cross_entropy(logits, labels).round(3))
        [0.127 2.127]
    """
    logits, labels = _logits_and_labels(logits, labels, or_probabilities=True)
    if labels.ndim < logits.ndim:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return _marked(loss, logits, labels)
    return _against_probabilities(logits, labels)


def focal(logits: ArrayLike, labels: ArrayLike, gamma: float = 3.0) -> jax.Array:
    """Focal loss `-(1 - p)^gamma log p`, p the softmax probability of the true class (Appendix E.4).

    Args:
        logits: scores of the classes, (..., K).
        labels: true classes in 0..K-1, integers (...).
        gamma: focusing parameter, at least 0; 0 is cross entropy. Near p = 1 the loss goes to 0 like
            `(1 - p)^(1 + gamma)`, and so does its slope.

    Returns:
        The loss of each sample, (...).

    Raises:
        ValueError: `gamma` is negative or no scalar, or the labels do not fit the logits (values: outside
            `jit`).

    Example:
        >>> logits, labels = jnp.array([[2.0, 0.0], [0.0, 2.0]]), jnp.array([0, 0])
        >>> print(ufm.losses.focal(logits, labels, gamma=3.0).round(3))
        [0.    1.453]

    Reference: Lin, Goyal, Girshick, He, Dollar, *Focal Loss for Dense Object Detection*, ICCV 2017.
    """
    _checks.scalar("gamma", gamma)
    _checks.at_least("gamma", gamma, 0)
    logits, labels = _logits_and_labels(logits, labels)
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    # Where all others are -inf, p is 1 whatever the logits are.
    is_sure = jnp.all((logits == -jnp.inf) | is_label, axis=-1)
    logits = jnp.where(is_sure[..., None], 0, logits)
    others = jax.nn.logsumexp(logits, axis=-1, where=~is_label)
    against = others - jnp.sum(logits, axis=-1, where=is_label)
    # 1 - p = exp(-softplus(-against)) and -log p = softplus(against): smooth, where p has rounded to 1 too.
    focusing = jnp.exp(-jnp.asarray(gamma, logits.dtype) * jax.nn.softplus(-against))
    return _marked(jnp.where(is_sure, 0, focusing * jax.nn.softplus(against)), logits, labels)


focal.is_convex = False  # type: ignore[attr-defined]


@convex
def label_smoothing(logits: ArrayLike, labels: ArrayLike, alpha: float = 0.1) -> jax.Array:
    """Cross entropy against `(1 - alpha) onehot(label) + alpha / K` (Appendix E.4).

    Args:
        logits: scores of the classes, (..., K).
        labels: true classes in 0..K-1, integers (...); or probabilities (..., K).
        alpha: smoothing parameter in [0, 1]; 0 is cross entropy.

    Returns:
        The loss of each sample, (...).

    Raises:
        ValueError: `alpha` is outside [0, 1] or no scalar, or the labels do not fit the logits (values:
            outside `jit`).

    Example:
        >>> logits, labels = jnp.array([[2.0, 0.0], [0.0, 2.0]]), jnp.array([0, 0])
        >>> print(ufm.losses.label_smoothing(logits, labels, alpha=0.1).round(3))
        [0.227 2.027]

    Reference: Szegedy et al., *Rethinking the Inception Architecture*, CVPR 2016.
    """
    _checks.scalar("alpha", alpha)
    _checks.within("alpha", alpha, 0, 1)
    logits, labels = _logits_and_labels(logits, labels, or_probabilities=True)
    targets = _as_targets(logits, labels)
    targets = optax.smooth_labels(targets, jnp.asarray(alpha, logits.dtype))
    return _marked(_against_probabilities(logits, targets), logits, labels)


@convex
def squared_error(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Squared error `|logits - onehot(label)|^2 / 2`.

    Args:
        logits: scores of the classes, (..., K).
        labels: true classes in 0..K-1, integers (...); or targets (..., K).

    Returns:
        The loss of each sample, (...).

    Raises:
        ValueError: the labels do not fit the logits (values: outside `jit`).

    Example:
        >>> logits, labels = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([0, 0])
        >>> print(ufm.losses.squared_error(logits, labels))
        [0.  2.5]

    Reference: Tirer, Bruna, *Extended Unconstrained Features Model*, ICML 2022; minima of the regularized
    model under it: `ufm_jax.theory.regularized_squared_error_minimum`.
    """
    logits, labels = _logits_and_labels(logits, labels, or_targets=True)
    loss = jnp.sum((logits - _as_targets(logits, labels)) ** 2, axis=-1) / 2
    return _marked(loss, logits, labels)


def _logits_and_labels(
    logits: ArrayLike, labels: ArrayLike, *, or_targets: bool = False, or_probabilities: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Logits (..., K) as floats and labels (...) as int32, or targets (..., K) of the logits' dtype."""
    logits = _checks.floating("logits", logits)
    if logits.ndim == 0:
        raise ValueError("logits must have an axis of classes, (..., K), but are a scalar.")
    if or_targets or or_probabilities:
        found = _checks.array("labels", labels)
        if found.shape == logits.shape and jnp.issubdtype(found.dtype, jnp.floating):
            if or_probabilities:
                _check_probabilities(found)
            return logits, jnp.asarray(found, logits.dtype)
    return logits, _checks.class_labels(labels, logits.shape[-1], shape=logits.shape[:-1], rows_of="logits")


def _marked(loss: jax.Array, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The loss, NaN where `jit` hides that a label is of no class; its derivative there is 0."""
    if labels.ndim == logits.ndim or _checks.is_concrete(labels):
        return loss
    return jnp.where((labels >= 0) & (labels < logits.shape[-1]), loss, jnp.nan)


def _as_targets(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Targets as they are, and labels as rows that are 1 at the label."""
    if labels.ndim == logits.ndim:
        return labels
    return jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)


def _check_probabilities(targets: np.ndarray | jax.Array) -> None:
    """Raises ValueError where the targets, as they were given, are no rows of probabilities."""
    if _checks.is_concrete(targets):
        found = np.asarray(targets, float)
        rounding = float(jnp.finfo(targets.dtype).eps)  # Of bfloat16 it is 0.008.
        if not (np.all(found >= 0) and np.allclose(found.sum(-1), 1, atol=max(1e-3, rounding))):
            raise ValueError("targets must be rows of probabilities, at least 0 and of sum 1.")


def _against_probabilities(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross entropy of the softmax; a class of score -inf costs nothing where nothing is asked of it."""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(targets * log_p, axis=-1, where=(targets != 0) | (log_p > -jnp.inf))


def supervised_contrastive(features: ArrayLike, labels: ArrayLike, tau: float) -> jax.Array:
    """Supervised contrastive loss over a whole data set, equation (40).

    Args:
        features: unit rows, (N, d).
        labels: classes, integers (N,); every class that occurs has at least two samples.
        tau: temperature, positive; the similarities are `tau^2 <h_i, h_j>`.

    Returns:
        The mean loss of the N anchors, a scalar.

    Raises:
        ValueError: `tau` is not positive or no scalar, a class has a single sample, a label is negative
            (checked outside `jit`), or the labels do not fit the features.

    Example:
        >>> H, labels = ufm.theory.simplex_etf(2, dim=2)[jnp.array([0, 0, 1, 1])], jnp.array([0, 0, 1, 1])
        >>> print(f"{ufm.losses.supervised_contrastive(H, labels, tau=1.0):.4f}")
        0.2395
        >>> print(f"{ufm.theory.supervised_contrastive_minimum(2, samples_per_class=2, tau=1.0):.4f}")
        0.2395

    Reference: Khosla et al., *Supervised Contrastive Learning*, NeurIPS 2020.
    """
    _checks.positive_scalar("tau", tau)
    features = _checks.floating("features", _checks.matrix("features", features))
    labels = _checks.class_labels(labels, shape=features.shape[:1])
    _checks.pairs_in_every_class(labels)
    similarities = jnp.asarray(tau, features.dtype) ** 2 * matmul(features, features.T)
    return jnp.mean(contrastive_of_similarities(similarities, labels))


def contrastive_of_similarities(
    similarities: ArrayLike, labels: ArrayLike, anchors: ArrayLike | None = None
) -> jax.Array:
    """The terms of equation (40), one an anchor, from the similarities `tau^2 H H^T`.

    Args:
        similarities: rows of the anchors (A, N); those of a sample with itself are ignored.
        labels: classes of all samples, integers (N,).
        anchors: which samples the rows belong to, integers (A,); all in their order if None.

    Returns:
        For each anchor i the mean over the others j of its class of
        `log sum_{l != i} exp(s_il) - s_ij`, (A,); NaN where there are no others.

    Raises:
        ValueError: the labels or anchors do not fit the similarities (values: outside `jit`).
    """
    similarities = _checks.floating("similarities", _checks.matrix("similarities", similarities))
    rows, samples = similarities.shape
    labels = _checks.class_labels(labels, shape=(samples,))
    anchors = jnp.arange(samples) if anchors is None else anchors
    anchors = _checks.class_labels(anchors, samples, shape=(rows,), rows_of="similarities", name="anchors")
    others = anchors[:, None] != jnp.arange(samples)
    positives = others & (labels[anchors][:, None] == labels)
    log_partition = jax.nn.logsumexp(similarities, axis=-1, where=others)
    positive_mean = jnp.sum(jnp.where(positives, similarities, 0), -1) / jnp.sum(positives, -1)
    return log_partition - positive_mean
