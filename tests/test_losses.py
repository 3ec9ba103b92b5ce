import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.special import log_softmax

import ufm_jax as ufm
from tests.shared.marks import few
from ufm_jax import losses


def logits_and_labels(seed=0, n=7, k=5, scale=3.0):
    generator = np.random.default_rng(seed)
    return scale * generator.normal(size=(n, k)), generator.integers(0, k, n).astype(np.int32)


def reference(name, logits, labels):
    """The formulas of Appendix E.4, term by term."""
    log_p = log_softmax(logits, axis=-1)
    k = logits.shape[-1]
    true = log_p[np.arange(len(labels)), labels]
    if name == "cross_entropy":
        return -true
    if name == "focal":
        return -((1 - np.exp(true)) ** 3.0) * true
    if name == "squared_error":
        return np.sum((logits - np.eye(k)[labels]) ** 2, -1) / 2
    alpha = 0.1
    return -(1 - (k - 1) / k * alpha) * true - alpha / k * (log_p.sum(-1) - true)


NAMES = ["cross_entropy", "focal", "label_smoothing", "squared_error"]


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_the_formula(name):
    logits, labels = logits_and_labels()
    ours = getattr(losses, name)(jnp.asarray(logits), labels)
    np.testing.assert_allclose(ours, reference(name, logits, labels), rtol=1e-12)


@pytest.mark.parametrize("name", few(2, *NAMES))
def test_gradients_are_those_of_finite_differences(name):
    logits, labels = logits_and_labels()
    check_grads(lambda z: getattr(losses, name)(z, labels), (jnp.asarray(logits),), order=2, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", NAMES)
def test_dtype_is_kept_and_large_logits_are_finite(name, dtype):
    logits = jnp.array([[200.0, -200.0, 0.0], [-200.0, 200.0, 0.0]], dtype)
    labels = jnp.array([0, 0])
    loss = getattr(losses, name)
    assert loss(logits, labels).dtype == dtype
    assert np.all(np.isfinite(loss(logits, labels)))
    assert np.all(np.isfinite(jax.grad(lambda z: loss(z, labels).sum())(logits)))


def test_losses_reduce_to_cross_entropy():
    logits, labels = logits_and_labels()
    expected = losses.cross_entropy(jnp.asarray(logits), labels)
    np.testing.assert_allclose(losses.focal(jnp.asarray(logits), labels, gamma=0.0), expected, rtol=1e-14)
    np.testing.assert_allclose(
        losses.label_smoothing(jnp.asarray(logits), labels, alpha=0.0), expected, rtol=1e-12
    )


def contrastive_by_loops(features, labels, tau):
    """Equation (40), sum by sum, in extended precision."""
    h = np.asarray(features, np.longdouble)
    total, n = np.longdouble(0), len(labels)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        positives = [j for j in others if labels[j] == labels[i]]
        similarity = tau**2 * (h @ h[i])
        top = max(similarity[others])
        log_partition = top + np.log(np.sum(np.exp(similarity[others] - top)))
        total += np.mean([log_partition - similarity[j] for j in positives])
    return float(total / n)


@pytest.mark.parametrize("tau", [0.1, 1.0, 5.0, 30.0])
def test_supervised_contrastive_equals_its_sums(tau):
    generator = np.random.default_rng(1)
    features = ufm.manifolds.normalize(jnp.asarray(generator.normal(size=(9, 4))))
    for labels in [np.repeat([0, 1, 2], 3), np.array([0, 0, 1, 1, 1, 1, 2, 2, 2])]:
        ours = losses.supervised_contrastive(features, jnp.asarray(labels), tau)
        np.testing.assert_allclose(ours, contrastive_by_loops(features, labels, tau), rtol=1e-12)


@pytest.mark.parametrize("tau", [1.0, 30.0])
@pytest.mark.parametrize("dtype", few(1, jnp.float32, jnp.float64))
def test_supervised_contrastive_has_finite_gradients(tau, dtype):
    labels = ufm.balanced_labels(3, 3)
    features = ufm.manifolds.normalize(jax.random.normal(jax.random.key(0), (9, 4), dtype))
    value, gradient = jax.value_and_grad(losses.supervised_contrastive)(features, labels, tau)
    assert value.dtype == gradient.dtype == dtype
    assert np.all(np.isfinite(gradient))
    if dtype == jnp.float64:
        check_grads(
            lambda h: losses.supervised_contrastive(h, labels, tau) / tau**2,
            (features,),
            2,
            rtol=1e-4,
            eps=1e-5,
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z, y: losses.focal(z, y, gamma=-1.0), "gamma must be finite and at least 0, but is -1.0"),
        (lambda z, y: losses.label_smoothing(z, y, alpha=1.5), "alpha must lie between 0 and 1"),
        (lambda z, y: losses.focal(z, y, gamma=jnp.ones((3, 1))), "gamma must be a scalar, but has shape"),
        (lambda z, y: losses.focal(z, y, gamma=[1.0, 2.0, 3.0]), "gamma must be a scalar, but has shape"),
        (lambda z, y: losses.label_smoothing(z, y, alpha=np.full(3, 0.1)), "alpha must be a scalar"),
        (lambda z, y: losses.supervised_contrastive(z, y, np.ones(3)), "tau must be a scalar"),
        (lambda z, y: losses.cross_entropy(1.0, y), r"logits must have an axis of classes, \(..., K\)"),
        (lambda z, y: losses.supervised_contrastive(z[0], y, 1.0), "features must be a matrix"),
        (lambda z, y: losses.supervised_contrastive(z, y, 1.0), "at least two samples of every class"),
        (lambda z, y: losses.supervised_contrastive(z, y, 0.0), "tau must be positive"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros((3, 3)), jnp.array([0, 1, 1]))


def focal_reference(margin, gamma, K):
    """The focal loss at a margin over K - 1 equal logits, and its first two derivatives in the margin."""
    m = mpmath.mpf(float(margin))
    with mpmath.workdps(400):

        def loss(m):
            q = (K - 1) * mpmath.exp(-m) / (1 + (K - 1) * mpmath.exp(-m))
            return -(q ** mpmath.mpf(gamma)) * mpmath.log(1 / (1 + (K - 1) * mpmath.exp(-m)))

        return [float(loss(m)), *(float(mpmath.diff(loss, m, n)) for n in (1, 2))]


@pytest.mark.parametrize("dtype", few(1, "float32", "float64"))
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 1.7, 3.0])
def test_focal_and_its_derivatives_are_right_where_p_rounds_to_one(gamma, dtype):
    margins = np.array([-50.0, -1.0, 0.0, 5.0, 20.0, 40.0], dtype)

    def at(margin):
        return losses.focal(jnp.array([0.0, 0.0, 0.0], dtype).at[0].set(margin), jnp.array(0), gamma=gamma)

    slope = jax.grad(at)
    found = [jax.vmap(f)(margins) for f in (at, slope, jax.grad(slope))]
    expected = np.transpose([focal_reference(m, gamma, 3) for m in margins])
    rounding = {"float32": 2e-5, "float64": 1e-12}[dtype]
    # Relative to their own size, down to the smallest numbers; but for curvature where the loss is linear.
    allowed = rounding * np.abs(expected) + np.where(margins < 0, rounding, jnp.finfo(dtype).tiny)
    assert np.all(np.abs(np.array(found) - expected) <= allowed)
    assert found[0].dtype == dtype
    np.testing.assert_array_equal(jax.vmap(slope)(np.array([1e3, 1e6], dtype)), 0)


