"""The metrics against a plain NumPy and SciPy evaluation of their definitions, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

import ufm_jax as ufm
from tests.shared.formulas import reference_cdnv, reference_nc1, reference_nc2, reference_nc3, reference_nc4
from ufm_jax import metrics, streaming


def case(name, seed, dtype):
    """Classifier, features and labels of one kind of input."""
    generator = np.random.default_rng(seed)
    k, n, d = 5, 6, 9
    labels = np.repeat(np.arange(k), n)
    w, h = generator.normal(size=(k, d)), generator.normal(size=(k * n, d))
    frame = np.asarray(ufm.theory.simplex_etf(k, d))
    if name == "collapsed":
        w, h = frame, frame[labels] + 1e-4 * h
    elif name == "rank_deficient_means":
        # Two classes share their mean: the between-class covariance has rank K - 2.
        h[labels == 1] += (h[labels == 0] - h[labels == 1]).mean(0)
    elif name == "rank_one_classifier":
        w = np.ones((k, 1)) * w[:1]
    elif name == "unbalanced":
        labels = np.sort(np.concatenate([np.arange(k), generator.integers(0, k, k * (n - 1))]))
    elif name == "fewer_dimensions":
        w, h = w[:, :3], h[:, :3]
    return w.astype(dtype), h.astype(dtype), labels.astype(np.int32)


CASES = [
    "random",
    "collapsed",
    "rank_deficient_means",
    "rank_one_classifier",
    "unbalanced",
    "fewer_dimensions",
]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name in CASES
        for dtype in (np.float32, np.float64)
        # Rounding to float32 makes the means differ: nothing is deficient any more.
        if (name, dtype) != ("rank_deficient_means", np.float32)
    ],
)
@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=15)
def test_metrics_equal_scipy(name, dtype, seed):
    w, h, labels = case(name, seed, dtype)
    ours = (
        metrics.nc1(jnp.asarray(h), jnp.asarray(labels), 5),
        metrics.nc2(jnp.asarray(w)),
        metrics.nc3(jnp.asarray(w), jnp.asarray(h), jnp.asarray(labels)),
    )
    assert {x.dtype for x in ours} == {np.dtype(dtype)}
    theirs = (
        reference_nc1(h, labels, 5),
        reference_nc2(w),
        reference_nc3(w, h, labels),
    )
    # At collapse NC2 is rounding error, on both sides.
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=0 if name != "collapsed" else 1e-15)
    if not name.startswith("rank_"):  # Equal rows or means: rounding decides which is the nearest.
        nc4 = metrics.nc4(jnp.asarray(w), jnp.asarray(h), jnp.asarray(labels))
        assert nc4.dtype == np.dtype(dtype)
        assert nc4 == pytest.approx(reference_nc4(w, h, labels))
        np.testing.assert_allclose(
            metrics.cdnv(jnp.asarray(h), jnp.asarray(labels), 5), reference_cdnv(h, labels, 5), rtol=1e-6
        )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exact_collapse_is_exactly_no_variability(dtype):
    frame = ufm.theory.simplex_etf(7, 10, dtype)
    labels = ufm.balanced_labels(7, 3)
    assert metrics.nc1(frame[labels], labels, 7) == 0
    assert metrics.cdnv(frame[labels], labels, 7) == 0
    assert metrics.nc4(frame, frame[labels], labels) == 1
    precision = 10 * np.finfo(dtype).eps
    assert metrics.nc2(frame) < precision
    assert metrics.nc3(frame, frame[labels], labels) < precision


def test_small_deviations_keep_their_digits():
    """Features within 1e-9 of their class mean: NC1 near 1e-18, still right to ten digits."""
    _, h, labels = case("random", 3, np.float64)
    frame = np.asarray(ufm.theory.simplex_etf(5, 9))
    small = frame[labels] + 1e-9 * h
    exact = small.astype(np.longdouble)
    centres = np.stack([exact[labels == c].mean(0) for c in range(5)])
    spread = (exact - centres[labels]).astype(np.float64)
    means = (centres - exact.mean(0)).astype(np.float64)
    expected = np.trace(spread.T @ spread / 30 @ scipy.linalg.pinv(means.T @ means / 5)) / 5
    np.testing.assert_allclose(
        metrics.nc1(jnp.asarray(small), jnp.asarray(labels), 5), expected, rtol=1e-10
    )
    variances = np.array([np.mean(np.sum(spread[labels == c] ** 2, 1)) for c in range(5)])
    distances = np.sum((means[:, None] - means) ** 2, -1)
    pairs = ~np.eye(5, dtype=bool)
    expected = np.mean(((variances[:, None] + variances)[pairs]) / (2 * distances[pairs]))
    np.testing.assert_allclose(
        metrics.cdnv(jnp.asarray(small), jnp.asarray(labels), 5), expected, rtol=1e-10
    )


def test_degenerate_inputs_have_a_defined_answer():
    labels = ufm.balanced_labels(3, 2)
    assert metrics.nc2(jnp.zeros((3, 4))) == pytest.approx(1)
    assert metrics.nc3(jnp.zeros((3, 4)), jnp.ones((6, 4)), labels) == pytest.approx(1)
    same = jnp.tile(jnp.array([0.3, 0.1, 0.7, -0.2]), (6, 1))
    assert metrics.nc1(same, labels, 3) == 0
    # Equal means: no variance counts as collapse, any other as infinitely much.
    assert metrics.cdnv(same, labels, 3) == 0
    assert metrics.cdnv(same + jnp.array([1.0, -1, 1, -1, 1, -1])[:, None], labels, 3) == np.inf
    # One sample a class has no variance, and is its own nearest mean.
    single = jnp.eye(3, 4)
    assert metrics.cdnv(single, jnp.arange(3), 3) == 0
    assert metrics.nc4(single, single, jnp.arange(3)) == 1
    # W = 0 decides for class 0 everywhere.
    assert metrics.nc4(jnp.zeros((3, 4)), single[labels], labels) == pytest.approx(1 / 3)


def test_nc4_asks_the_classifier_with_its_bias():
    W, labels = jnp.eye(2), jnp.array([0, 0, 1, 1])
    features = jnp.array([[2.0, 0], [1, 0], [0, 1], [0, 2]])
    assert metrics.nc4(W, features, labels) == 1
    assert metrics.nc4(W, features, labels, jnp.array([0.0, 1.5])) == 0.75
    # The third sample is classified wrong, and its nearest mean is wrong alike.
    misled, of = jnp.array([[2.0, 0], [2, 0], [0, 1.5], [0, 2]]), jnp.array([0, 0, 0, 1])
    assert metrics.accuracy(W, misled, of) == 0.75
    assert metrics.nc4(W, misled, of) == 1


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=15)
def test_nc4_and_cdnv_feel_no_rotation_and_no_scale(seed, scale):
    w, h, labels = case("unbalanced", seed, np.float64)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(9, 9)))[0]
    values = [
        (
            metrics.nc4(jnp.asarray(w @ r), jnp.asarray(x), jnp.asarray(labels)),
            metrics.cdnv(jnp.asarray(x), jnp.asarray(labels), 5),
        )
        for r, x in [(np.eye(9), h), (rotation, scale * h @ rotation)]
    ]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-10)
    # CDNV feels no shift of all features either.
    shifted = metrics.cdnv(jnp.asarray(h + 5.0), jnp.asarray(labels), 5)
    np.testing.assert_allclose(shifted, values[0][1], rtol=1e-10)


def test_a_class_without_samples_is_an_error_and_nan_under_jit():
    features, labels = jnp.ones((4, 3)), jnp.array([0, 0, 2, 2])
    with pytest.raises(ValueError, match="every one of the 3 classes needs a sample, but class 1 has none"):
        metrics.nc1(features, labels, 3)
    with pytest.raises(ValueError, match="class 1 has none"):
        metrics.nc3(jnp.ones((3, 3)), features, labels)
    assert np.isnan(jax.jit(metrics.nc1, static_argnums=2)(features, labels, 3))
    assert np.isnan(jax.jit(metrics.cdnv, static_argnums=2)(features, labels, 3))
    assert np.isnan(jax.jit(metrics.nc4)(jnp.ones((3, 3)), features, labels))


def test_shapes_are_checked():
    labels = ufm.balanced_labels(2, 2)
    message = (
        r"labels must be integers of shape \(3,\), one for each row of features, but have shape \(4,\)"
    )
    with pytest.raises(ValueError, match=message):
        metrics.nc1(jnp.ones((3, 2)), labels, 2)
    with pytest.raises(ValueError, match="W must be a matrix of at least two rows"):
        metrics.nc2(jnp.ones((1, 2)))
    with pytest.raises(ValueError, match=r"labels must lie in 0..2, but go from 0 to 3"):
        metrics.nc1(jnp.ones((4, 2)), jnp.array([0, 1, 2, 3]), 3)


def test_metrics_do_not_depend_on_the_order_of_samples():
    w, h, labels = case("unbalanced", 0, np.float64)
    order = np.random.default_rng(1).permutation(len(labels))
    for measure in [
        lambda h, y: metrics.nc1(h, y, 5),
        lambda h, y: metrics.nc3(jnp.asarray(w), h, y),
        lambda h, y: metrics.nc4(jnp.asarray(w), h, y),
        lambda h, y: metrics.cdnv(h, y, 5),
        lambda h, y: metrics.gnc3(jnp.asarray(w), h, y),
        lambda h, y: metrics.accuracy(jnp.asarray(w), h, y),
    ]:
        here = measure(jnp.asarray(h), jnp.asarray(labels))
        there = measure(jnp.asarray(h[order]), jnp.asarray(labels[order]))
        np.testing.assert_allclose(here, there, rtol=1e-11)


def test_accuracy_counts_right_answers():
    W = jnp.eye(3)
    features = jnp.array([[2.0, 0, 0], [0, 2, 0], [0, 2, 0], [1, 1, 0]])
    assert metrics.accuracy(W, features, jnp.array([0, 1, 2, 0])) == 0.75


def test_metrics_work_under_vmap():
    inputs = [case("random", seed, np.float64) for seed in range(4)]
    h, labels = jnp.stack([i[1] for i in inputs]), jnp.asarray(inputs[0][2])
    together = jax.jit(jax.vmap(lambda h: metrics.nc1(h, labels, 5)))(h)
    np.testing.assert_allclose(together, [reference_nc1(x, labels, 5) for x in h], rtol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e30])
def test_no_metric_depends_on_the_scale(dtype, scale):
    generator = np.random.default_rng(0)
    W, means = (jnp.asarray(generator.normal(size=(4, 8)), dtype) for _ in range(2))
    labels = jnp.repeat(jnp.arange(4), 3)
    H = means[labels] + jnp.asarray(0.1 * generator.normal(size=(12, 8)), dtype)
    close = {"float32": 1e-5, "float64": 1e-12}[dtype]
    for metric in (
        lambda s: metrics.nc1(s * H, labels, 4),
        lambda s: metrics.nc2(s * W),
        lambda s: metrics.nc3(s * W, s * H, labels),
        lambda s: metrics.cdnv(s * H, labels, 4),
        lambda s: metrics.gnc2(s * W),
        lambda s: metrics.gnc3(s * W, s * H, labels),
        lambda s: metrics.nc4(s * W, s * H, labels),
        lambda s: metrics.accuracy(s * W, s * H, labels),
        lambda s: metrics.bias_duality(s * W, H, labels, jnp.zeros(4, dtype)) / s,
    ):
        np.testing.assert_allclose(metric(scale), metric(1.0), rtol=close)


def test_nc1_of_ill_conditioned_means_in_single_precision():
    """Between-class variances a million apart; the right value is SciPy's in both dtypes."""
    means = np.array([[1.0, 0], [-1, 0], [0, 1e-3]])
    H = np.concatenate([means + np.array([0, 1e-3]), means - np.array([0, 1e-3])]).astype(np.float32)
    labels = np.array([0, 1, 2, 0, 1, 2], np.int32)
    with jax.enable_x64(False):
        found = metrics.nc1(jnp.asarray(H), jnp.asarray(labels), 3)
    np.testing.assert_allclose(found, 1.5, rtol=1e-3)


