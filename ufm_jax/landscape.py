"""The landscape of the normalized UFM: multipliers, Hessian, optimality certificate, negative curvature.

The paper's Appendix D, and what holds beyond it (docs/landscape.md). The paper stacks vectors as columns;
here they are rows, so its G (K x N) is our `logit_gradient` transposed. All functions are pure and take one
point: batch them with `vmap`. They work in float32 and float64, and keep the dtype of the point. Unless it
is said otherwise, they are for every loss of logits and for classes of any size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import entr
from jax.typing import ArrayLike

from ufm_jax import _checks, losses, theory
from ufm_jax._products import matmul
from ufm_jax.problems import AnyPoint, BiasedPoint, Point, Problem
from ufm_jax.riemannian.curvature import eigenpairs, smallest_eigenpair, smallest_eigenvalue, spectrum

__all__ = [
    "Certificate",
    "CertificateMatrix",
    "Multipliers",
    "NegativeCurvature",
    "certificate_matrix",
    "certify",
    "check_normalized",
    "eigenpairs",
    "hessian_form",
    "logit_gradient",
    "multipliers",
    "negative_curvature",
    "optimality_gap",
    "proposition_2",
    "smallest_eigenpair",
    "smallest_eigenvalue",
    "spectrum",
]

_MAX_STEPS = 120
"""Steps of the search for the smallest eigenvalue; Newton's need about ten, bisection as many as digits."""


class Multipliers(NamedTuple):
    """The Lagrange multipliers of the unit-norm constraints, equation (19), divided by tau."""

    alpha: jax.Array
    beta: jax.Array


class CertificateMatrix(NamedTuple):
    """`Z = [[-diag(alpha), G^T], [G, -diag(beta)]]`, symmetric of size K + N, as an operator.

    Z is never formed: a product with it costs two with G, and its smallest eigenvalue a few eigenvalue
    problems of size K. Where Z is positive semidefinite and the loss is convex in the logits, the point is
    a global minimum, whatever else holds there. Along `D_W = u a^T`, `D_H = v a^T`, with a unit vector a
    perpendicular to all rows of W and H, the Hessian form is `tau (u; v)^T Z (u; v)` (docs/landscape.md).

    Attributes:
        alpha: multipliers of the classifiers, (K,).
        beta: multipliers of the features, (N,).
        G: the gradient of the mean loss in the logits, (N, K).
    """

    alpha: jax.Array
    beta: jax.Array
    G: jax.Array

    def product(self, vector: Point) -> Point:
        """`Z (u; v)`, for a vector `Point(W=u, H=v)` with u (K,) and v (N,)."""
        u, v = vector
        return Point(matmul(v, self.G) - self.alpha * u, matmul(self.G, u) - self.beta * v)

    def scaled(self, of_classes: jax.Array | float, of_samples: jax.Array | float) -> "CertificateMatrix":
        """`S Z S` with the diagonal matrix S of `of_classes` (K,) and `of_samples` (N,), or scalars."""
        p, q = jnp.broadcast_to(of_classes, self.alpha.shape), jnp.broadcast_to(of_samples, self.beta.shape)
        return CertificateMatrix(self.alpha * p**2, self.beta * q**2, q[:, None] * self.G * p)

    def smallest_eigenpair(self) -> tuple[jax.Array, Point]:
        """The smallest eigenvalue of Z, a scalar, and its unit eigenvector, `Point(W=u, H=v)`.

        Below all `-beta_i`, Z - lambda is singular where its Schur complement of size K is,

            S(lambda) = -diag(alpha) - lambda - G^T diag(1 / (-beta - lambda)) G.

        The smallest eigenvalue of S falls in lambda and is concave, so that Newton's steps reach its zero
        from above without fail, and bisection helps where they leave the bracket. A step of Newton's is the
        Rayleigh quotient of Z at the vector that S gives. The eigenvalue is the last of these, exact to
        rounding relative to the largest entry of Z, and its derivatives are those of the quotient.
        """
        fixed = jax.lax.stop_gradient(self)
        unit = _nonzero(jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in fixed])))
        vector = CertificateMatrix(*(x / unit for x in fixed))._bottom_vector()
        return optax.tree.vdot(vector, self.product(vector)), vector

    def _bottom_vector(self) -> Point:
        """The eigenvector, for entries of size 1; `x = min(-beta) - lambda` is searched, near 0 in full."""
        dtype, eps = self.G.dtype, float(jnp.finfo(self.G.dtype).eps)
        least = jnp.argmin(-self.beta)
        pole = -self.beta[least]
        low = jnp.maximum(pole - jnp.min(-self.alpha), 0)
        high = low + jnp.linalg.norm(self.G) + eps

        def at(x):
            inverse = 1 / (-self.beta - pole + x)
            S = jnp.diag(x - pole - self.alpha) - matmul((inverse[:, None] * self.G).T, self.G)
            values, vectors = jnp.linalg.eigh(S)
            u = vectors[:, 0]
            return values, Point(u, -inverse * matmul(self.G, u))

        def step(state):
            x, low, high, steps, _ = state
            values, (_, v) = at(x)
            newton = x - values[0] / (1 + jnp.sum(v**2))
            high = jnp.where(values[0] >= 0, x, high)
            usable = (newton > low) & (newton <= high) | (newton == x)
            # Newton's steps end at or below the zero, wherever they begin.
            low = jnp.maximum(low, jnp.where(values[0] < 0, jnp.maximum(x, newton), newton))
            new = jnp.where(usable, newton, (low + high) / 2)
            is_zero = jnp.abs(values[0]) <= 8 * eps * jnp.max(jnp.abs(values))
            return (
                new,
                low,
                high,
                steps + 1,
                is_zero | (jnp.abs(new - x) <= 2 * eps * x) | (high - low <= eps),
            )

        start = (high, low, high, 0, jnp.array(False))
        x, *_ = jax.lax.while_loop(lambda state: ~state[-1] & (state[-2] < _MAX_STEPS), step, start)
        found = at(x)[1]
        found = optax.tree.scale(1 / optax.tree.norm(found), found)
        # If the sample with the lowest -beta_i is orthogonal to all else, -beta_i itself may be the lowest.
        alone = Point(jnp.zeros_like(self.alpha), jax.nn.one_hot(least, len(self.beta), dtype=dtype))
        is_alone = pole < optax.tree.vdot(found, self.product(found))
        return jax.tree.map(lambda a, b: jnp.where(is_alone, a, b), alone, found)


