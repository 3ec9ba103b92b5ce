"""Matrix products at full precision.

On TPUs, and on GPUs with Tensor cores, JAX's default float32 product rounds its factors to bfloat16 or
TF32, and solvers stall far from the minimum. Every product of the library goes through this module.
"""

import chex
import jax
import jax.numpy as jnp


def matmul(a: chex.Array, b: chex.Array) -> chex.Array:
    """`a @ b`, every factor used at the precision of its dtype."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def transposed_matmul(a: chex.Array, b: chex.Array) -> chex.Array:
    """`a.T @ b`, likewise.

    XLA's product on CPUs reads a transposed left factor at three quarters of its speed; there it is copied.
    """
    return jax.lax.platform_dependent(
        a,
        b,
        cpu=lambda a, b: matmul(jax.lax.optimization_barrier(a.T), b),
        default=lambda a, b: matmul(a.T, b),
    )