@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["float32", "float64"]),
    ratio=st.sampled_from([1.0, 1e-1, 1e-2, 1e-3, 3e-4]),
    scale=st.sampled_from([1e-10, 1.0, 1e10]),
)
@example(seed=13, dtype="float32", ratio=3e-4, scale=1.0)
@settings(deadline=None, max_examples=20)
def test_nc1_of_means_of_any_condition(seed, dtype, ratio, scale):
    """Singular values of the class means from 1 to `ratio`, deviations of the size of the smallest."""
    generator = np.random.default_rng(seed)
    left, right = (np.linalg.qr(generator.normal(size=(4, 4)))[0] for _ in range(2))
    means = left * np.geomspace(1, ratio, 4) @ right
    labels = np.tile(np.arange(4), 3)
    apart = ratio * generator.normal(size=(3, 4, 4))
    # About the means, which would else be others.
    H = (scale * (means[labels] + (apart - apart.mean(0)).reshape(12, 4))).astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        found = metrics.nc1(jnp.asarray(H), jnp.asarray(labels), 4)
    assert found.dtype == dtype
    close = {"float32": 1e-7, "float64": 1e-14}[dtype] * 100 / ratio
    np.testing.assert_allclose(found, reference_nc1(H / scale, labels, 4), rtol=close)