class Certificate(NamedTuple):
    """What `certify` found.

    Attributes:
        is_critical: whether `gradient_norm` is within the tolerance, bool.
        is_global_minimum: whether the point is critical and `margin` is within the tolerance of 0, bool.
        margin: the smallest eigenvalue of the `CertificateMatrix`, classes and samples weighed alike, over
            |G|: of `[[-diag(alpha) / r, G^T], [G, -r diag(beta)]]` with `r = sqrt(N / K)`, |G| the spectral
            norm. At least 0 where Z is positive semidefinite; -1 where all multipliers are zero, -2 at the
            antipodal point under cross entropy. With n samples of each class it is never below the least
            slack of the inequalities of Lemma 3, relative to their right sides.
        gradient_norm: the norm of the Riemannian gradient over `tau |G| (sqrt(K) + sqrt(N))`, a bound of
            the Euclidean gradient; in [0, 1), in the plain metric whatever the problem's is.
        gap: `optimality_gap`, the most by which the cost exceeds the global minimum.
    """

    is_critical: jax.Array
    is_global_minimum: jax.Array
    margin: jax.Array
    gradient_norm: jax.Array
    gap: jax.Array


class NegativeCurvature(NamedTuple):
    """What `negative_curvature` found.

    Attributes:
        direction: a tangent vector of unit norm; the zero vector at a global minimum, where there is none.
        curvature: the Hessian form of `direction`; 0 at a global minimum.
    """

    direction: Point
    curvature: jax.Array


def logit_gradient(problem: Problem, point: Point) -> jax.Array:
    """The gradient of the mean loss in the logits, (N, K): the paper's G, equation (16), transposed.

    For cross entropy it is `(softmax - onehot) / N`, also accurate relative to its own size where the
    softmax is one-hot up to rounding.

    Args:
        problem: of `ufm_jax.normalized`, any loss.
        point: `Point(W=(K, d), H=(N, d))` on the spheres.

    Returns:
        G, (N, K).

    Raises:
        ValueError: the problem is not a normalized one, or the point does not fit it.
    """
    _check_point(problem, point)
    return _logit_gradient(problem, point)


def multipliers(problem: Problem, point: Point) -> Multipliers:
    """`alpha_k = <w_k, H g^k>` and `beta_i = <h_i, W g_i>`, equation (19).

    At a critical point `H g^k = alpha_k w_k` and `W g_i = beta_i h_i` (Lemma 2). Everywhere
    `sum alpha = sum beta` (Lemma 4).

    Args:
        problem: of `ufm_jax.normalized`, any loss.
        point: `Point(W=(K, d), H=(N, d))` on the spheres.

    Returns:
        `Multipliers(alpha=(K,), beta=(N,))`.

    Raises:
        ValueError: the problem is not a normalized one.

    Example:
        >>> labels, W = ufm.balanced_labels(3, 2), ufm.theory.simplex_etf(3, dim=4)
        >>> problem = ufm.normalized(labels, num_classes=3)
        >>> alpha, beta = ufm.landscape.multipliers(problem, ufm.Point(W, W[labels]))
        >>> bool(jnp.allclose(alpha.sum(), beta.sum(), atol=1e-6))  # Lemma 4
        True
    """
    _check_point(problem, point)
    return _multipliers(point, _logit_gradient(problem, point))


