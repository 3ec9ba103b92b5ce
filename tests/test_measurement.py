"""All metrics at once, from arrays of several frameworks."""

import doctest

import jax
import jax.numpy as jnp
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
    reference_nc4,
)
from ufm_jax.metrics import measure, measurement

generator = np.random.default_rng(0)
LABELS = np.repeat(np.arange(5), 6)
FEATURES = generator.normal(size=(30, 9)).astype(np.float32) + 2 * np.eye(5, 9, dtype=np.float32)[LABELS]
W = generator.normal(size=(5, 9)).astype(np.float32)


def test_every_value_is_the_metric_in_float64_whatever_jax_is_set_to():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", False)
    try:
        found = measure(FEATURES, LABELS, W)
        assert not jax.config.jax_enable_x64
    finally:
        jax.config.update("jax_enable_x64", before)
    expected = {
        "nc1": reference_nc1(FEATURES, LABELS, 5),
        "nc2": reference_nc2(W),
        "nc3": reference_nc3(W, FEATURES, LABELS),
        "nc4": reference_nc4(W, FEATURES, LABELS),
        "cdnv": reference_cdnv(FEATURES, LABELS, 5),
        "gnc2": reference_distances(W).min(),
        "gnc3": reference_gnc3(W, FEATURES, LABELS),
        "accuracy": np.mean(np.argmax(FEATURES @ W.T, 1) == LABELS),
    }
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9), name
    assert (found.num_classes, found.dim, found.samples) == (5, 9, 30)


def test_whole_features_are_measured_in_blocks(monkeypatch):
    expected = measure(FEATURES, LABELS, W)
    monkeypatch.setattr(measurement, "_BLOCK", 32)  # Three rows of nine at a time.
    found = measure(FEATURES, LABELS, W)
    for name, value in expected.as_dict().items():
        if getattr(expected, name) is not None:
            assert getattr(found, name) == pytest.approx(value, rel=1e-9, abs=1e-12), name
    strange = FEATURES.copy()
    strange[-1, -1] = np.nan
    with pytest.raises(ValueError, match="features must be finite, but 1 entries are not"):
        measure(strange, LABELS, W)


def test_every_framework_gives_the_same():
    expected = measure(FEATURES, LABELS, W)
    assert measure(jnp.asarray(FEATURES), jnp.asarray(LABELS), jnp.asarray(W)) == expected
    assert measure(FEATURES.tolist(), LABELS.tolist(), W.tolist()) == expected
    assert measure(jnp.asarray(FEATURES, jnp.bfloat16), LABELS).nc1 == pytest.approx(expected.nc1, rel=0.05)


def test_tensors_of_pytorch_are_taken():
    torch = pytest.importorskip("torch")
    expected = measure(FEATURES, LABELS, W)
    tensors = (
        torch.tensor(FEATURES, requires_grad=True),
        torch.tensor(LABELS),
        torch.nn.Parameter(torch.tensor(W)),
    )
    assert measure(*tensors) == expected
    narrow = torch.tensor(FEATURES).bfloat16()
    assert measure(narrow, LABELS).nc1 == pytest.approx(expected.nc1, rel=0.05)


def test_the_table_names_what_was_measured():
    text = str(measure(FEATURES, LABELS, W))
    groups = [line for line in text.splitlines() if line.endswith(":") and line[0] != " "]
    assert groups == [
        "variability within classes:",
        "class means, centred:",
        "classifier:",
        "classifier and class means:",
        "decisions:",
        "squared error:",
    ]
    first_words = {line.split()[0] for line in text.splitlines()}
    assert {"NC1", "NC2", "NC3", "NC4", "CDNV", "GNC2", "GNC3", "accuracy"} < first_words
    assert "NC5" not in first_words  # It needs other features.
    assert "1.25" in text  # The one-vs-rest distance of a simplex ETF of five classes.
    without = measure(FEATURES, LABELS)
    assert without.nc4 is None
    assert "needs W" in str(without)
    found = doctest.testmod(measurement)
    assert (found.failed, found.attempted > 0) == (0, True)


def test_the_bias_belongs_to_the_decisions():
    bias = np.array([1e3, 0, 0, 0, 0])
    found = measure(FEATURES, LABELS, W, bias=bias)
    assert found.accuracy == 0.2
    assert found.gnc3 == measure(FEATURES, LABELS, W).gnc3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("text", LABELS), "features must be an array of real numbers, but has shape"),
        (
            (FEATURES[0], LABELS),
            r"features must be a matrix of at least one row, but has shape \(9,\)",
        ),
        (([[1, 2], [3]], [0, 1]), "features cannot be read as an array"),
        ((FEATURES * np.inf, LABELS), "features must be finite, but 270 entries are not"),
        (
            (FEATURES, LABELS + 0.5),
            r"labels must be integers of shape \(30,\), one for each row of features, .* dtype float64",
        ),
        ((FEATURES, LABELS + 1), "every one of the 6 classes needs a sample, but class 0 has none"),
        ((FEATURES, LABELS - 1), "labels must lie in 0..2147483647, but go from -1 to 3"),
        (
            (FEATURES[:7], LABELS),
            r"integers of shape \(7,\), one for each row of features, but have shape \(30,\)",
        ),
        ((FEATURES[:3], [0, 0, -1]), "labels must lie in 0..2147483647, but go from -1 to 0"),
        ((FEATURES[:3], [0, 1, 10**9]), "the 1000000001 classes needs a sample, but class 2 has none"),
        ((FEATURES, LABELS * 0), "labels must be of at least two classes, but are all 0"),
        ((FEATURES, LABELS, W[:4]), "labels must lie in 0..3, but go from 0 to 4"),
        ((FEATURES, LABELS, W[:, :3]), r"W must have a column a dimension, 9, but has shape \(5, 3\)"),
    ],
)
def test_wrong_input_is_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        measure(*arguments)
    assert str(error.value).count("\n") == 0


def test_a_bias_must_fit():
    with pytest.raises(ValueError, match="bias needs W"):
        measure(FEATURES, LABELS, bias=np.zeros(5))
    with pytest.raises(ValueError, match=r"bias must have an entry a class, 5, but has shape \(4,\)"):
        measure(FEATURES, LABELS, W, bias=np.zeros(4))


def test_numbers_for_a_logger_have_stable_keys():
    keys = list(measure(FEATURES, LABELS).as_dict())
    found = measure(FEATURES, LABELS, W, bias=np.ones(5), outside=FEATURES[:2]).as_dict()
    assert list(found) == keys
    assert {type(value) for value in found.values()} == {float}
    assert np.all(np.isfinite(list(found.values())))
    assert np.isnan(measure(FEATURES, LABELS).as_dict()["nc3"])


def test_it_is_part_of_the_library():
    assert isinstance(ufm.metrics.measure(FEATURES, LABELS), ufm.metrics.Measurement)


def test_decisions_and_progress_are_options():
    lines: list[str] = []
    found = measure(FEATURES, LABELS, W, decisions=False, progress=lines.append)
    assert found.nc4 is None
    assert found.accuracy is None
    assert found.directional_cdnv is None
    assert found.nc3 == measure(FEATURES, LABELS, W).nc3
    assert lines == ["first pass: 30 samples", "second pass: 30 samples", "pairs of classes"]
