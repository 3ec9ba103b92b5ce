"""Generalized neural collapse, for more classes than a simplex ETF has room for, K > d + 1.

There the classifier of the smallest loss tends to a *softmax code* as the temperature grows: unit vectors
whose smallest one-vs-rest distance is as large as can be (GNC2), with class means along them (GNC3). The
first property, within-class variability, is that of `nc1` and `cdnv`. Directions are taken from zero, not
from the global mean. Where a simplex ETF fits, it is the softmax code.

Reference: Jiang, Zhou, Wang, Qu, Mixon, You, Zhu, *Generalized Neural Collapse for a Large Number of
Classes*, ICML 2024.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from numpy.typing import ArrayLike

from ufm_jax._products import matmul, norm
from ufm_jax.metrics import classes

MAX_STEPS = 20_000
"""Most steps of the search for the distances; random classifiers take hundreds, symmetric ones a few."""


def one_vs_rest_distances(W: ArrayLike) -> jax.Array:
    """Distance of each direction `w_k / ||w_k||` from the convex hull of the others'.

    Each is a least-squares problem over the simplex, `min_a ||w_k - sum_{j != k} a_j w_j||`. All are solved
    together by accelerated projected gradients, until the duality gap bounds the error of every distance by
    eps^0.7 (1e-11 in float64, 1e-5 in float32), or for `MAX_STEPS` steps. These are not enough for some
    directions that all lie within about 0.01 of each other; errors to 2e-7 were seen there.

    Args:
        W: classifier rows, (K, d), K at least 2; zero rows stay zero.

    Returns:
        (K,), each in [0, 2].

    Raises:
        ValueError: W is not a matrix of at least two rows.

    Reference: Jiang et al., ICML 2024, the one-vs-rest distance; O'Donoghue, Candes, *Adaptive Restart for
    Accelerated Gradient Schemes*, 2015.
    """
    return _one_vs_rest_distances(classes.classifier(W))


@jax.jit  # So that the loop is compiled once for a shape, and not at every call.
def _one_vs_rest_distances(W: jax.Array) -> jax.Array:
    points = classes.directions(classes.widen(W))
    # Weights sum to one: distances stay as they are, and directions that share much are told apart sooner.
    points = points - jnp.mean(points, 0)
    # The weights of the nearest points are constants: a distance does not change with them.
    at_weights, points = points, jax.lax.stop_gradient(points)
    tolerance = jnp.finfo(points.dtype).eps ** 0.7
    # The largest row sum of the Gram matrix bounds its largest eigenvalue.
    row_sums = jnp.sum(jnp.abs(matmul(points, points.T)), -1)
    step_size = 1 / jnp.maximum(jnp.max(row_sums), jnp.finfo(points.dtype).tiny)
    itself = jnp.eye(len(points), dtype=bool)

    def residuals(weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`x_k = w_k - sum_j a_kj w_j` (K, d), and all `<x_k, w_j>` (K, K)."""
        x = points - matmul(weights, points)
        return x, matmul(x, points.T)

    def project(weights: jax.Array) -> jax.Array:
        # Entries one below the largest are projected to 0; so w_k is kept out of its own combination.
        low = jnp.max(weights, -1, keepdims=True) - 2
        return jax.vmap(optax.projections.projection_simplex)(jnp.where(itself, low, weights))

    def is_open(state: _Search) -> jax.Array:
        return jnp.any(state.gap > tolerance) & (state.steps < MAX_STEPS)

    def step(state: _Search) -> _Search:
        _, products = residuals(state.ahead)
        weights = project(state.ahead + step_size * products)
        change = weights - state.weights
        turns = jnp.sum((state.ahead - weights) * change, -1, keepdims=True) > 0
        momentum = jnp.where(turns, 1.0, (1 + jnp.sqrt(1 + 4 * state.momentum**2)) / 2)
        ahead = weights + jnp.where(turns, 0, (state.momentum - 1) / momentum) * change
        return _Search(weights, ahead, momentum, gap_of(weights), state.steps + 1)

    def gap_of(weights: jax.Array) -> jax.Array:
        """Distance at these weights, minus what `x_k` proves: all of the hull is beyond a hyperplane."""
        x, products = residuals(weights)
        distance = jnp.linalg.norm(x, axis=-1)
        nearest = jnp.max(jnp.where(itself, -jnp.inf, products), -1)
        proved = (jnp.diagonal(products) - nearest) / jnp.where(distance > 0, distance, 1)
        return distance - jnp.maximum(proved, 0)

    start = project(jnp.zeros_like(matmul(points, points.T)))
    ones = jnp.ones((len(points), 1), points.dtype)
    found = jax.lax.while_loop(is_open, step, _Search(start, start, ones, gap_of(start), jnp.array(0)))
    return norm(at_weights - matmul(found.weights, at_weights), axis=-1).astype(W.dtype)


