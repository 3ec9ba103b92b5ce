"""The vocabulary of the field against formulas in plain NumPy and against the numbers of other code."""

import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import ufm_jax as ufm
from tests.shared.formulas import (
    reference_cdnv,
    reference_distances,
    reference_gnc3,
    reference_nc1,
    reference_nc2,
    reference_nc3,
)
from tests.shared.marks import few
from ufm_jax import metrics, streaming
from ufm_jax.metrics import pairs


def means_of(h, y):
    """Class means, their number from the labels, and the two global means."""
    means = np.stack([h[y == c].mean(0) for c in np.unique(y)])
    return means, {"samples": h.mean(0), "classes": means.mean(0)}


def reference_nc1_of(h, y, global_mean="samples", over_classes=True):
    means, centres = means_of(h, y)
    count = len(means)
    within = sum((x - means[c])[:, None] * (x - means[c]) for x, c in zip(h, y, strict=True)) / len(h)
    centred = means - centres[global_mean]
    inverse = np.linalg.pinv(centred.T @ centred / count, rcond=1e-12)
    return np.trace(within @ inverse) / (count if over_classes else 1)


def reference_quotient(h, y, global_mean="samples"):
    means, centres = means_of(h, y)
    within = np.mean([np.sum((x - means[c]) ** 2) for x, c in zip(h, y, strict=True)])
    return within / np.mean(np.sum((means - centres[global_mean]) ** 2, 1))


def reference_cdnv_of(h, y, exponent=1, halved=True):
    means, _ = means_of(h, y)
    variances = [np.mean(np.sum((h[y == c] - m) ** 2, 1)) for c, m in enumerate(means)]
    values = [
        (variances[i] + variances[j]) / np.linalg.norm(means[i] - means[j]) ** (2 * exponent)
        for i, j in itertools.permutations(range(len(means)), 2)
    ]
    return np.mean(values) / (2 if halved else 1)


def reference_directional(h, y):
    means, _ = means_of(h, y)
    values = []
    for i, j in itertools.permutations(range(len(means)), 2):
        line = means[i] - means[j]
        values.append(np.var(h[y == i] @ line / np.linalg.norm(line)) / (line @ line))
    return np.mean(values)


def cosines(x):
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.array([units[i] @ units[j] for i, j in itertools.combinations(range(len(x)), 2)])


def reference_distances_of(x):
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.array(
        [np.linalg.norm(units[i] - units[j]) for i, j in itertools.combinations(range(len(x)), 2)]
    )


def reference_equinorm(x, ddof=0):
    lengths = np.sqrt(np.sum(x**2, 1))
    return np.std(lengths, ddof=ddof) / np.mean(lengths)


def reference_self_duality(w, m, power=2):
    return np.linalg.norm(w / np.linalg.norm(w) - m / np.linalg.norm(m)) ** power


def reference_bias(w, b, mean):
    return np.sqrt(sum((w[k] @ mean + b[k]) ** 2 for k in range(len(w))))


def reference_nc5(means, outside):
    mean = outside.mean(0)
    return np.mean([abs(m @ mean) / np.linalg.norm(m) / np.linalg.norm(mean) for m in means])


def reference_parts(w, b, h, y, decay=0.0):
    """L_NC1, L_NC2/3 and L_perp from the least-squares solution over all samples."""
    x = h if b is None else np.hstack([h, np.ones((len(h), 1))])
    v = w if b is None else np.hstack([w, b[:, None]])
    targets = np.eye(len(w))[y]
    n, d = x.shape
    design = np.vstack([x, np.sqrt(n * decay) * np.eye(d)])
    best = np.linalg.lstsq(design, np.vstack([targets, np.zeros((d, len(w)))]), rcond=1e-12)[0].T
    means = np.stack([x[y == c].mean(0) for c in range(len(w))])
    nc1 = np.sum(((x - means[y]) @ best.T) ** 2) / n / 2 + decay * np.sum(best**2) / 2
    nc23 = np.sum((means[y] @ best.T - targets) ** 2) / n / 2
    apart = v - best
    return nc1, nc23, np.sum((x @ apart.T) ** 2) / n / 2 + decay * np.sum(apart**2) / 2


