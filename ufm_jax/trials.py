"""Grids of trials: one pure function, run for every combination of its arguments.

A trial is any function of arrays, usually `random_point` followed by `minimize`. The engine compiles it
once, spreads the combinations over the devices of all processes, and hands them out in chunks, so that
memory stays bounded, a caller can show progress, and a store can keep what is finished.
"""

import functools
import hashlib
import math
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ufm_jax import _checks

DEFAULT_MEMORY = 2 * 2**30
"""Bytes that the trials running at one time may use on a device, unless the caller says otherwise."""

Store = MutableMapping[str, dict[str, np.ndarray]]
"""Where finished chunks are kept: for each a name, and a dictionary of arrays."""


def grid(
    trial: Callable[..., Any],
    axes: dict[str, Any],
    *,
    batch_size: int | None = None,
    memory: int = DEFAULT_MEMORY,
    devices: Sequence[jax.Device] | None = None,
    progress: Callable[[int, int], None] | None = None,
    store: Store | None = None,
) -> Any:
    """Calls `trial(**point_of_the_grid)` for every combination of `axes`.

    Where several processes share a run (`jax.distributed`), each makes the same call and gets all results.
    On CPUs the results are the same to the bit on any two devices or more (one device alone: see
    docs/scaling.md). Another `batch_size` is a program that may round otherwise, which a descent amplifies.

    Args:
        trial: a pure function of keyword arguments, one an axis, to a pytree of arrays.
        axes: for each argument its values, as a list of numbers or keys, or along the leading axis of an
            array or of all arrays of a pytree (random keys: `jax.random.split(key, trials)`). Each is
            repeated for every combination: of large arrays, pass indices and look them up in the trial.
        batch_size: trials computed together on a device by `vmap`, at least 1 and no more than its share of
            the grid; 1 runs them one after another. If None,
            1 on CPUs, where `vmap` makes each trial wait for the slowest line search, and elsewhere as many
            as fit into `memory`.
        memory: bytes that the trials running at one time may use on a device, at least 1.
        devices: where to run; all devices of all processes if None.
        progress: called with the number of finished trials and of all, before every chunk and at the end.
        store: a mapping, such as a dictionary, that keeps every chunk as soon as it is finished. Trials
            that it holds are not run again, on however many devices they ran. A store serves one `trial`
            and one set of `axes`. Of several processes the first one's is used.

    Returns:
        The trial's pytree of NumPy arrays, each with one leading axis for each of `axes`, in their order.

    Raises:
        ValueError: an axis is empty, holds no arrays or arrays of unequal lengths, there is no axis or no
            device, `batch_size` or `memory` is less than 1, or `store` holds chunks of other axes or of a
            trial with other outputs.

    Example:
        >>> def trial(tau, key):
        ...     problem = ufm.normalized(ufm.balanced_labels(3, 2), num_classes=3, tau=tau)
        ...     return problem.cost(problem.random_point(key, dim=4))
        >>> keys = jax.random.split(jax.random.key(0), 5)
        >>> ufm.trials.grid(trial, {"tau": [0.1, 1.0, 10.0], "key": keys}).shape
        (3, 5)
    """
    if not axes:
        raise ValueError("axes must name an argument of the trial at least.")
    axes = {name: _values(f"axis '{name}'", values) for name, values in axes.items()}
    lengths = {name: _length(f"axis '{name}'", values) for name, values in axes.items()}
    indices = np.unravel_index(np.arange(math.prod(lengths.values())), tuple(lengths.values()))
    inputs = {
        name: jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf)[i], values)
        for (name, values), i in zip(axes.items(), indices, strict=True)
    }
    flat = run(
        _by_keywords(_hashable(trial)),
        inputs,
        batch_size=batch_size,
        memory=memory,
        devices=devices,
        progress=progress,
        store=store,
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
    store: Store | None = None,
) -> Any:
    """Maps `trial` over the leading axis of the pytree `inputs`.

    Args:
        trial: a pure function of one argument, an entry of `inputs`, to a pytree of arrays.
        inputs: a pytree of arrays with a leading axis, one entry a trial.
        batch_size: as in `grid`, at least 1 or None.
        memory: as in `grid`, at least 1.
        devices: as in `grid`.
        progress: as in `grid`.
        store: as in `grid`.

    Returns:
        The trial's pytree of NumPy arrays, each with the leading axis of `inputs`.

    Raises:
        ValueError: there are no trials or no devices, the arrays of `inputs` have unequal lengths,
            `batch_size` or `memory` is less than 1, or `store` is of other trials.
    """
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("devices must be one at least, or None for all.")
    total = _length("inputs", inputs)
    _checks.at_least("memory", memory, 1)
    if batch_size is None:
        batch_size = _batch_size(devices[0].platform, memory, trial, inputs)
    _checks.count("batch_size", batch_size, 1)

    batch_size = min(batch_size, math.ceil(total / len(devices)))
    at_once = batch_size * len(devices)
    # About twenty chunks: often enough to show progress, seldom enough to cost nothing.
    chunk_size = at_once * max(1, math.ceil(total / (20 * at_once)))
    mesh = Mesh(np.array(devices), ("trials",))
    mapped = _compiled(_hashable(trial), batch_size, mesh)

    # A loop over one row would compile to a program that rounds otherwise.
    rows = max(2, chunk_size // len(devices))

    def chunk(members: np.ndarray) -> tuple[Any, jax.Array, np.ndarray]:
        """Inputs with `rows` a device, how many rows of each are `members`, and which these are."""
        shares = np.array_split(members, len(devices))
        counts = np.array([len(share) for share in shares], np.int32)
        # Filled up, so that every chunk has one shape and compiles once.
        filled = np.concatenate([np.append(s, np.full(rows - len(s), members[0])) for s in shares])
        spread = jax.tree.map(lambda x: _spread(x, filled, mesh), inputs)
        return spread, _spread(counts, np.arange(len(devices)), mesh), np.arange(rows) < counts[:, None]

    with jax.set_mesh(mesh):  # The caller may have set another.
        shapes = mapped.eval_shape(*chunk(np.arange(min(chunk_size, total)))[:2])
    _checks.no_float64_on_tpu(devices[0].platform, (inputs, shapes))
    results = jax.tree.map(lambda x: np.zeros((total, *x.shape[1:]), x.dtype), shapes)
    finished = np.zeros(total, bool)
    if store is not None:
        is_first = jax.process_index() == min(device.process_index for device in devices)
        grid_digest = _digest(inputs, results)
        if is_first:
            _recall(store, grid_digest, results, finished)
        if mesh.is_multi_process:
            found = multihost_utils.broadcast_one_to_all((results, finished), is_first)
            results, finished = jax.tree.map(np.array, found)

    remaining = np.flatnonzero(~finished)
    for start in range(0, len(remaining), chunk_size):
        if progress is not None:
            progress(total - len(remaining) + start, total)
        members = remaining[start : start + chunk_size]
        *arguments, is_member = chunk(members)
        with jax.set_mesh(mesh):
            outputs = mapped(*arguments)
        if mesh.is_multi_process:
            outputs = multihost_utils.process_allgather(outputs, tiled=True)
        found = {path: np.asarray(x)[is_member.ravel()] for path, x in _named(outputs).items()}
        for path, whole in _named(results).items():
            whole[members] = found[path]
        if store is not None and is_first:
            name = f"{members[0]}-{members[-1]}"
            store[name] = {"grid": grid_digest, "trials": members, **found}
    if progress is not None:
        progress(total, total)
    return results


def _hashable(trial: Callable) -> Callable:
    """The trial, or another name of it where it has no hash, as a dataclass that holds arrays."""
    try:
        hash(trial)
    except TypeError:
        return functools.partial(trial)
    return trial


@functools.lru_cache(maxsize=32)
def _by_keywords(trial: Callable) -> Callable:
    """The same function for the same trial, so that another call of `grid` finds it compiled."""
    return lambda arguments: trial(**arguments)


@functools.lru_cache(maxsize=32)
def _compiled(trial: Callable, batch_size: int, mesh: Mesh) -> Any:
    def on_one_device(inputs, count):
        if batch_size > 1:
            return jax.lax.map(trial, inputs, batch_size=batch_size)
        return _one_after_another(trial, inputs, count[0])

    over_trials = PartitionSpec("trials")
    mapped = jax.shard_map(
        on_one_device, mesh=mesh, in_specs=over_trials, out_specs=over_trials, check_vma=False
    )
    return jax.jit(mapped)


def _one_after_another(trial: Callable, inputs: Any, count: jax.Array) -> Any:
    """The results of the first `count` rows of `inputs`; zeros for the others."""
    trial = jax.jit(trial)  # Traced once, for its shapes and for its values.
    shapes = jax.eval_shape(trial, jax.tree.map(lambda x: x[0], inputs))
    length = len(jax.tree.leaves(inputs)[0])
    results = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), shapes)

    def put(i, results):
        outputs = trial(jax.tree.map(lambda x: x[i], inputs))
        return jax.tree.map(lambda whole, x: whole.at[i].set(x), results, outputs)

    return jax.lax.fori_loop(0, count, put, results)


