"""Grids of trials: one pure function, run for every combination of its arguments.

A trial is any function of arrays, usually `random_point` followed by `minimize`. The engine compiles it
once, spreads the combinations over the devices, and hands them out in chunks so that memory stays bounded
and a caller can show progress.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from ufm_jax import _checks

DEFAULT_MEMORY = 2 * 2**30
"""Bytes that the trials running at one time may use on a device, unless the caller says otherwise."""


def grid(
    trial: Callable[..., Any],
    axes: dict[str, Any],
    *,
    batch_size: int | None = None,
    memory: int = DEFAULT_MEMORY,
    devices: Sequence[jax.Device] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Calls `trial(**point_of_the_grid)` for every combination of `axes`.

    Args:
        trial: a pure function of keyword arguments, one an axis, to a pytree of arrays.
        axes: for each argument its values, as a list or along the leading axis of an array or a pytree of
            arrays (random keys: `jax.random.split(key, trials)`).
        batch_size: trials computed together on a device by `vmap`; 1 runs them one after another. If None,
            1 on CPUs, where `vmap` makes each trial wait for the slowest line search, and elsewhere as many
            as fit into `memory`.
        memory: bytes that the trials running at one time may use on a device, at least 1.
        devices: where to run; all devices of this process if None.
        progress: called with the number of finished trials and of all, first with 0.

    Returns:
        The trial's pytree of NumPy arrays, each with one leading axis for each of `axes`, in their order.

    Raises:
        ValueError: an axis is empty, or `batch_size` or `memory` is less than 1.

    Example:
        >>> def trial(tau, key):
        ...     problem = ufm.normalized(ufm.balanced_labels(3, 2), num_classes=3, tau=tau)
        ...     return problem.cost(problem.random_point(key, dim=4))
        >>> keys = jax.random.split(jax.random.key(0), 5)
        >>> ufm.trials.grid(trial, {"tau": [0.1, 1.0, 10.0], "key": keys}).shape
        (3, 5)
    """
    axes = {
        n: np.asarray(values) if type(values) in (list, tuple) else values for n, values in axes.items()
    }
    lengths = {name: len(jax.tree.leaves(values)[0]) for name, values in axes.items()}
    for name, length in lengths.items():
        _checks.at_least(f"the length of axis '{name}'", length, 1)
    indices = np.unravel_index(np.arange(math.prod(lengths.values())), tuple(lengths.values()))
    inputs = {
        name: jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf)[i], values)
        for (name, values), i in zip(axes.items(), indices, strict=True)
    }
    flat = run(
        _by_keywords(trial),
        inputs,
        batch_size=batch_size,
        memory=memory,
        devices=devices,
        progress=progress,
    )
    return jax.tree.map(lambda x: x.reshape(*lengths.values(), *x.shape[1:]), flat)


def run(
    trial: Callable[[Any], Any],
    inputs: Any,
    *,
    batch_size: int | None = None,
    memory: int = DEFAULT_MEMORY,
    devices: Sequence[jax.Device] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Maps `trial` over the leading axis of the pytree `inputs`.

    Args:
        trial: a pure function of one argument, an entry of `inputs`, to a pytree of arrays.
        inputs: a pytree of arrays with a leading axis, one entry a trial.
        batch_size: as in `grid`, at least 1 or None.
        memory: as in `grid`, at least 1.
        devices: as in `grid`.
        progress: as in `grid`.

    Returns:
        The trial's pytree of NumPy arrays, each with the leading axis of `inputs`.

    Raises:
        ValueError: there are no trials, or `batch_size` or `memory` is less than 1.
    """
    devices = jax.local_devices() if devices is None else list(devices)
    total = len(jax.tree.leaves(inputs)[0])
    _checks.at_least("the number of trials", total, 1)
    _checks.at_least("memory", memory, 1)
    if batch_size is None:
        one = jax.tree.map(lambda x: x[0], inputs)
        on_cpu = devices[0].platform == "cpu"
        batch_size = 1 if on_cpu else max(1, memory // _bytes_of_a_trial(trial, one))
    _checks.at_least("batch_size", batch_size, 1)

    batch_size = min(batch_size, math.ceil(total / len(devices)))
    at_once = batch_size * len(devices)
    # About twenty chunks: often enough to show progress, seldom enough to cost nothing.
    chunk_size = at_once * max(1, math.ceil(total / (20 * at_once)))
    mapped = _compiled(trial, batch_size, tuple(devices))

    finished = []
    for start in range(0, total, chunk_size):
        if progress is not None:
            progress(start, total)
        # The last chunk repeats its last trial, so that every chunk has one shape and compiles once.
        members = np.minimum(np.arange(start, start + chunk_size), total - 1)
        outputs = mapped(jax.tree.map(lambda x, members=members: x[members], inputs))
        keep = min(chunk_size, total - start)
        finished.append(jax.tree.map(lambda x, keep=keep: np.asarray(x)[:keep], outputs))
    if progress is not None:
        progress(total, total)
    return jax.tree.map(lambda *chunks: np.concatenate(chunks), *finished)


@functools.lru_cache(maxsize=32)
def _by_keywords(trial: Callable) -> Callable:
    """The same function for the same trial, so that another call of `grid` finds it compiled."""
    return lambda arguments: trial(**arguments)


@functools.lru_cache(maxsize=32)
def _compiled(trial: Callable, batch_size: int, devices: tuple[jax.Device, ...]) -> Callable:
    def on_one_device(inputs):
        return jax.lax.map(trial, inputs, batch_size=batch_size if batch_size > 1 else None)

    over_trials = PartitionSpec("trials")
    return jax.jit(
        jax.shard_map(
            on_one_device,
            mesh=Mesh(np.array(devices), ("trials",)),
            in_specs=over_trials,
            out_specs=over_trials,
            check_vma=False,
        )
    )


def _bytes_of_a_trial(trial: Callable, one: Any) -> int:
    """What one trial needs while it runs, as its compiled program states it."""
    analysis = jax.jit(trial).lower(one).compile().memory_analysis()
    if analysis is None:
        return DEFAULT_MEMORY
    return max(
        1, analysis.temp_size_in_bytes + analysis.output_size_in_bytes + analysis.argument_size_in_bytes
    )