def test_cdnv_has_derivatives():
    generator = np.random.default_rng(1)
    labels = jnp.repeat(jnp.arange(3), 4)
    H = jnp.asarray(generator.normal(size=(12, 2)))
    gradient = jax.grad(lambda H: metrics.cdnv(H, labels, 3))(H)
    direction = generator.normal(size=H.shape)
    ends = [metrics.cdnv(H + t * direction, labels, 3) for t in (-1e-5, 1e-5)]
    np.testing.assert_allclose(jnp.sum(gradient * direction), (ends[1] - ends[0]) / 2e-5, rtol=1e-7)


def test_equal_class_means_hide_any_spread_from_nc1():
    """docs/metrics.md: the pseudo-inverse of zero is zero; CDNV is infinite there."""
    one_class = np.array([[1.0, 0], [-1, 0], [0, 2], [0, -2]])
    features, labels = jnp.asarray(np.concatenate([one_class, one_class])), jnp.repeat(jnp.arange(2), 4)
    assert ufm.metrics.nc1(features, labels, 2) == 0
    assert ufm.metrics.cdnv(features, labels, 2) == jnp.inf
    nearly = features.at[0, 0].add(1e-14)
    assert ufm.metrics.nc1(nearly, labels, 2) > 1e20


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("samples", [6, 7, 41, 47, 55, 110])
def test_all_right_is_exactly_one(samples, dtype):
    """Compiled, a division by 41 is a product with the rounded 1/41, and 41 times that is below 1."""
    W = jnp.asarray(np.eye(3), dtype)
    labels = jnp.arange(samples) % 3

    @jax.jit
    def shares(h):
        found = ufm.streaming.measure(W, h, labels)
        return metrics.accuracy(W, h, labels), metrics.nc4(W, h, labels), found["accuracy"], found["nc4"]

    assert [float(x) for x in shares(W[labels])] == [1, 1, 1, 1]