def certificate_matrix(problem: Problem, point: Point) -> CertificateMatrix:
    """The matrix Z whose smallest eigenvalue tells a global minimum from a saddle (docs/landscape.md).

    Args:
        problem: of `ufm_jax.normalized`, any loss.
        point: `Point(W=(K, d), H=(N, d))` on the spheres, critical or not.

    Returns:
        The `CertificateMatrix`.

    Raises:
        ValueError: the problem is not a normalized one, or the point does not fit it.

    Example:
        >>> problem = ufm.normalized(ufm.balanced_labels(3, 2), num_classes=3)
        >>> Z = ufm.landscape.certificate_matrix(problem, ufm.saddles.antipodal(problem, dim=4))
        >>> value, (u, v) = Z.smallest_eigenpair()
        >>> bool(value < 0), u.shape, v.shape
        (True, (3,), (6,))
    """
    _check_point(problem, point)
    G = _logit_gradient(problem, point)
    return CertificateMatrix(*_multipliers(point, G), G)


def hessian_form(problem: Problem, point: Point, tangent: Point) -> jax.Array:
    """The Riemannian Hessian as a quadratic form, `Hess f[D, D]`, equations (31) and (7).

        g''(M)[dM, dM] + 2 tau <G, D_W^T D_H> - tau sum_k alpha_k |D_Wk|^2 - tau sum_i beta_i |D_Hi|^2

    with `dM = tau (W^T D_H + D_W^T H)`. As a linear map, not a form, it is `problem.hessian(point)`.

    Args:
        problem: of `ufm_jax.normalized`, any loss.
        point: on the spheres, critical or not.
        tangent: D, a tangent vector at `point`.

    Returns:
        The value of the form, a scalar.

    Raises:
        ValueError: the problem is not a normalized one.
    """
    _check_point(problem, point)
    (W, H), (D_W, D_H) = point, tangent
    G, tau = _logit_gradient(problem, point), jnp.asarray(problem.tau, H.dtype)
    alpha, beta = _multipliers(point, G)
    mixed = jnp.sum(G * matmul(D_H, D_W.T))
    of_the_spheres = jnp.sum(alpha * _squares(D_W)) + jnp.sum(beta * _squares(D_H))
    if problem.loss is losses.cross_entropy:
        # A softmax does not see what is added to all logits; left in, it would cost digits at a large tau.
        W, D_W = W - W[:1], D_W - D_W[:1]
    dM = tau * (matmul(D_H, W.T) + matmul(H, D_W.T))
    _, dG = jax.jvp(jax.grad(problem.mean_loss), (problem.scores(point),), (dM,))
    return jnp.sum(dM * dG) + tau * (2 * mixed - of_the_spheres)


def certify(problem: Problem, point: Point, tolerance: float | None = None) -> Certificate:
    """Whether `point` is critical, and whether it is the global minimum: by Z, sharper than Lemma 3.

    For every loss that is convex in the logits, a point where Z is positive semidefinite is a global
    minimum. For cross entropy against classes the converse holds as well: in d >= K - 1 dimensions a
    critical point is a global minimum if and only if Z is positive semidefinite there (docs/landscape.md);
    against soft targets a minimum can be denied. All quantities are relative, so that the verdict does not
    depend on how small tau or the loss is; for cross entropy it is right also where G itself has
    underflowed (tau above 700 in float64, above 80 in float32). For other losses a point where G is zero in
    this precision counts as a minimum. If G = 0 at a minimum, as for label smoothing past its threshold,
    look at the gap: near such a minimum the relative quantities only measure rounding errors.

    Args:
        problem: of `ufm_jax.normalized` with a loss that says that it is convex: cross entropy, label
            smoothing, the squared error, and those marked by `ufm_jax.losses.convex`. Classes of any size.
        point: `Point(W=(K, d), H=(N, d))` on the spheres.
        tolerance: the most that `gradient_norm` and `-margin` may be, relative; the fourth root of the
            machine epsilon if None (1.2e-4 in float64, 0.019 in float32). The margins of saddles shrink
            like tau as tau goes to 0: below ten times the tolerance, ask for a smaller one.

    Returns:
        The `Certificate`.

    Raises:
        ValueError: the problem is not a normalized one, its loss does not say that it is convex, or the
            tolerance is negative.

    Example:
        >>> labels, W = ufm.balanced_labels(3, 2), ufm.theory.simplex_etf(3, dim=4)
        >>> problem = ufm.normalized(labels, num_classes=3)
        >>> certificate = ufm.landscape.certify(problem, ufm.Point(W, W[labels]))
        >>> bool(certificate.is_global_minimum)
        True
        >>> certificate = ufm.landscape.certify(problem, ufm.saddles.antipodal(problem, dim=4))
        >>> bool(certificate.is_critical), bool(certificate.is_global_minimum)
        (True, False)
    """
    _check_convex(problem)
    _check_point(problem, point)
    _check_tolerance(tolerance)
    return _certify(problem, point, tolerance)


