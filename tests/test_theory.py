import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

import ufm_jax as ufm
from tests.shared.marks import few
from ufm_jax import theory


@pytest.mark.parametrize(("k", "extra"), [(2, -1), (2, 3), (3, -1), (10, 0), (10, 22), (40, -1)])
def test_simplex_etf_is_one(k, extra):
    frame = np.asarray(theory.simplex_etf(k, k + extra))
    assert frame.shape == (k, k + extra)
    gram = k / (k - 1) * (np.eye(k) - 1 / k)
    np.testing.assert_allclose(frame @ frame.T, gram, atol=1e-14)
    assert ufm.metrics.nc2(jnp.asarray(frame)) < 1e-14


def test_simplex_etf_needs_room():
    with pytest.raises(ValueError, match="needs at least 9 dimensions, but dim is 8"):
        theory.simplex_etf(10, 8)
    assert theory.simplex_etf(3, 2, dtype=jnp.float32).dtype == jnp.float32


def collapse(k, n, d=None):
    frame = theory.simplex_etf(k, d or k)
    labels = ufm.balanced_labels(k, n)
    return ufm.Point(frame, frame[labels]), labels


@pytest.mark.parametrize("k", [2, 3, 10])
@pytest.mark.parametrize("tau", few(1, 1.0, 0.1, 5.0))
def test_values_at_collapse_are_the_costs_there(k, tau):
    point, labels = collapse(k, 4)
    cases = [
        (ufm.losses.cross_entropy, theory.cross_entropy_minimum(k, tau)),
        (ufm.losses.focal, theory.focal_at_collapse(k, tau, 3.0)),
        (ufm.losses.label_smoothing, theory.label_smoothing_at_collapse(k, tau, 0.1)),
    ]
    for loss, value in cases:
        cost = ufm.normalized(labels, k, loss=loss, tau=tau).cost(point)
        np.testing.assert_allclose(cost, value, rtol=1e-12, atol=1e-14)
    cost = ufm.contrastive(labels, k, tau=tau).cost(point._replace(W=None))
    np.testing.assert_allclose(cost, theory.supervised_contrastive_minimum(k, 4, tau), rtol=1e-12)


@given(k=st.integers(2, 30), alpha=st.floats(0.01, 0.9), tau=st.floats(0.05, 20))
@settings(deadline=None, max_examples=50)
def test_label_smoothing_minimum_minimizes_its_one_dimensional_problem(k, alpha, tau):
    def phi(s):
        return np.log1p((k - 1) * np.exp(-s)) + alpha * (k - 1) / k * s

    end = k * tau / (k - 1)
    found = minimize_scalar(phi, bounds=(0, end), method="bounded", options={"xatol": 1e-10})
    best = min(found.fun, phi(end))
    minimum = theory.label_smoothing_minimum(k, tau, alpha)
    np.testing.assert_allclose(minimum, best, rtol=1e-8)
    at_collapse = theory.label_smoothing_at_collapse(k, tau, alpha)
    if tau <= theory.label_smoothing_threshold(k, alpha):
        np.testing.assert_allclose(minimum, at_collapse, rtol=1e-10)
    else:
        assert minimum < at_collapse


def test_label_smoothing_ends_of_the_range():
    assert theory.label_smoothing_threshold(5, 0.0) == np.inf
    assert all(theory.label_smoothing_threshold(k, 1.0) == 0 for k in range(2, 60))
    for k in (5, 6, 59):
        axis = jnp.eye(1, k, k - 1)
        np.testing.assert_array_equal(
            theory.label_smoothing_cone(k, k, 1.0, alpha=1.0), jnp.tile(axis, (k, 1))
        )
    np.testing.assert_allclose(
        theory.label_smoothing_minimum(5, 2.0, 0.0), theory.cross_entropy_minimum(5, 2.0), rtol=1e-14
    )
    np.testing.assert_allclose(theory.label_smoothing_minimum(5, 2.0, 1.0), np.log(5), rtol=1e-12)


def test_the_constant_of_proposition_1_has_tau():
    """docs/errata.md: with it the first inequality of the proof is an equality at collapse."""
    k, tau = 5, 3.0
    W = np.asarray(theory.simplex_etf(k, k))
    difference = W.sum(0) @ W[0] - k * W[0] @ W[0]

    def slack(exponent):
        c1 = 1 / ((k - 1) * np.exp(exponent / (k - 1)))
        c2 = np.log((1 + c1) * (k - 1)) / (1 + c1) + c1 / (1 + c1) * np.log((1 + c1) / c1)
        return (1 + c1) * (k - 1) * (theory.cross_entropy_minimum(k, tau) - c2) - tau * difference

    assert abs(slack(tau * difference)) < 1e-12
    assert slack(difference) > 0.1


