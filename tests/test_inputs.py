"""What may be given: one rule on dtypes and one check of labels, for all that take features and labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ufm_jax as ufm
from tests.shared.formulas import (
    reference_cdnv,
    reference_distances,
    reference_gnc3,
    reference_nc1,
    reference_nc2,
    reference_nc3,
    reference_nc4,
)
from tests.shared.marks import few
from ufm_jax import _checks, losses, metrics, streaming

K, N, D = 3, 9, 4
LABELS = np.repeat(np.arange(K), N // K)

METRICS = {
    "nc1": lambda W, H, y: metrics.nc1(H, y, K),
    "nc2": lambda W, H, y: metrics.nc2(W),
    "nc3": metrics.nc3,
    "nc4": metrics.nc4,
    "cdnv": lambda W, H, y: metrics.cdnv(H, y, K),
    "gnc2": lambda W, H, y: metrics.gnc2(W),
    "gnc3": metrics.gnc3,
    "accuracy": metrics.accuracy,
}
REFERENCES = {
    "nc1": lambda W, H, y: reference_nc1(H, y, K),
    "nc2": lambda W, H, y: reference_nc2(W),
    "nc3": reference_nc3,
    "nc4": reference_nc4,
    "cdnv": lambda W, H, y: reference_cdnv(H, y, K),
    "gnc2": lambda W, H, y: reference_distances(W).min(),
    "gnc3": reference_gnc3,
    "accuracy": lambda W, H, y: np.mean(np.argmax(H @ W.T, 1) == y),
}

INTEGERS = ["int8", "uint8", "int16", "int32", "int64", "bool"]
DTYPES = [*INTEGERS, "bfloat16", "float16", "float32", "float64"]


def expected_dtype(dtype, x64):
    """The rule, in words of its own."""
    if dtype in INTEGERS:
        return "float64" if x64 else "float32"
    return "float64" if dtype == "float64" and x64 else "float32"


def of_dtype(generator, shape, dtype):
    """Numbers of which every dtype can hold some: whole, and for floats not whole, unevenly spread."""
    values = generator.integers(0, 2 if dtype == "bool" else 7, shape)
    if dtype not in INTEGERS:
        values = values + generator.normal(size=shape)
    return np.asarray(values).astype(jnp.dtype(dtype))


def in_batches(W, H, labels, dtype):
    """What streams are made of, two batches each, without compiling a loop for every dtype."""
    batches = [(H[part], labels[part]) for part in (slice(4), slice(4, N))]
    first = streaming.first_pass(K, D, dtype)
    for batch in batches:
        first = first.add(*batch)
    second = first.second_pass(W)
    for batch in batches:
        second = second.add(*batch)
    return second.metrics()


@given(
    seed=st.integers(0, 2**32 - 1),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    x64=st.booleans(),
    kind=st.sampled_from([np.asarray, jnp.asarray, lambda x: x.tolist()]),
)
@settings(deadline=None, max_examples=15)
@pytest.mark.slow
def test_metrics_of_any_dtype_are_those_of_the_same_numbers(seed, dtypes, x64, kind):
    """W and features of any two dtypes give what their float32 or float64 values give, to the bit."""
    generator = np.random.default_rng(seed)
    W, H = (
        of_dtype(generator, shape, dtype) for shape, dtype in zip([(K, D), (N, D)], dtypes, strict=True)
    )
    if kind not in (np.asarray, jnp.asarray):  # Lists know no dtypes but these.
        dtypes = tuple("int64" if dtype in INTEGERS else "float64" for dtype in dtypes)
    with jax.enable_x64(x64):
        dtype_of_W, dtype_of_H = (expected_dtype(dtype, x64) for dtype in dtypes)
        plain = (jnp.asarray(W.astype(dtype_of_W)), jnp.asarray(H.astype(dtype_of_H)), jnp.asarray(LABELS))
        given_ = (kind(W), kind(H), LABELS)
        for name, metric in METRICS.items():
            found = metric(*given_)
            np.testing.assert_array_equal(found, metric(*plain), err_msg=name)
            assert found.dtype == (dtype_of_H if name in ("nc1", "cdnv") else dtype_of_W), name
        found, expected = (in_batches(*x, dtype_of_H) for x in (given_, plain))
        for name, value in found.items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)
            assert value.dtype == dtype_of_H, name


@pytest.mark.parametrize("dtype", few(4, *reversed(DTYPES)))
@pytest.mark.parametrize("x64", few(1, True, False))
def test_metrics_of_any_dtype_equal_scipy(dtype, x64):
    generator = np.random.default_rng(1)
    W = of_dtype(generator, (K, D), dtype)
    H = W[LABELS] ^ of_dtype(generator, (N, D), dtype) if dtype == "bool" else None
    if H is None:
        H = (W[LABELS] + of_dtype(generator, (N, D), dtype)).astype(W.dtype)
    exact = W.astype(np.float64), H.astype(np.float64), LABELS
    close = 1e-9 if expected_dtype(dtype, x64) == "float64" else 2e-5
    with jax.enable_x64(x64):
        in_batches = streaming.measure(W, H, LABELS, batch_size=4)
        for name, metric in METRICS.items():
            expected = REFERENCES[name](*exact)
            np.testing.assert_allclose(metric(W, H, LABELS), expected, rtol=close, err_msg=name)
            if name in in_batches:
                np.testing.assert_allclose(in_batches[name], expected, rtol=close, err_msg=name)
    np.testing.assert_allclose(metrics.measure(H, LABELS, W).nc1, REFERENCES["nc1"](*exact), rtol=1e-9)


def test_a_stream_may_change_its_dtype():
    """Batches in halves, integers and float64 go into sums of one dtype, also as the carry of a scan."""
    H = np.random.default_rng(2).integers(0, 7, (N, D))
    for dtype in ("float32", "float64"):
        first = streaming.first_pass(K, D, dtype)
        parts = zip(np.split(np.arange(N), 3), ["bfloat16", "int8", "float64"], strict=True)
        batches = [(jnp.asarray(H[part], kind), LABELS[part]) for part, kind in parts]
        for batch in batches:
            first = first.add(*batch)
        second = first.second_pass()
        for batch in batches:
            second = second.add(*batch)
        counts, *sums = first.sums
        assert counts.dtype == np.int32
        assert {x.dtype for x in (*sums, *second.metrics().values())} == {np.dtype(dtype)}
        means = np.stack([H[c == LABELS].mean(0) for c in range(K)])
        close = {"float32": 1e-6, "float64": 1e-14}[dtype]
        np.testing.assert_allclose(second.centres.means, means, rtol=close)


@pytest.mark.parametrize(
    ("W", "H", "message"),
    [
        (
            [[1j, 2], [0, 1], [1, 1]],
            np.ones((N, 2)),
            "W must be an array of real numbers, but has .* complex128",
        ),
        ([[1, 2], [0]], np.ones((N, 2)), "W cannot be read as an array"),
        (np.ones((1, 2)), np.ones((N, 2)), "W must be a matrix of at least two rows"),
        (
            np.ones((K, 3)),
            np.ones((N, 2)),
            r"features must have a column a dimension, 3, but has shape \(9, 2\)",
        ),
        (np.ones((K, 2)), [["a"] * 2] * N, "features must be an array of real numbers, but has .* <U1"),
        (
            np.ones((K, 2)),
            np.ones(N),
            r"features must be a matrix of at least one row, but has shape \(9,\)",
        ),
        (np.ones((K, 2)), np.ones((N, 0)), "features must be a matrix of at least one row"),
    ],
)
def test_other_arrays_are_one_sentence(W, H, message):
    for metric in (metrics.nc3, metrics.nc4, metrics.gnc3, metrics.accuracy, streaming.measure):
        with pytest.raises(ValueError, match=message) as error:
            metric(W, H, LABELS)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("bias", [np.ones((K, 1)), np.ones(K + 1), 1.0])
def test_a_bias_is_not_spread_over_scores(bias):
    frame = ufm.theory.simplex_etf(K, D)
    first = streaming.first_pass(K, D).add(frame[LABELS], LABELS)
    for call in (
        lambda: metrics.nc4(frame, frame[LABELS], LABELS, bias),
        lambda: streaming.measure(frame, frame[LABELS], LABELS, bias=bias),
        lambda: first.second_pass(frame, bias),
        lambda: metrics.measure(frame[LABELS], LABELS, frame, bias=bias),
    ):
        with pytest.raises(ValueError, match="bias must have an entry a class, 3, but has shape"):
            call()


FRAME = np.asarray(ufm.theory.simplex_etf(K, D))
FEATURES = FRAME[LABELS] + 0.1 * np.random.default_rng(3).normal(size=(N, D))
FIRST = streaming.first_pass(K, D, "float64").add(FEATURES, LABELS)
SECOND = FIRST.second_pass(FRAME)
SCORES = FEATURES @ FRAME.T

TAKERS = {
    "nc1": lambda y: metrics.nc1(FEATURES, y, K),
    "nc3": lambda y: metrics.nc3(FRAME, FEATURES, y),
    "nc4": lambda y: metrics.nc4(FRAME, FEATURES, y),
    "cdnv": lambda y: metrics.cdnv(FEATURES, y, K),
    "gnc3": lambda y: metrics.gnc3(FRAME, FEATURES, y),
    "accuracy": lambda y: metrics.accuracy(FRAME, FEATURES, y),
    "measure": lambda y: metrics.measure(FEATURES, y, FRAME).nc1,
    "streaming.measure": lambda y: streaming.measure(FRAME, FEATURES, y)["nc1"],
    "first pass": lambda y: FIRST.add(FEATURES, y).sums.sums,
    "second pass": lambda y: SECOND.add(FEATURES, y).totals.squares,
    "cross_entropy": lambda y: losses.cross_entropy(SCORES, y),
    "focal": lambda y: losses.focal(SCORES, y),
    "label_smoothing": lambda y: losses.label_smoothing(SCORES, y),
    "squared_error": lambda y: losses.squared_error(SCORES, y),
    "normalized": lambda y: ufm.normalized(y, K).cost(ufm.Point(FRAME, FEATURES)),
    "regularized": lambda y: ufm.regularized(y, K).cost(ufm.Point(FRAME, FEATURES)),
    "contrastive": lambda y: ufm.contrastive(y, K).cost(ufm.Point(None, FEATURES)),
}
WITHOUT_CLASSES = {
    "supervised_contrastive": lambda y: losses.supervised_contrastive(FEATURES, y, 1.0),
    "contrastive_of_similarities": lambda y: losses.contrastive_of_similarities(FEATURES @ FEATURES.T, y),
}
ALL_TAKERS = TAKERS | WITHOUT_CLASSES
ANY_LENGTH = {"normalized", "regularized", "contrastive"}
"""Problems have as many samples as labels."""


@pytest.mark.parametrize("name", ALL_TAKERS)
@given(
    classes=st.permutations(LABELS.tolist()),
    kind=st.sampled_from(
        ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "list"]
    ),
    numpy=st.booleans(),
)
@settings(deadline=None, max_examples=8)
def test_labels_of_any_width_are_the_same_labels(name, classes, kind, numpy):
    labels = list(classes) if kind == "list" else (np if numpy else jnp).asarray(classes, kind)
    expected = ALL_TAKERS[name](jnp.asarray(classes, "int32"))
    np.testing.assert_array_equal(ALL_TAKERS[name](labels), expected)


@st.composite
def wrong_labels(draw):
    """Labels that fit nothing, and a part of the sentence that says so."""
    labels = np.asarray(draw(st.permutations(LABELS.tolist())))
    kind = draw(
        st.sampled_from(["low", "high", "column", "row", "one_hot", "float", "bool", "scalar", "length"])
    )
    place = draw(st.integers(0, N - 1))
    if kind in ("low", "high"):
        wrong = draw(st.integers(-300, -1) if kind == "low" else st.sampled_from([K, 255, 2**31, 2**40]))
        labels[place] = wrong
        return kind, labels, f"labels must lie in 0.*, but go from {min(0, wrong)} to {max(K - 1, wrong)}"
    changed = {
        "column": labels[:, None],
        "row": labels[None],
        "one_hot": np.eye(K, dtype=int)[labels],
        "float": labels.astype(draw(st.sampled_from(["float16", "float32", "float64"]))),
        "bool": labels > 0,
        "scalar": labels[0],
        "length": labels[: draw(st.integers(0, N - 1))],
    }[kind]
    return kind, changed, "labels must be .*integers"


@pytest.mark.parametrize("name", ALL_TAKERS)
@given(wrong=wrong_labels(), as_list=st.booleans())
@settings(deadline=None, max_examples=25)
def test_wrong_labels_are_one_sentence_everywhere(name, wrong, as_list):
    kind, labels, message = wrong
    if (kind == "length" and name in ANY_LENGTH) or (
        kind == "high" and name in WITHOUT_CLASSES and labels.max() < 2**31
    ):
        return
    with pytest.raises(ValueError, match=message) as error:
        ALL_TAKERS[name](labels.tolist() if as_list else labels)
    assert "\n" not in str(error.value)


def test_many_classes_in_narrow_labels():
    """In uint8, class 256 + 5 is 5: one-hot rows of 300 classes had two ones."""
    generator = np.random.default_rng(4)
    logits, labels = jnp.asarray(generator.normal(size=(40, 300))), generator.integers(0, 44, 40)
    for loss in (losses.cross_entropy, losses.focal, losses.label_smoothing):
        np.testing.assert_array_equal(loss(logits, jnp.asarray(labels, jnp.uint8)), loss(logits, labels))
    sums = [
        streaming.first_pass(300, 300, "float64").add(logits, y).sums
        for y in (labels, labels.astype(np.uint8))
    ]
    np.testing.assert_array_equal(sums[0].counts, np.bincount(labels, minlength=300))
    jax.tree.map(np.testing.assert_array_equal, *sums)


def test_labels_that_are_known_inside_jit_are_checked_there():
    for labels in (LABELS - 1, jnp.asarray(LABELS - 1), jnp.asarray(LABELS - 1, "int8")):
        for loss in (losses.cross_entropy, losses.focal, losses.label_smoothing):
            with pytest.raises(ValueError, match=r"labels must lie in 0..2, but go from -1 to 1"):
                jax.jit(lambda z, loss=loss, labels=labels: loss(z, labels))(SCORES)
    seen, narrow = [], jnp.asarray(LABELS, "int16")

    @jax.jit
    def cost(H):
        problem = ufm.normalized(narrow, K)
        seen.append(_checks.is_concrete(problem.labels))
        return problem.cost(ufm.Point(FRAME, H))

    cost(FEATURES)
    assert seen == [True]


def test_what_is_no_number_stays_none_with_few_dimensions():
    """For K > 2d the distances to the simplex took a NaN for W = 0, and a diverged network logged 1."""
    W = np.random.default_rng(0).normal(size=(10, 2))
    for wrong in (np.nan, np.inf):
        broken = W.copy()
        broken[3, 1] = wrong
        assert np.isnan(ufm.metrics.nc2(broken))
    assert ufm.metrics.nc2(np.zeros((10, 2))) == 1
    labels = jnp.repeat(jnp.arange(9), 4)  # Class 9 has no sample.
    H = jnp.asarray(np.random.default_rng(1).normal(size=(36, 2)))
    found = jax.jit(lambda H, labels: ufm.streaming.measure(jnp.asarray(W), H, labels))(H, labels)
    assert np.isnan(found["nc3"])
    assert np.isnan(found["nc2_means"])


@pytest.mark.parametrize("scale", [1e-23, 1e-20, 1.0, 1e19])
def test_the_nearest_mean_is_found_at_any_scale(scale):
    W = ufm.theory.simplex_etf(10, 12).astype(jnp.float32)
    labels = np.arange(20) % 10
    H = W[labels] * jnp.float32(scale)
    assert ufm.metrics.nc4(W, H, labels) == 1
    assert ufm.streaming.measure(W, H, labels)["nc4"] == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_probabilities_may_be_rounded_to_the_dtype_of_the_logits(dtype):
    targets = np.random.default_rng(0).dirichlet(np.ones(3), 50)
    losses = ufm.losses.cross_entropy(jnp.zeros((50, 3), dtype), targets)
    np.testing.assert_allclose(losses.astype(float), np.log(3), rtol=2 * float(jnp.finfo(dtype).eps))
    with pytest.raises(ValueError, match="rows of probabilities"):
        ufm.losses.cross_entropy(jnp.zeros((50, 3), dtype), 1.02 * targets)


def test_numbers_beyond_float32_and_int32_on_the_way_do_no_harm():
    with jax.enable_x64(False):
        assert ufm.theory.minority_collapse_threshold(50_000, 1e-4, 1e-4) == pytest.approx(25)
        assert ufm.theory.minority_collapse_threshold(10**7, 1e-30, 1e-10) == pytest.approx(1e-26)
        assert ufm.theory.layer_peeled_minimum(10, 50_000, 50_000) == 0
        margin = ufm.theory.regularized_margin(100, 1, 1e-37, 1e-37)
        assert margin == pytest.approx(np.log(1e37), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ufm.metrics.measure(np.ones((4, 3)), [0, 0, 0, 0], num_classes=1),
            "num_classes must be finite and at least 2, but is 1",
        ),
        (
            lambda: ufm.theory.collapse_rates(ufm.theory.collapse_spectrum(10, 5, 32, 1000.0)),
            "step must be given where no eigenvalue is positive: .* underflows in float64",
        ),
        (
            lambda: ufm.theory.collapse_rates(ufm.theory.collapse_spectrum(2, 1, 1, 1.0)),
            "step must be given where no eigenvalue is positive: nothing moves",
        ),
        (
            lambda: ufm.theory.regularized_minimizer(3, 2, 3, jnp.array([1e-2, 1e-3]), 1e-2),
            r"weight_decay must be a scalar, but has shape \(2,\)",
        ),
        (
            lambda: ufm.landscape.optimality_gap(ufm.deep.problem([0, 1, 2], 3, [1e-3], 1e-3), None),
            "the gap is known for problems of ufm.normalized and ufm.regularized",
        ),
        (
            lambda: ufm.minimize(
                ufm.Objective(lambda x: jnp.sum(jnp.ones(2, "float64") * x**2), ufm.manifolds.Euclidean()),
                jnp.ones(2, "float32"),
                ufm.solvers.lbfgs(),
            ),
            "the cost of a float32 point must be float32, but is float64: cast its constants",
        ),
        (
            lambda: ufm.metrics.measure(np.ma.masked_less(np.eye(4), 0), [0, 0, 1, 1]),
            "features must be an array without a mask: select the rows that count",
        ),
        (
            lambda: ufm.streaming.measure_batches([{"features": np.eye(4), "labels": [0, 0, 1, 1]}], 2),
            "each batch must be a pair of features and labels, but one is a dict of 2",
        ),
        (
            lambda: ufm.streaming.measure_batches([(np.eye(2), [0, 1], None)], 2),
            "each batch must be a pair of features and labels, but one is a tuple of 3",
        ),
        (
            lambda: ufm.landscape.smallest_eigenvalue(
                ufm.normalized([0, 1, 2], 3), ufm.Point(10 * jnp.eye(3), jnp.eye(3)), jax.random.key(0)
            ),
            "the point must lie on the manifold .*, but W is 9 away from it",
        ),
        (
            lambda: ufm.minimize(
                ufm.Objective(lambda x: x, ufm.manifolds.Oblique()), np.ones(()), ufm.solvers.lbfgs()
            ),
            r"an array on Oblique\(\) must have at least 1 axes, but one has shape \(\)",
        ),
        (
            lambda: ufm.solvers.gradient_descent(ufm.solvers.backtracking),
            r"line_search must be one such as ufm.solvers.backtracking\(\), but is",
        ),
        (
            lambda: ufm.normalized([0, 1], 2, classifier=ufm.manifolds.Euclidean),
            "classifier must be a manifold,? .*ufm.manifolds.Euclidean",
        ),
        (
            lambda: ufm.riemannian.check_manifold(
                ufm.manifolds.Oblique(), jnp.array([3, 4]), jax.random.key(0)
            ),
            "the point must hold floating arrays of one dtype, but has int",
        ),
        (
            lambda: ufm.theory.deep_linear_minimum(np.eye(3), ["a", "b"]),
            "decays must be an array of real numbers, but has shape",
        ),
        (
            lambda: ufm.theory.nonnegative_cross_entropy_minimum("abc", 0.1, 0.1),
            "class_sizes must be an array of real numbers, but has shape",
        ),
        (  # In the order of the minimizer's arguments.
            lambda: ufm.theory.regularized_squared_error_minimum(np.eye(3), 2, 0.1, 0.1),
            "bias must be True or False, but is 0.1",
        ),
        (
            lambda: ufm.saddles.find_critical_point(
                ufm.normalized(LABELS, K), ufm.Point(FRAME, FRAME[LABELS]), max_inner=0
            ),
            "max_inner must be finite and at least 1",
        ),
        (
            lambda: ufm.minimize(
                ufm.Objective(lambda x: 0.0, ufm.manifolds.Euclidean()),
                jax.random.key(0),
                ufm.solvers.lbfgs(),
            ),
            "the point must hold floating arrays of one dtype, but has key",
        ),
        (
            lambda: ufm.Objective(jnp.sum, ufm.manifolds.Euclidean(), scale=np.ones(3)),
            "scale must be a scalar",
        ),
        (
            lambda: ufm.theory.regularized_squared_error_minimum(np.full((3, 3), np.inf), 0.1, 0.1),
            "targets must be finite, but some are not",
        ),
        (
            lambda: ufm.theory.regularized_squared_error_minimum(np.ones((0, 3)), 0.1, 0.1),
            r"targets must be a matrix of at least one row, but has shape \(0, 3\)",
        ),
        (
            lambda: ufm.minimize(
                ufm.Objective(lambda x: x[0] ** 2 + x[1] ** 2, ufm.manifolds.Euclidean()),
                [0.5, 1.0],
                ufm.solvers.lbfgs(),
            ),
            "the point must hold floating arrays of one dtype, but has float",
        ),
    ],
)
def test_corners_that_ended_in_other_errors_are_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class _TwiceTheGradient(ufm.Objective):
    def euclidean_gradient(self, evaluation):
        return 2 * evaluation.cache


@pytest.mark.parametrize("size", [1.0, 1e-9, 1e-12, 1e-15])
def test_derivatives_of_a_small_cost_are_told_apart_from_wrong_ones(size):
    manifold, key = ufm.manifolds.Oblique(), jax.random.key(1)
    point = manifold.random_point(jax.random.key(0), jnp.zeros((2, 3)))
    right = ufm.Objective(lambda x: size * jnp.sum(x**3), manifold)
    assert ufm.riemannian.check_gradient(right, point, key).passed
    assert ufm.riemannian.check_hessian(right, point, key).passed
    twice = _TwiceTheGradient(lambda x: size * jnp.sum(x**3), manifold)
    assert "is wrong" in ufm.riemannian.check_gradient(twice, point, key).message
    # Of a cost of 1 the small part is lost to rounding, and nothing can be said.
    lost = ufm.Objective(lambda x: 1 + 1e-14 * jnp.sum(x**3), manifold)
    found = ufm.riemannian.check_gradient(lost, point, key)
    assert not found.passed
    assert "cannot be told" in found.message


def test_a_point_of_numpy_is_checked_as_jax_has_it():
    """Without x64 JAX makes it float32, in which derivatives have fewer digits."""
    objective, key = ufm.Objective(lambda x: x[0] ** 3, ufm.manifolds.Oblique()), jax.random.key(0)
    with jax.enable_x64(False):
        x = np.array([0.6, 0.48, 0.64])
        assert ufm.riemannian.check_gradient(objective, x, key).passed
        assert ufm.riemannian.check_hessian(objective, x, key, np.array([0.8, -0.36, -0.48])).passed
        assert ufm.riemannian.check_manifold(ufm.manifolds.Oblique(), x, key).passed
        off = ufm.riemannian.check_manifold(ufm.manifolds.Oblique(), 2 * x, key)
    assert "retract(x, 0) not x, or x off the manifold" in off.message


def test_what_does_not_fit_is_said_before_all_batches_are_made():
    made = []

    def batches():
        for _ in range(3):
            made.append(1)
            yield np.eye(4), np.array([0, 1, 2, 2])

    for arguments, message in [
        ({"W": np.eye(4)}, r"W must have shape \(3, 4\), but has shape \(4, 4\)"),
        ({"W": np.ones((3, 5))}, r"W must have shape \(3, 4\), but has shape \(3, 5\)"),
        ({"W": np.ones((3, 4)), "bias": np.ones(4)}, "bias must have an entry a class, 3"),
        ({"bias": np.ones(3)}, "bias needs W"),
        ({"absent": "drop"}, "absent must be one of error, skip"),
    ]:
        made.clear()
        with pytest.raises(ValueError, match=message):
            ufm.streaming.measure_batches(batches, 3, **arguments)
        assert len(made) <= 1


def test_most_steps_may_be_traced_where_nothing_is_recorded():
    objective, solver = (
        ufm.Objective(lambda x: jnp.sum(x**2), ufm.manifolds.Euclidean()),
        ufm.solvers.lbfgs(),
    )
    state = solver.init(objective, jnp.array([3.0, 4.0]))
    resumed = jax.jit(lambda state, most: ufm.solvers.resume(objective, state, solver, max_steps=most))
    assert resumed(state, 1).steps == 1
    assert resumed(state, 0).steps == 0


def test_minimizers_have_the_dtype_of_their_numbers():
    one = jnp.float32(0.01)
    arrays = [
        *ufm.theory.regularized_minimizer(3, 2, 4, one, one),
        ufm.theory.label_smoothing_cone(3, 3, jnp.float32(2)),
        ufm.theory.nearest_simplex_etf(jnp.eye(3, dtype=jnp.float32)),
    ]
    assert {x.dtype for x in arrays} == {np.dtype("float32")}
    assert ufm.theory.label_smoothing_cone(3, 3, 2).dtype == np.float64


def test_the_distance_to_no_number_is_none():
    for manifold in (ufm.manifolds.Euclidean(), ufm.manifolds.Oblique()):
        assert np.isnan(manifold.distance(jnp.array([jnp.nan, 1.0]), jnp.array([0.0, 1.0])))