def _check_tolerance(tolerance: float | None) -> None:
    if tolerance is not None:
        _checks.scalar("tolerance", tolerance)
        _checks.at_least("tolerance", tolerance, 0)


@jax.jit  # Here and below, so that a call by itself is one program, compiled once for a shape.
def _certify(problem: Problem, point: Point, tolerance: float | None) -> Certificate:
    (W, H), (Z, unit) = point, _scaled_certificate_matrix(problem, point)
    tolerance = float(jnp.finfo(H.dtype).eps) ** 0.25 if tolerance is None else tolerance
    spectral_norm = jnp.linalg.norm(Z.G, ord=2)
    gradient = Point(
        matmul(Z.G.T, H) - Z.alpha[:, None] * W,
        matmul(Z.G, W) - Z.beta[:, None] * H,
    )
    longest = _nonzero(spectral_norm)
    gradient_norm = optax.tree.norm(gradient) / (longest * (len(W) ** 0.5 + len(H) ** 0.5))
    smallest, gap = _lowest_and_gap(Z, spectral_norm)
    margin, is_critical = smallest / longest, gradient_norm <= tolerance
    gap = jnp.asarray(problem.tau, H.dtype) * unit * gap
    return Certificate(is_critical, is_critical & (margin >= -tolerance), margin, gradient_norm, gap)


def optimality_gap(problem: Problem, point: AnyPoint) -> jax.Array:
    """The most by which the cost exceeds the global minimum, at any point, for a loss convex in the logits.

    With M the logits and G the gradient there, convexity says `f(M') >= f(M) + <G, M' - M>` for all M'. On
    the spheres `<G, M'> >= tau (sum a + sum b) / 2` wherever `[[-diag(a), G^T], [G, -diag(b)]]` is positive
    semidefinite. Such a and b are the multipliers (`certificate_matrix`) or their means, lowered as far as
    that needs; the best of three bounds is the gap. It is 0 at every global minimum of cross entropy
    against classes, of any size, in d >= K - 1 dimensions. For other losses, and soft targets, a gap above
    0 may remain even at a minimum; the cost less the gap is still a lower bound of it. Whether a loss of
    one's own is convex is for the caller to know; the focal loss is not. Proof: docs/landscape.md.

    Of a regularized model the decays are at least `lam = sqrt(lW lH)` times the nuclear norm of the logits,
    so that its minimum is at least minus the convex conjugate of the mean loss at `r G`, with
    `r = min(1, lam / |G|)` in the spectral norm: for cross entropy and label smoothing with targets t the
    mean entropy of `t + r (softmax - t)`. The gap is 0 at global minima in enough dimensions. With a bias
    the columns of G are first given the sums that they have where the bias is stationary.

    Args:
        problem: of `ufm_jax.normalized`, any loss that is convex in the logits; or of
            `ufm_jax.regularized` with `cross_entropy`, `label_smoothing` or `squared_error` of
            `ufm_jax.losses`. Classes of any size.
        point: `Point(W=(K, d), H=(N, d))`, on the spheres if normalized, critical or not; a `BiasedPoint`
            where the problem has a bias.

    Returns:
        The gap, a scalar at least 0, to within rounding errors of the size of tau |G| sqrt(K N).

    Raises:
        ValueError: the problem is neither, its loss is not convex, a regularized one has another loss, or
            the point does not fit.

    Example:
        >>> labels, W = ufm.balanced_labels(3, 2), ufm.theory.simplex_etf(3, dim=4)
        >>> problem = ufm.normalized(labels, num_classes=3, loss=ufm.losses.label_smoothing)
        >>> print(f"{ufm.landscape.optimality_gap(problem, ufm.Point(W, W[labels])):.4f}")
        0.0000

    References: Journee, Bach, Absil, Sepulchre, SIAM J. Optim. 2010; for the regularized model Zhu et al.,
    *A Geometric Analysis of Neural Collapse with Unconstrained Features*, NeurIPS 2021, Lemma C.3.
    """
    if not isinstance(problem, Problem):
        raise ValueError("the gap is known for problems of ufm.normalized and ufm.regularized.")
    if problem.decay is None:
        _check_point(problem, point)
        if losses.is_convex(problem.loss) is False:
            raise ValueError("the gap needs a loss that is convex in the logits, which this one is not.")
        return _normalized_gap(problem, point)
    problem.check_point(point)
    return _regularized_gap(problem, point)


@jax.jit
def _normalized_gap(problem: Problem, point: AnyPoint) -> jax.Array:
    Z, unit = _scaled_certificate_matrix(problem, point)
    _, gap = _lowest_and_gap(Z, jnp.linalg.norm(Z.G, ord=2))
    return jnp.asarray(problem.tau, gap.dtype) * unit * gap