def everything(h, y, w, b, outside):
    """All that `measure` measures, by name."""
    means, centres = means_of(h, y)
    m = means - centres["samples"]
    inverse_logs = -np.log(reference_distances_of(m))
    parts = reference_parts(w, b, h, y)
    loss = np.mean(np.sum((h @ w.T + b - np.eye(len(w))[y]) ** 2, 1)) / 2
    decided = np.argmax(h @ w.T + b, 1)
    nearest = np.argmin(np.linalg.norm(h[:, None] - means, axis=-1), 1)
    return {
        "nc1": reference_nc1(h, y, len(w)),
        "nc1_quotient": reference_quotient(h, y),
        "cdnv": reference_cdnv(h, y, len(w)),
        "directional_cdnv": reference_directional(h, y),
        "nc2_means": reference_nc2(m),
        "equinorm_means": reference_equinorm(m),
        "equiangularity_means": np.std(cosines(m)),
        "maximal_angle_means": np.mean(np.abs(cosines(m) + 1 / (len(m) - 1))),
        "uniformity_means": np.mean(inverse_logs),
        "uniformity_variance_means": np.var(inverse_logs),
        "nc0": np.sum(w.sum(0) ** 2) / len(w),
        "nc2": reference_nc2(w),
        "equinorm_W": reference_equinorm(w),
        "equiangularity_W": np.std(cosines(w)),
        "maximal_angle_W": np.mean(np.abs(cosines(w) + 1 / (len(w) - 1))),
        "gnc2": reference_distances(w).min(),
        "nc3": reference_nc3(w, h, y),
        "self_duality": reference_self_duality(w, m),
        "unc3": np.var([w[k] @ m[k] for k in range(len(w))]),
        "gnc3": reference_gnc3(w, h, y),
        "bias_duality": reference_bias(w, b, h.mean(0)),
        "nc4": np.mean(decided == nearest),
        "accuracy": np.mean(decided == y),
        "nc5": reference_nc5(means, outside),
        "squared_error": loss,
        **dict(
            zip(
                ("squared_error_nc1", "squared_error_nc23", "squared_error_perpendicular"),
                parts,
                strict=True,
            )
        ),
    }


SIZES = {"random": (5, 9), "collapsed": (5, 9), "unbalanced": (5, 9), "tall": (8, 5), "very_tall": (40, 4)}


def case(name, seed=0):
    generator = np.random.default_rng(seed)
    k, d = SIZES[name]
    labels = np.repeat(np.arange(k), 4)
    if name == "unbalanced":
        labels = np.concatenate([np.arange(k), generator.integers(0, k, 3 * k)])
    centres = generator.normal(size=(k, d))
    spread = 1e-4 if name == "collapsed" else 0.5
    features = centres[labels] + spread * generator.normal(size=(len(labels), d)) + 1
    w = centres + 0.1 * generator.normal(size=(k, d))
    return features, labels, w, generator.normal(size=k), generator.normal(size=(6, d))


@pytest.mark.parametrize("name", few(1, *reversed(SIZES)))
def test_measure_equals_the_formulas(name):
    h, y, w, b, outside = case(name)
    found = metrics.measure(h, y, w, bias=b, outside=outside)
    expected = everything(h, y, w, b, outside)
    # Of the parts of the squared error, L_NC2/3 is 0 where features span more than their means.
    for key, value in expected.items():
        absolute = 1e-12 if key.startswith("squared_error") else 0
        close = 1e-7 if "squared_error" in key or key == "gnc2" else 1e-10
        np.testing.assert_allclose(getattr(found, key), value, rtol=close, atol=absolute, err_msg=key)
    as_dict = found.as_dict()
    assert set(expected) == set(as_dict) - {"num_classes", "dim", "samples", "absent_classes"}
    assert {type(value) for value in as_dict.values()} == {float}
    assert list(as_dict) == list(metrics.measure(h, y).as_dict())