def test_a_diverged_network_has_not_collapsed():
    W, labels = jnp.eye(3), jnp.arange(6) % 3
    bad = W[labels].at[1].set(jnp.nan)
    assert np.isnan(metrics.nc4(W, bad, labels))
    assert np.isnan(ufm.streaming.measure(W, bad, labels)["nc4"])
    np.testing.assert_allclose(metrics.accuracy(W, bad, labels), 5 / 6)
    assert metrics.accuracy(W * jnp.nan, W[labels], labels) == 0
    with pytest.raises(ValueError, match="features must be finite, but 3 entries are not"):
        metrics.measurement.measured(
            [(bad, labels)],
            3,
            W,
            None,
            dtype=np.dtype("float64"),
            outside=None,
            absent="error",
            decisions=True,
            progress=None,
        )


@pytest.mark.parametrize("label", [-100, 2])
def test_a_label_of_no_class_is_nan_under_jit(label):
    features = jnp.array([[2.0, 0.0], [4.0, 0.0], [0.0, 3.0], [0.0, 5.0], [9.0, 9.0]])
    W, labels = jnp.eye(2), np.array([0, 0, 1, 1, label])
    for measured in (
        lambda labels: metrics.nc1(features, labels, 2),
        lambda labels: metrics.cdnv(features, labels, 2),
        lambda labels: metrics.class_means(features, labels, 2)[1],
        lambda labels: metrics.nc3(W, features, labels),
        lambda labels: ufm.streaming.measure(W, features, labels)["nc1"],
    ):
        assert np.all(np.isfinite(jax.jit(measured)(labels.clip(0, 1))))
        assert np.any(np.isnan(jax.jit(measured)(labels)))