@jax.jit
def _regularized_gap(problem: Problem, point: AnyPoint) -> jax.Array:
    """The cost less minus the conjugate of the mean loss at `r A`, a lower bound of the minimum.

    A is the gradient in the logits; with a bias, of logits that have the column sums which A has where b
    is stationary, so that only the decay of b remains to be paid.
    """
    assert problem.decay is not None
    loss = getattr(problem.loss, "func", problem.loss)  # A partial stands for its function.
    is_entropy = loss in (losses.cross_entropy, losses.label_smoothing)
    if not is_entropy and loss is not losses.squared_error:
        raise ValueError(
            "the gap of a regularized problem is known for cross_entropy, label_smoothing, squared_error "
            f"of ufm_jax.losses, but the loss is {getattr(loss, '__name__', loss)}."
        )
    scores = problem.scores(point)
    count = len(scores)
    answers = jax.nn.softmax(scores) if is_entropy else scores
    targets = answers - count * jax.grad(problem.mean_loss)(scores)
    of_bias: ArrayLike = 0.0
    if isinstance(point, BiasedPoint):
        answers, of_bias = _with_stationary_bias(problem, point, answers, targets, is_entropy)
    A = (answers - targets) / count
    lam = jnp.sqrt(jnp.asarray(problem.decay.W * problem.decay.H, A.dtype))
    r = jnp.minimum(1, lam / _nonzero(jnp.linalg.norm(A, ord=2)))
    if is_entropy:
        mixed = answers - (1 - r) * count * A
        bound = jnp.mean(jnp.sum(entr(jnp.clip(mixed, 0, 1)), -1))
    else:
        bound = -jnp.sum(r * A * targets) - count / 2 * jnp.sum((r * A) ** 2)
    return jnp.maximum(problem.cost(point) - bound + r**2 * of_bias, 0)


def _with_stationary_bias(
    problem: Problem, point: BiasedPoint, answers: jax.Array, targets: jax.Array, is_entropy: bool
) -> tuple[jax.Array, jax.Array]:
    """Answers near the given ones whose column sums are N lb b below those of the targets.

    Softmaxes stay rows of probabilities: columns that are too heavy are scaled down, and what their rows
    then lack is given to the other columns. Also the most that the decay lb of b is worth along them,
    `|1^T A|^2 / (2 lb)`.
    """
    assert isinstance(problem.decay, BiasedPoint)
    rate, count = jnp.asarray(problem.decay.b, answers.dtype), len(answers)
    heights = jnp.sum(targets, 0)
    b = point.b - jnp.mean(point.b) if is_entropy else point.b
    wanted, found = heights - count * rate * b, jnp.sum(answers, 0)
    if is_entropy:
        wanted = jnp.maximum(wanted, 0)
        wanted = wanted * count / jnp.sum(wanted)
        answers = answers * jnp.minimum(1, wanted / _nonzero(found))
        # Where nothing is lacking these are rounding errors, of either sign.
        rows = jnp.maximum(1 - jnp.sum(answers, 1), 0)
        columns = jnp.maximum(wanted - jnp.sum(answers, 0), 0)
        answers = answers + rows[:, None] * columns / _nonzero(jnp.sum(columns))
    else:
        answers = answers + (wanted - found) / count
    unpaid = jnp.sum(((wanted - heights) / count) ** 2) / (2 * _nonzero(rate))
    return answers, jnp.where(rate > 0, unpaid, 0)


def negative_curvature(problem: Problem, point: Point, tolerance: float | None = None) -> NegativeCurvature:
    """A direction of negative curvature at a critical point that is not a global minimum.

    Of three directions that of least curvature, as a unit vector:

    - `D = (u a^T, v a^T)`, (u, v) the bottom eigenvector of the `certificate_matrix` and a unit vector a
      perpendicular to all of W and H. Its curvature is tau times the smallest eigenvalue. (In a weighted
      metric, of the matrix with row and column k divided by the root of the weight of w_k.)
    - Where the rows of W are equal (beta = 0, the paper's case 1): `D_W = x u a^T`, `D_H` the projection of
      `y u_{y_i} a`, with `u_k = (-1)^(k+1)`, a perpendicular to W, and the x and y of least curvature.
    - Where W has rank K = d: the feature of largest beta_i alone, along the direction on which all classes
      score alike. Its curvature is -tau beta_i.

    By the theorem at least one of them is negative, for every tau and for classes of any size. The paper's
    own direction, which need not be, is `proposition_2`. Proof: docs/landscape.md.

    Args:
        problem: of `ufm_jax.normalized` with cross entropy, classes of any size.
        point: a critical point, `Point(W=(K, d), H=(N, d))` with d > K, or d = K >= 3. Elsewhere the
            direction is projected to the tangent space, and its curvature may have any sign.
        tolerance: at least 0; that of `certify` if None. Of a small tau ask for a smaller one.

    Returns:
        `NegativeCurvature(direction, curvature)`, of unit norm in the metric of the problem's manifold; the
        zero vector and 0 where `certify` says that the point is the global minimum.

    Raises:
        ValueError: the problem is not a normalized one with cross entropy, d < K, d = K = 2, or the
            tolerance is negative.

    Example:
        >>> problem = ufm.normalized(ufm.balanced_labels(3, 2), num_classes=3)
        >>> found = ufm.landscape.negative_curvature(problem, ufm.saddles.antipodal(problem, dim=4))
        >>> bool(found.curvature < 0), found.direction.H.shape
        (True, (6, 4))
    """
    _check_point(problem, point)
    _check_cross_entropy("Theorem 2", problem)
    K, dim = point.W.shape
    if dim < K or dim == 2:
        raise ValueError(
            "Theorem 2 needs more dimensions than classes, or as many and at least 3, but dim is "
            f"{dim} and num_classes is {K}."
        )
    _check_tolerance(tolerance)
    return _negative_curvature(problem, point, tolerance)