@pytest.mark.parametrize("name", few(1, "unbalanced", "random", "very_tall"))
def test_functions_are_what_measure_measures(name):
    h, y, w, b, outside = case(name)
    k = len(w)
    found = metrics.measure(h, y, w, bias=b, outside=outside)
    with jax.enable_x64(True):
        m = metrics.class_means(h, y, k)
        parts = metrics.squared_error_decomposition(w, h, y, b)
        functions = {
            "nc1": metrics.nc1(h, y, k),
            "nc1_quotient": metrics.nc1_quotient(h, y, k),
            "cdnv": metrics.cdnv(h, y, k),
            "directional_cdnv": metrics.directional_cdnv(h, y, k),
            "nc2_means": metrics.nc2(m),
            "equinorm_means": metrics.equinorm(m),
            "equiangularity_means": metrics.equiangularity(m),
            "maximal_angle_means": metrics.maximal_angle(m),
            "uniformity_means": metrics.uniformity(m).mean,
            "uniformity_variance_means": metrics.uniformity(m).variance,
            "nc0": metrics.nc0(w),
            "nc2": metrics.nc2(w),
            "equinorm_W": metrics.equinorm(w),
            "equiangularity_W": metrics.equiangularity(w),
            "maximal_angle_W": metrics.maximal_angle(w),
            "gnc2": metrics.gnc2(w),
            "nc3": metrics.nc3(w, h, y),
            "self_duality": metrics.self_duality(w, h, y),
            "unc3": metrics.unc3(w, h, y),
            "gnc3": metrics.gnc3(w, h, y),
            "bias_duality": metrics.bias_duality(w, h, y, b),
            "nc4": metrics.nc4(w, h, y, b),
            "accuracy": metrics.accuracy(w, h, y, b),
            "nc5": metrics.nc5(h, y, k, outside),
            "squared_error": parts.total,
            "squared_error_nc1": parts.nc1,
            "squared_error_nc23": parts.nc23,
            "squared_error_perpendicular": parts.perpendicular,
        }
        for key, value in functions.items():
            np.testing.assert_allclose(value, getattr(found, key), rtol=1e-9, atol=1e-13, err_msg=key)
        by_class = {
            "nc1": metrics.nc1(h, y, k, per_class=True),
            "cdnv": metrics.cdnv(h, y, k, per_class=True),
            "directional_cdnv": metrics.directional_cdnv(h, y, k, per_class=True),
            "nc4": metrics.nc4(w, h, y, b, per_class=True),
            "gnc3": metrics.gnc3(w, h, y, per_class=True),
            "similarity": metrics.similarities(w, h, y, cosine=True),
        }
    for key, value in by_class.items():
        np.testing.assert_allclose(value, found.per_class[key], rtol=1e-9, err_msg=key)
    samples = found.per_class["samples"]
    np.testing.assert_array_equal(samples, np.bincount(y))
    inner = np.sum(w * m, 1)
    np.testing.assert_allclose(metrics.similarities(w, h, y), inner, rtol=1e-6)
    cosines = inner / np.linalg.norm(w, axis=1) / np.linalg.norm(m, axis=1)
    np.testing.assert_allclose(found.per_class["similarity"], cosines, rtol=1e-9)
    for key in ("nc1", "nc4", "accuracy"):
        np.testing.assert_allclose(np.average(found.per_class[key], weights=samples), getattr(found, key))
    for key in ("cdnv", "directional_cdnv", "gnc3"):
        np.testing.assert_allclose(np.mean(found.per_class[key]), getattr(found, key))
    np.testing.assert_allclose(found.per_class["variance"], [np.sum(h[y == c].var(0)) for c in range(k)])
    np.testing.assert_allclose(found.per_class["norm_W"], np.linalg.norm(w, axis=1))
    np.testing.assert_allclose(found.per_class["norm_means"], np.linalg.norm(m, axis=1))


@pytest.mark.parametrize("name", few(1, "random", "unbalanced", "very_tall"))
def test_conventions_have_names(name):
    h, y, w, b, _ = case(name)
    k = len(w)
    means, centres = means_of(h, y)
    m = {key: means - centre for key, centre in centres.items()}
    with jax.enable_x64(True):
        found = {}
        expected = {}
        for key in ("samples", "classes"):
            found |= {
                f"nc1 {key}": metrics.nc1(h, y, k, global_mean=key),
                f"quotient {key}": metrics.nc1_quotient(h, y, k, global_mean=key),
                f"nc2 {key}": metrics.nc2(metrics.class_means(h, y, k, global_mean=key)),
                f"nc3 {key}": metrics.nc3(w, h, y, global_mean=key),
                f"self-duality {key}": metrics.self_duality(w, h, y, global_mean=key, squared=False),
                f"unc3 {key}": metrics.unc3(w, h, y, global_mean=key, cosine=True, unbiased=True),
                f"bias {key}": metrics.bias_duality(w, h, y, b, global_mean=key),
                f"nc5 {key}": metrics.nc5(h, y, k, w, global_mean=key),
            }
            similarity = np.sum(w * m[key], 1) / np.linalg.norm(w, axis=1) / np.linalg.norm(m[key], axis=1)
            expected |= {
                f"nc1 {key}": reference_nc1_of(h, y, key),
                f"quotient {key}": reference_quotient(h, y, key),
                f"nc2 {key}": reference_nc2(m[key]),
                f"nc3 {key}": ufm_distance(w @ m[key].T),
                f"self-duality {key}": reference_self_duality(w, m[key], 1),
                f"unc3 {key}": np.var(similarity, ddof=1),
                f"bias {key}": reference_bias(w, b, centres[key]),
                f"nc5 {key}": reference_nc5(m[key], w),
            }
        found |= {
            "notebook": metrics.nc1(h, y, k, over_classes=False),
            "cdnv 4": metrics.cdnv(h, y, k, exponent=2),
            "cdnv twice": metrics.cdnv(h, y, k, halved=False),
            "equinorm": metrics.equinorm(w, unbiased=True),
            "distances": metrics.uniformity(w, kernel="distance").mean,
            "of distances": metrics.uniformity(w, kernel="distance").variance,
            "uncentred": metrics.class_means(h, y, k, global_mean=None),
        }
        expected |= {
            "notebook": reference_nc1_of(h, y, over_classes=False),
            "cdnv 4": reference_cdnv_of(h, y, exponent=2),
            "cdnv twice": reference_cdnv_of(h, y, halved=False),
            "equinorm": reference_equinorm(w, 1),
            "distances": np.mean(reference_distances_of(w)),
            "of distances": np.var(reference_distances_of(w)),
            "uncentred": means,
        }
        for bias in (None, b):
            parts = metrics.squared_error_decomposition(w, h, y, bias, weight_decay=0.1)
            found[f"decay {bias is None}"] = np.array(parts[1:])
            expected[f"decay {bias is None}"] = reference_parts(w, bias, h, y, 0.1)
            np.testing.assert_allclose(parts.total, sum(parts[1:]), rtol=1e-12)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-9, err_msg=key)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(("offset", "scale"), [(1e4, 1.0), (10.0, 1e-3), (0.0, 1e-8)])
