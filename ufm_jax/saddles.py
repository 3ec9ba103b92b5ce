"""Critical points of the normalized UFM that are not its minimum, built or found.

`sign_pattern`, `rank_one`, `full_rank`, `merged_classes` and `antipodal` build them; `find_critical_point`
goes to one from anywhere. What they are like is asked of `ufm_jax.landscape`. The paper's Proposition 2 is
about them, and docs/landscape.md.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike, DTypeLike

from ufm_jax import _checks, losses, theory
from ufm_jax._products import matmul
from ufm_jax.landscape import check_normalized
from ufm_jax.problems import Point, Problem, normalized
from ufm_jax.riemannian.manifolds import normalize
from ufm_jax.riemannian.minimize import Iterate, iterate_at, minimize
from ufm_jax.riemannian.objective import Objective
from ufm_jax.riemannian.solvers import trust_region


class CriticalPoint(NamedTuple):
    """Where `find_critical_point` ended.

    Attributes:
        point: the last iterate.
        gradient_norm: the norm of the Riemannian gradient there, in the metric of the problem's manifold.
        steps: steps taken or rejected, int32.
    """

    point: Point
    gradient_norm: jax.Array
    steps: jax.Array


def rank_one(
    problem: Problem,
    key: jax.Array,
    dim: int,
    dtype: DTypeLike | None = None,
    *,
    reflected: bool = False,
) -> Point:
    """A random critical point with equal classifiers w: beta = 0, case 1 of Proposition 2.

    Every class has the same n features, drawn at random, so that the class means are equal and alpha = 0.
    Reflecting features at random in the hyperplane perpendicular to w moves the class means along w alone:
    the point stays critical, and alpha becomes random, with sum zero.

    Args:
        problem: of `ufm_jax.normalized`, classes of equal size, and a loss that does not see a constant
            added to all logits of a sample, as all of the softmax do not.
        key: random key.
        dim: d, at least 1.
        dtype: floating type; JAX's default if None.
        reflected: whether to reflect, each feature with probability one half.

    Returns:
        `Point(W=(K, d), H=(N, d))`.

    Raises:
        ValueError: d < 1, the problem is not a normalized one, its classes have unequal sizes, or its loss
            sees such a constant (checked outside `jit`).
    """
    _check(problem)
    _checks.count("dim", dim, 1)
    K, N = problem.num_classes, len(problem.labels)
    at_zero, at_one = (problem.loss(jnp.full((K, K), z), jnp.arange(K)) for z in (0.0, 1.0))
    if _checks.is_concrete((at_zero, at_one)) and not jnp.allclose(at_zero, at_one, rtol=1e-4):
        raise ValueError(
            "the loss must not see a constant added to all logits of a sample: otherwise the point is not "
            "critical."
        )
    dtype = jax.dtypes.canonicalize_dtype(dtype or float)
    for_points, for_signs = jax.random.split(key)
    vectors = normalize(jax.random.normal(for_points, (1 + N // K, dim), dtype))
    w, of_one_class = vectors[0], vectors[1:]
    H = of_one_class[_numbers_in_class(problem)]
    if reflected:
        flips = jax.random.bernoulli(for_signs, shape=(N, 1))
        H = jnp.where(flips, H - 2 * matmul(H, w)[:, None] * w, H)
    return Point(jnp.tile(w, (K, 1)), H)


def sign_pattern(
    problem: Problem,
    classifier_signs: jax.Array,
    feature_signs: jax.Array,
    dim: int,
    dtype: DTypeLike | None = None,
) -> Point:
    """The critical point with all vectors along one line: `w_k = s_k e` and `h_i = t_i e`, e a unit vector.

    On a line the sphere has no tangent, so every choice of signs is critical, for every loss, every tau and
    classes of any size. It is where case 2 of the paper's Proposition 2 fails (docs/errata.md). For cross
    entropy at K = 2 the choice `s = (1, -1)`, `t_i = s_{y_i}`, and its negative, are global minima.

    Args:
        problem: of `ufm_jax.normalized`, any loss, classes of any size.
        classifier_signs: s, +1 or -1, (K,).
        feature_signs: t, +1 or -1, (N,).
        dim: d, at least 1.
        dtype: floating type; JAX's default if None.

    Returns:
        `Point(W=(K, d), H=(N, d))`.

    Raises:
        ValueError: d < 1, the problem is not a normalized one, or the signs are not as described (values
            are checked outside `jit`).

    Example:
        >>> problem = ufm.normalized(jnp.array([0, 1, 1, 2]), num_classes=3)
        >>> of_classes, of_samples = jnp.array([1, 1, -1]), jnp.array([1, -1, 1, -1])
        >>> point = ufm.saddles.sign_pattern(problem, of_classes, of_samples, dim=4)
        >>> bool(ufm.landscape.certify(problem, point).is_critical)
        True
    """
    check_normalized(problem)
    _checks.count("dim", dim, 1)
    dtype = jax.dtypes.canonicalize_dtype(dtype or float)
    line = jnp.eye(1, dim, dtype=dtype)
    columns = []
    for name, signs, count in [
        ("classifier_signs", classifier_signs, problem.num_classes),
        ("feature_signs", feature_signs, len(problem.labels)),
    ]:
        if jnp.shape(signs) != (count,):
            raise ValueError(f"{name} must have shape ({count},), but has {jnp.shape(signs)}.")
        if _checks.is_concrete(signs) and not np.all(np.abs(np.asarray(signs)) == 1):
            raise ValueError(f"{name} must be +1 or -1, but are {np.asarray(signs).tolist()}.")
        columns.append(jnp.asarray(signs, dtype)[:, None] * line)
    return Point(*columns)


def full_rank(
    problem: Problem, dim: int, dtype: DTypeLike | None = None, *, reversed_samples: int = 1
) -> Point:
    """A critical point whose classifiers have rank K: alpha = 0, the second half of the theorem at d = K.

    With a simplex ETF E and a unit vector a perpendicular to it, `w_k = cos(t) a + sin(t) E_k`, and the
    features of class k are `E_k`, but for `r` of its n samples, which are `-E_k`. The angle t is the one at
    which the forces of both cancel, `(n - r) q(s) = r q(-s)` with `s = K tau sin(t) / (K - 1)` and
    `q(s) = (K-1) e^-s / (1 + (K-1) e^-s)`; it exists where tau is not too small. At the threshold itself t
    is a right angle and the rank is K - 1.

    Args:
        problem: of `ufm_jax.normalized` with `ufm_jax.losses.cross_entropy`, n samples of each class.
        dim: d, at least K.
        dtype: floating type; JAX's default if None.
        reversed_samples: r, at least 1 and below n/2.

    Returns:
        `Point(W=(K, d), H=(N, d))`.

    Raises:
        ValueError: d < K, r is out of range, tau is too small (checked outside `jit`), the problem is not a
            normalized one with cross entropy, or its classes have unequal sizes.

    Example:
        >>> problem = ufm.normalized(ufm.balanced_labels(3, 3), num_classes=3, tau=2.0)
        >>> point = ufm.saddles.full_rank(problem, dim=3)
        >>> int(jnp.linalg.matrix_rank(point.W)), bool(ufm.landscape.certify(problem, point).is_critical)
        (3, True)

    Reference: docs/landscape.md.
    """
    _check(problem)
    if problem.loss is not losses.cross_entropy:
        raise ValueError("the loss must be ufm_jax.losses.cross_entropy: the angle is that of its slopes.")
    K, N = problem.num_classes, len(problem.labels)
    n, r = N // K, reversed_samples
    if dim < K:
        raise ValueError(f"classifiers of rank {K} need at least {K} dimensions, but dim is {dim}.")
    needed = full_rank_threshold(K, n, r)
    _checks.at_least("tau", problem.tau, needed)
    frame = theory.simplex_etf(K, dim, dtype)
    sine = jnp.asarray(needed / problem.tau, frame.dtype)
    W = (sine * frame).at[:, -1].set(jnp.sqrt(1 - sine**2))
    signs = jnp.where(_numbers_in_class(problem) < r, -1, 1)
    return Point(W, signs[:, None] * frame[problem.labels])


def full_rank_threshold(num_classes: int, samples_per_class: int, reversed_samples: int = 1) -> float:
    """The temperature from which on the critical point of `full_rank` exists, with rank K above it.

    Args:
        num_classes: K, at least 2.
        samples_per_class: n, at least 3.
        reversed_samples: r, at least 1 and below n/2.

    Returns:
        The temperature, a float.

    Raises:
        ValueError: K < 2, or r is no integer or out of range.

    Reference: docs/landscape.md.
    """
    K, n, r = num_classes, samples_per_class, reversed_samples
    _checks.count("num_classes", K, 2)
    _checks.count("reversed_samples", r, 1)
    if r >= n / 2:
        raise ValueError(f"reversed_samples must be at least 1 and below n/2 = {n / 2:g}, but is {r}.")
    # y = e^s solves y (y + K - 1) / (1 + (K - 1) y) = (n - r) / r.
    ratio = (n - r) / r
    half = (K - 1) * (ratio - 1) / 2
    return (K - 1) / K * math.log(half + math.sqrt(half**2 + ratio))


def _numbers_in_class(problem: Problem) -> jax.Array:
    """Of each sample, how many of its class come before it, (N,)."""
    counts = jnp.cumsum(jax.nn.one_hot(problem.labels, problem.num_classes, dtype=int), axis=0)
    return counts[jnp.arange(len(counts)), problem.labels] - 1


def merged_classes(problem: Problem, groups: ArrayLike, dim: int, dtype: DTypeLike | None = None) -> Point:
    """The critical point at which the classes of a group share one classifier and one feature direction.

    Among points of this form the cost is minimized, starting from vectors of a simplex ETF, by the trust
    region. A minimum under a symmetry (here, permuting the classes of a group) is critical without it
    (Palais, *The principle of symmetric criticality*, 1979). For cross entropy, groups of one size end at a
    simplex ETF of the groups; in general a group's classifiers and features part, and angles depend on
    sizes, loss and tau.

    Args:
        problem: of `ufm_jax.normalized`, classes of equal size.
        groups: for each class its group in 0..K-1, integers (K,), not all equal and not all different.
            It may be traced, so that one compilation serves every partition.
        dim: d, at least K - 1.
        dtype: floating type; JAX's default if None.

    Returns:
        `Point(W=(K, d), H=(N, d))`.

    Raises:
        ValueError: `groups` is not as described (values are checked outside `jit`), d < K - 1, the problem
            is not a normalized one, or its classes have unequal sizes.
    """
    _check(problem)
    K = problem.num_classes
    groups = _checks.class_labels(groups, K, shape=(K,), rows_of="W", name="groups")
    if _checks.is_concrete(groups):
        count = len(set(groups.tolist()))
        if not 1 < count < K:
            raise ValueError(f"groups must number between 2 and {K - 1}, but number {count}.")

    def loss_of_groups(logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Losses of the K classes, from the logits between groups; those of unused groups do not matter."""
        return problem.loss(logits[groups][:, groups], labels)

    reduced = normalized(jnp.arange(K), K, loss=loss_of_groups, tau=problem.tau)
    frame = theory.simplex_etf(K, dim, dtype)
    eps = float(jnp.finfo(frame.dtype).eps)
    found = minimize(reduced, Point(frame, frame), trust_region(), max_steps=200, tolerance=10 * eps)
    W, H = found.point
    assert W is not None
    return Point(W[groups], H[groups][problem.labels])