@jax.jit
def _negative_curvature(problem: Problem, point: Point, tolerance: float | None) -> NegativeCurvature:
    K, dim = point.W.shape
    constructions = [_along_bottom_eigenvector, _of_equal_classifiers]
    if dim == K:
        constructions.append(_of_one_feature)
    directions = [_unit_tangent(problem, point, build(problem, point)) for build in constructions]
    curvatures = jnp.stack([hessian_form(problem, point, direction) for direction in directions])
    best = jnp.argmin(curvatures)
    direction = jax.tree.map(lambda *leaves: jnp.stack(leaves)[best], *directions)
    exists = ~certify(problem, point, tolerance).is_global_minimum
    return NegativeCurvature(
        optax.tree.scale(exists.astype(point.W.dtype), direction), jnp.where(exists, curvatures[best], 0)
    )


def proposition_2(problem: Problem, point: Point) -> NegativeCurvature:
    """The direction of the paper's Proposition 2, whose curvature is not always negative.

    Case 1, beta = 0: W has equal rows w, and the direction is `D_W = u a^T`, `D_H` the projection of
    `u_{y_i} a`, with `u_k = (-1)^(k+1)` and a unit vector a perpendicular to w in the span of the last two
    eigenvectors of `H^T H`. Case 2, no beta_i zero: `D = (u a^T, v a^T)`, a perpendicular to all of W,
    `u = -u_1 / n^(1/4)`, `v = n^(1/4) v_1` and (u_1, v_1) the leading singular pair of G. By Lemma 5 there
    is no third case. Case 2 can have positive curvature at a saddle (docs/errata.md), and if the leading
    singular value is multiple, its sign can depend on the pair that the linear algebra picks:
    `negative_curvature` has neither fault.

    Args:
        problem: of `ufm_jax.normalized` with cross entropy, n samples of each class.
        point: a critical point, `Point(W=(K, d), H=(N, d))` with d > K. Elsewhere the direction is
            projected to the tangent space.

    Returns:
        `NegativeCurvature(direction, curvature)`, of unit norm, also at a global minimum.

    Raises:
        ValueError: the problem is not a normalized one with cross entropy, its classes have unequal sizes,
            d <= K, or tau is not below `theory.strict_saddle_threshold(K, d)` (values are checked outside
            `jit`).
    """
    _check_point(problem, point)
    _check_cross_entropy("Proposition 2", problem)
    _checks.equal_sizes("the conditions of Proposition 2", problem.labels, problem.num_classes)
    _check_conditions(problem, dim=point.W.shape[1])
    return _proposition_2(problem, point)


@jax.jit
def _proposition_2(problem: Problem, point: Point) -> NegativeCurvature:
    W, _ = point
    # By Lemma 5 some beta_i is zero if and only if the rows of W are equal, and then all are. The rows tell
    # the cases apart where tau makes other points' beta_i vanish next to rounding errors.
    spread = jnp.max(jnp.abs(W - W[:1]))
    is_case_1 = spread <= float(jnp.finfo(spread.dtype).eps) ** 0.5
    directions = [_paper_case_1(problem, point), _paper_case_2(problem, point)]
    direction = jax.tree.map(lambda one, two: jnp.where(is_case_1, one, two), *directions)
    direction = _unit_tangent(problem, point, direction)
    return NegativeCurvature(direction, hessian_form(problem, point, direction))


def _along_bottom_eigenvector(problem: Problem, point: Point) -> Point:
    """`(u a^T, v a^T)`: of the directions along a, the one of least curvature in the problem's metric."""
    W, H = point
    # At such a point H lies in the span of W. Asking for both makes a perpendicular to rounding.
    a = jnp.linalg.eigh(matmul(W.T, W) + matmul(H.T, H))[1][:, 0]
    ones = Point(jnp.ones((len(W), 1), W.dtype), jnp.ones((len(H), 1), H.dtype))
    scale = problem.manifold.unwhiten(ones)
    Z, _ = _scaled_certificate_matrix(problem, point)
    _, vector = Z.scaled(scale.W[:, 0], scale.H[:, 0]).smallest_eigenpair()
    return jax.tree.map(lambda s, x: s * x[:, None] * a, scale, vector)


