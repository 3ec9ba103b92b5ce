"""Streamed metrics in float32 against SciPy's pseudo-inverse in float64, on the same features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

import ufm_jax as ufm
from tests.shared.formulas import (
    reference_cdnv,
    reference_gnc3,
    reference_nc1,
    reference_nc2,
    reference_nc3,
    reference_nc4,
)
from tests.shared.marks import few
from ufm_jax import streaming
from ufm_jax.metrics import classes

K = 100


def case(kind, dim):
    """Float32 features of K = 100 classes in d dimensions, as a network makes them."""
    generator = np.random.default_rng(0)
    counts = generator.integers(3, 30, K) if kind == "unbalanced" else np.full(K, 15)
    labels = np.repeat(np.arange(K, dtype=np.int32), counts)
    centres = generator.normal(size=(K, dim))
    if kind == "ill_conditioned":
        # Singular values of the class means from 1 to 1e-2.
        left, _, right = np.linalg.svd(centres, full_matrices=False)
        centres = left * np.geomspace(1, 1e-2, K) @ right * 30
    spread = 1e-3 if kind == "collapsed" else 1.0
    features = centres[labels] + spread * generator.normal(size=(len(labels), dim))
    if kind == "positive":
        features = np.maximum(features, 0) + 3  # After a ReLU, far from the origin.
    return features.astype(np.float32), labels, generator.normal(size=(K, dim)).astype(np.float32)


def stream(features, labels, W, batches):
    first = streaming.first_pass(K, features.shape[1])
    for batch in batches:
        first = first.add(features[batch], labels[batch])
    second = first.second_pass(W, decisions=False)
    for batch in batches:
        second = second.add(features[batch], labels[batch])
    return second.metrics()


def expected_nc1(features, labels):
    """As `reference_nc1`, with the d x d pseudo-inverse of a symmetric matrix by SciPy in float64."""
    h = features.astype(np.float64)
    means = np.stack([h[labels == c].mean(0) for c in range(K)])
    centred = means - h.mean(0)
    inverse = scipy.linalg.pinvh(centred.T @ centred / K, rtol=1e-9)
    deviations = h - means[labels]
    return np.sum((deviations @ inverse) * deviations) / len(h) / K


# In the dimensions of a ResNet-50, SciPy takes ten seconds for each.
@pytest.mark.parametrize("dim", few(1, 256, 2048))
@pytest.mark.parametrize("kind", few(1, "ill_conditioned", "positive", "unbalanced", "plain", "collapsed"))
def test_streamed_nc1_equals_scipy_in_any_order(kind, dim):
    features, labels, W = case(kind, dim)
    expected = expected_nc1(features, labels)
    generator = np.random.default_rng(1)
    values, cuts = [], np.sort(generator.choice(np.arange(1, len(labels)), 3, replace=False))
    for order in [np.arange(len(labels)), generator.permutation(len(labels))]:
        batches = np.split(order, cuts)
        found = stream(jnp.asarray(features), jnp.asarray(labels), W, batches)
        assert found["nc1"].dtype == np.float32
        values.append(found["nc1"])
        np.testing.assert_allclose(found["nc3"], reference_nc3(W, features, labels), rtol=1e-4)
    np.testing.assert_allclose(values, expected, rtol=1e-4)


@pytest.mark.parametrize("batch_size", few(1, 7, 30))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_of_kept_features_give_the_metrics_of_the_library(batch_size, dtype, key):
    labels = ufm.balanced_labels(5, 6)
    features = jax.random.normal(key, (30, 9), dtype) + jnp.asarray(labels, dtype)[:, None]
    W = jax.random.normal(jax.random.key(1), (5, 9), dtype)
    found = jax.jit(streaming.measure, static_argnums=3)(W, features, labels, batch_size)
    expected = {
        "nc1": reference_nc1(features, labels, 5),
        "nc2": reference_nc2(W),
        "nc3": reference_nc3(W, features, labels),
        "nc4": reference_nc4(W, features, labels),
        "cdnv": reference_cdnv(features, labels, 5),
        "gnc3": reference_gnc3(W, features, labels),
    }
    assert set(expected) < set(found)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4 if dtype == np.float32 else 1e-10)
        assert found[name].dtype == dtype


def offset_case(seed, num_classes, dim, offset, spread, shuffled):
    """Float32 features that share an offset, as after a ReLU; class means differ by about one."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_classes), 30)
    shared = offset * max(1, spread) * generator.uniform(0.5, 1, dim)
    means = generator.normal(size=(num_classes, dim))
    features = shared + means[labels] + spread * generator.normal(size=(len(labels), dim))
    order = generator.permutation(len(labels)) if shuffled else np.arange(len(labels))
    return jnp.asarray(features[order], jnp.float32), jnp.asarray(labels[order])


