"""The optimization problems of the paper over unconstrained features, as pure functions of a point.

The normalized UFM is the paper's problem (4), and its derivatives are those of Appendix B.1.
Every problem here has one shape: an expensive bilinear part, the scores of the samples, and a cheap rest,

    cost(point) = mean_i loss(scores(point)_i, label_i) + decays.

The split shows where the time goes: a gradient needs three N x K x d products, one for the scores and two
to carry the loss's slopes back. An `Evaluation` is the first third, made once a point and kept. A `Problem`
is a pytree (labels, tau and the decays are leaves), so it passes through `jit` and `vmap` like any array.

The scores of all samples are N x K numbers, K/d times as many as the features. Where they would not fit, a
`block_size` has them made for so many samples at a time, and forgotten: some samples with all of W are a
problem of the same kind, and the cost, its gradient and its Hessian are sums over such parts. A gradient
then makes its scores again, a fourth product, and a Hessian a seventh.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from ufm_jax import _checks, losses
from ufm_jax._blocks import over_blocks
from ufm_jax._products import matmul, transposed_matmul
from ufm_jax.manifolds import Euclidean, Manifold, Oblique

Loss = Callable[[chex.Array, chex.Array], chex.Array]
"""A loss per sample: logits (N, K) and labels (N,) to (N,)."""


class Point(NamedTuple):
    """Where a problem lives: classifier rows W (K, d), or None without a classifier; features H (N, d)."""

    W: chex.Array | None
    H: chex.Array


class Evaluation(NamedTuple):
    """A point with the forward pass made there.

    Attributes:
        point: where.
        value: the cost, a scalar.
        G: the gradient of the mean loss in the scores, (N, K), or (N, N) without a classifier. It shares
            its exponentials with the loss, so it is made with it. None where scores are made in blocks.
    """

    point: Point
    value: chex.Array
    G: chex.Array | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
    """Minimize `mean_i loss(scores_i, labels_i) + decay.W/2 |W|^2 + decay.H/2 |H|^2` over a manifold.

    Made by `normalized`, `regularized` and `contrastive`, which check their arguments. `labels`, `tau` and
    `decay` are leaves and may carry a batch axis under `vmap`; the other fields are static.
    """

    labels: chex.Array
    tau: chex.Numeric
    decay: Point | None
    num_classes: int = dataclasses.field(metadata={"static": True})
    loss: Loss = dataclasses.field(metadata={"static": True})
    manifold: Manifold = dataclasses.field(metadata={"static": True})
    has_classifier: bool = dataclasses.field(metadata={"static": True})
    block_size: int | None = dataclasses.field(default=None, metadata={"static": True})
    """Samples (of each shard) whose scores exist at one time; all of them if None."""
    shards: int = dataclasses.field(default=1, metadata={"static": True})
    """Equal runs of samples that go through their blocks side by side, one a device: `ufm_jax.sharding`."""

    def random_point(self, key: chex.PRNGKey, dim: int, dtype: chex.ArrayDType | None = None) -> Point:
        """A random start: uniform on the spheres, or standard normal entries where there are none.

        Args:
            key: random key.
            dim: d, at least 1. A warning is given for d < K - 1, where no simplex ETF fits.
            dtype: floating type; JAX's default if None.

        Returns:
            `Point(W=(K, d), H=(N, d))`, W None for a contrastive problem.

        Raises:
            ValueError: d < 1.
        """
        _checks.at_least("dim", dim, 1)
        if dim < self.num_classes - 1:
            warnings.warn(
                f"dim is {dim}, but a simplex ETF of {self.num_classes} classes needs at least "
                f"{self.num_classes - 1} dimensions: neural collapse is out of reach.",
                stacklevel=2,
            )
        dtype = jax.dtypes.canonicalize_dtype(dtype or float)
        W = jax.ShapeDtypeStruct((self.num_classes, dim), dtype) if self.has_classifier else None
        return self.manifold.random_point(
            key, Point(W, jax.ShapeDtypeStruct((len(self.labels), dim), dtype))
        )

    @property
    def is_normalized(self) -> bool:
        """Whether classifier rows and features are both unit vectors."""
        return self.has_classifier and isinstance(self.manifold, Oblique)

    def check_point(self, point: Point) -> None:
        """Raises ValueError where the shapes or dtypes of `point` do not fit the problem."""
        W, H = point
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

    def scores(self, point: Point) -> chex.Array:
        """`tau H W^T` (N, K); without a classifier `tau^2 H H^T` (N, N)."""
        return self._scale(point) * matmul(point.H, self._against(point).T)

    def score_size(self, point: Point) -> chex.Array:
        """The largest score that rows of these lengths can have: the size at which scores are rounded."""
        if self.manifold == Oblique():
            return self._scale(point)
        longest = [jnp.sqrt(jnp.max(jnp.sum(x**2, -1))) for x in (point.H, self._against(point))]
        return self._scale(point) * longest[0] * longest[1]

    def cost(self, point: Point) -> chex.Array:
        """The objective at `point`, a scalar; it holds anywhere in the ambient space."""
        if self.block_size is None:
            mean_loss = self._mean_loss(self.scores(point))
        else:
            zero = jnp.zeros((), point.H.dtype)
            mean_loss, _ = self._over_blocks(lambda part, x: (part.cost(x), None), zero, point)
        return mean_loss + self._decays(point)

    def evaluate(self, point: Point) -> Evaluation:
        """The forward pass at `point`: one product."""
        if self.block_size is not None:
            return Evaluation(point, self.cost(point), None)
        mean_loss, G = jax.value_and_grad(self._mean_loss)(self.scores(point))
        return Evaluation(point, mean_loss + self._decays(point), G)

    def euclidean_gradient(self, evaluation: Evaluation) -> Point:
        """The gradient of `cost` in the ambient space, given the forward pass: two products.

        It is `tau G^T H` for W and `tau G W` for H (equation (15)). In blocks it makes three products.
        """
        point, _, G = evaluation
        if G is not None:
            return self._pull_back(point, G)

        def of_block(part: Problem, x: Point) -> Point:
            return part.euclidean_gradient(part.evaluate(x))

        return self._with_decays(self._vector_over_blocks(of_block, point), point)

    def gradient(self, evaluation: Evaluation) -> Point:
        """The Riemannian gradient, given the forward pass (equations (5) and (6))."""
        return self.manifold.riemannian_gradient(evaluation.point, self.euclidean_gradient(evaluation))

    def hessian(self, point: Point) -> Callable[[Point], Point]:
        """The Riemannian Hessian at `point`, a linear map of tangent vectors (equation (8)): six products.

        Exact; what depends on the point alone is computed once. In blocks it makes seven products.
        """
        evaluation = self.evaluate(point)
        return self.hessian_given(evaluation, self.euclidean_gradient(evaluation))

    def hessian_given(self, evaluation: Evaluation, euclidean_gradient: Point) -> Callable[[Point], Point]:
        """`hessian`, given the forward pass and the gradient in the ambient space."""
        point = evaluation.point
        euclidean_hessian = self._euclidean_hessian(point, evaluation.G)

        def apply(tangent: Point) -> Point:
            return self.manifold.riemannian_hessian(
                point, euclidean_gradient, euclidean_hessian(tangent), tangent
            )

        return apply

    def _euclidean_hessian(self, point: Point, G: chex.Array | None = None) -> Callable[[Point], Point]:
        """The Hessian of `cost` in the ambient space, a linear map; G of a forward pass, if made."""
        if self.block_size is not None:

            def of_block(part: Problem, x: Point, tangent: Point) -> Point:
                return part._euclidean_hessian(x)(tangent)

            return lambda tangent: self._with_decays(
                self._vector_over_blocks(of_block, point, tangent), tangent
            )

        slopes, curvature = jax.linearize(jax.grad(self._mean_loss), self.scores(point))
        G = slopes if G is None else G

        def apply(tangent: Point) -> Point:
            _, scores_change = jax.jvp(self.scores, (point,), (tangent,))
            changes = (tangent, curvature(scores_change))
            return jax.jvp(self._pull_back, (point, G), changes)[1]

        return apply

    def _vector_over_blocks(self, of_block: Callable[..., Point], *points: Point) -> Point:
        """`_over_blocks` of a gradient or a Hessian applied: W's part is summed, H's has a row a sample."""
        W, H = self._over_blocks(of_block, jnp.zeros_like(self._against(points[0])), *points)
        return Point(W, H) if self.has_classifier else Point(None, W + H)

    def _over_blocks(
        self, of_block: Callable[..., tuple], zero: chex.ArrayTree, *points: Point
    ) -> tuple[chex.ArrayTree, chex.ArrayTree]:
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
            found = of_block(part, *(Point(x.W, H) for x, H in zip(points, features, strict=True)))
            return jax.tree.map(lambda x: len(labels) / len(self.labels) * x, tuple(found))

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

    def _pull_back(self, point: Point, G: chex.Array) -> Point:
        """The gradient in W and H of `<G, scores>`, G held fixed, plus that of the decays."""
        G = self._scale(point) * G
        if point.W is None:
            return Point(None, matmul(G + G.T, point.H))
        return self._with_decays(Point(self._sum_over_samples(G, point.H), matmul(G, point.W)), point)

    def _sum_over_samples(self, a: chex.Array, b: chex.Array) -> chex.Array:
        """`a.T @ b`; where devices share the samples, each sums its own, and then the sums meet."""
        if self.shards == 1:
            return transposed_matmul(a, b)
        a, b = (x.reshape(self.shards, -1, x.shape[1]) for x in (a, b))
        return jnp.sum(jax.vmap(transposed_matmul)(a, b), axis=0)

    def _with_decays(self, gradient: Point, point: Point) -> Point:
        """Adds the gradient of the decays at `point`."""
        if self.decay is None:
            return gradient
        return jax.tree.map(lambda g, rate, x: g + self._cast(rate, point) * x, gradient, self.decay, point)

    def _against(self, point: Point) -> chex.Array:
        return point.H if point.W is None else point.W

    def _scale(self, point: Point) -> chex.Array:
        tau = self._cast(self.tau, point)
        return tau**2 if point.W is None else tau

    def _mean_loss(self, scores: chex.Array) -> chex.Array:
        return jnp.mean(self.loss(scores, self.labels))

    def _decays(self, point: Point) -> chex.Numeric:
        if self.decay is None:
            return 0
        squares = jax.tree.map(lambda rate, x: self._cast(rate, point) * jnp.sum(x**2), self.decay, point)
        return optax.tree.sum(squares) / 2

    @staticmethod
    def _cast(scalar: chex.Numeric, point: Point) -> chex.Array:
        return jnp.asarray(scalar, point.H.dtype)


def balanced_labels(num_classes: int, samples_per_class: int) -> chex.Array:
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
    _checks.at_least("num_classes", num_classes, 2)
    _checks.at_least("samples_per_class", samples_per_class, 1)
    return jnp.repeat(jnp.arange(num_classes, dtype=jnp.int32), samples_per_class)


def normalized(
    labels: chex.Array,
    num_classes: int,
    loss: Loss = losses.cross_entropy,
    tau: chex.Numeric = 1.0,
    *,
    block_size: int | None = None,
) -> Problem:
    """The normalized UFM, problem (4): unit classifier rows and unit features, logits `tau <w_k, h_i>`.

    Args:
        labels: classes in 0..K-1, integers (N,); they need not be balanced, though the theory is for
            balanced ones.
        num_classes: K, at least 2.
        loss: per-sample loss of logits (N, K) and labels (N,), for example of `ufm_jax.losses`.
        tau: temperature, positive; a scalar, which may be traced.
        block_size: samples whose logits exist at one time, at least 1; all of them if None.

    Returns:
        The problem, on the oblique manifold.

    Raises:
        ValueError: K < 2, a label out of range, tau not positive (checked outside `jit`), or
            `block_size` < 1.

    Example:
        >>> problem = ufm.normalized(ufm.balanced_labels(3, 2), num_classes=3, tau=5.0)
        >>> point = problem.random_point(jax.random.key(0), dim=4)
        >>> point.W.shape, point.H.shape
        ((3, 4), (6, 4))
    """
    _checks.positive("tau", tau)
    return _problem(labels, num_classes, loss, Oblique(), tau=tau, block_size=block_size)


def regularized(
    labels: chex.Array,
    num_classes: int,
    loss: Loss = losses.cross_entropy,
    weight_decay: chex.Numeric = 1e-4,
    feature_decay: chex.Numeric = 1e-4,
    *,
    block_size: int | None = None,
) -> Problem:
    """The regularized UFM: free W and H, `mean loss(H W^T) + weight_decay/2 |W|^2 + feature_decay/2 |H|^2`.

    Args:
        labels: classes in 0..K-1, integers (N,).
        num_classes: K, at least 2.
        loss: per-sample loss of logits (N, K) and labels (N,).
        weight_decay: lambda_W, at least 0.
        feature_decay: lambda_H, at least 0.
        block_size: samples whose logits exist at one time, at least 1; all of them if None.

    Returns:
        The problem, on Euclidean space, without bias.

    Raises:
        ValueError: K < 2, a label out of range, a negative decay (checked outside `jit`), or
            `block_size` < 1.

    Example:
        >>> problem = ufm.regularized(ufm.balanced_labels(3, 2), num_classes=3)
        >>> origin = ufm.Point(W=jnp.zeros((3, 4)), H=jnp.zeros((6, 4)))
        >>> print(f"{problem.cost(origin):.4f} = log 3")
        1.0986 = log 3

    Reference: Zhu et al., *A Geometric Analysis of Neural Collapse with Unconstrained Features*,
    NeurIPS 2021.
    """
    _checks.at_least("weight_decay", weight_decay, 0)
    _checks.at_least("feature_decay", feature_decay, 0)
    decay = Point(weight_decay, feature_decay)
    return _problem(labels, num_classes, loss, Euclidean(), decay=decay, block_size=block_size)


def contrastive(
    labels: chex.Array, num_classes: int, tau: chex.Numeric = 1.0, *, block_size: int | None = None
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
    labels: chex.Array,
    num_classes: int,
    loss: Loss,
    manifold: Manifold,
    *,
    tau: chex.Numeric = 1.0,
    decay: Point | None = None,
    has_classifier: bool = True,
    block_size: int | None = None,
) -> Problem:
    labels = jnp.asarray(labels)
    _checks.labels_in_range(labels, num_classes)
    if block_size is not None:
        _checks.at_least("block_size", block_size, 1)
    return Problem(labels, tau, decay, num_classes, loss, manifold, has_classifier, block_size)