def test_with_a_bias_the_parts_do_not_depend_on_offset_and_scale(offset, scale, decay):
    """Without decay not at all; with it they are those of the normal equations in long arithmetic."""
    h, y, w, b, _ = case("unbalanced")
    h, k = offset + scale * h, len(w)
    with jax.enable_x64(True):
        found = metrics.squared_error_decomposition(w, h, y, b, weight_decay=decay)
    with mpmath.workdps(60):
        x = mpmath.matrix(np.c_[h, np.ones(len(h))].tolist())
        targets = mpmath.matrix(np.eye(k)[y].tolist())
        # Singular without a decay; this one is too small to be seen.
        second = x.T * x / len(h) + (decay or mpmath.mpf(10) ** -40) * mpmath.eye(x.cols)
        best = (targets.T * x / len(h)) * second**-1
        fits = np.array((x * best.T).tolist(), float)
        sizes = decay * float(mpmath.mnorm(best, "f") ** 2) / 2
    means = np.stack([fits[y == c].mean(0) for c in range(k)])
    nc1 = np.sum((fits - means[y]) ** 2) / len(h) / 2 + sizes
    nc23 = np.sum((means[y] - np.eye(k)[y]) ** 2) / len(h) / 2
    np.testing.assert_allclose([found.nc1, found.nc23], [nc1, nc23], rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(found.total, sum(found[1:]), rtol=1e-10)


def test_batches_in_float32_keep_the_parts_of_features_with_an_offset():
    h, y, w, b, _ = case("unbalanced")
    h = np.asarray(10 + h, np.float32)
    exact = metrics.measure(h.astype(float), y, w, bias=b)
    found = streaming.measure_batches([(h, y)], len(w), w, b, dtype="float32")
    for name in ("squared_error_nc1", "squared_error_nc23"):
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), rtol=1e-3)


def test_float32_counts_every_sample():
    """2^24 + 1 of a class, which no float32 is, and in other batches the second time."""
    labels = np.zeros(2**20, np.int32)
    ones = np.ones((2**20, 1), np.float32)
    batches = [(ones, labels)] * 16 + [(ones[:1], labels[:1]), (2 * ones[:3], labels[:3] + 1)]
    first = streaming.first_pass(2, 1)
    for batch in batches:
        first = first.add(*batch)
    second = first.second_pass(decisions=False)
    for batch in reversed(batches):
        second = second.add(*batch)
    assert second.per_class()["samples"].tolist() == [2**24 + 1, 3]


def ufm_distance(gram):
    k = len(gram)
    return np.linalg.norm(gram / np.linalg.norm(gram) - (np.eye(k) - 1 / k) / np.sqrt(k - 1))


@pytest.mark.parametrize("name", few(1, "very_tall", "collapsed", "unbalanced"))
@pytest.mark.parametrize(
    ("given", "dtype"), few(2, (np.float32, np.float64), (np.float32, np.float32), (np.float64, np.float64))
)
def test_streams_in_any_order_equal_whole_features(name, given, dtype):
    h, y, w, b, outside = case(name)
    h, w, b = h.astype(given), w.astype(given), b.astype(given)
    whole = metrics.measure(h, y, w, bias=b, outside=outside).as_dict()
    # In float32, small differences of numbers near one keep fewer digits.
    close = 2e-5 if dtype == np.float32 else 1e-9
    for seed in (0, 1):
        order = np.random.default_rng(seed).permutation(len(y))
        batches = [(h[part], y[part]) for part in np.array_split(order, 3)]
        with jax.enable_x64(False):  # As JAX is set up for most.
            found = streaming.measure_batches(batches, len(w), w, b, dtype=dtype, outside=outside).as_dict()
        for key, value in whole.items():
            absolute = 1e-6 if key.startswith("squared_error") and dtype == np.float32 else 1e-12
            np.testing.assert_allclose(found[key], value, rtol=close, atol=absolute, err_msg=key)