def gnc2(W: ArrayLike) -> jax.Array:
    """The smallest one-vs-rest distance `min_k dist(w_k, conv{w_j: j != k})` of the directions of W.

    The largest value that K vectors in d dimensions can have is that of a softmax code: K/(K-1) for
    K <= d + 1 (the simplex ETF), 1 for d + 2 <= K <= 2d, and 1 - cos(2 pi/K) for d = 2 (the regular
    polygon); see `ufm_jax.theory.packing_angle`. How much the classes differ in their distances is seen
    from `one_vs_rest_distances`.

    Args:
        W: classifier rows, (K, d), K at least 2.

    Returns:
        A scalar in [0, 2]: 0 where a direction lies in the hull of the others, as for W = 0.

    Raises:
        ValueError: W is not a matrix of at least two rows.

    Reference: Jiang et al., ICML 2024, GNC2.
    """
    return jnp.min(one_vs_rest_distances(W))


def gnc3(
    W: ArrayLike,
    features: ArrayLike,
    labels: ArrayLike,
    *,
    per_class: bool = False,
    absent: classes.Absent = "error",
) -> jax.Array:
    """Distance from self-duality, the mean over the classes of `1 - cos(w_k, mean of class k)`.

    Unlike in `nc3`, the means are not centred. GNC3 says that it goes to 0.

    Args:
        W: classifier rows, (K, d), K at least 2.
        features: (N, d).
        labels: classes in 0..K-1, integers (N,), at least one sample of each.
        per_class: whether each class has its own value.
        absent: "skip" leaves out classes without a sample, and their rows of W.

    Returns:
        A scalar in [0, 2], or (K,); a zero row or mean counts as perpendicular, 1.

    Raises:
        ValueError: W is not a matrix of at least two rows, a class has no sample, a label is out of
            range (checked outside `jit`), or an option is none of these.

    Reference: Jiang et al., ICML 2024, GNC3.
    """
    W, data = classes.with_classifier(W, features, labels, absent=absent)
    values = misalignments(data.rows(W), data.centres.means)
    return (values if per_class else jnp.mean(values)).astype(W.dtype)


def misalignments(W: jax.Array, means: jax.Array) -> jax.Array:
    """`1 - cos` between the rows of two matrices (K, d), (K,)."""
    ours, theirs = classes.directions(W), classes.directions(means)
    # 1 - cos = ||u - v||^2 / 2 for unit vectors: no digits are lost near 0.
    is_zero = ~(jnp.any(ours != 0, -1) & jnp.any(theirs != 0, -1))
    return jnp.where(is_zero, 1, jnp.sum((ours - theirs) ** 2, -1) / 2)


class _Search(NamedTuple):
    """Weights of the hulls (K, K), where the next gradient is taken, and what is known of the distances."""

    weights: jax.Array
    ahead: jax.Array
    momentum: jax.Array
    gap: jax.Array
    steps: jax.Array
