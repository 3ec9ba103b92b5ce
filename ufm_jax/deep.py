"""Deep unconstrained feature models: free features, then several layers, linear or with an activation.

    logits = W_L s(W_{L-1} ... s(W_1 h)),    mean loss + sum_l decay_l/2 |W_l|^2 + feature_decay/2 |H|^2

With L = 1 it is `ufm_jax.regularized`. The global minimum of the linear model under squared error is
`ufm_jax.theory.deep_linear_minimum`. With ReLU and classes of equal size the same value is attained by a
collapse in every layer, whose class means are orthogonal; it need not be the lowest.

References: Tirer, Bruna, *Extended Unconstrained Features Model*, ICML 2022 (two layers); Dang et al.,
*Neural Collapse in Deep Linear Networks*, ICML 2023; Súkeník, Mondelli, Lampert, *Deep Neural Collapse Is
Provably Optimal for the Deep Unconstrained Features Model*, NeurIPS 2023, and *Neural Collapse versus
Low-rank Bias: Is Deep Neural Collapse Really Optimal?*, NeurIPS 2024 (ReLU).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from ufm_jax import _checks, losses, metrics
from ufm_jax._products import matmul, norm, power_of_two
from ufm_jax.problems import Loss, _by_value, _check_loss
from ufm_jax.riemannian.manifolds import Euclidean, Manifold
from ufm_jax.riemannian.objective import Objective


class DeepPoint(NamedTuple):
    """Weights W_1 (d_2, d_1) to W_L (K, d_L), a tuple, the first layer first; and features H (N, d_1)."""

    weights: Any
    H: Any


class LayerMetrics(NamedTuple):
    """Collapse of the features that enter each layer, (L,) each; 0 is collapse.

    Attributes:
        nc1: `metrics.nc1`, variability within the classes.
        nc2: of the class means less the mean of all samples the distance from a simplex ETF, `metrics.nc2`.
        orthogonality: distance of the Gram matrix M M^T of the class means from the identity, both of
            Frobenius norm 1.
    """

    nc1: jax.Array
    nc2: jax.Array
    orthogonality: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeepProblem(Objective):
    """An objective made by `problem`, which checks its arguments. Derivatives are those of JAX.

    `labels` and `decay` are leaves, and may carry a batch axis under `vmap`.
    """

    labels: jax.Array
    decay: DeepPoint
    num_classes: int = dataclasses.field(metadata={"static": True})
    loss: Loss = dataclasses.field(metadata={"static": True})
    activation: Callable[[jax.Array], jax.Array] | None = dataclasses.field(metadata={"static": True})
    manifold: Manifold = dataclasses.field(default=Euclidean())

    @property
    def depth(self) -> int:
        """The number of layers, L."""
        return len(self.decay.weights)

    def random_point(
        self, key: jax.Array, widths: int | Sequence[int], dtype: DTypeLike | None = None
    ) -> DeepPoint:
        """A random start: normal entries, of variance 1 in H and 1/d_l in W_l, so that layers keep sizes.

        Args:
            key: random key.
            widths: d_1 to d_L, the columns of each layer's weights; one number if all are equal.
            dtype: floating type; JAX's default if None.

        Returns:
            The point.

        Raises:
            ValueError: a width is no integer or below 1, or there is not one for each layer.
        """
        widths = list(widths) if np.iterable(widths) else [widths] * self.depth
        for width in widths:
            _checks.count("a width", width, 1)
        if len(widths) != self.depth:
            raise ValueError(f"widths must be {self.depth}, one a layer, but are {len(widths)}.")
        dtype = jax.dtypes.canonicalize_dtype(dtype or float)
        shapes = zip([*widths[1:], self.num_classes], widths, strict=True)
        weights = tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)
        H = jax.ShapeDtypeStruct((len(self.labels), widths[0]), dtype)
        point = self.manifold.random_point(key, DeepPoint(weights, H))
        return point._replace(weights=tuple(W / W.shape[1] ** 0.5 for W in point.weights))

    def check_point(self, point: DeepPoint) -> None:
        """Raises ValueError where `point` does not fit the problem."""
        if not isinstance(point, DeepPoint):
            raise ValueError(
                f"a point of this problem is a DeepPoint(weights, H), but this is a {type(point).__name__}."
            )
        if any(np.ndim(x) != 2 for x in (*point.weights, point.H)):
            shapes = ", ".join(str(np.shape(x)) for x in (*point.weights, point.H))
            raise ValueError(f"weights and H of a point must be matrices, but have shapes {shapes}.")
        super().check_point(point)
        rows = [*(W.shape[0] for W in point.weights), len(point.H)]
        columns = [*(W.shape[1] for W in point.weights), point.H.shape[1]]
        wanted = [*columns[1:-1], self.num_classes, len(self.labels)]
        if len(point.weights) != self.depth or rows != wanted or columns[0] != columns[-1]:
            shapes = ", ".join(str(W.shape) for W in point.weights)
            raise ValueError(
                f"the point must have {self.depth} weights W_1 (d_2, d_1) to W_L ({self.num_classes}, d_L) "
                f"and H ({len(self.labels)}, d_1), but has weights {shapes} and H {point.H.shape}."
            )

    def features(self, point: DeepPoint) -> list[jax.Array]:
        """The features that enter each layer, (N, d_l): H first, those of the classifier W_L last."""
        found = [point.H]
        for W in point.weights[:-1]:
            x = matmul(found[-1], W.T)
            found.append(x if self.activation is None else self.activation(x))
        return found

    def scores(self, point: DeepPoint) -> jax.Array:
        """The logits at `point`, (N, K)."""
        return matmul(self.features(point)[-1], point.weights[-1].T)

    def cost(self, point: DeepPoint) -> jax.Array:
        """The objective at `point`, a scalar."""
        rates = jax.tree.leaves(self.decay)
        parts = jax.tree.leaves(point)
        decays = sum(
            jnp.asarray(rate, x.dtype) * jnp.sum(x**2) for rate, x in zip(rates, parts, strict=True)
        )
        return jnp.mean(self.loss(self.scores(point), self.labels)) + decays / 2

    def measure(self, point: DeepPoint) -> LayerMetrics:
        """The collapse of the features that enter each layer, for integer labels.

        Args:
            point: of the problem.

        Returns:
            `LayerMetrics`, each (L,).

        Raises:
            ValueError: the problem has targets for labels, or a class has no sample (outside `jit`).
        """
        by_layer = []
        for x in self.features(point):
            means = metrics.class_means(x, self.labels, self.num_classes, global_mean=None)
            centred = metrics.class_means(x, self.labels, self.num_classes)
            nc1 = metrics.nc1(x, self.labels, self.num_classes)
            by_layer.append([nc1, metrics.nc2(centred), _from_frame(means)])
        return LayerMetrics(*(jnp.stack(values) for values in zip(*by_layer, strict=True)))


def problem(
    labels: jax.Array,
    num_classes: int,
    weight_decay: Sequence[ArrayLike] = (1e-3, 1e-3),
    feature_decay: ArrayLike = 1e-3,
    loss: Loss = losses.squared_error,
    activation: Callable[[jax.Array], jax.Array] | None = None,
) -> DeepProblem:
    """The deep UFM of as many layers as there are weight decays.

    Args:
        labels: classes in 0..K-1, integers (N,); or targets (N, K) for a loss that takes them.
        num_classes: K, at least 2.
        weight_decay: of W_1 to W_L, each at least 0.
        feature_decay: of H, at least 0.
        loss: per-sample loss of logits (N, K) and labels (N,).
        activation: between the layers, a function of arrays entry by entry, such as `jax.nn.relu`; the
            model is linear if None. H itself is free.

    Returns:
        The problem, on Euclidean space; its points are `DeepPoint(weights, H)`.

    Raises:
        ValueError: K < 2, a label out of range, no weight decay, a decay that is negative (checked outside
            `jit`) or no scalar, or a loss of another shape than (N,).

    Example:
        >>> problem = ufm.deep.problem(ufm.balanced_labels(3, 2), 3, weight_decay=[1e-3] * 3)
        >>> start = problem.random_point(jax.random.key(0), widths=4)
        >>> [W.shape for W in start.weights], start.H.shape
        ([(4, 4), (4, 4), (3, 4)], (6, 4))
        >>> print(problem.measure(start).nc1.shape)
        (3,)
    """
    _checks.count("num_classes", num_classes, 2)
    labels = _checks.labels_or_targets(labels, num_classes)
    rates = tuple(weight_decay) if np.iterable(weight_decay) else ()
    if not rates:
        raise ValueError("weight_decay must be a sequence of one for each of at least one layer.")
    for name, rate in [*(("weight_decay", rate) for rate in rates), ("feature_decay", feature_decay)]:
        _checks.scalar(name, rate)
        _checks.at_least(name, rate, 0)
    loss = _by_value(loss)
    _check_loss(loss, labels, num_classes)
    decay = DeepPoint(rates, feature_decay)
    return DeepProblem(labels, decay, num_classes, loss, activation)


def _from_frame(means: jax.Array) -> jax.Array:
    """How far the Gram matrix of the rows is from the identity, each of norm 1; 1 where it is zero."""
    means = means / power_of_two(jnp.max(jnp.abs(means)))  # Else tiny or huge squares are 0 or infinite.
    gram = matmul(means, means.T)
    size, k = norm(gram), len(gram)
    return norm(gram / jnp.where(size > 0, size, 1) - jnp.eye(k, dtype=gram.dtype) / k**0.5)