def _of_equal_classifiers(problem: Problem, point: Point) -> Point:
    """Case 1 with its two parts scaled against each other, for equal rows of W."""
    W, H = point
    w = W[0]
    # Of the vectors perpendicular to w the one that is least along the features; w itself goes above all.
    a = jnp.linalg.eigh(_without(w, matmul(H.T, H)) + 2 * len(H) * jnp.outer(w, w))[1][:, 0]
    direction = _along_alternating_signs(problem, point, a)
    lengths = [_nonzero(problem.manifold.norm(point, part)) for part in _parts(direction)]
    part_W, part_H = (
        optax.tree.scale(1 / n, part) for n, part in zip(lengths, _parts(direction), strict=True)
    )
    # In a unit direction (x, y) of the two parts the form is A x^2 + 2 B x y, least at its eigenvector.
    A = hessian_form(problem, point, part_W)
    B = jnp.asarray(problem.tau, H.dtype) * jnp.sum(
        _logit_gradient(problem, point) * matmul(part_H.H, part_W.W.T)
    )
    # B^2 / least is -(A/2 + sqrt(A^2/4 + B^2)), without the difference of two large numbers.
    other = A / 2 + jnp.hypot(A / 2, B)
    x, y = -B / _nonzero(other), jnp.ones_like(B)
    return Point(x * part_W.W, y * part_H.H)


def _of_one_feature(problem: Problem, point: Point) -> Point:
    """The feature of largest beta_i along the direction in which the rows of W do not differ."""
    W, H = point
    centred = W - jnp.mean(W, axis=0)
    a = jnp.linalg.eigh(matmul(centred.T, centred))[1][:, 0]
    Z, _ = _scaled_certificate_matrix(problem, point)
    return Point(jnp.zeros_like(W), jax.nn.one_hot(jnp.argmax(Z.beta), len(H), dtype=H.dtype)[:, None] * a)


def _paper_case_1(problem: Problem, point: Point) -> Point:
    W, H = point
    plane = jnp.linalg.eigh(matmul(H.T, H))[1][:, :2].T
    # The unit vector of the plane that is perpendicular to w.
    x, y = matmul(plane, W[0])
    coefficients = jnp.where(jnp.hypot(x, y) > 0, jnp.stack([-y, x]), jnp.array([1, 0], x.dtype))
    a = matmul(coefficients / jnp.linalg.norm(coefficients), plane)
    return _along_alternating_signs(problem, point, a)


def _paper_case_2(problem: Problem, point: Point) -> Point:
    W, H = point
    a = jnp.linalg.eigh(matmul(W.T, W) + matmul(H.T, H))[1][:, 0]
    G, _ = _scaled_logit_gradient(problem, point)
    left, _, right = jnp.linalg.svd(G, full_matrices=False)
    root = (len(H) / len(W)) ** 0.25
    return Point(-right[0][:, None] * a / root, root * left[:, 0][:, None] * a)


def _along_alternating_signs(problem: Problem, point: Point, a: jax.Array) -> Point:
    """`u_k a` for the classifiers and `u_{y_i} a` for the features, `u_k = (-1)^(k+1)`, made tangent."""
    u = 1 - 2 * (jnp.arange(problem.num_classes) % 2).astype(a.dtype)
    return problem.manifold.project(point, Point(u[:, None] * a, u[problem.labels][:, None] * a))


def _parts(direction: Point) -> tuple[Point, Point]:
    """The part of the classifiers and that of the features."""
    zero = optax.tree.zeros_like(direction)
    return direction._replace(H=zero.H), direction._replace(W=zero.W)


def _unit_tangent(problem: Problem, point: Point, direction: Point) -> Point:
    direction = problem.manifold.project(point, direction)
    return optax.tree.scale(1 / _nonzero(problem.manifold.norm(point, direction)), direction)


def _without(w: jax.Array, matrix: jax.Array) -> jax.Array:
    """A symmetric matrix restricted to the complement of the unit vector w."""
    image = matmul(matrix, w)
    return matrix - jnp.outer(w, image) - jnp.outer(image, w) + matmul(w, image) * jnp.outer(w, w)