def test_focal_without_focus_is_cross_entropy():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)) * 10)
    labels = jnp.array([0, 1, 2, 3, 0])
    for of in (lambda f: f, lambda f: jax.jacobian(f)):
        found, expected = (
            of(lambda z, loss=loss: loss(z, labels))(logits)
            for loss in (lambda z, y: losses.focal(z, y, gamma=0.0), losses.cross_entropy)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


LABELED = [losses.cross_entropy, losses.focal, losses.label_smoothing, losses.squared_error]


@pytest.mark.parametrize("loss", LABELED)
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, -1], "lie in 0..2, but go from -1 to 0"),
        ([255, 0], "lie in 0..2, but go from 0 to 255"),
        ([[0], [1]], r"of shape \(2,\), one for each row of logits, but have shape \(2, 1\)"),
        ([[0, 1, 0], [1, 0, 0]], r"but have shape \(2, 3\)"),
        ([0.0, 1.0], "must be integers"),
    ],
)
def test_labels_that_do_not_fit_are_one_sentence(loss, labels, message):
    with pytest.raises(ValueError, match=message):
        loss(jnp.zeros((2, 3)), jnp.array(labels))


@pytest.mark.parametrize(
    "loss", [losses.cross_entropy, losses.focal, losses.label_smoothing, losses.squared_error]
)
def test_labels_of_no_class_make_a_loss_nan_where_jit_hides_them(loss):
    logits, labels = jnp.array([[1.0, 2.0, 4.0]] * 5), jnp.array([-1, 1, 3, -100, 2])
    found = jax.jit(loss)(logits, labels)
    np.testing.assert_array_equal(np.isnan(found), [True, False, True, True, False])
    np.testing.assert_allclose(found[jnp.array([1, 4])], loss(logits[:2], jnp.array([1, 2])), rtol=1e-6)
    # Who leaves them out has the derivatives of the others.
    kept = jax.jit(jax.grad(lambda z, y: jnp.sum(jnp.where((y >= 0) & (y < 3), loss(z, y), 0))))
    others = jax.grad(lambda z: jnp.sum(loss(z, jnp.array([1, 2]))))(logits[:2])
    expected = jnp.zeros((5, 3)).at[jnp.array([1, 4])].set(others)
    np.testing.assert_allclose(kept(logits, labels), expected, atol=1e-6)