def antipodal(problem: Problem, dim: int, dtype: DTypeLike | None = None) -> Point:
    """The critical point opposite to the minimum: W a simplex ETF, and each feature `-w_k` of its class.

    Args:
        problem: of `ufm_jax.normalized`, classes of equal size.
        dim: d, at least K - 1.
        dtype: floating type; JAX's default if None.

    Returns:
        `Point(W=(K, d), H=(N, d))`.

    Raises:
        ValueError: d < K - 1, the problem is not a normalized one, or its classes have unequal sizes.
    """
    _check(problem)
    W = theory.simplex_etf(problem.num_classes, dim, dtype)
    return Point(W, -W[problem.labels])


def _check(problem: Problem) -> None:
    """That the symmetry is there by which these points are critical: sizes of classes and the loss."""
    check_normalized(problem)
    K = problem.num_classes
    logits = jnp.sin(jnp.arange(1.0, 1 + K * K)).reshape(K, K)
    own = problem.loss(logits, jnp.arange(K))
    for renamed in (np.roll(np.arange(K), 1), np.r_[1, 0, 2:K]):
        others = problem.loss(logits[:, np.argsort(renamed)], jnp.asarray(renamed))
        if _checks.is_concrete((own, others)) and not jnp.allclose(own, others, rtol=1e-4):
            raise ValueError(
                "the loss must treat all classes alike, and not feel that they are renamed in logits and "
                "labels: otherwise the point is not critical."
            )
    _checks.equal_sizes("these saddles", problem.labels, problem.num_classes)


