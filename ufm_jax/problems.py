"""The optimization problems of the paper over unconstrained features, as pure functions of a point.

The normalized UFM is the paper's problem (4), and its derivatives are those of Appendix B.1.
Every problem here has one shape: an expensive bilinear part, the scores of the samples, and a cheap rest,

    cost(point) = mean_i loss(scores(point)_i, label_i) + decays.

The split shows where the time goes: a gradient needs three N x K x d products, one for the scores and two
to carry the loss's slopes back. An `Evaluation` is the first third, made once a point and kept. A `Problem`
is a pytree (labels, tau, the decays and the metric's weights are leaves), so it passes through `jit` and
`vmap` like any array.

The scores of all samples are N x K numbers, K/d times as many as the features. Where they would not fit, a
`block_size` makes those of so many samples at a time, and drops them: some samples with all of W are a
problem of the same kind, and the cost, its gradient and its Hessian are sums over such parts. A gradient
then makes its scores again, a fourth product, and a Hessian a seventh.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike, DTypeLike

from ufm_jax import _checks, losses
from ufm_jax._blocks import over_blocks
from ufm_jax._products import matmul, transposed_matmul
from ufm_jax.riemannian.manifolds import Euclidean, Manifold, Oblique, Product, Tree, Weighted
from ufm_jax.riemannian.objective import Evaluation, Objective

Loss = Callable[[jax.Array, jax.Array], jax.Array]
"""A loss per sample: logits (N, K), and labels (N,) or targets (N, K), to (N,)."""


class Point(NamedTuple):
    """Where a problem lives: classifier rows W (K, d), or None without a classifier; features H (N, d).

    Anything with one part for W and one for H is one too: tangent vectors, weights, shapes, shardings.
    """

    W: Any
    H: Any


class BiasedPoint(NamedTuple):
    """A point of a problem with a bias: W (K, d) and H (N, d) as in `Point`, and the bias b (K,)."""

    W: Any
    H: Any
    b: Any


AnyPoint = Point | BiasedPoint
"""A point of a problem, or what has a part for each of its parts."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem(Objective):
    """Minimize `mean_i loss(scores_i, labels_i) + decay.W/2 |W|^2 + decay.H/2 |H|^2` over a manifold.

    Made by `normalized`, `regularized` and `contrastive`, which check their arguments. `labels`, `tau`,
    `decay` and the weights of the manifold's metric are leaves and may carry a batch axis under `vmap`; the
    other fields are static. The cache of an evaluation is G, the gradient of the mean loss in the scores,
    (N, K), or (N, N) without a classifier: it shares its exponentials with the loss, so it is made with
    it. It is None where scores are made in blocks.
    """

    labels: jax.Array
    tau: ArrayLike
    decay: AnyPoint | None
    num_classes: int = dataclasses.field(metadata={"static": True})
    loss: Loss = dataclasses.field(metadata={"static": True})
    manifold: Manifold
    has_classifier: bool = dataclasses.field(metadata={"static": True})
    block_size: int | None = dataclasses.field(default=None, metadata={"static": True})
    """Samples (of each shard) whose scores exist at one time; all of them if None."""
    shards: int = dataclasses.field(default=1, metadata={"static": True})
    """Equal runs of samples that go through their blocks side by side, one a device: `ufm_jax.sharding`."""
    has_bias: bool = dataclasses.field(default=False, metadata={"static": True})

    def random_point(self, key: jax.Array, dim: int, dtype: DTypeLike | None = None) -> Any:
        """A random start: uniform on the spheres, or standard normal entries where there are none.

        Args:
            key: random key.
            dim: d, at least 1. A warning is given for d < K - 1, where no simplex ETF fits.
            dtype: floating type; JAX's default if None.

        Returns:
            `Point(W=(K, d), H=(N, d))`, W None for a contrastive problem; with a bias
            `BiasedPoint(W=(K, d), H=(N, d), b=(K,))`.

        Raises:
            ValueError: d < 1.
        """
        _checks.count("dim", dim, 1)
        if dim < self.num_classes - 1:
            warnings.warn(
                f"dim is {dim}, but a simplex ETF of {self.num_classes} classes needs at least "
                f"{self.num_classes - 1} dimensions: neural collapse is out of reach.",
                stacklevel=2,
            )
        dtype = jax.dtypes.canonicalize_dtype(dtype or float)
        W = jax.ShapeDtypeStruct((self.num_classes, dim), dtype) if self.has_classifier else None
        H = jax.ShapeDtypeStruct((len(self.labels), dim), dtype)
        b = jax.ShapeDtypeStruct((self.num_classes,), dtype)
        return self.manifold.random_point(key, BiasedPoint(W, H, b) if self.has_bias else Point(W, H))

    @property
    def is_normalized(self) -> bool:
        """Whether classifier rows and features are both unit vectors."""
        manifold = self.manifold.manifold if isinstance(self.manifold, Weighted) else self.manifold
        return self.has_classifier and isinstance(manifold, Oblique)

    def check_point(self, point: AnyPoint) -> None:
        """Raises ValueError where `point` does not fit the problem or, outside `jit`, its manifold."""
        if not isinstance(point, BiasedPoint if self.has_bias else Point):
            kind = "BiasedPoint(W, H, b)" if self.has_bias else "Point(W, H), without a bias"
            raise ValueError(f"a point of this problem is a {kind}, but this is a {type(point).__name__}.")
        W, H = point.W, point.H
        if not all(hasattr(x, "dtype") for x in jax.tree.leaves(point)):
            raise ValueError(
                "the point must hold arrays, Point(W=(K, d), H=(N, d)), but holds other things."
            )
        fits = (W is not None) == self.has_classifier and H.ndim == 2 and len(H) == len(self.labels)
        if fits and W is not None:
            fits = W.shape == (self.num_classes, H.shape[1]) and W.dtype == H.dtype
        if not fits or not jnp.issubdtype(H.dtype, jnp.floating):
            wanted = f"({self.num_classes}, d)" if self.has_classifier else "None"
            found = None if W is None else f"{W.shape} {W.dtype}"
            raise ValueError(
                f"the point must be floating, with W {wanted} and H ({len(self.labels)}, d) of one dtype, "
                f"but has W {found} and H {H.shape} {H.dtype}."
            )
        if isinstance(point, BiasedPoint):
            b = point.b
            if b.shape != (self.num_classes,) or b.dtype != H.dtype:
                wanted = f"({self.num_classes},) {H.dtype}"
                raise ValueError(f"the bias of the point must be {wanted}, but is {b.shape} {b.dtype}.")
        super().check_point(point)

    def scores(self, point: AnyPoint) -> jax.Array:
        """`tau H W^T` (N, K), plus the bias if there is one; without a classifier `tau^2 H H^T` (N, N)."""
        scores = self._scale(point) * matmul(point.H, self._against(point).T)
        return scores + point.b if isinstance(point, BiasedPoint) else scores

    def rounding_size(self, evaluation: Evaluation) -> jax.Array:
        """The larger of the cost and the largest score that rows of these lengths can have, at least 1.

        The cost is a mean of differences of scores, each an inner product rounded at that size.
        """
        point = evaluation.point
        size = self._scale(point)
        if not self.is_normalized and self.has_classifier:
            longest = [jnp.sqrt(jnp.max(jnp.sum(x**2, -1))) for x in (point.H, self._against(point))]
            size = size * longest[0] * longest[1]
        if isinstance(point, BiasedPoint):
            size = size + jnp.max(jnp.abs(point.b))
        return jnp.maximum(jnp.maximum(size, jnp.abs(evaluation.value)), 1)

    def cost(self, point: AnyPoint) -> jax.Array:
        """The objective at `point`, a scalar; it holds anywhere in the ambient space."""
        if self.block_size is None:
            mean_loss = self.mean_loss(self.scores(point))
        else:
            zero = jnp.zeros((), point.H.dtype)
            mean_loss, _ = self._over_blocks(lambda part, x: (part.cost(x), None), zero, point)
        return mean_loss + self._decays(point)

    def evaluate(self, point: AnyPoint) -> Evaluation:
        """The forward pass at `point`: one product."""
        if self.block_size is not None:
            return Evaluation(point, self.cost(point), None)
        mean_loss, G = jax.value_and_grad(self.mean_loss)(self.scores(point))
        return Evaluation(point, mean_loss + self._decays(point), G)

    def euclidean_gradient(self, evaluation: Evaluation) -> AnyPoint:
        """The gradient of `cost` in the ambient space, given the forward pass: two products.

        It is `tau G^T H` for W and `tau G W` for H (equation (15)). In blocks it makes three products.
        """
        point, G = evaluation.point, evaluation.cache
        if G is not None:
            return self._pull_back(point, G)

        def of_block(part: Problem, x: AnyPoint) -> AnyPoint:
            return part.euclidean_gradient(part.evaluate(x))

        return self._with_decays(self._vector_over_blocks(of_block, point), point)

    def euclidean_hessian(self, evaluation: Evaluation) -> Callable[[AnyPoint], AnyPoint]:
        """The Hessian of `cost` in the ambient space, a linear map, given the forward pass: six products.

        In blocks it makes seven products.
        """
        point, G = evaluation.point, evaluation.cache
        if self.block_size is not None:

            def of_block(part: Problem, x: AnyPoint, tangent: AnyPoint) -> AnyPoint:
                return part.euclidean_hessian(evaluation._replace(point=x))(tangent)

            return lambda tangent: self._with_decays(
                self._vector_over_blocks(of_block, point, tangent), tangent
            )

        slopes, curvature = jax.linearize(jax.grad(self.mean_loss), self.scores(point))
        G = slopes if G is None else G

        def apply(tangent: AnyPoint) -> AnyPoint:
            _, scores_change = jax.jvp(self.scores, (point,), (tangent,))
            changes = (tangent, curvature(scores_change))
            return jax.jvp(self._pull_back, (point, G), changes)[1]

        return apply

    def _vector_over_blocks(self, of_block: Callable[..., AnyPoint], *points: AnyPoint) -> AnyPoint:
        """`_over_blocks` of a gradient or a Hessian applied: H's part has a row a sample, others add up."""

        def sums_and_rows(part: Problem, *x: AnyPoint) -> tuple[Tree, Tree]:
            found = of_block(part, *x)
            return found._replace(H=None), found.H

        start = points[0]._replace(W=self._against(points[0]), H=None)
        sums, H = self._over_blocks(sums_and_rows, optax.tree.zeros_like(start), *points)
        return sums._replace(H=H) if self.has_classifier else Point(None, sums.W + H)

    def _over_blocks(
        self, of_block: Callable[..., tuple], zero: Tree, *points: AnyPoint
    ) -> tuple[Tree, Tree]:
        """What `of_block(part, *points of its samples)` says of a mean loss, for the mean over all samples.

        `part` is the problem of one block, without blocks and decays. The first of the two things returned
        is summed, from `zero`; the second has a row a sample.
        """
        if not self.has_classifier:
            # All features are the rows of a classifier for the anchors of a block.
            tied = self._anchors_against_all()
            return tied._over_blocks(of_block, zero, *(Point(W=x.H, H=x.H) for x in points))

        def of_samples(samples):
            labels, *features = samples
            part = dataclasses.replace(self, labels=labels, decay=None, block_size=None, shards=1)
            found = of_block(part, *(x._replace(H=H) for x, H in zip(points, features, strict=True)))
            return jax.tree.map(lambda x: len(labels) / len(self.labels) * x, found)

        samples = (self.labels, *(point.H for point in points))
        size = self.block_size or len(self.labels)
        return over_blocks(of_samples, zero, samples, size, self.shards)

    def _anchors_against_all(self) -> "Problem":
        """A contrastive problem as one of N classes, whose labels are the anchors' numbers."""
        return dataclasses.replace(
            self,
            labels=jnp.arange(len(self.labels)),
            tau=self.tau**2,
            loss=lambda scores, anchors: losses.contrastive_of_similarities(scores, self.labels, anchors),
            has_classifier=True,
        )

    def _pull_back(self, point: AnyPoint, G: jax.Array) -> AnyPoint:
        """The gradient in the point of `<G, scores>`, G held fixed, plus that of the decays."""
        scaled = self._scale(point) * G
        if point.W is None:
            return Point(None, matmul(scaled + scaled.T, point.H))
        of_W, of_H = self._sum_over_samples(scaled, point.H), matmul(scaled, point.W)
        is_biased = isinstance(point, BiasedPoint)
        found = BiasedPoint(of_W, of_H, jnp.sum(G, 0)) if is_biased else Point(of_W, of_H)
        return self._with_decays(found, point)

    def _sum_over_samples(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """`a.T @ b`; where devices share the samples, each sums its own, and then the sums meet."""
        if self.shards == 1:
            return transposed_matmul(a, b)
        a, b = (x.reshape(self.shards, -1, x.shape[1]) for x in (a, b))
        return jnp.sum(jax.vmap(transposed_matmul)(a, b), axis=0)

    def _with_decays(self, gradient: AnyPoint, point: AnyPoint) -> AnyPoint:
        """Adds the gradient of the decays at `point`."""
        if self.decay is None:
            return gradient
        return jax.tree.map(lambda g, rate, x: g + self._cast(rate, point) * x, gradient, self.decay, point)

    def _against(self, point: AnyPoint) -> jax.Array:
        return point.H if point.W is None else point.W

    def _scale(self, point: AnyPoint) -> jax.Array:
        tau = self._cast(self.tau, point)
        return tau**2 if point.W is None else tau

    def mean_loss(self, scores: jax.Array) -> jax.Array:
        """The mean loss of the samples at these scores, a scalar."""
        return jnp.mean(self.loss(scores, self.labels))

    def _decays(self, point: AnyPoint) -> ArrayLike:
        if self.decay is None:
            return 0
        squares = jax.tree.map(lambda rate, x: self._cast(rate, point) * jnp.sum(x**2), self.decay, point)
        return optax.tree.sum(squares) / 2

    @staticmethod
    def _cast(scalar: ArrayLike, point: AnyPoint) -> jax.Array:
        # In the integers of a point that is not floating, a temperature of 0.5 would be 0.
        return jnp.asarray(scalar, point.H.dtype if jnp.issubdtype(point.H.dtype, jnp.floating) else float)


def balanced_labels(num_classes: int, samples_per_class: int) -> jax.Array:
    """Labels of K classes with n samples each: 0 n times, then 1 n times, and so on.

    Args:
        num_classes: K, at least 2.
        samples_per_class: n, at least 1.

    Returns:
        int32 (N,), N = nK.

    Raises:
        ValueError: K < 2 or n < 1.

    Example:
        >>> print(ufm.balanced_labels(num_classes=3, samples_per_class=2))
        [0 0 1 1 2 2]
    """
    _checks.count("num_classes", num_classes, 2)
    _checks.count("samples_per_class", samples_per_class, 1)
    return jnp.repeat(jnp.arange(num_classes, dtype=jnp.int32), samples_per_class)


def normalized(
    labels: jax.Array,
    num_classes: int,
    loss: Loss = losses.cross_entropy,
    tau: ArrayLike = 1.0,
    *,
    classifier_weight: ArrayLike = 1.0,
    classifier: Manifold | None = None,
    block_size: int | None = None,
) -> Problem:
    """The normalized UFM, problem (4): unit classifier rows and unit features, logits `tau <w_k, h_i>`.

    The metric decides how fast a solver is, not where the minima are. The paper's counts motions of
    classifiers and of features alike. With n samples in each class, w_k feels n times the force of a
    feature: counting its motion n times, `classifier_weight=n`, balances the model. For classes of unequal
    sizes n_k the best known weights are `sqrt(n_k mean(n))` (docs/rates.md).

    Args:
        labels: classes in 0..K-1, integers (N,); they need not be balanced, though the theory is for
            balanced ones. Or targets (N, K) for a loss that takes them.
        num_classes: K, at least 2.
        loss: per-sample loss of logits (N, K) and labels (N,), for example of `ufm_jax.losses`.
        tau: temperature, positive; a scalar, which may be traced.
        classifier_weight: how often the metric counts a motion of w_k, positive, a scalar or (K,).
        classifier: where W lives, if not on the unit spheres: for example `ufm.manifolds.Euclidean()` for
            a free classifier, `ufm.manifolds.Fixed()` for one that stays as the start has it.
        block_size: samples whose logits exist at one time, at least 1; all of them if None.

    Returns:
        The problem, on the oblique manifold unless `classifier` says otherwise.

    Raises:
        ValueError: K < 2, a label out of range, tau or `classifier_weight` not positive (checked outside
            `jit`), a weight of another shape, a loss of another shape than (N,), `block_size` < 1, or
            `classifier` is no manifold.

    Example:
        >>> problem = ufm.normalized(ufm.balanced_labels(3, 2), num_classes=3, tau=5.0)
        >>> point = problem.random_point(jax.random.key(0), dim=4)
        >>> point.W.shape, point.H.shape
        ((3, 4), (6, 4))
    """
    _checks.positive("tau", tau)
    if classifier is not None and not isinstance(classifier, Manifold):
        raise ValueError(
            f"classifier must be a manifold, as ufm.manifolds.Euclidean(), but is {classifier!r}."
        )
    spheres = Oblique()
    unit_rows = classifier is None or isinstance(classifier, Oblique)
    manifold: Manifold = spheres if unit_rows else Product(Point(W=classifier, H=spheres))
    is_plain = np.ndim(classifier_weight) == 0 and _checks.is_concrete(classifier_weight)
    if not (is_plain and classifier_weight == 1):
        manifold = Weighted(manifold, Point(W=_weights(classifier_weight, num_classes), H=1.0))
    return _problem(labels, num_classes, loss, manifold, tau=tau, block_size=block_size)


def _weights(classifier_weight: ArrayLike, num_classes: int) -> ArrayLike:
    """One weight for all rows of W, or a column with one for each."""
    _checks.positive("classifier_weight", classifier_weight)
    shape = np.shape(classifier_weight)
    if shape not in [(), (num_classes,)]:
        raise ValueError(
            f"classifier_weight must be a scalar or have shape ({num_classes},), but has shape {shape}."
        )
    return jnp.asarray(classifier_weight)[:, None] if shape else classifier_weight


def regularized(
    labels: jax.Array,
    num_classes: int,
    loss: Loss = losses.cross_entropy,
    weight_decay: ArrayLike = 1e-4,
    feature_decay: ArrayLike = 1e-4,
    *,
    bias_decay: ArrayLike | None = None,
    block_size: int | None = None,
) -> Problem:
    """The regularized UFM: free W and H, `mean loss(H W^T) + weight_decay/2 |W|^2 + feature_decay/2 |H|^2`.

    With a `bias_decay` the logits are `H W^T + b`, the points are `BiasedPoint(W, H, b)`, and the decay of
    b joins the others.

    Args:
        labels: classes in 0..K-1, integers (N,); or targets (N, K) for a loss that takes them.
        num_classes: K, at least 2.
        loss: per-sample loss of logits (N, K) and labels (N,).
        weight_decay: lambda_W, at least 0.
        feature_decay: lambda_H, at least 0.
        bias_decay: lambda_b, at least 0: a free bias if 0, and no bias if None.
        block_size: samples whose logits exist at one time, at least 1; all of them if None.

    Returns:
        The problem, on Euclidean space.

    Raises:
        ValueError: K < 2, a label out of range, a decay that is negative (checked outside `jit`) or no
            scalar, a loss of another shape than (N,), or `block_size` < 1.

    Example:
        >>> problem = ufm.regularized(ufm.balanced_labels(3, 2), num_classes=3)
        >>> origin = ufm.Point(W=jnp.zeros((3, 4)), H=jnp.zeros((6, 4)))
        >>> print(f"{problem.cost(origin):.4f} = log 3")
        1.0986 = log 3
        >>> problem = ufm.regularized(ufm.balanced_labels(3, 2), num_classes=3, bias_decay=0.0)
        >>> problem.random_point(jax.random.key(0), dim=4).b.shape
        (3,)

    Reference: Zhu et al., *A Geometric Analysis of Neural Collapse with Unconstrained Features*,
    NeurIPS 2021.
    """
    rates = {"weight_decay": weight_decay, "feature_decay": feature_decay}
    if bias_decay is not None:
        rates["bias_decay"] = bias_decay
    for name, rate in rates.items():
        _checks.scalar(name, rate)
        _checks.at_least(name, rate, 0)
    decay = Point(*rates.values()) if bias_decay is None else BiasedPoint(*rates.values())
    problem = _problem(labels, num_classes, loss, Euclidean(), decay=decay, block_size=block_size)
    return dataclasses.replace(problem, has_bias=bias_decay is not None)


def contrastive(
    labels: jax.Array, num_classes: int, tau: ArrayLike = 1.0, *, block_size: int | None = None
) -> Problem:
    """The supervised contrastive problem, equation (40): unit features and no classifier.

    Args:
        labels: classes in 0..K-1, integers (N,), at least two samples of each class that occurs.
        num_classes: K, at least 2.
        tau: temperature, positive; the similarities are `tau^2 <h_i, h_j>`.
        block_size: samples whose similarities to all others exist at one time, at least 1; all if None.

    Returns:
        The problem, on the oblique manifold; its points have `W=None`.

    Raises:
        ValueError: K < 2, a label out of range, a class of one sample, tau not positive (checked outside
            `jit`), or `block_size` < 1.

    Example:
        >>> problem = ufm.contrastive(ufm.balanced_labels(3, 2), num_classes=3)
        >>> problem.random_point(jax.random.key(0), dim=4).W is None
        True
    """
    _checks.positive("tau", tau)
    labels = _checks.class_labels(labels, num_classes)
    _checks.pairs_in_every_class(labels)
    return _problem(
        labels,
        num_classes,
        losses.contrastive_of_similarities,
        Oblique(),
        tau=tau,
        has_classifier=False,
        block_size=block_size,
    )


def _problem(
    labels: jax.Array,
    num_classes: int,
    loss: Loss,
    manifold: Manifold,
    *,
    tau: ArrayLike = 1.0,
    decay: AnyPoint | None = None,
    has_classifier: bool = True,
    block_size: int | None = None,
) -> Problem:
    _checks.count("num_classes", num_classes, 2)
    labels = _checks.labels_or_targets(labels, num_classes)
    _checks.scalar("tau", tau)
    if block_size is not None:
        _checks.count("block_size", block_size, 1)
    loss = _by_value(loss)
    if has_classifier:
        _check_loss(loss, labels, num_classes)
    return Problem(labels, tau, decay, num_classes, loss, manifold, has_classifier, block_size)


@dataclasses.dataclass(frozen=True)
class _Partial:
    """`functools.partial`, equal to another of the same function and arguments: `jit` knows it again."""

    func: Callable
    args: tuple
    keywords: tuple
    is_convex: bool | None

    def __call__(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        return self.func(*self.args, logits, labels, **dict(self.keywords))


def _by_value(loss: Loss) -> Loss:
    """The loss, comparable by its parameters where these are plain values."""
    if not isinstance(loss, functools.partial):
        return loss
    keywords = tuple(sorted(loss.keywords.items()))
    equal = _Partial(loss.func, loss.args, keywords, losses.is_convex(loss))
    try:
        hash(equal)
    except TypeError:  # Parameters that are arrays, perhaps traced.
        return loss
    return equal


def _check_loss(loss: Loss, labels: jax.Array, num_classes: int) -> None:
    """Raises ValueError where `loss` does not make one number a sample; nothing is computed."""
    logits = jax.ShapeDtypeStruct((len(labels), num_classes), jnp.float32)
    shape = jax.eval_shape(loss, logits, labels).shape
    if shape != labels.shape[:1]:
        raise ValueError(
            f"loss must give one number a sample, shape {labels.shape[:1]}, but gives {shape}."
        )
