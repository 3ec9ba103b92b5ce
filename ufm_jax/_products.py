"""Matrix products at full precision, norms and roots.

On TPUs, and on GPUs with Tensor cores, JAX's default float32 product rounds its factors to bfloat16 or
TF32, and solvers stall far from the minimum. Every product of the library goes through this module.
"""

import math

import jax
import jax.numpy as jnp

_MOST_PARTS = 64
"""Parts into which a long float32 sum is cut; more gain little and cost products of few rows."""


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a @ b`, every factor used at the precision of its dtype."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def norm(x: jax.Array, axis: int | None = None) -> jax.Array:
    """The norm of all entries, or along an axis; squares of entries neither vanish nor overflow."""
    unit = power_of_two(jnp.max(jnp.abs(x), axis, keepdims=True))
    return jnp.squeeze(unit, axis) * root(jnp.sum((x / unit) ** 2, axis))


def share(part: jax.Array, whole: jax.Array | int) -> jax.Array:
    """`part / whole`, and 1 where they are equal: XLA divides by constants as by their reciprocals."""
    return jnp.where(part == whole, 1, part / whole)


def root(x: jax.Array) -> jax.Array:
    """The square root, with derivative 0 at 0."""
    return jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))


def power_of_two(size: jax.Array) -> jax.Array:
    """The power of two next to `size`, a constant, division by which rounds nothing; 1 next to 0."""
    _, exponent = jnp.frexp(jax.lax.stop_gradient(size))
    limits = jnp.finfo(size.dtype)  # Beyond these it, or its inverse, is no normal number.
    return jnp.ldexp(jnp.ones_like(size), jnp.clip(exponent, limits.minexp + 1, limits.maxexp - 3))


def transposed_matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a.T @ b`, likewise.

    Below float64, sums over many rows are taken in parts, which are added at the end. One running sum of
    thousands of terms loses two digits where neighbouring rows are alike, as samples of a collapsed class
    are, because then all roundings go one way; so each part takes rows far from each other.
    """
    # A power of two, whose products are together at most twice as large as `b`.
    parts = min(_MOST_PARTS, 2 ** int(math.log2(max(1, 2 * len(a) // a.shape[1]))))
    if jnp.finfo(a.dtype).bits >= 64 or parts < 2:
        return _transposed_matmul(a, b)
    padding = -len(a) % parts
    a, b = (jnp.pad(x, ((0, padding), (0, 0))).reshape(-1, parts, x.shape[1]) for x in (a, b))
    products = jax.vmap(_transposed_matmul, in_axes=1)(a, b)
    while len(products) > 1:  # On CPUs `jnp.sum` over them takes longer than they did.
        products = products[::2] + products[1::2]
    return products[0]


def _transposed_matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """XLA's product on CPUs reads a transposed left factor at three quarters of its speed; it is copied."""
    return jax.lax.platform_dependent(
        a,
        b,
        cpu=lambda a, b: matmul(jax.lax.optimization_barrier(a.T), b),
        default=lambda a, b: matmul(a.T, b),
    )