def _lowest_and_gap(Z: CertificateMatrix, spectral_norm: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The smallest eigenvalue of Z with classes and samples weighed alike, and `optimality_gap` over tau.

    Lowered by x_k and y_i on its diagonal, a matrix of this form is positive semidefinite and proves the
    gap `(sum x + sum y) / 2`. Here x and y are constants: in the proportion of N to K, or equal; and for
    the means of the multipliers, where the smallest eigenvalue is known.
    """
    N, K = Z.G.shape
    root = (N / K) ** 0.25
    both = jax.tree.map(lambda *x: jnp.stack(x), Z.scaled(1 / root, root), Z)
    (balanced, plain), _ = jax.vmap(CertificateMatrix.smallest_eigenpair)(both)
    size = (K * N) ** 0.5
    bounds = [-size * balanced, -(K + N) / 2 * plain, jnp.sum(Z.alpha) + size * spectral_norm]
    return balanced, jnp.maximum(jnp.min(jnp.stack(bounds)), 0)


def _scaled_certificate_matrix(problem: Problem, point: AnyPoint) -> tuple[CertificateMatrix, jax.Array]:
    G, unit = _scaled_logit_gradient(problem, point)
    return CertificateMatrix(*_multipliers(point, G), G), unit


def _logit_gradient(problem: Problem, point: AnyPoint) -> jax.Array:
    G, unit = _scaled_logit_gradient(problem, point)
    return unit * G


def _scaled_logit_gradient(problem: Problem, point: AnyPoint) -> tuple[jax.Array, jax.Array]:
    """G over a unit of its size, and the unit: squares of a tiny G would vanish.

    For cross entropy against classes the unit is the largest probability of a wrong class, over N, from its
    logarithm; the first of the two is right where the second, and G, have underflowed.
    """
    scores = problem.scores(point)
    if problem.loss is not losses.cross_entropy:
        G = jax.grad(problem.mean_loss)(scores)
        unit = _nonzero(jax.lax.stop_gradient(jnp.max(jnp.abs(G))))
        return G / unit, unit
    targets = problem.labels
    if targets.ndim == 1:
        targets = jax.nn.one_hot(targets, problem.num_classes)
    targets = targets.astype(scores.dtype)
    log_p = jax.nn.log_softmax(scores)
    differences = jnp.exp(log_p) - targets
    is_label = targets == 1
    is_of_a_class = jnp.any(is_label, axis=1, keepdims=True)
    of_others = jnp.where(is_label, -jnp.inf, log_p)
    sizes = jnp.where(is_of_a_class, of_others, jnp.log(jnp.abs(differences)))
    largest = jax.lax.stop_gradient(jnp.max(sizes))
    largest = jnp.where(largest > -jnp.inf, largest, 0)  # All targets are soft, and met.
    unit = jnp.exp(largest)
    others = jnp.exp(of_others - largest)
    # The rows sum to zero, and 1 - p loses the digits that the other classes' probabilities have.
    of_a_class = jnp.where(is_label, -jnp.sum(others, axis=1, keepdims=True), others)
    return jnp.where(is_of_a_class, of_a_class, differences / _nonzero(unit)), unit / len(scores)


def _multipliers(point: AnyPoint, G: jax.Array) -> Multipliers:
    weighed = G * matmul(point.H, point.W.T)
    return Multipliers(jnp.sum(weighed, axis=0), jnp.sum(weighed, axis=1))


def _squares(rows: jax.Array) -> jax.Array:
    return jnp.sum(rows**2, axis=-1)


def _nonzero(x: jax.Array) -> jax.Array:
    """x, a divisor, or 1 where it is 0."""
    return jnp.where(x != 0, x, 1)


def _check_point(problem: Problem, point: AnyPoint) -> None:
    check_normalized(problem)
    problem.check_point(point)


def check_normalized(problem: Problem) -> None:
    """Raises ValueError where `problem` is not one of `ufm_jax.normalized`.

    Args:
        problem: any problem of this library.

    Raises:
        ValueError: its classifier rows or its features are not unit vectors.
    """
    if not problem.is_normalized:
        raise ValueError(
            "this is known for normalized problems alone, those with unit classifiers and unit features."
        )


def _check_convex(problem: Problem) -> None:
    if not losses.is_convex(problem.loss):
        raise ValueError(
            "a certificate needs a loss that says that it is convex in the logits: cross entropy, label "
            "smoothing, the squared error, or one marked by `ufm.losses.convex`."
        )


def _check_cross_entropy(what: str, problem: Problem) -> None:
    if problem.loss is not losses.cross_entropy:
        raise ValueError(f"{what} is about cross entropy, but the problem has another loss.")
    if problem.labels.ndim != 1:
        raise ValueError(f"{what} is about integer labels, but the problem has targets.")


def _check_conditions(problem: Problem, dim: int) -> None:
    """The conditions of Proposition 2."""
    K, tau = problem.num_classes, problem.tau
    if dim <= K:
        raise ValueError(
            f"Proposition 2 needs more dimensions than classes, but dim is {dim} and num_classes is {K}."
        )
    limit = theory.strict_saddle_threshold(K, dim)
    if _checks.is_concrete(tau) and not np.all(np.asarray(tau) < limit):
        raise ValueError(
            f"Proposition 2 needs tau below 2(d - 2)/(1 + (K mod 2)/K) = {limit:g}, but tau is {tau}."
        )