def test_derivatives_of_distances_are_zero_at_collapse():
    for K, d in [(4, 3), (4, 6)]:
        W, labels = ufm.theory.simplex_etf(K, d), np.arange(K)
        for distance in (metrics.nc2, lambda W, labels=labels: metrics.nc3(W, W, labels)):
            assert distance(W) < 1e-12
            assert np.all(np.isfinite(jax.grad(distance)(W)))
    # Beside it they are those of finite differences.
    W = metrics.class_means(jax.random.normal(jax.random.key(0), (3, 5)), np.arange(3), 3)
    check_grads(metrics.nc2, (W,), order=1, rtol=1e-6)


def test_metrics_run_inside_a_shard_map():
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:2]), ("x",))
    over = jax.sharding.PartitionSpec("x")
    features = jax.random.normal(jax.random.key(0), (12, 4))
    labels = jnp.tile(jnp.arange(3), 4)
    nc1 = jax.shard_map(lambda h, y: metrics.nc1(h, y, 3)[None], mesh=mesh, in_specs=over, out_specs=over)(
        features, labels
    )
    expected = [metrics.nc1(features[i : i + 6], labels[i : i + 6], 3) for i in (0, 6)]
    np.testing.assert_allclose(nc1, expected, rtol=1e-10)


@pytest.mark.parametrize("broken", ["W", "bias"])
def test_a_classifier_that_is_no_number_agrees_with_nothing(broken):
    W, bias = np.eye(2), np.zeros(2)
    (W if broken == "W" else bias)[1] = np.nan
    features, labels = np.eye(2)[[0, 0, 1, 1]], [0, 0, 1, 1]
    assert np.isnan(metrics.nc4(W, features, labels, bias=bias))
    assert metrics.accuracy(W, features, labels, bias=bias) == 0
    with pytest.raises(ValueError, match=f"{broken} must be finite"):
        metrics.measure(features, labels, W, bias=bias)
    with pytest.raises(ValueError, match=f"{broken} must be finite"):
        streaming.measure_batches([(features, labels)], 2, W, bias)
    sums = streaming.first_pass(2, 2).add(features, labels)
    found = sums.second_pass(W, bias).add(features, labels).metrics()
    assert np.isnan(found["nc4"])
    assert found["accuracy"] == 0


def test_a_class_without_a_sample_has_no_accuracy_under_jit():
    features, W = (
        jnp.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.2]]),
        jnp.array([[1.0, 0], [0, 1.0], [-1.0, -1]]),
    )

    @jax.jit
    def per_class(labels):
        sums = streaming.first_pass(3, 2).add(features, labels)
        return sums.second_pass(W).add(features, labels).per_class()["accuracy"]

    np.testing.assert_array_equal(per_class(jnp.array([0, 0, 2])), [0.5, np.nan, 0.0])


@pytest.mark.slow
def test_nc2_of_a_wide_isotropic_classifier_in_single_precision():
    """From d = 2897 on d^2 eps is above 1, and |W^T W| is sqrt(d) times smaller than |W|^2."""
    dim = 2900
    W = np.concatenate([np.eye(dim), np.eye(dim), np.full((1, dim), dim**-0.5)]).astype(np.float32)
    gram = W.T.astype(float) @ W
    k, total = len(W), W.sum(0, dtype=float)
    on_simplex = (np.trace(gram) - total @ total / k) / (k - 1) ** 0.5
    expected = (2 - 2 * on_simplex / np.linalg.norm(gram)) ** 0.5
    np.testing.assert_allclose(ufm.metrics.nc2(jnp.asarray(W)), expected, rtol=1e-4)