@pytest.mark.parametrize("name", few(1, "very_tall", "random"))
def test_classes_that_do_not_occur_are_left_out_on_request(name):
    h, y, w, b, outside = case(name)
    k = len(w)
    # Every other place of a vocabulary twice as large is never taken.
    spread = 2 * y + 1
    large_w, large_b = np.zeros((2 * k, h.shape[1])), np.full(2 * k, -1e6)
    large_w[1::2], large_b[1::2] = w, b
    with pytest.raises(ValueError, match="class 0 has none; absent='skip' leaves such classes out"):
        metrics.measure(h, spread, large_w)
    expected = metrics.measure(h, y, w, bias=b, outside=outside)
    found = metrics.measure(h, spread, large_w, bias=large_b, outside=outside, absent="skip")
    in_batches = streaming.measure_batches(
        [(h[::2], spread[::2]), (h[1::2], spread[1::2])], 2 * k, large_w, large_b, absent="skip",
        outside=outside,
    )  # fmt: skip
    assert found.absent_classes == in_batches.absent_classes == k
    assert f"{k} classes ({k} without a sample left out)" in str(found)
    np.testing.assert_array_equal(found.per_class["class"], 2 * np.arange(k) + 1)
    for key, value in expected.as_dict().items():
        if key != "absent_classes":
            np.testing.assert_allclose(found.as_dict()[key], value, rtol=1e-9, atol=1e-13, err_msg=key)
            np.testing.assert_allclose(in_batches.as_dict()[key], value, rtol=1e-9, atol=1e-13, err_msg=key)
    skip = {"absent": "skip"}
    with jax.enable_x64(True):
        np.testing.assert_allclose(metrics.nc1(h, spread, 2 * k, **skip), expected.nc1)
        np.testing.assert_allclose(metrics.nc3(large_w, h, spread, **skip), expected.nc3)
        np.testing.assert_allclose(metrics.nc4(large_w, h, spread, large_b, **skip), expected.nc4)
        np.testing.assert_allclose(metrics.gnc3(large_w, h, spread, **skip), expected.gnc3)
        assert metrics.class_means(h, spread, 2 * k, **skip).shape == w.shape


def test_a_decision_for_an_absent_class_counts_as_wrong():
    W, features, labels = np.eye(3, 2)[[0, 1, 0]] * [[1], [1], [9]], np.eye(2), [0, 1]
    found = metrics.measure(features, labels, W, absent="skip")
    assert (found.accuracy, found.nc4, found.absent_classes) == (0.5, 0.5, 1)


def test_absent_classes_need_known_labels_and_two_classes():
    features, labels = np.eye(3), np.array([0, 0, 0])
    with pytest.raises(ValueError, match="at least two classes need a sample, but only 1 of 5 do"):
        metrics.nc1(features, labels, 5, absent="skip")
    with pytest.raises(ValueError, match="absent must be one of error, skip, but is 'ignore'"):
        metrics.nc1(features, labels, 5, absent="ignore")
    with pytest.raises(ValueError, match="global_mean must be one of samples, classes, but is 'all'"):
        metrics.nc1(features, labels + np.arange(3), 3, global_mean="all")
    with pytest.raises(ValueError, match="kernel must be one of log, distance, but is 'square'"):
        metrics.uniformity(features, kernel="square")
    with pytest.raises(ValueError, match="absent='skip' needs labels that are known"):
        jax.jit(lambda y: metrics.nc1(features, y, 5, absent="skip"))(labels)


@pytest.mark.parametrize("k", few(1, 4, 30))
def test_a_simplex_has_no_error(k):
    frame = np.asarray(ufm.theory.simplex_etf(k, k + 2), np.float64)
    labels = np.repeat(np.arange(k), 2)
    found = metrics.measure(frame[labels] + 3, labels, 2 * frame, bias=-6 * frame.sum(1))
    for name in ("equinorm", "equiangularity", "maximal_angle"):
        assert getattr(found, f"{name}_means") < 1e-14
        assert getattr(found, f"{name}_W") < 1e-14
    assert found.nc1 == found.cdnv == found.directional_cdnv == 0
    assert max(found.nc0, found.nc2_means, found.self_duality, found.unc3, found.bias_duality) < 1e-12
    # The mean over pairs of log(1 / distance), of distance sqrt(2 K / (K - 1)).
    assert found.uniformity_means == pytest.approx(-np.log(2 * k / (k - 1)) / 2, rel=1e-14)
    assert found.uniformity_variance_means < 1e-28


