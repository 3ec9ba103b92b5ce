"""Neural collapse metrics of features that arrive in batches, in any order and of any framework.

What can be gone over twice, as a list, a PyTorch `DataLoader`, or a function that makes batches anew, is
measured by `measure_batches`:

    >>> W = ufm.theory.simplex_etf(3, dim=4)
    >>> batches = [(W[labels], labels) for labels in jnp.array([[0, 1, 2], [2, 0, 1]])]
    >>> found = ufm.streaming.measure_batches(batches, 3, W)
    >>> print(f"NC1 {found.nc1:.4f}, NC3 {found.nc3:.4f}, NC4 {found.nc4:.4f}")
    NC1 0.0000, NC3 0.0000, NC4 1.0000

It takes two passes. The between-class covariance and the nearest means are known only once every class mean
is, so the first pass gathers the means and the second what is measured about them. In a loop of one's own,
each is a value with a method that returns the next, and only what `second_pass` returns has metrics:

    >>> first = ufm.streaming.first_pass(num_classes=3, dim=4)
    >>> for features, labels in batches:
    ...     first = first.add(features, labels)
    >>> second = first.second_pass(W)
    >>> for features, labels in batches:
    ...     second = second.add(features, labels)
    >>> print(f"NC1 {second.metrics()['nc1']:.4f}")
    NC1 0.0000

Both are pytrees and their methods pure, so they work as the carry of a `jax.lax.scan`. A network runs once
where its features are kept, N x d, and else once for each pass. Memory is O(K d) beside them, and d x d
where the squared error is asked for.

The definitions are those of `ufm_jax.metrics`, and so are the arrays that it takes. That module squares
class means to (M M^T)^+, which suits float64; in float32 M is decomposed itself here, which loses half as
many digits. All sums are about the first sample of a class: what the features share, as all of them do
after a ReLU, is subtracted before anything is rounded, and costs no digits but in the parts of the squared
error of a classifier without a bias, which are of the features themselves.

Reference, for two passes and the shift: Chan, Golub, LeVeque, *Algorithms for Computing the Sample
Variance*, American Statistician 1983.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import ArrayLike

from ufm_jax import _checks
from ufm_jax.metrics import classes
from ufm_jax.metrics.measurement import Batches, Measurement, measured
from ufm_jax.metrics.passes import FirstPass, SecondPass

__all__ = ["FirstPass", "SecondPass", "first_pass", "layer_inputs", "measure", "measure_batches", "tokens"]


def first_pass(num_classes: int, dim: int, dtype: DTypeLike = np.float32) -> FirstPass:
    """The first pass, still without a sample.

    Args:
        num_classes: K, at least 2.
        dim: d, at least 1.
        dtype: floating type of the sums, float32 or, where JAX has enabled it, float64; they keep it
            whatever the features have.

    Returns:
        The pass, in memory of 2 K d numbers.

    Raises:
        ValueError: a size is too small, or `dtype` is another.
    """
    _checks.count("num_classes", num_classes, 2)
    _checks.count("dim", dim, 1)
    return FirstPass(classes.no_sums(num_classes, dim, _dtype_of_sums(dtype)))


def _dtype_of_sums(dtype: DTypeLike) -> np.dtype:
    try:
        found: Any = np.dtype(dtype)
    except TypeError:  # Not the name of any.
        found = dtype
    if found not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64, but is {found}.")
    return found


def measure_batches(
    batches: Batches,
    num_classes: int,
    W: Any = None,
    bias: Any = None,
    *,
    dtype: DTypeLike = np.float64,
    outside: Any = None,
    absent: classes.Absent = "error",
    decisions: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Measurement:
    """All metrics of batches, which are gone over twice.

    Args:
        batches: pairs of features (B, d) and labels, integers (B,), of NumPy, JAX or PyTorch; a list or a
            data loader, or a function that returns an iterator over the same samples each time.
        num_classes: K, at least 2.
        W: classifier rows, (K, d), as any of these; what needs them is not measured if None.
        bias: of the classifier, (K,).
        dtype: floating type that it computes in: float64, on the host and whatever JAX is set to, so that
            the numbers are those of `ufm_jax.metrics.measure`; or float32, on the device of the features,
            in half the time and memory, which costs small values some digits.
        outside: features of samples out of distribution, (M, d), for NC5; not measured if None.
        absent: "skip" leaves out classes without a sample, and tells how many.
        decisions: whether every sample is held against every class, for NC4, accuracy and the directional
            CDNV: N K d products, most of the work for thousands of classes.
        progress: called with a line of text after each batch, such as `print`; None for silence.

    Returns:
        A `Measurement`, as from `ufm_jax.metrics.measure`.

    Raises:
        ValueError: a batch does not fit, a class has no sample, the two passes did not go over the same
            samples, or `batches` can be gone over only once.
    """
    _checks.count("num_classes", num_classes, 2)
    return measured(
        batches,
        num_classes,
        W,
        bias,
        dtype=_dtype_of_sums(dtype),
        outside=outside,
        absent=absent,
        decisions=decisions,
        progress=progress,
    )


def measure(
    W: ArrayLike,
    features: ArrayLike,
    labels: ArrayLike,
    batch_size: int = 1024,
    bias: ArrayLike | None = None,
) -> dict[str, jax.Array]:
    """The metrics of features kept on the device, in blocks, as one program that also runs under `jit`.

    It leaves out what needs more than O(K d) memory, the squared error, and what is a search, GNC2.

    Args:
        W: classifier rows, (K, d), K at least 2.
        features: (N, d).
        labels: classes in 0..K-1, integers (N,), at least one sample of each.
        batch_size: rows of a block, at least 1; temporary memory is a few blocks.
        bias: of the classifier, (K,); none if None.

    Returns:
        Scalars in the dtype of the features, by the names of `ufm_jax.metrics.Measurement`. Under `jit`,
        what is not used is not computed.

    Raises:
        ValueError: W is not a matrix of at least two rows, features are not one with as many columns, a
            label is out of range or a class has no sample (checked outside `jit`), or `batch_size` is less
            than 1.
    """
    _checks.count("batch_size", batch_size, 1)
    W = classes.classifier(W)
    num_classes, dim = W.shape
    # Only a block of them at a time is made wider.
    features = jnp.asarray(_checks.matrix("features", features, columns=dim))
    labels = _checks.class_labels(labels, num_classes, shape=features.shape[:1])
    _checks.every_class_present(labels, num_classes)
    return _measured_in_blocks(W, features, labels, batch_size, classes.bias_of(bias, num_classes))


@functools.partial(jax.jit, static_argnums=3)
def _measured_in_blocks(
    W: jax.Array, features: jax.Array, labels: jax.Array, batch_size: int, bias: jax.Array | None
) -> dict[str, jax.Array]:
    num_classes, dim = W.shape
    full = len(labels) // batch_size * batch_size

    def fold(start):
        def of_block(carry, block):
            return carry.add(*block), None

        blocks = jax.tree.map(lambda x: x[:full].reshape(-1, batch_size, *x.shape[1:]), (features, labels))
        carry, _ = jax.lax.scan(of_block, start, blocks)
        return carry.add(features[full:], labels[full:]) if full < len(labels) else carry

    first = fold(first_pass(num_classes, dim, _checks.real_dtype(features.dtype)))
    found = fold(first.second_pass(W, bias)).metrics()
    return {name: value for name, value in found.items() if not name.startswith(("squared_error", "nc5"))}


def layer_inputs(model: Any, layer: Any, batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """What goes into a layer of a PyTorch model, with the labels, a batch after the other.

    Of the last linear layer these are the penultimate features. Their classifier is the layer itself:
    `W=layer.weight` and `bias=layer.bias`. Call it under `torch.no_grad()` and after `model.eval()`.

    Args:
        model: called with the inputs of each batch; PyTorch is not imported here.
        layer: one of its modules, with `register_forward_pre_hook`, which runs once when the model runs.
        batches: pairs of inputs and labels, such as a `DataLoader`; inputs on the device of the model.

    Returns:
        An iterator over pairs of features, as the layer gets them, and labels; the hook is removed at the
        end.

    Raises:
        ValueError: the layer did not run exactly once.

    Reference: docs/training_loop.md.
    """
    seen: list[Any] = []
    hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        for inputs, labels in batches:
            seen.clear()
            model(inputs)
            if len(seen) != 1:
                raise ValueError(f"layer must run once when the model runs, but ran {len(seen)} times.")
            yield seen.pop(), labels
    finally:
        hook.remove()


def tokens(
    hidden: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None, *, ignored: int = -100
) -> tuple[np.ndarray, np.ndarray]:
    """The positions of sequences that count, one below the other, as features and labels.

    Args:
        hidden: states of a model, (N, T, d); of NumPy, JAX or PyTorch, on any device.
        labels: the class of each position, integers (N, T). For a causal language model they are the next
            tokens: pass `hidden[:, :-1]`, `labels[:, 1:]` and `mask[:, 1:]`.
        mask: (N, T), nonzero where a position counts, as `attention_mask` has it; all count if None.
        ignored: a label that marks positions that do not count, at most -1 as a rule.

    Returns:
        Features (M, d) and labels (M,) of the M positions that count, in order.

    Raises:
        ValueError: the shapes do not fit.

    >>> features, labels = ufm.streaming.tokens(np.ones((2, 3, 4)), [[0, 1, -100], [2, 2, 1]], np.eye(2, 3))
    >>> print(features.shape, labels)
    (2, 4) [0 2]

    Reference: Wu, Papyan, *Linguistic Collapse*, NeurIPS 2024.
    """
    found, classes_ = (np.asarray(_checks.array(*x)) for x in (("hidden", hidden), ("labels", labels)))
    counts = np.ones_like(classes_) if mask is None else np.asarray(_checks.array("mask", mask))
    if found.ndim < 2 or not found.shape[:-1] == classes_.shape == counts.shape:
        raise ValueError(
            f"labels and mask must have the shape {found.shape[:-1]} of the positions of hidden, but have "
            f"shapes {classes_.shape} and {counts.shape}."
        )
    keep = (classes_ != ignored) & (counts != 0)
    return found[keep], classes_[keep]
