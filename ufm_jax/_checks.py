"""Checks of what a caller passes: one sentence that says what was wrong and what is allowed.

Values known only at run time (tracers under `jit` or `vmap`) cannot be checked and pass.
"""

from typing import Any

import chex
import jax
import numpy as np


def is_concrete(*values: Any) -> bool:
    return not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(values))


def _floats(value: Any) -> np.ndarray:
    return np.asarray(value, float)


def positive(name: str, value: Any) -> None:
    if is_concrete(value) and not np.all((_floats(value) > 0) & np.isfinite(_floats(value))):
        raise ValueError(f"{name} must be positive and finite, but is {value}.")


def at_least(name: str, value: Any, low: float) -> None:
    if is_concrete(value) and not np.all((_floats(value) >= low) & np.isfinite(_floats(value))):
        raise ValueError(f"{name} must be finite and at least {low}, but is {value}.")


def within(name: str, value: Any, low: float, high: float) -> None:
    if is_concrete(value) and not np.all((np.asarray(value) >= low) & (np.asarray(value) <= high)):
        raise ValueError(f"{name} must lie between {low} and {high}, but is {value}.")


def scalar(name: str, value: Any) -> None:
    if np.ndim(value) != 0:
        raise ValueError(f"{name} must be a scalar, but has shape {np.shape(value)}.")


def no_float64_on_tpu(platform: str, arrays: Any) -> None:
    """`arrays` is a pytree of what has a dtype."""
    if platform == "tpu" and any(x.dtype == np.float64 for x in jax.tree.leaves(arrays)):
        raise ValueError("a TPU has no float64: the inputs and results of trials must be float32 there.")


def labels_in_range(labels: chex.Array, num_classes: int) -> None:
    """`labels` is a vector of integers in 0..K-1, K at least 2."""
    at_least("num_classes", num_classes, 2)
    if labels.ndim != 1 or labels.shape[0] == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            "labels must be a non-empty vector of integers, "
            f"but have shape {labels.shape} and dtype {labels.dtype}."
        )
    _in_range(labels, num_classes)


def labels_of_logits(labels: Any, logits: Any) -> None:
    """`labels` are integers in 0..K-1, one for each row of `logits` (..., K)."""
    shape, wanted = np.shape(labels), np.shape(logits)[:-1]
    dtype = labels.dtype if hasattr(labels, "dtype") else np.asarray(labels).dtype
    if shape != wanted or not np.issubdtype(dtype, np.integer):
        raise ValueError(
            f"labels must be integers of shape {wanted}, one for each row of logits, "
            f"but have shape {shape} and dtype {dtype}."
        )
    _in_range(labels, np.shape(logits)[-1])


def _in_range(labels: Any, num_classes: int) -> None:
    if is_concrete(labels) and np.size(labels):
        low, high = np.min(np.asarray(labels)), np.max(np.asarray(labels))
        if low < 0 or high >= num_classes:
            raise ValueError(f"labels must lie in 0..{num_classes - 1}, but go from {low} to {high}.")


def every_class_present(labels: chex.Array, num_classes: int) -> None:
    labels_in_range(labels, num_classes)
    if is_concrete(labels):
        counts = np.bincount(np.asarray(labels), minlength=num_classes)
        if np.any(counts == 0):
            raise ValueError(
                f"every one of the {num_classes} classes needs a sample, "
                f"but class {int(np.argmin(counts))} has none."
            )


def pairs_in_every_class(labels: chex.Array) -> None:
    if is_concrete(labels):
        classes, counts = np.unique(np.asarray(labels), return_counts=True)
        if np.any(counts < 2):
            raise ValueError(
                "the supervised contrastive loss needs at least two samples of every class, "
                f"but class {classes[np.argmin(counts)]} has one."
            )


def equal_sizes(what: str, labels: Any, num_classes: int) -> None:
    if is_concrete(labels):
        sizes = np.bincount(np.asarray(labels), minlength=num_classes)
        if np.any(sizes != sizes[0]):
            raise ValueError(f"{what} need classes of equal size, but sizes are {sizes.tolist()}.")


def row_a_label(features: Any, labels: Any) -> None:
    if features.ndim != 2 or features.shape[0] != labels.shape[0]:
        raise ValueError(
            f"features must be a matrix with a row a label, but have shape {features.shape} "
            f"for {labels.shape[0]} labels."
        )
