"""Functions of all pairs of rows, a block of rows at a time: no K x K matrix is ever whole."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ufm_jax._blocks import in_turn
from ufm_jax._products import matmul, root
from ufm_jax.metrics.classes import directions

ENTRIES = 2**23
"""Entries of the largest temporary matrix: 32 MiB in float32, 64 MiB in float64."""


def in_blocks(of_block: Callable[[Any], Any], rows: Any, width: int) -> Any:
    """`of_block` of arrays (K, ...), by blocks of rows of which each makes matrices `width` wide.

    It returns arrays with a row for each row that it is given, and so does this.
    """
    count = len(jax.tree.leaves(rows)[0])
    size = max(1, ENTRIES // width)
    if count <= size:
        return of_block(rows)
    return in_turn(lambda block: (None, of_block(block)), None, rows, size)[1]


def squared_distances(some: jax.Array, all_rows: jax.Array, is_pair: jax.Array) -> jax.Array:
    """Of the rows (B, d) from the rows (K, d), (B, K).

    By products, which lose the distance of two close points: where pairs are closer than a tenth of their
    length, all of the block is computed again from differences.
    """
    lengths = jnp.sum(some**2, -1)[:, None] + jnp.sum(all_rows**2, -1)
    quick = lengths - 2 * matmul(some, all_rows.T)
    return jax.lax.cond(
        jnp.any((quick < 0.01 * lengths) & is_pair),
        lambda: jnp.sum((some[:, None] - all_rows) ** 2, -1),
        lambda: quick,
    )


def are_pairs(index: jax.Array, count: int) -> jax.Array:
    """Which of the columns 0..count-1 is not the row itself, (B, count)."""
    return index[:, None] != jnp.arange(count)


@functools.partial(jax.jit, static_argnames=("exponent", "halved"))
def cdnv_by_class(means: jax.Array, variances: jax.Array, exponent: float, halved: bool) -> jax.Array:
    """The mean over j of `(V_i + V_j) / (2 |m_i - m_j|^(2 exponent))`, for each class i, (K,)."""
    count = len(means)

    def of_block(block):
        some, variance, index = block
        is_pair = are_pairs(index, count)
        sums, squares = variance[:, None] + variances, squared_distances(some, means, is_pair)
        apart = squares > 0
        # A quotient by 0 would spoil derivatives also where it is not used.
        powers = jnp.where(apart, squares, 1)
        if exponent != 1:  # The power is slow.
            powers = powers**exponent
        powers = 2 * powers if halved else powers
        ratios = jnp.where(apart | jnp.isnan(squares), sums / powers, jnp.where(sums == 0, 0, jnp.inf))
        return jnp.sum(jnp.where(is_pair, ratios, 0), -1) / (count - 1)

    return in_blocks(of_block, (means, variances, jnp.arange(count)), count)


@jax.jit
def directional_sums(means: jax.Array, deviations: jax.Array, labels: jax.Array) -> jax.Array:
    """For each deviation (B, d), the sum over j of `<deviation, m_c - m_j>^2 / |m_c - m_j|^4`, (B,)."""
    count = len(means)

    def of_block(block):
        deviation, label = block
        own = means[label]
        is_pair = are_pairs(label, count)
        squares = squared_distances(own, means, is_pair)
        along = jnp.sum(deviation * own, -1, keepdims=True) - matmul(deviation, means.T)
        apart = squares > 0
        ratios = (along / jnp.where(apart, squares, 1)) ** 2
        ratios = jnp.where(apart | jnp.isnan(squares), ratios, jnp.where(along == 0, 0, jnp.inf))
        return jnp.sum(jnp.where(is_pair, ratios, 0), -1)

    return in_blocks(of_block, (deviations, labels), count)


class Angles(NamedTuple):
    """What the pairs of directions of K vectors have in common, scalars over all pairs i != j.

    Attributes:
        cosine_deviation: standard deviation of the cosines.
        simplex_deviation: mean of `|cosine + 1/(K-1)|`.
        log_mean: mean of `log(1 / distance)` of the directions.
        log_variance: its variance.
        distance_mean: mean of the distances.
        distance_variance: their variance.
    """

    cosine_deviation: jax.Array
    simplex_deviation: jax.Array
    log_mean: jax.Array
    log_variance: jax.Array
    distance_mean: jax.Array
    distance_variance: jax.Array


@jax.jit
def angles(vectors: jax.Array) -> Angles:
    """The pairs of the directions of vectors (K, d)."""
    units, count = directions(vectors), len(vectors)
    pairs = float(count * (count - 1))  # Beyond int32 from 46342 on.
    # The mean cosine is known beforehand. Moments about it, and about what would follow from it, keep
    # their digits where all pairs are nearly alike.
    total = jnp.sum(units, 0)
    cosine = (jnp.sum(total**2) - jnp.sum(units**2)) / pairs
    square = jnp.maximum(2 - 2 * cosine, 1e-30)
    middle = jax.lax.stop_gradient(jnp.stack([cosine, -jnp.log(square) / 2, jnp.sqrt(square)]))

    def of_block(block):
        some, index = block
        is_pair = are_pairs(index, count)
        squares = jnp.where(is_pair, jnp.maximum(squared_distances(some, units, is_pair), 0), 1)
        cosines = matmul(some, units.T)
        values = (cosines, -jnp.log(squares) / 2, root(squares))
        moments = [jnp.abs(cosines + 1 / (count - 1))]
        for value, about in zip(values, middle, strict=True):
            moments += [value - about, (value - about) ** 2]
        return [jnp.sum(jnp.where(is_pair, moment, 0), -1) for moment in moments]

    sums = in_blocks(of_block, (units, jnp.arange(count)), count)
    simplex, *moments = [jnp.sum(x) / pairs for x in sums]
    found = []
    for mean, square, about in zip(moments[::2], moments[1::2], middle, strict=True):
        variance = jnp.maximum(square - mean**2, 0)
        # Two equal directions are infinitely near for the logarithm, and leave it no variance.
        found.append((mean + about, jnp.where(jnp.isinf(mean), jnp.nan, variance)))
    (_, of_cosine), of_log, of_distance = found
    return Angles(root(of_cosine), simplex, *of_log, *of_distance)
