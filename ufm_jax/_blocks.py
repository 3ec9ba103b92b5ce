"""Functions of all samples, evaluated a block of samples at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def over_blocks(
    of_block: Callable[[Any], tuple[Any, Any]],
    zero: Any,
    samples: Any,
    block_size: int,
    shards: int,
) -> tuple[Any, Any]:
    """Sums over blocks of what is summed over samples, and the rows of what has a row a sample.

    Args:
        of_block: samples of a block to a pair: a pytree to sum, and one of arrays with a row a sample.
        zero: zeros shaped like the first of the pair.
        samples: arrays with a leading axis of N.
        block_size: samples of a block; the last block of a shard may be smaller.
        shards: equal runs of samples that go through their blocks side by side. Where each run lies on a
            device of its own, the sums of the devices meet once, after their last blocks.

    Returns:
        The sums, and arrays with a leading axis of N.
    """
    by_shard = jax.tree.map(lambda x: x.reshape(shards, -1, *x.shape[1:]), samples)
    totals, rows = jax.vmap(lambda samples: in_turn(of_block, zero, samples, block_size))(by_shard)
    return (
        jax.tree.map(lambda x: jnp.sum(x, 0), totals),
        jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows),
    )


def in_turn(
    of_block: Callable[[Any], tuple[Any, Any]], zero: Any, samples: Any, block_size: int
) -> tuple[Any, Any]:
    """`over_blocks` of one shard."""
    # Without it, a derivative in reverse mode would keep what each block computes, for all blocks.
    of_block = jax.checkpoint(of_block, prevent_cse=False)

    def add_block(total, block):
        summed, rows = of_block(block)
        return jax.tree.map(jnp.add, total, summed), rows

    count = len(jax.tree.leaves(samples)[0])
    size = min(block_size, count)
    full = count // size * size
    blocks = jax.tree.map(lambda x: x[:full].reshape(-1, size, *x.shape[1:]), samples)
    total, rows = jax.lax.scan(add_block, zero, blocks)
    rows = jax.tree.map(lambda x: x.reshape(full, *x.shape[2:]), rows)
    if full < count:
        total, last = add_block(total, jax.tree.map(lambda x: x[full:], samples))
        rows = jax.tree.map(lambda *parts: jnp.concatenate(parts), rows, last)
    return total, rows