def _values(what: str, values: Any) -> Any:
    """The values of an axis as arrays; a list or tuple holds one value after another."""
    if type(values) not in (list, tuple):
        return values
    try:
        if any(isinstance(x, jax.Array) and _is_key(x) for x in values):
            return jnp.stack(values)
        found = np.asarray(values)
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{what} must be a list of alike numbers or keys, but is not: {reason}") from None
    if not any(jnp.issubdtype(found.dtype, kind) for kind in (np.number, np.bool_)):
        raise ValueError(
            f"{what} must be a list of alike numbers or keys, but holds others; a list of pytrees is "
            "stacked first: jax.tree.map(lambda *x: jnp.stack(x), *values)."
        )
    return found


def _length(what: str, tree: Any) -> int:
    """The length of the leading axis that all arrays of a pytree share, at least 1."""
    shapes = [np.shape(x) for x in jax.tree.leaves(tree)]
    if not shapes or not all(shapes):
        raise ValueError(
            f"{what} must hold its values along the leading axis of arrays, but its arrays have the shapes "
            f"{shapes}."
        )
    for x in jax.tree.leaves(tree):
        _check_fits(what, x)
    lengths = {shape[0] for shape in shapes}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(
            f"the arrays of {what} must have one length, at least 1, but have the lengths "
            f"{', '.join(str(shape[0]) for shape in shapes)}."
        )
    return lengths.pop()


