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
        assert {x.dtype for x in (*first.sums, *second.metrics().values())} == {np.dtype(dtype)}
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
