"""Checks of what a caller passes: one sentence that says what was wrong and what is allowed.

Values known only at run time (tracers under `jit` or `vmap`) cannot be checked and pass.
"""

import dataclasses
import operator
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def with_plain_numbers(instance: Any) -> None:
    """Makes NumPy's scalars in a dataclass Python's, which take the dtype of the arrays beside them."""
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if isinstance(value, np.generic):
            object.__setattr__(instance, field.name, value.item())


def is_concrete(*values: Any) -> bool:
    """Whether all values can be read here and now; those that lie on devices of other processes cannot."""

    def can_be_read(x: Any) -> bool:
        if isinstance(x, jax.core.Tracer):
            return False
        return not isinstance(x, jax.Array) or x.is_fully_addressable

    return all(map(can_be_read, jax.tree.leaves(values)))


def _floats(name: str, value: Any) -> np.ndarray:
    if isinstance(value, int) and abs(value) >= 2**63:  # Which NumPy's integers cannot hold.
        return np.asarray(np.inf if value > 0 else -np.inf)
    return np.asarray(array(name, value), float)


def array(name: str, value: Any) -> np.ndarray | jax.Array:
    """`value` as an array of real numbers; a PyTorch tensor is taken off its graph and its device first."""
    found = value
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(f"{name} must be an array without a mask: select the rows that count.")
    if not isinstance(value, (jax.Array, np.ndarray)):
        if hasattr(value, "detach") and hasattr(value, "cpu"):
            value = value.detach().cpu()
            if str(value.dtype) == "torch.bfloat16":  # Which NumPy lacks.
                value = value.float()
        try:
            found = np.asarray(value) if is_concrete(value) else jnp.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{name} cannot be read as an array: {reason}") from None
    if not any(jnp.issubdtype(found.dtype, kind) for kind in (np.floating, np.integer, np.bool_)):
        raise ValueError(
            f"{name} must be an array of real numbers, but has shape {found.shape} and dtype {found.dtype}."
        )
    return found


def matrix(name: str, value: Any, *, rows: int = 1, columns: int | None = None) -> np.ndarray | jax.Array:
    """`value` as an array of real numbers with two axes, at least so many rows, and `columns` if given."""
    found = array(name, value)
    if found.ndim != 2 or found.shape[0] < rows or found.shape[1] == 0:
        least = {0: "", 1: " of at least one row", 2: " of at least two rows"}[rows]
        raise ValueError(f"{name} must be a matrix{least}, but has shape {found.shape}.")
    if columns is not None and found.shape[1] != columns:
        raise ValueError(f"{name} must have a column a dimension, {columns}, but has shape {found.shape}.")
    return found


def floating(name: str, value: Any) -> jax.Array:
    """`value` as an array of floats: integers and booleans become JAX's default float."""
    found = array(name, value)
    return jnp.asarray(found, None if jnp.issubdtype(found.dtype, np.floating) else float)


def real(name: str, value: Any) -> jax.Array:
    """`value` as an array of the floats that metrics compute in, `real_dtype`."""
    found = array(name, value)
    return jnp.asarray(found, real_dtype(found.dtype))


def real_dtype(dtype: Any) -> np.dtype:
    """The one rule of the metrics on dtypes.

    Integers and booleans become JAX's default float (float32, or float64 where it is enabled), floats
    narrower than float32 become float32, and the others stay what they are.
    """
    is_narrow = jnp.issubdtype(dtype, np.floating) and np.dtype(dtype).itemsize <= 4
    return jax.dtypes.canonicalize_dtype(np.float32 if is_narrow else np.float64)


def _require(name: str, value: Any, holds: Callable[[np.ndarray], Any], words: str) -> None:
    if is_concrete(value) and not np.all(holds(_floats(name, value))):
        raise ValueError(f"{name} must {words}, but is {value}.")


def positive(name: str, value: Any) -> None:
    _require(name, value, lambda x: (x > 0) & np.isfinite(x), "be positive and finite")


def at_least(name: str, value: Any, low: float) -> None:
    _require(name, value, lambda x: (x >= low) & np.isfinite(x), f"be finite and at least {low}")


def finite(name: str, values: Any) -> None:
    if is_concrete(values) and not np.all(np.isfinite(_floats(name, values))):
        raise ValueError(f"{name} must be finite, but some are not.")