def _check_fits(what: str, x: Any) -> None:
    """Raises ValueError where integers are too large for those of JAX, which would wrap them."""
    if isinstance(x, np.ndarray) and np.issubdtype(x.dtype, np.integer):
        kind = jax.dtypes.canonicalize_dtype(x.dtype)
        if np.any(x > np.iinfo(kind).max) or np.any(x < np.iinfo(kind).min):
            raise ValueError(f"{what} must hold integers that {kind} can hold, but they reach {x.max()}.")


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _spread(x: Any, members: np.ndarray, mesh: Mesh) -> jax.Array:
    """The rows `members` of `x`, which every process has, spread over the devices of all."""
    if _is_key(x):
        data = _spread(jax.random.key_data(x), members, mesh)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    rows = np.asarray(x)[members]
    sharding = NamedSharding(mesh, PartitionSpec("trials"))
    return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])


def _recall(store: Store, grid_digest: np.ndarray, results: Any, finished: np.ndarray) -> None:
    """Fills in the results of the trials that `store` holds, and marks these as finished."""
    for name in list(store):
        chunk = store.get(name)
        if chunk is None:  # It was damaged.
            continue
        if "grid" not in chunk or not np.array_equal(chunk["grid"], grid_digest):
            raise ValueError(
                "store must be empty or hold chunks of this grid, but holds some of a grid with other "
                f"inputs or outputs (trials {name})."
            )
        for path, whole in _named(results).items():
            # Files keep the bytes of types that NumPy does not know, as bfloat16, and not their names.
            whole[chunk["trials"]] = chunk[path].view(whole.dtype)
        finished[chunk["trials"]] = True


def _named(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their paths in it."""
    return {
        "output" + jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def _digest(inputs: Any, results: Any) -> np.ndarray:
    """32 bytes that stand for the values of a grid's inputs, and for the shapes of its results."""
    hasher = hashlib.sha256()
    for name, x in [*_named(inputs).items(), *_named(results).items()]:
        hasher.update(f"{name} {x.dtype} {x.shape}".encode())
    for x in jax.tree.leaves(inputs):
        hasher.update(np.ascontiguousarray(jax.random.key_data(x) if _is_key(x) else x).tobytes())
    return np.frombuffer(hasher.digest(), np.uint8)


def _batch_size(platform: str, memory: int, trial: Callable, inputs: Any) -> int:
    """How many trials run at the same time on a device: what they need together fits the memory."""
    if platform == "cpu":
        return 1
    return max(1, int(memory / _bytes_of_a_trial(trial, jax.tree.map(lambda x: x[0], inputs))))


def _bytes_of_a_trial(trial: Callable, one: Any) -> int:
    """What one trial needs while it runs, as its compiled program states it."""
    analysis = jax.jit(trial).lower(one).compile().memory_analysis()
    if analysis is None:
        return DEFAULT_MEMORY
    return max(
        1, analysis.temp_size_in_bytes + analysis.output_size_in_bytes + analysis.argument_size_in_bytes
    )