@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.sampled_from([(2, 2), (10, 64)]),
    offset=st.sampled_from([0.0, 10.0, 100.0, 1e3, 1e4]),
    spread=st.sampled_from([0.01, 0.1, 10.0]),
    shuffled=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_a_shared_offset_costs_no_digits(seed, sizes, offset, spread, shuffled):
    """The last singular value of the means is rounding, which an offset makes larger than any cutoff."""
    features, labels = offset_case(seed, *sizes, offset, spread, shuffled)
    found = jax.jit(streaming.measure, static_argnums=3)(jnp.eye(*sizes), features, labels, 64)
    np.testing.assert_allclose(found["nc1"], reference_nc1(features, labels, sizes[0]), rtol=1e-5)
    np.testing.assert_allclose(found["cdnv"], reference_cdnv(features, labels, sizes[0]), rtol=1e-5)
    assert found["nc4"] == pytest.approx(reference_nc4(np.eye(*sizes), features, labels), abs=0.011)


@pytest.mark.parametrize("seed", range(5))
def test_the_cutoff_knows_the_rounding_of_sums(seed):
    """Means of rank 2 in 8 dimensions, sums about first samples a thousand times their spread away."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(6), 20)
    plane = generator.normal(size=(6, 2)) @ generator.normal(size=(2, 8))
    noise = generator.normal(size=(60, 8))
    noise[::10] += 10_000 * generator.uniform(0.5, 1, 8)
    deviations = np.stack([noise, -noise], 1).reshape(120, 8)  # Of sum zero in every class.
    features = plane[labels] + 0.1 * deviations
    rounded = jnp.asarray(features, jnp.float32)
    expected = reference_nc1(features, labels, 6)
    np.testing.assert_allclose(stream_of_six(rounded, labels)["nc1"], expected, rtol=0.02)
    with jax.enable_x64(False):
        np.testing.assert_allclose(ufm.metrics.nc1(rounded, labels, 6), expected, rtol=0.02)


def stream_of_six(features, labels):
    return streaming.first_pass(6, 8).add(features, labels).second_pass().add(features, labels).metrics()


def test_no_matrix_is_as_large_as_the_covariance():
    """The largest temporary of both folds is far below d x d."""
    dim = 4096
    shapes = [jax.ShapeDtypeStruct((4, dim), np.float32), jax.ShapeDtypeStruct((64, dim), np.float32)]
    labels = jax.ShapeDtypeStruct((64,), np.int32)
    program = jax.jit(streaming.measure, static_argnums=3).lower(*shapes, labels, 16).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4 * dim**2 / 8


def test_pairs_of_a_large_vocabulary_are_beyond_int32():
    shapes = [jax.ShapeDtypeStruct((rows, 8), np.float32) for rows in (100_000, 200_000)]
    with jax.enable_x64(False):
        found = jax.eval_shape(streaming.measure, *shapes, jax.ShapeDtypeStruct((200_000,), np.int32))
    assert found["uniformity_means"].dtype == np.float32


def test_collapsed_features_have_no_variability():
    frame = ufm.theory.simplex_etf(7, 10, np.float32)
    labels = ufm.balanced_labels(7, 4)
    found = streaming.measure(frame, frame[labels], labels, 5)
    assert found["nc1"] < 1e-13
    assert found["nc2"] < 1e-6
    assert found["nc3"] < 1e-6
    assert found["nc4"] == 1
    assert found["cdnv"] < 1e-13
    assert found["directional_cdnv"] < 1e-13
    assert found["gnc3"] < 1e-13


def test_passes_cannot_be_taken_in_the_wrong_order():
    frame, labels = ufm.theory.simplex_etf(3, 4), ufm.balanced_labels(3, 2)
    first = streaming.first_pass(3, 4)
    assert not hasattr(first, "metrics")
    with pytest.raises(ValueError, match="every one of the 3 classes needs a sample, but class 0 has none"):
        first.second_pass()
    first = first.add(frame[labels], labels)
    assert first.add(frame[:0], labels[:0]) is first
    second = first.second_pass(frame)
    for pass_ in (second, second.add(frame[labels[1:]], labels[1:])):
        with pytest.raises(
            ValueError, match="both passes must go over the same samples, but the first saw 6"
        ):
            pass_.metrics()
    with pytest.raises(ValueError, match=r"W must have shape \(3, 4\), but has shape \(4, 4\)"):
        first.second_pass(jnp.eye(4))
    with pytest.raises(ValueError, match="bias needs W"):
        first.second_pass(bias=jnp.ones(3))


def test_a_class_that_was_left_out_is_no_sample_of_its_neighbour():
    features = np.random.default_rng(0).normal(size=(5, 3))
    first = streaming.first_pass(3, 3, "float64").add(features, [0, 0, 2, 2, 2])
    second = first.second_pass(absent="skip").add(features, [0, 0, 2, 2, 1])
    with pytest.raises(ValueError, match="the first saw 5 and the second 5, or others of some class"):
        second.metrics()


@pytest.mark.parametrize("shape", [(7,), (7, 3)])
def test_sums_by_class_are_the_same_where_one_hot_rows_would_be_too_large(shape, monkeypatch):
    values, labels = np.random.default_rng(0).normal(size=shape), jnp.array([0, 2, 2, 1, 0, 2, 2])
    by_product = classes.by_class(jnp.asarray(values), labels, 4)
    monkeypatch.setattr(classes, "_MOST_ONE_HOT", 0)
    np.testing.assert_allclose(classes.by_class(jnp.asarray(values), labels, 4), by_product, rtol=1e-14)
    np.testing.assert_allclose(by_product[2], values[[1, 2, 5, 6]].sum(0), rtol=1e-14)


@pytest.mark.parametrize("dtype", ["abc", "float16", object])
def test_sums_are_of_one_of_two_dtypes(dtype):
    batches = [(jnp.eye(2), jnp.arange(2))]
    for call in (
        lambda: streaming.first_pass(2, 2, dtype),
        lambda: streaming.measure_batches(batches, 2, dtype=dtype),
    ):
        with pytest.raises(ValueError, match="dtype must be float32 or float64, but is "):
            call()


def test_batches_must_be_there_twice():
    frame, labels = ufm.theory.simplex_etf(3, 4), ufm.balanced_labels(3, 2)
    batches = [(frame[labels], labels), (frame[labels[:2]], labels[:2])]
    with pytest.raises(ValueError, match="batches are gone over twice, but are an iterator"):
        streaming.measure_batches(iter(batches), 3, frame)
    with pytest.raises(ValueError, match="at least one batch, but are empty"):
        streaming.measure_batches([], 3, frame)
    said = []
    found = streaming.measure_batches(lambda: iter(batches), 3, frame, progress=said.append)
    assert found == streaming.measure_batches(batches, 3, frame)
    assert said == [
        *(f"{which} pass: {count} samples" for which in ("first", "second") for count in (6, 8)),
        "pairs of classes",
    ]


def test_decisions_are_left_out_on_request():
    frame, labels = ufm.theory.simplex_etf(3, 4), ufm.balanced_labels(3, 2)
    batches = [(frame[labels], labels)]
    found = streaming.measure_batches(batches, 3, frame, decisions=False)
    assert found.nc4 is found.accuracy is found.directional_cdnv is None
    assert np.isnan(found.as_dict()["nc4"])
    assert found.nc3 == streaming.measure_batches(batches, 3, frame).nc3


def test_the_bias_counts_in_streamed_decisions():
    features = jnp.array([[2.0, 0], [1, 0], [0, 1], [0, 2]])
    labels, bias = jnp.array([0, 0, 1, 1]), jnp.array([0.0, 1.5])
    assert streaming.measure(jnp.eye(2), features, labels, 3)["nc4"] == 1
    assert streaming.measure(jnp.eye(2), features, labels, 3, bias)["nc4"] == 0.75


def test_bad_input_is_one_sentence():
    frame, labels = ufm.theory.simplex_etf(3, 4), ufm.balanced_labels(3, 2)
    for arguments, message in [
        ((frame[0], frame[labels], labels), "W must be a matrix of at least two rows"),
        (
            (frame, frame[labels], labels[:3]),
            r"of shape \(6,\), one for each row of features, but have shape \(3,\)",
        ),
        ((frame, frame[labels], labels, 0), "batch_size must be finite and at least 1, but is 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            streaming.measure(*arguments)


def test_the_second_pass_measures_what_is_outside():
    generator = np.random.default_rng(0)
    h, outside = generator.normal(size=(12, 5)), generator.normal(size=(7, 5)) + 1
    labels = np.arange(12) % 3
    first = ufm.streaming.FirstPass(ufm.metrics.classes.no_sums(3, 5, np.dtype("float64"))).add(h, labels)
    second = first.second_pass().add(h, labels)
    means = np.stack([h[labels == k].mean(0) for k in range(3)])
    cosines = means @ outside.mean(0) / np.linalg.norm(means, axis=1) / np.linalg.norm(outside.mean(0))
    np.testing.assert_allclose(second.metrics(outside)["nc5"], np.mean(np.abs(cosines)), rtol=1e-12)
    assert np.isnan(second.metrics()["nc5"])


def test_what_makes_the_batches_runs_where_the_caller_runs(key):
    """A network between the batches and the metrics is neither made float64 nor moved to the host."""
    seen = []

    def batches():
        for i in range(2):
            here = jnp.zeros(())
            seen.append((jax.config.jax_enable_x64, here.dtype.name, next(iter(here.devices()))))
            yield np.float32([[i, 1], [2, 3], [i, 7]]), np.array([0, 1, 1])

    device = jax.local_devices()[1]
    with jax.enable_x64(False), jax.default_device(device):
        found = streaming.measure_batches(batches, 2, progress=lambda text: seen.append(seen[-1]))
        assert set(seen) == {(False, "float32", device)}
    assert len(seen) > 6
    assert found.samples == 6


def test_the_second_pass_leaves_classes_out_under_jit_too(key):
    features, labels = jax.random.normal(key, (8, 3)), np.array([0, 5, 5, 0, 3, 3, 0, 5])
    second = streaming.first_pass(6, 3).add(features, labels).second_pass(absent="skip", decisions=False)
    expected = second.add(features, labels).metrics()
    found = jax.jit(lambda second: second.add(features, labels))(second).metrics()
    np.testing.assert_allclose(found["nc1"], expected["nc1"], rtol=1e-12)


def test_features_on_the_device_are_measured_by_one_program(key):
    features, labels, W = jax.random.normal(key, (10, 3)), jnp.tile(jnp.arange(2), 5), jnp.eye(2, 3)
    streaming.measure(W, features, labels, batch_size=4)
    before = streaming._measured_in_blocks._cache_size()
    streaming.measure(W, features, labels, batch_size=4)
    assert streaming._measured_in_blocks._cache_size() == before