def count(name: str, value: Any, low: int) -> None:
    """That a static number is a whole one, at least `low`."""
    try:
        operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, but is {value!r}.") from None
    at_least(name, value, low)


def within(name: str, value: Any, low: float, high: float) -> None:
    _require(name, value, lambda x: (x >= low) & (x <= high), f"lie between {low} and {high}")


def one_of(name: str, value: Any, allowed: Collection[str]) -> None:
    """Of a word, that it is one of the `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, but is {value!r}.")


def scalar(name: str, value: Any) -> None:
    if np.ndim(value) != 0:
        raise ValueError(f"{name} must be a scalar, but has shape {np.shape(value)}.")


def positive_scalar(name: str, value: Any) -> None:
    scalar(name, value)
    positive(name, value)


def no_float64_on_tpu(platform: str, arrays: Any) -> None:
    """`arrays` is a pytree of what has a dtype."""
    if platform == "tpu" and any(x.dtype == np.float64 for x in jax.tree.leaves(arrays)):
        raise ValueError("a TPU has no float64: the inputs and results of trials must be float32 there.")


def class_labels(
    labels: Any,
    num_classes: int | None = None,
    *,
    shape: tuple[int, ...] | None = None,
    rows_of: str = "features",
    name: str = "labels",
) -> jax.Array:
    """The one check of labels, for all that take them; they come back as int32.

    They are integers in 0..K-1 (without `num_classes`, of any size) and have `shape`, one for each row of
    the argument called `rows_of`; without `shape`, they are a non-empty vector.
    """
    found = array(name, labels)
    fits = found.shape == shape if shape is not None else found.ndim == 1 and found.size > 0
    if not fits or not np.issubdtype(found.dtype, np.integer):
        wanted = (
            "a non-empty vector of integers"
            if shape is None
            else f"integers of shape {shape}, one for each row of {rows_of}"
        )
        raise ValueError(f"{name} must be {wanted}, but have shape {found.shape} and dtype {found.dtype}.")
    if is_concrete(found) and found.size:
        low, high = np.min(np.asarray(found)), np.max(np.asarray(found))
        top = np.iinfo(np.int32).max if num_classes is None else num_classes - 1
        if low < 0 or high > top:
            raise ValueError(f"{name} must lie in 0..{top}, but go from {low} to {high}.")
    # One-hot rows made in a narrower type would take class 256 for class 0.
    if isinstance(found, jax.core.Tracer):
        return found.astype(jnp.int32)
    with jax.ensure_compile_time_eval():  # What is known stays known, also inside `jit`.
        return jnp.asarray(found, jnp.int32)


def labels_or_targets(labels: Any, num_classes: int) -> jax.Array:
    """`class_labels`, or floating targets (N, K) as they are."""
    found = array("labels", labels)
    if found.ndim != 2 or not jnp.issubdtype(found.dtype, np.floating):
        return class_labels(labels, num_classes)
    if len(found) == 0 or found.shape[1] != num_classes:
        raise ValueError(
            f"targets must have a row a sample and {num_classes} columns, but have shape {found.shape}."
        )
    finite("targets", found)
    return jnp.asarray(found)


def every_class_present(labels: jax.Array | np.ndarray, num_classes: int, hint: str = "") -> None:
    if is_concrete(labels):
        present = np.unique(np.asarray(labels))
        if len(present) < num_classes:
            gaps = np.append(present, num_classes) != np.arange(len(present) + 1)
            raise ValueError(
                f"every one of the {num_classes} classes needs a sample, but class "
                f"{int(np.argmax(gaps))} has none{hint}."
            )


def pairs_in_every_class(labels: jax.Array) -> None:
    if is_concrete(labels):
        classes, counts = np.unique(np.asarray(labels), return_counts=True)
        if np.any(counts < 2):
            raise ValueError(
                "the supervised contrastive loss needs at least two samples of every class, "
                f"but class {classes[np.argmin(counts)]} has one."
            )


def equal_sizes(what: str, labels: Any, num_classes: int) -> None:
    if np.ndim(labels) != 1:
        raise ValueError(f"{what} need a class a sample, integer labels, and no targets.")
    if is_concrete(labels):
        sizes = np.bincount(np.asarray(labels), minlength=num_classes)
        if np.any(sizes != sizes[0]):
            raise ValueError(f"{what} need classes of equal size, but sizes are {sizes.tolist()}.")