@pytest.mark.parametrize(("seed", "scale"), [(0, 1.0), (1, 1e-6)])
def test_blocks_of_pairs_are_the_whole(seed, scale):
    """What needs many blocks at K = 50,000, in blocks of three rows of seven."""
    generator = np.random.default_rng(seed)
    means, variances = scale * generator.normal(size=(7, 3)), generator.uniform(size=7)
    means[3] = means[2] + 1e-9 * scale  # Too close for products.
    before = pairs.ENTRIES
    with jax.enable_x64(True):
        whole = pairs.cdnv_by_class(means, variances, exponent=1, halved=True), *pairs.angles(means)
        pairs.ENTRIES = 21
        try:  # Not the compiled ones, which know the number.
            by_class, angles = (f.__wrapped__ for f in (pairs.cdnv_by_class, pairs.angles))
            blocks = by_class(means, variances, exponent=1, halved=True), *angles(means)
        finally:
            pairs.ENTRIES = before
    np.testing.assert_allclose(whole[0], blocks[0], rtol=1e-12)
    # Directions are rounded to 1e-16, and two of them are 1e-9 apart.
    np.testing.assert_allclose(whole[1:], blocks[1:], rtol=1e-8)
    squares = np.sum((means[:, None] - means) ** 2, -1) + np.eye(7)
    expected = (variances[:, None] + variances) / (2 * squares) * (1 - np.eye(7))
    np.testing.assert_allclose(whole[0], expected.sum(1) / 6, rtol=1e-9)


@pytest.mark.slow
def test_geometry_has_derivatives():
    h, y, w, _, _ = case("random")
    with jax.enable_x64(True):
        functions = [
            metrics.equinorm,
            metrics.equiangularity,
            metrics.maximal_angle,
            lambda w: metrics.uniformity(w).mean,
            lambda w: metrics.self_duality(w, h, y),
            lambda w: metrics.unc3(w, h, y),
            lambda w: metrics.squared_error_decomposition(w, h, y).perpendicular,
            lambda w: metrics.directional_cdnv(w[y] + h, y, 5),
        ]
        direction = np.random.default_rng(1).normal(size=w.shape)
        for function in functions:
            slope = jnp.sum(jax.grad(function)(jnp.asarray(w)) * direction)
            ends = [function(w + t * direction) for t in (-1e-6, 1e-6)]
            np.testing.assert_allclose(slope, (ends[1] - ends[0]) / 2e-6, rtol=1e-6)


PAGE = Path(__file__).parent.parent / "docs" / "vocabulary.md"