def partitions(num_classes: int) -> Iterator[tuple[int, ...]]:
    """Every way to merge K classes into 2 to K - 1 groups, as the group of each class, up to relabeling.

    One for each partition of the integer K.

    Args:
        num_classes: K; below 3 there are none.

    Returns:
        An iterator over tuples of K groups, in 0..K-2.

    Example:
        >>> list(ufm.saddles.partitions(4))
        [(0, 0, 0, 1), (0, 0, 1, 1), (0, 0, 1, 2)]
    """

    def sizes(total: int, largest: int) -> Iterator[tuple[int, ...]]:
        if total == 0:
            yield ()
        for first in range(min(total, largest), 0, -1):
            for rest in sizes(total - first, first):
                yield (first, *rest)

    for parts in sizes(num_classes, num_classes):
        if 1 < len(parts) < num_classes:
            yield tuple(group for group, size in enumerate(parts) for _ in range(size))


def find_critical_point(
    problem: Problem,
    point: Point,
    *,
    max_steps: int = 200,
    tolerance: ArrayLike = 1e-12,
    max_inner: int | None = None,
) -> CriticalPoint:
    """Goes to a critical point of any index, by minimizing the squared norm of the Riemannian gradient g.

    Levenberg and Marquardt's steps `-(Hess^2 + mu)^-1 Hess g`, with `mu` proportional to `|g|^2`, by
    conjugate gradients on Hessian-vector products. Near a critical point they are Newton's, of least norm
    where symmetries make the Hessian singular, and polish a point to rounding in a few steps. From a random
    start the iteration can end where `|g|` has a local minimum above zero: look at `gradient_norm`.

    Args:
        problem: any problem of this library.
        point: the start; symmetries that it has are kept, up to rounding.
        max_steps: most steps.
        tolerance: stop once the norm of the Riemannian gradient is at most this.
        max_inner: most conjugate gradient iterations a step; the manifold's dimension if None.

    Returns:
        The `CriticalPoint`.

    Raises:
        ValueError: as `minimize` does, or `max_inner` is less than 1.

    Reference: Nocedal, Wright, *Numerical Optimization* (2006), section 10.3.
    """
    if max_inner is not None:
        _checks.count("max_inner", max_inner, 1)
    most_inner = problem.manifold.dimension(point) if max_inner is None else max_inner
    result = minimize(problem, point, _LeastGradient(most_inner), max_steps=max_steps, tolerance=tolerance)
    return CriticalPoint(result.point, result.gradient_norm, result.steps)