def test_anchors_are_rows_of_the_whole():
    similarities = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6)))
    labels, anchors = jnp.array([0, 0, 1, 1, 2, 2]), jnp.array([4, 1])
    np.testing.assert_allclose(
        losses.contrastive_of_similarities(similarities[anchors], labels, anchors),
        losses.contrastive_of_similarities(similarities, labels)[anchors],
        rtol=1e-14,
    )
    with pytest.raises(ValueError, match=r"anchors must lie in 0\.\.5, but go from 0 to 6"):
        losses.contrastive_of_similarities(similarities[anchors], labels, jnp.array([0, 6]))


def test_label_smoothing_asks_nothing_of_classes_without_weight():
    found = losses.label_smoothing(jnp.array([[1.0, 2.0, -jnp.inf]]), jnp.array([0]), alpha=0.0)
    np.testing.assert_allclose(found, np.log1p(np.e))
    assert losses.label_smoothing(jnp.array([[1.0, -jnp.inf]]), jnp.array([0]), alpha=0.1) == jnp.inf


@pytest.mark.parametrize("loss", LABELED)
@pytest.mark.parametrize("kind", ["int8", "int32", "bool", "list"])
def test_whole_logits_are_those_numbers(loss, kind):
    logits = np.array([[1, 0, 0], [0, 1, 1]])
    found = loss(logits.tolist() if kind == "list" else jnp.asarray(logits, kind), [0, 2])
    np.testing.assert_array_equal(found, loss(jnp.asarray(logits, float), jnp.array([0, 2])))


@pytest.mark.parametrize("dtype", few(1, "bfloat16", "float16"))
@pytest.mark.parametrize("loss", LABELED)
def test_losses_of_halves_are_halves(loss, dtype):
    assert loss(jnp.ones((2, 3), dtype), jnp.array([0, 1])).dtype == dtype


def test_derivatives_by_targets_are_there_where_a_target_is_zero():
    logits, target = jnp.array([2.0, 0.0, -1.0]), jnp.array([1.0, 0.0, 0.0])
    of_targets = jax.grad(lambda t: losses.cross_entropy(logits, t / jnp.sum(t)))(target)
    p = log_softmax(logits)
    np.testing.assert_allclose(of_targets, -p + p[0], rtol=1e-12)
    of_alpha = jax.grad(lambda alpha: losses.label_smoothing(logits, jnp.array(0), alpha))(0.0)
    np.testing.assert_allclose(of_alpha, p[0] - p.mean(), rtol=1e-12)


def test_focal_is_nothing_where_all_other_classes_are_masked():
    logits = jnp.array([[0.0, -jnp.inf, -jnp.inf], [0.0, 1.0, -jnp.inf]])
    for gamma in (0.0, 3.0):
        loss = lambda z: losses.focal(z, jnp.array([0, 0]), gamma)  # noqa: B023, E731
        found = loss(logits)
        assert found[0] == 0
        np.testing.assert_allclose(found[1], losses.focal(logits[1, :2], jnp.array(0), gamma), rtol=1e-14)
        gradient = jax.grad(lambda z: jnp.sum(loss(z)))(logits)  # noqa: B023
        np.testing.assert_array_equal(gradient[0], 0)
        assert np.isfinite(gradient).all()


def test_parameters_of_numpy_do_not_widen_a_loss():
    logits, labels = jnp.zeros((4, 3), jnp.float32), jnp.array([0, 0, 1, 1])
    wide = np.float64(0.5)
    assert losses.focal(logits, labels, wide).dtype == jnp.float32
    assert losses.label_smoothing(logits, labels, wide).dtype == jnp.float32
    assert losses.supervised_contrastive(logits, labels, wide).dtype == jnp.float32


def test_a_partial_may_be_marked_as_convex():
    def hinge(logits, labels, margin):
        return jnp.sum(jnp.maximum(0, margin + logits), -1)

    marked = losses.convex(functools.partial(hinge, margin=1.0))
    assert losses.is_convex(marked)
    assert losses.is_convex(ufm.normalized(ufm.balanced_labels(3, 2), 3, loss=marked).loss)
    assert not losses.is_convex(functools.partial(hinge, margin=1.0))


def test_targets_of_short_floats_have_sums_of_their_rounding():
    third = jnp.full((1, 3), 1 / 3, jnp.bfloat16)  # 1.002 together.
    for loss in (losses.cross_entropy, losses.label_smoothing):
        np.testing.assert_allclose(loss(jnp.zeros((1, 3), jnp.float32), third), np.log(3), rtol=5e-3)