OF_OTHER_CODE = {
    "page": {
        "nc1_pinv": 0.016766598759889825,
        "nc1_quot": 0.029667857293263985,
        "nc1_cdnv": 0.013965739832861803,
        "nc1_cdnv, dist_exp=2": 0.003183673910590284,
        "nc2_etf_err": 0.483280289073986,
        "nc2g_dist": 0.03943389259393115,
        "nc2g_log": 0.01649427733328186,
        "nc3_dual_err": 0.5138765083951143,
        "nc3u_uni_dual": 0.961526657435852,
        "nc3u, cos=True": 0.0006267195113692935,
        "nc4_agree": 1.0,
        "nc5_ood_dev": 0.2893536886214693,
        "ETF_metric": 0.5526792031752717,
    },
    "random": {
        "nc1_pinv": 0.5449581173321758,
        "nc1_quot": 0.2965818694282417,
        "nc1_cdnv": 0.18605800570845404,
        "nc1_cdnv, dist_exp=2": 0.026246542560735046,
        "nc2_etf_err": 0.8489606332832116,
        "nc2g_dist": 0.1760259879836306,
        "nc2g_log": 0.10710147779374242,
        "nc3_dual_err": 0.880068146292209,
        "nc3u_uni_dual": 15.374883104948799,
        "nc3u, cos=True": 0.015462212592577153,
        "nc4_agree": 0.55,
        "nc5_ood_dev": 0.4559979583810259,
        "ETF_metric": 0.9045558602587943,
    },
    "collapsed": {
        "nc1_pinv": 2.638653538374924e-08,
        "nc1_quot": 1.3814667666572429e-08,
        "nc1_cdnv": 8.641015929470633e-09,
        "nc1_cdnv, dist_exp=2": 1.3764564189066453e-09,
        "nc2_etf_err": 0.8663459917330352,
        "nc2g_dist": 0.1790510615494471,
        "nc2g_log": 0.11237304087607825,
        "nc3_dual_err": 0.8766710597600289,
        "nc3u_uni_dual": 12.847775112802548,
        "nc3u, cos=True": 0.011727216535109749,
        "nc4_agree": 0.6,
        "nc5_ood_dev": 0.46504222064495904,
        "ETF_metric": 0.9045558602587943,
    },
    "unbalanced": {
        "nc1_pinv": 0.2378722702573656,
        "nc1_quot": 0.21917551902379423,
        "nc1_cdnv": 0.11603307143910713,
        "nc1_cdnv, dist_exp=2": 0.009749634636033757,
        "nc2_etf_err": 0.6910886715979359,
        "nc2g_dist": 0.0957637457283925,
        "nc2g_log": 0.05374281215572133,
        "nc3_dual_err": 0.7426303668828904,
        "nc3u_uni_dual": 16.84113122121853,
        "nc3u, cos=True": 0.00678134556972084,
        "nc4_agree": 0.7,
        "nc5_ood_dev": 0.4854103010710949,
        "ETF_metric": 0.7770445594346848,
    },
    "tall": {
        "nc1_pinv": 0.4558363649107935,
        "nc1_quot": 0.25386476710753697,
        "nc1_cdnv": 0.175086386533359,
        "nc1_cdnv, dist_exp=2": 0.06780094709222075,
        "nc2_etf_err": 0.8346764372026368,
        "nc2g_dist": 0.1101463823045061,
        "nc2g_log": 0.07672021120457592,
        "nc3_dual_err": 0.8746515111255272,
        "nc3u_uni_dual": 4.752738007941352,
        "nc3u, cos=True": 0.0008515612209297601,
        "nc4_agree": 0.5,
        "nc5_ood_dev": 0.27549774230751156,
        "ETF_metric": 0.8816505918013808,
    },
    "very_tall": {
        "nc1_pinv": 0.021302945237922408,
        "nc1_quot": 0.19361943607486268,
        "nc1_cdnv": 0.17304700693792238,
        "nc1_cdnv, dist_exp=2": 0.12984731291101653,
        "nc2_etf_err": 1.175260466247975,
        "nc2g_dist": 0.15188426833596488,
        "nc2g_log": 0.12448942609120721,
        "nc3_dual_err": 1.1870445857593168,
        "nc3u_uni_dual": 4.908784392711199,
        "nc3u, cos=True": 0.008894143378122804,
        "nc4_agree": 0.18125,
        "nc5_ood_dev": 0.3678919661590834,
        "ETF_metric": 1.1791385610727145,
    },
}
"""What rhubarbwu/neural-collapse, version c05a0b8, gives for the page's example and each `case`."""


def formulas(h, y, w, b, outside):
    """Every value of the page by its key, in plain NumPy."""
    means, centres = means_of(h, y)
    m, by_samples = means - centres["classes"], means - centres["samples"]
    lengths = np.linalg.norm(m, axis=1)
    distances, log = reference_distances_of(m), -np.log(reference_distances_of(by_samples))
    products = np.sum(w * m, 1)
    nearest = np.argmin(np.linalg.norm(h[:, None] - means, axis=-1), 1)
    nc1, nc23, perpendicular = reference_parts(w, b, h, y)
    return {
        "Sw_invSb": reference_nc1_of(h, y, "classes", over_classes=False),
        "norm_M_CoV": reference_equinorm(m, 1),
        "norm_W_CoV": reference_equinorm(w, 1),
        "cos_M": np.mean(np.abs(cosines(m) + 1 / 3)),
        "cos_W": np.mean(np.abs(cosines(w) + 1 / 3)),
        "figure 3": np.std(cosines(m)),
        "figure 3, of W": np.std(cosines(w)),
        "W_M_dist": reference_self_duality(w, m),
        "NCC_mismatch": np.mean(np.argmax(h @ w.T + b, 1) != nearest),
        "collapse_metric": reference_nc1_of(h, y),
        "ETF_metric": ufm_distance(w @ w.T),
        "WH_relation_metric": ufm_distance(w @ by_samples.T),
        "Wh_b_relation_metric": reference_bias(w, b, h.mean(0)),
        "nc1_pinv": reference_nc1_of(h, y, "classes"),
        "nc1_quot": reference_quotient(h, y, "classes"),
        "nc1_cdnv": reference_cdnv_of(h, y),
        "nc1_cdnv, dist_exp=2": reference_cdnv_of(h, y, 2),
        "nc2_etf_err": ufm_distance(m @ m.T),
        "nc2g_dist": np.var(distances),
        "nc2g_log": np.var(np.log(distances)),
        "nc3_dual_err": ufm_distance(w @ m.T),
        "nc3u_uni_dual": np.var(products, ddof=1),
        "nc3u, cos=True": np.var(products / lengths / np.linalg.norm(w, axis=1), ddof=1),
        "nc4_agree": np.mean(np.argmax(h @ w.T, 1) == nearest),
        "nc5_ood_dev": reference_nc5(means, outside),
        "Galanti 2026, CDNV": reference_cdnv_of(h, y, halved=False),
        "Galanti 2026, directional CDNV": reference_directional(h, y),
        "Liu et al. 2023, uniformity": np.mean(log),
        "Jiang et al. 2024, GNC2": reference_distances(w).min(),
        "Jiang et al. 2024, GNC3": reference_gnc3(w, h, y),
        "arXiv 2602.16642, NC0": np.sum(w.sum(0) ** 2) / 4,
        "Han et al. 2022, L_NC1": nc1,
        "Han et al. 2022, L_NC2/3": nc23,
        "Han et al. 2022, L_perp": perpendicular,
    }