class _LeastGradientState(NamedTuple):
    iterate: Iterate
    damping: jax.Array
    stalled: jax.Array


@dataclasses.dataclass(frozen=True)
class _LeastGradient:
    """Levenberg and Marquardt's steps on the squared norm of the gradient."""

    max_inner: int

    def init(self, problem: Objective, point: Point) -> _LeastGradientState:
        iterate = iterate_at(problem, problem.evaluate(point))
        return _LeastGradientState(iterate, jnp.ones((), iterate.value.dtype), jnp.array(False))

    def step(self, problem: Objective, state: _LeastGradientState) -> _LeastGradientState:
        manifold, old, damping = problem.manifold, state.iterate, state.damping
        x, norm = old.point, old.gradient_norm
        # Steps are asked of the direction of the gradient: its own size would underflow when squared.
        unit = optax.tree.scale(1 / norm, old.gradient)
        hessian = problem.hessian_given(old.evaluation, problem.euclidean_gradient(old.evaluation))

        def linear(u: Point) -> Point:
            """The Hessian in the coordinates in which it is symmetric in the Euclidean inner product."""
            # A vector that has left the tangent space by rounding would otherwise grow without bound.
            tangent = manifold.project(x, manifold.unwhiten(u))
            return manifold.whiten(manifold.project(x, hessian(tangent)))

        normal = lambda u: optax.tree.add_scale(linear(linear(u)), damping * norm**2, u)  # noqa: E731
        right = linear(manifold.whiten(unit))
        solution, _ = jax.scipy.sparse.linalg.cg(normal, right, tol=1e-8, maxiter=self.max_inner)
        step = manifold.project(x, manifold.unwhiten(optax.tree.scale(-norm, solution)))
        moved = manifold.retract(x, step)
        new = iterate_at(problem, problem.evaluate(moved))
        accepted = new.gradient_norm < norm
        kept = optax.tree.where(accepted, new, old)
        damping = damping * jnp.where(accepted, 0.25, 8)
        return _LeastGradientState(kept, damping, damping >= 1e12)