def test_the_contrastive_minimum_near_zero_keeps_its_digits():
    value = theory.supervised_contrastive_minimum(3, 2, 6.0)
    np.testing.assert_allclose(value, 4 * np.exp(-54), rtol=1e-12)
    np.testing.assert_allclose(
        theory.supervised_contrastive_minimum(4, 5, 1.5), np.log(4 + 15 * np.exp(-3)), rtol=1e-14
    )


def test_collapse_in_k_minus_1_dimensions_attains_the_minima():
    """The gap proves it: of cross entropy at every tau, of label smoothing up to its threshold."""
    point, labels = collapse(4, 3, d=3)
    for loss, tau, minimum in [
        (ufm.losses.cross_entropy, 0.5, theory.cross_entropy_minimum(4, 0.5)),
        (ufm.losses.cross_entropy, 9.0, theory.cross_entropy_minimum(4, 9.0)),
        (ufm.losses.label_smoothing, 2.7, theory.label_smoothing_minimum(4, 2.7)),
    ]:
        problem = ufm.normalized(labels, 4, loss=loss, tau=tau)
        np.testing.assert_allclose(problem.cost(point), minimum, rtol=1e-12, atol=1e-16)
        assert ufm.landscape.optimality_gap(problem, point) < 1e-14
    assert 2.7 < theory.label_smoothing_threshold(4) < 2.75


def test_functions_of_tau_broadcast():
    tau = np.array([[0.5, 1.0], [2.0, 100.0]])
    values = theory.cross_entropy_minimum(4, tau)
    assert values.shape == (2, 2)
    # At tau = 100 the value is far below the rounding unit, and still right.
    np.testing.assert_allclose(values[1, 1], 3 * np.exp(-400 / 3), rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: theory.cross_entropy_minimum(1, 1.0),
            "num_classes must be finite and at least 2, but is 1",
        ),
        (lambda: theory.cross_entropy_minimum(3, 0.0), "tau must be positive and finite, but is 0.0"),
        (lambda: theory.label_smoothing_minimum(3, 1.0, -0.1), "alpha must lie between 0 and 1"),
        (lambda: theory.focal_at_collapse(3, 1.0, -1.0), "gamma must be finite and at least 0"),
        (lambda: theory.supervised_contrastive_minimum(3, 1, 1.0), "samples_per_class must be"),
        (lambda: theory.simplex_etf(1, 4), "num_classes must be"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_regular_polygon_is_a_tight_frame_of_unit_rows_in_equal_steps():
    polygon = np.asarray(ufm.theory.regular_polygon(7))
    np.testing.assert_allclose(polygon.T @ polygon, 3.5 * np.eye(2), atol=1e-14)
    np.testing.assert_allclose(np.sum(polygon * np.roll(polygon, 1, 0), 1), np.cos(2 * np.pi / 7))
    with pytest.raises(ValueError, match="num_classes must be finite and at least 2"):
        ufm.theory.regular_polygon(1)


def test_packing_angles_solve_the_equations_that_define_them():
    """The cosines of K = 7, 8, 10, 13, 14 on the sphere are roots of equations from the references."""
    cosine = {K: np.cos(ufm.theory.packing_angle(K, 3)) for K in range(2, 15)}
    assert 3 * cosine[7] ** 3 - 9 * cosine[7] ** 2 - 3 * cosine[7] + 1 == pytest.approx(0, abs=1e-14)
    assert 7 * cosine[8] ** 2 + 2 * cosine[8] - 1 == pytest.approx(0, abs=1e-14)
    assert 7 * cosine[10] ** 3 - 4 * cosine[10] ** 2 - 2 * cosine[10] + 1 == pytest.approx(0, abs=1e-14)
    # With a the angle of a triangle of the packing, cos = cos(a) / (1 - cos(a)).
    a = np.arccos(cosine[13] / (1 + cosine[13]))
    assert 2 * np.tan(3 * np.pi / 8 - a / 4) == pytest.approx(
        (1 - 2 * np.cos(a)) / np.cos(a) ** 2, rel=1e-13
    )
    assert ufm.theory.packing_angle(14, 3) == pytest.approx(0.971634742886224, rel=1e-14)
    degrees = [np.degrees(ufm.theory.packing_angle(K, 3)) for K in (4, 5, 6, 9, 11, 12)]
    np.testing.assert_allclose(degrees, [109.4712, 90, 90, 70.5288, 63.4349, 63.4349], atol=1e-4)
    # More points never have more room.
    assert all(cosine[K] <= cosine[K + 1] for K in range(2, 14))


def test_packing_angles_of_simplex_orthoplex_and_polygon():
    assert np.cos(ufm.theory.packing_angle(5, 4)) == pytest.approx(-1 / 4)
    assert ufm.theory.packing_angle(7, 4) == pytest.approx(np.pi / 2)
    assert ufm.theory.packing_angle(9, 2) == pytest.approx(2 * np.pi / 9)
    with pytest.raises(ValueError, match="but not for num_classes 15 at dim 3"):
        ufm.theory.packing_angle(15, 3)