def rows_of(page):
    """Key, call and value of each row of the page's tables."""
    return re.findall(r"^\| `?([^|`]+?)`? \| .* \| `([^`]*metrics\.[^`]*)` \| (\S+) \|$", page, re.M)


@pytest.mark.parametrize("name", few(1, "unbalanced", *sorted(SIZES.keys() - {"unbalanced"})))
@pytest.mark.slow
def test_the_calls_of_the_page_equal_other_code(name):
    h, y, w, _, outside = case(name)
    calls = {key: call for key, call, _ in rows_of(PAGE.read_text())}

    def found(key, dtype, precision):
        """In a precision, of arrays rounded to a dtype."""
        rounded = [x.astype(dtype).astype(precision) for x in (h, w, outside)]
        names = dict(zip(("features", "W", "outside"), rounded, strict=True))
        with jax.enable_x64(precision == np.float64):
            return eval(calls[key], names | {"metrics": metrics, "labels": y, "K": len(w)})

    for key, expected in OF_OTHER_CODE[name].items():
        np.testing.assert_allclose(found(key, np.float64, np.float64), expected, rtol=1e-10, err_msg=key)
        in_single, in_double = found(key, np.float32, np.float32), found(key, np.float32, np.float64)
        np.testing.assert_allclose(in_single, in_double, rtol=1e-5, err_msg=key)


def test_the_page_says_what_formulas_and_other_code_say():
    text = PAGE.read_text()
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], names)
    arrays = [names[name] for name in ("features", "labels", "W", "bias", "outside")]
    expected = formulas(*arrays)
    rows = rows_of(text)
    assert {key for key, *_ in rows} == set(expected)
    assert set(OF_OTHER_CODE["page"]) < set(expected)
    for key, call, printed in rows:
        with jax.enable_x64(True):
            found = eval(call, names)
        close = 1e-9 if key.endswith(("GNC2", "L_NC2/3")) else 1e-10
        np.testing.assert_allclose(found, expected[key], rtol=close, err_msg=key)
        np.testing.assert_allclose(found, float(printed), rtol=1e-7, err_msg=key)
        if key in OF_OTHER_CODE["page"]:
            np.testing.assert_allclose(found, OF_OTHER_CODE["page"][key], rtol=1e-10, err_msg=key)
        with jax.enable_x64(False):
            single = eval(call, names)
        np.testing.assert_allclose(
            single, expected[key], rtol=1e-3 if "NC2/3" in key else 1e-5, err_msg=key
        )


def test_measure_has_the_rows_of_the_page_in_its_own_conventions():
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S)[1], names)
    found = metrics.measure(
        names["features"], names["labels"], names["W"], bias=names["bias"], outside=names["outside"]
    )
    expected = formulas(*(names[name] for name in ("features", "labels", "W", "bias", "outside")))
    for key, name in [
        ("collapse_metric", "nc1"),
        ("ETF_metric", "nc2"),
        ("WH_relation_metric", "nc3"),
        ("Wh_b_relation_metric", "bias_duality"),
        ("nc1_cdnv", "cdnv"),
        ("nc5_ood_dev", "nc5"),
        ("Galanti 2026, directional CDNV", "directional_cdnv"),
        ("arXiv 2602.16642, NC0", "nc0"),
    ]:
        np.testing.assert_allclose(getattr(found, name), expected[key], rtol=1e-10, err_msg=key)
