"""The closed-form Hessian at collapse against dense ones in NumPy, the rates against gradient descent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

import ufm_jax as ufm
from experiments.feature_model.near_collapse import factor_of_a_step
from ufm_jax import theory


def collapsed(K, n, d, a=1.0, b=1.0):
    """W, H and the labels at collapse, rows of length a and b; the frame is made of Helmert contrasts."""
    contrasts = np.tril(np.ones((K, K)), -1) - np.diag(np.arange(K))
    contrasts = contrasts[1:] / np.linalg.norm(contrasts[1:], axis=1, keepdims=True)
    frame = np.pad(np.sqrt(K / (K - 1)) * contrasts.T, ((0, 0), (0, d - K + 1)))
    labels = np.repeat(np.arange(K), n)
    return a * frame, b * frame[labels], labels


def softmax_and_slopes(W, H, labels, tau):
    """The probabilities (N, K) and G, without cancellation where the probability of a class is near 1."""
    Z = tau * H @ W.T
    P = np.exp(Z - Z.max(1, keepdims=True))
    P /= P.sum(1, keepdims=True)
    G = P.copy()
    G[np.arange(len(labels)), labels] = 0
    G[np.arange(len(labels)), labels] = -G.sum(1)
    return P, G / len(labels)


def cross_entropy(W, H, labels, tau):
    """G, and the Hessian in the logits of each sample's loss, (N, K, K)."""
    P, G = softmax_and_slopes(W, H, labels, tau)
    K = len(W)
    covariance = -P[:, :, None] * P[:, None, :]
    covariance[:, np.arange(K), np.arange(K)] = P * (P @ (1 - np.eye(K)))
    return G, covariance


def label_smoothing(W, H, labels, tau, alpha=0.05):
    """The same of label smoothing, which changes the slopes by constants."""
    G, covariance = cross_entropy(W, H, labels, tau)
    return G + alpha * (np.eye(len(W))[labels] - 1 / len(W)) / len(labels), covariance


def focal(W, H, labels, tau, gamma=3.0):
    """The same of the focal loss, `phi(L)` of the cross entropy L with `phi = (1 - exp(-L))^gamma L`."""
    G, covariance = cross_entropy(W, H, labels, tau)
    G = G * len(labels)
    q = -G[np.arange(len(labels)), labels]  # 1 - p
    L = -np.log1p(-q)
    first = q**gamma + gamma * L * q ** (gamma - 1) * (1 - q)
    second = gamma * q ** (gamma - 2) * (1 - q) * (2 * q + L * ((gamma - 1) * (1 - q) - q))
    curvature = first[:, None, None] * covariance + second[:, None, None] * G[:, :, None] * G[:, None]
    return first[:, None] * G / len(labels), curvature


def dense_hessian(W, H, labels, tau=1.0, derivatives=cross_entropy):
    """The Hessian of the mean loss in all entries of W and H, and the spheres' multipliers."""
    (K, d), N = W.shape, len(H)
    G, curvatures = derivatives(W, H, labels, tau)
    J = np.zeros((N, K, K + N, d))
    J[:, np.arange(K), np.arange(K)] = H[:, None]
    J[np.arange(N), :, K + np.arange(N)] = W
    J = tau * J.reshape(N, K, -1)
    hessian = np.tensordot(J, curvatures @ J, ([0, 1], [0, 1])) / N
    cross = np.zeros((K + N, K + N))
    cross[:K, K:] = G.T
    hessian += tau * np.kron(cross + cross.T, np.eye(d))
    multipliers = tau * np.concatenate([np.sum(W * (G.T @ H), 1), np.sum(H * (G @ W), 1)])
    return hessian, multipliers


def normalized_eigenvalues(K, n, d, tau, w, derivatives=cross_entropy):
    """In the metric of w on the tangent space, and a zero for every row, whose length is fixed."""
    W, H, labels = collapsed(K, n, d)
    hessian, multipliers = dense_hessian(W, H, labels, tau, derivatives)
    hessian -= np.kron(np.diag(multipliers), np.eye(d))
    rows = np.concatenate([W, H])
    scale = np.where(np.arange(len(rows)) < K, w**-0.5, 1.0)[:, None, None]
    projections = scale * (np.eye(d) - rows[:, :, None] * rows[:, None, :])
    blocks = hessian.reshape(len(rows), d, len(rows), d)
    blocks = np.einsum("iab,ibjc,jcd->iajd", projections, blocks, projections, optimize=True)
    return np.linalg.eigvalsh(blocks.reshape(hessian.shape))


def lengths(K, n, weight_decay, feature_decay):
    """tau, and the lengths a of W's and b of H's rows at the minimum of the regularized model."""
    c = K * np.sqrt(n * weight_decay * feature_decay)
    tau = (K - 1) / K * np.log(K / c - K + 1)
    return tau, np.sqrt(c * tau / K / weight_decay), np.sqrt(c * tau / (n * K) / feature_decay)


def regularized_eigenvalues(K, n, d, weight_decay, feature_decay):
    _, a, b = lengths(K, n, weight_decay, feature_decay)
    hessian, _ = dense_hessian(*collapsed(K, n, d, a, b))
    decays = np.where(np.arange(K + n * K) < K, weight_decay, feature_decay)
    return np.linalg.eigvalsh(hessian + np.diag(np.repeat(decays, d)))


def all_eigenvalues(modes):
    return np.sort(np.repeat(np.asarray(modes.eigenvalues), modes.multiplicity))


def check_normalized_spectrum(setting, expected):
    K, n, *_ = setting
    found = all_eigenvalues(theory.collapse_spectrum(*setting))
    found = np.sort(np.concatenate([found, np.zeros(K + n * K)]))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * expected.max())


def sizes_of(rng):
    K, n = rng.integers(2, 9), rng.integers(1, 5)
    return int(K), int(n), int(rng.integers(max(K - 1, 2), K + 4))


def normalized_settings():
    rng = np.random.default_rng(0)
    yield from [(2, 1, 2, 1.0, 1.0), (2, 4, 3, 0.3, 0.1), (3, 1, 2, 2.0, 30.0), (3, 3, 2, 6.0, 3.0)]
    yield from [(8, 4, 7, 0.05, 100.0), (8, 4, 11, 6.0, 4.0), (4, 1, 3, 1.5, 1.0), (5, 2, 4, 2.0, 2.0)]
    for _ in range(56):
        log_tau, log_weight = rng.uniform(np.log([0.05, 0.1]), np.log([6, 100]))
        yield *sizes_of(rng), float(np.exp(log_tau)), float(np.exp(log_weight))


def regularized_settings():
    """Decays over more than six decades, equal in every third setting, some near the largest possible."""
    rng = np.random.default_rng(1)
    yield from [(2, 1, 1, 1e-3, 1e-3), (2, 3, 2, 1e-2, 1e-5), (3, 2, 2, 1e-4, 1e-4), (8, 4, 7, 5e-3, 5e-3)]
    yield (4, 1, 3, 0.24, 0.24)
    for i in range(55):
        K, n, d = sizes_of(rng)
        largest = 0.9 / (K**2 * n)
        geometric, ratio = rng.uniform([-10, -4], [0, 4])
        mean, ratio = largest**0.5 * 10 ** (geometric / 2), 10 ** (ratio if i % 3 else 0)
        yield K, n, d, float(mean * ratio**0.5), float(mean / ratio**0.5)


@pytest.mark.parametrize("setting", list(normalized_settings()))
def test_the_spectrum_of_the_normalized_model_is_that_of_the_dense_hessian(setting):
    check_normalized_spectrum(setting, normalized_eigenvalues(*setting))


@pytest.mark.parametrize("setting", list(regularized_settings()))
def test_the_spectrum_of_the_regularized_model_is_that_of_the_dense_hessian(setting):
    found = all_eigenvalues(theory.regularized_collapse_spectrum(*setting))
    expected = regularized_eigenvalues(*setting)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * expected.max())


def test_the_dense_hessian_is_the_change_of_the_gradient():
    K, n, d, tau, step = 4, 2, 5, 1.3, 1e-5
    W, H, labels = collapsed(K, n, d)
    rows = np.concatenate([W, H])
    tangent = tangent_part(rows, np.random.default_rng(0).standard_normal(rows.shape))
    hessian, multipliers = dense_hessian(W, H, labels, tau)
    hessian -= np.kron(np.diag(multipliers), np.eye(d))
    applied = tangent_part(rows, (hessian @ tangent.ravel()).reshape(rows.shape))

    def gradient_at(rows):
        W, H = rows[:K], rows[K:]
        _, G = softmax_and_slopes(W, H, labels, tau)
        return tangent_part(rows, tau * np.concatenate([G.T @ H, G @ W]))

    ahead, behind = (gradient_at(row_normalized(rows + sign * step * tangent)) for sign in (1, -1))
    np.testing.assert_allclose(applied, tangent_part(rows, ahead - behind) / (2 * step), atol=1e-9)


@given(K=st.integers(2, 30), n=st.integers(1, 9), extra=st.integers(-1, 9), tau=st.floats(0.01, 50))
@settings(deadline=None, max_examples=50)
def test_the_multiplicities_are_complete(K, n, extra, tau):
    d, N = K + extra, n * K
    modes = theory.collapse_spectrum(K, n, d, tau)
    assert modes.multiplicity.sum() == (K + N) * (d - 1)
    assert sum(modes.multiplicity[np.array(modes.names) == "rotation"]) == (K - 1) * (2 * d - K) // 2
    modes = theory.regularized_collapse_spectrum(K, n, d, 1e-6, 1e-5)
    assert modes.multiplicity.sum() == (K + N) * d
    assert np.all(modes.multiplicity >= 1)
    assert len(modes.names) == len(modes.eigenvalues) == len(modes.multiplicity)
    if n > 1:
        modes = theory.contrastive_collapse_spectrum(K, n, d, tau)
        assert modes.multiplicity.sum() == N * (d - 1)


SMOOTHING = functools.partial(ufm.losses.label_smoothing, alpha=0.05)


@pytest.mark.parametrize(
    ("loss", "derivatives", "K"),
    [(ufm.losses.focal, focal, 4), (SMOOTHING, label_smoothing, 4), (SMOOTHING, label_smoothing, 2)],
)
def test_the_spectrum_of_other_losses(loss, derivatives, K):
    setting = (K, 3, K, 1.2, 3.0)
    check_normalized_spectrum((*setting, loss), normalized_eigenvalues(*setting, derivatives))


@pytest.mark.parametrize(("K", "n", "d", "tau"), [(5, 2, 5, 1.5)])
def test_the_spectrum_of_the_contrastive_model(K, n, d, tau):
    _, H, labels = collapsed(K, n, d)
    problem = ufm.contrastive(jnp.asarray(labels), K, tau=tau)

    def cost(steps):
        moved = H + steps - H * jnp.sum(H * steps, -1, keepdims=True)
        return problem.cost(ufm.Point(None, moved / jnp.linalg.norm(moved, axis=-1, keepdims=True)))

    hessian = jax.jit(jax.hessian(cost))(jnp.zeros(H.shape)).reshape(H.size, H.size)
    found = all_eigenvalues(theory.contrastive_collapse_spectrum(K, n, d, tau))
    lengths_of_rows = np.zeros(len(H))
    expected = np.linalg.eigvalsh(hessian)
    np.testing.assert_allclose(np.sort([*found, *lengths_of_rows]), expected, atol=1e-13)


def test_cross_entropy_in_closed_form_is_that_by_derivatives():
    def by_derivatives(logits, labels):
        return ufm.losses.cross_entropy(logits, labels)

    for K, tau in [(2, 1.0), (4, 0.1), (4, 25.0)]:
        found = theory.collapse_spectrum(K, 2, K, tau, 3.0, by_derivatives)
        expected = theory.collapse_spectrum(K, 2, K, tau, 3.0)
        np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues, rtol=1e-12)


def test_label_smoothing_and_the_focal_loss_in_numbers():
    """Label smoothing divides theta by `1 - alpha/c`; the focal loss at a small tau leaves it, and NC1."""
    K, n, tau, alpha = 4, 5, 0.3, 0.05
    c = K / (np.exp(K * tau / (K - 1)) + K - 1)
    for loss, theta in [(SMOOTHING, tau / (K - 1) / (1 - alpha / c)), (ufm.losses.focal, tau / (K - 1))]:
        rates = theory.collapse_rates(theory.collapse_spectrum(K, n, K, tau, n, loss))
        np.testing.assert_allclose(rates[1:], [1 / 4, 1 / (1 + theta), 1 / (1 + theta)], rtol=1e-12)


# Rates.


def test_a_factor_is_measured_beside_a_close_one_and_without_one():
    t = np.arange(80)
    for others in (0, 3 * 0.79**t, -0.5 * 0.6**t + 0.4 * 0.1**t):
        np.testing.assert_allclose(factor_of_a_step(0.8**t + others, 1e-9, 1e-2), 0.8, atol=1e-6)
    assert np.isnan(factor_of_a_step(0.8**t, 1e-40, 1e-30))


def row_normalized(X):
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def tangent_part(X, V):
    return V - X * np.sum(X * V, axis=1, keepdims=True)


def metrics(W, H, K):
    """NC1, NC2 and NC3 of features in the order of their classes."""
    features = H.reshape(K, -1, H.shape[1])
    means = features.mean(1)
    centred = means - means.mean(0)
    within = (features - means[:, None]).reshape(len(H), -1)
    nc1 = np.sum((within @ np.linalg.pinv(centred, rcond=1e-8)) ** 2) / len(H)
    simplex = (np.eye(K) - 1 / K) / np.sqrt(K - 1)
    return nc1, *(np.linalg.norm(X / np.linalg.norm(X) - simplex) for X in (W @ W.T, W @ centred.T))


def descend_normalized(K, n, d, tau, w, step, distance, steps):
    """Metrics along gradient descent with a fixed step, in the metric of w, from a distance to collapse."""
    rng = np.random.default_rng(0)
    W, H, labels = collapsed(K, n, d)
    W, H = (row_normalized(X + distance * tangent_part(X, rng.standard_normal(X.shape))) for X in (W, H))
    history = []
    for _ in range(steps):
        _, G = softmax_and_slopes(W, H, labels, tau)
        W, H = (
            row_normalized(W - step / w * tangent_part(W, tau * G.T @ H)),
            row_normalized(H - step * tangent_part(H, tau * G @ W)),
        )
        history.append(metrics(W, H, K))
    return np.array(history)


def descend_regularized(K, n, d, weight_decay, feature_decay, step, distance, steps):
    rng = np.random.default_rng(0)
    _, a, b = lengths(K, n, weight_decay, feature_decay)
    W, H, labels = collapsed(K, n, d, a, b)
    W, H = W + distance * a * rng.standard_normal(W.shape), H + distance * b * rng.standard_normal(H.shape)
    history = []
    for _ in range(steps):
        _, G = softmax_and_slopes(W, H, labels, 1.0)
        W, H = W - step * (G.T @ H + weight_decay * W), H - step * (G @ W + feature_decay * H)
        history.append(metrics(W, H, K))
    return np.array(history)


def check_rates(descend, setting, modes, step=None):
    """The factors of the squares, where they have fallen by many orders but are no rounding yet."""
    rates = theory.collapse_rates(modes, step)
    predicted = np.array(rates[1:])
    steps = np.log(1e-9) / np.log(predicted.max())
    squares = descend(*setting, float(rates.step), 1e-3, int(np.clip(steps, 20, 500))) ** [1, 2, 2]
    measured = [factor_of_a_step(values, 1e-24, 1e-10) for values in squares.T]
    np.testing.assert_allclose(measured ** np.array([1, 0.5, 0.5]), predicted, rtol=0, atol=1e-4)


NORMALIZED_RATES = [
    *[(10, 5, 16, tau, w) for tau in (0.3, 1.0, 2.25, 4.5) for w in (1, 5)],
    *[(4, 3, d, tau, w) for d in (3, 6) for tau, w in [(0.5, 1), (1.0, 3), (1.2, 12)]],
    *[(6, 2, 8, 1.0, w) for w in (0.5, 2, 8)],
    *[(3, 4, 5, 0.8, w) for w in (1, 4)],
]


@pytest.mark.parametrize("setting", NORMALIZED_RATES)
def test_measured_rates_of_the_normalized_model_are_the_predicted_ones(setting):
    check_rates(descend_normalized, setting, theory.collapse_spectrum(*setting))


@pytest.mark.parametrize(
    "setting",
    [(4, 3, 5, 1e-3, 1e-3), (4, 3, 3, 1e-4, 1e-3), (10, 3, 12, 1e-3, 1e-3), (3, 4, 4, 1e-2, 1e-2)],
)
def test_measured_rates_of_the_regularized_model_are_the_predicted_ones(setting):
    check_rates(descend_regularized, setting, theory.regularized_collapse_spectrum(*setting))


@pytest.mark.parametrize("share", [0.3, 1.5])
def test_measured_rates_of_a_given_step_are_the_predicted_ones(share):
    setting = (6, 3, 8, 2.0, 2.0)
    modes = theory.collapse_spectrum(*setting)
    check_rates(descend_normalized, setting, modes, share / float(modes.eigenvalues.max()))


@pytest.mark.parametrize(("w", "factor", "steps"), [(5, 7 / 8, 80), (1, 23 / 24, 250)])
def test_late_in_a_run_at_large_temperatures_motions_outside_the_span_decide(w, factor, steps):
    """A motion e of a unit vector shortens it by e^2/2 along itself, which all three metrics see."""
    setting = (3, 5, 6, 6.0, w)
    rates = theory.collapse_rates(theory.collapse_spectrum(*setting))
    late = np.array([factor**4, factor**2, factor**2])
    assert np.all(np.array(rates[1:]) < late - 0.01)
    history = descend_normalized(*setting, float(rates.step), 0.06, steps)
    np.testing.assert_allclose(history[-1] / history[-2], late, atol=1e-3)
    # Without room outside the span, the rate is that of first order to the end.
    history = descend_normalized(3, 5, 2, 6.0, w, float(rates.step), 0.06, 12)
    np.testing.assert_allclose(history[-1, 0] / history[-2, 0], rates.nc1, atol=1e-3)


def test_with_heavy_classifiers_nc2_sees_them_move_together_outside_the_span():
    setting, factor = (4, 3, 6, 6.0, 12), 1 - 1 / (4 * 3.75)
    rates = theory.collapse_rates(theory.collapse_spectrum(*setting))
    assert rates.nc2 < factor**2 - 0.01
    history = descend_normalized(*setting, float(rates.step), 0.06, 130)
    np.testing.assert_allclose((history[-1] / history[-2])[1:], [factor**2, rates.nc3], atol=1e-3)


def test_in_the_regularized_model_a_sample_meets_a_centred_motion_of_the_classifiers_late():
    setting = (3, 3, 5, 1e-4 / 3, 1e-4)
    modes = theory.regularized_collapse_spectrum(*setting)
    rates, largest = theory.collapse_rates(modes), float(max(modes.eigenvalues)) / 1e-4
    late = (1 - 1 / largest) * (1 - (1 + 1 / 3) / largest)
    assert rates.nc1 < 0.678**2 < late**2 - 0.1
    history = descend_regularized(*setting, float(rates.step), 0.06, 120)
    np.testing.assert_allclose(history[-1, 0] / history[-2, 0], late**2, atol=1e-3)


def test_they_decide_nc1_from_theta_of_1_over_the_root_of_1_plus_w_over_n_on():
    """That is 0.71 for w = n: at theta = 1 NC1 falls by (3/4)^4 = 0.316 late, and not by 0.25."""
    for theta, factor in [(1.0, (3 / 4) ** 4), (0.6, 1 / 4)]:
        setting = (3, 5, 6, 2 * theta, 5)
        step = float(theory.collapse_rates(theory.collapse_spectrum(*setting)).step)
        history = descend_normalized(*setting, step, 0.5, 36)
        np.testing.assert_allclose(history[-1, 0] / history[-2, 0], factor, atol=2e-3)


def test_rates_of_nc1_do_not_depend_on_the_temperature():
    for n, w, factor in [(5, 1, 5 / 6), (5, 5, 1 / 2), (1, 1, 0.0)]:
        for K, tau in [(3, 0.1), (10, 1.0), (10, 30.0)]:
            modes = theory.collapse_spectrum(K, n, K, tau, w)
            np.testing.assert_allclose(theory.collapse_rates(modes).nc1, factor**2, rtol=1e-12)


@given(
    K=st.integers(2, 40),
    n=st.integers(1, 9),
    extra=st.integers(-1, 3),
    share=st.floats(1e-6, 0.99),
)
@settings(deadline=None, max_examples=30)
def test_equal_decays_have_the_largest_eigenvalue_2_r_or_2_plus_2_theta(K, n, extra, share):
    decay = share / (K * np.sqrt(n))
    modes = theory.regularized_collapse_spectrum(K, n, K + extra, decay, decay)
    tau, _, _ = lengths(K, n, decay, decay)
    theta, p = tau / (K - 1), 1 - (K - 1) / (np.exp(K * tau / (K - 1)) + K - 1)
    R = K * theta * p
    largest = 2 * max(R, 1 + theta) if K > 2 else 2 * max(R, 1)
    np.testing.assert_allclose(modes.eigenvalues.max() / decay, largest, rtol=1e-10)


def test_normalization_is_ahead_of_equal_decays_in_its_own_metric_and_by_how_much():
    """Steps until NC1 has fallen by 1e-6: K = 100, n = 30, by the factors alone."""
    found = {}
    for decay in (1e-3, 1e-4, 1e-5, 1e-6):
        modes = theory.regularized_collapse_spectrum(100, 30, 128, decay, decay)
        found[decay] = float(np.log(1e-6) / np.log(theory.collapse_rates(modes).nc1))
    np.testing.assert_allclose(list(found.values()), [23.2, 87.1, 119.2, 145.7], atol=0.1)
    steps = [
        np.log(1e-6) / np.log(theory.collapse_rates(theory.collapse_spectrum(100, 30, 128, 1.0, w)).nc1)
        for w in (1, 30)
    ]
    np.testing.assert_allclose(steps, [210.7, 10], atol=0.1)


# Temperatures.


@pytest.mark.parametrize("tau", [0.3, 1.0, 3.0, 4.5, 9.0, 40.0])
def test_the_condition_number_in_the_balanced_metric(tau):
    K = 10
    expected = 1 + (K - 1) / tau if tau <= (K - 1) / 2 else 2 * (1 + tau / (K - 1))
    np.testing.assert_allclose(theory.collapse_condition_number(K, 5, tau, 5.0), expected, rtol=1e-12)
    # It is the ratio of what the spectrum says.
    modes = theory.collapse_spectrum(K, 5, K, tau, 5.0)
    moving = modes.eigenvalues[np.array(modes.names) != "rotation"]
    np.testing.assert_allclose(moving.max() / moving.min(), expected, rtol=1e-12)


def test_the_condition_number_outlives_the_slope():
    assert theory.collapse_spectrum(3, 2, 3, 1000.0).eigenvalues.max() == 0
    np.testing.assert_allclose(theory.collapse_condition_number(3, 2, 1000.0, 2.0), 2 * 501, rtol=1e-12)


@pytest.mark.parametrize("K", [3, 10])
@pytest.mark.parametrize("w", [0.3, 5.0, 70.0])
def test_the_best_temperature_has_the_smallest_condition_number(K, w):
    n = 5
    best = float(theory.best_temperature(K, n, w))
    at_best = theory.collapse_condition_number(K, n, best, w)
    for factor in (1.001, 1.01, 1.1, 1.5, 2, 4, 20):
        assert at_best < theory.collapse_condition_number(K, n, best * factor, w)
        assert at_best < theory.collapse_condition_number(K, n, best / factor, w)
    if K > 3:
        s = min(w / n, n / w)
        np.testing.assert_allclose(at_best, (4 - s) / (3 - s) * (1 + 1 / s), rtol=1e-12)


def test_best_temperatures_in_numbers():
    for K in (4, 10, 30, 100):
        assert theory.best_temperature(K, 5, 5.0) == (K - 1) / 2
    np.testing.assert_allclose(theory.best_temperature(3, 5, 5.0), 0.746837, atol=1e-6)


@pytest.mark.parametrize("K", [4, 10, 100, 1000])
def test_the_best_temperature_of_a_fixed_step_maximizes_the_slowest_eigenvalue(K):
    def negative_eigenvalue(tau):
        return -(tau**2) / (np.exp(K * tau / (K - 1)) + K - 1)

    found = minimize_scalar(negative_eigenvalue, bounds=(1, 12), method="bounded", options={"xatol": 1e-9})
    np.testing.assert_allclose(theory.best_temperature_of_fixed_step(K), found.x, rtol=1e-6)
    tau, x = found.x, K * found.x / (K - 1)
    np.testing.assert_allclose(2 / tau, K / (K - 1) * np.exp(x) / (np.exp(x) + K - 1), rtol=1e-6)


# Transformations and bad input.


def test_the_spectra_work_under_jit_vmap_and_grad():
    spectrum = jax.jit(theory.collapse_spectrum, static_argnums=(0, 1, 2))
    modes, expected = spectrum(5, 2, 6, 1.5, 2.0), theory.collapse_spectrum(5, 2, 6, 1.5, 2.0)
    assert modes.names == expected.names
    np.testing.assert_allclose(modes.eigenvalues, expected.eigenvalues, rtol=1e-12)

    def regularized(decay):
        return theory.regularized_collapse_spectrum(5, 2, 6, decay, decay).eigenvalues

    many = jax.jit(jax.vmap(regularized))(jnp.array([1e-3, 1e-4]))
    np.testing.assert_allclose(many[1], regularized(1e-4), rtol=1e-12)
    slope = jax.jit(jax.grad(lambda tau: theory.collapse_condition_number(10, 5, tau, 5.0)))(2.0)
    np.testing.assert_allclose(slope, -9 / 2.0**2, rtol=1e-10)
    best = jax.jit(lambda w: theory.best_temperature(3, 5, w))(5.0)
    np.testing.assert_allclose(best, 0.746837, atol=1e-6)


def test_whole_numbers_are_taken_as_floats():
    whole = theory.regularized_collapse_spectrum(3, 5, 4, 1e-4, 1)
    np.testing.assert_array_equal(
        whole.eigenvalues, theory.regularized_collapse_spectrum(3, 5, 4, 1e-4, 1.0).eigenvalues
    )


def test_single_precision_is_kept():
    tau, weight, decay = jnp.float32(1.5), jnp.float32(3.0), jnp.float32(1e-4)
    pairs = [
        (theory.collapse_spectrum(5, 3, 6, tau, weight), theory.collapse_spectrum(5, 3, 6, 1.5, 3.0)),
        (
            theory.regularized_collapse_spectrum(5, 3, 6, decay, decay),
            theory.regularized_collapse_spectrum(5, 3, 6, 1e-4, 1e-4),
        ),
    ]
    for single, double in pairs:
        assert single.eigenvalues.dtype == jnp.float32
        largest = double.eigenvalues.max()
        np.testing.assert_allclose(single.eigenvalues / largest, double.eigenvalues / largest, atol=2e-6)
    assert theory.best_temperature(10, 5, weight).dtype == jnp.float32
    assert theory.collapse_condition_number(10, 5, tau, weight).dtype == jnp.float32
    assert theory.collapse_rates(pairs[0][0]).nc2.dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.collapse_spectrum(1, 2, 3, 1.0), "num_classes must be finite and at least 2"),
        (lambda: theory.collapse_spectrum(4, 0, 3, 1.0), "samples_per_class must be finite and at least 1"),
        (lambda: theory.collapse_spectrum(4, 2, 2, 1.0), "at least 3 dimensions, but dim is 2"),
        (lambda: theory.collapse_spectrum(4, 2, 3, -1.0), "tau must be positive and finite, but is -1"),
        (lambda: theory.collapse_spectrum(4, 2, 3, 1.0, 0.0), "classifier_weight must be positive"),
        (
            lambda: theory.collapse_spectrum(
                4, 2, 3, 1.0, loss=lambda z, y: jnp.sum((z - jax.nn.one_hot(y, 4)) ** 2, -1)
            ),
            "not see a constant added to all logits",
        ),
        (
            lambda: theory.collapse_spectrum(4, 2, 3, 9.0, loss=SMOOTHING),
            "minimized by collapse, but its slopes",
        ),
        (
            lambda: theory.collapse_spectrum(
                2, 2, 3, 60.0, loss=functools.partial(ufm.losses.focal, gamma=10.0)
            ),
            "the slope of the loss at collapse, 0.0e[+]00, is 0 or underflows in float64",
        ),
        (lambda: theory.regularized_collapse_spectrum(4, 2, 3, 0.0, 1.0), "weight_decay must be positive"),
        (
            lambda: theory.regularized_collapse_spectrum(4, 2, 3, 1.0, np.nan),
            "feature_decay must be positive",
        ),
        (lambda: theory.regularized_collapse_spectrum(4, 2, 3, 0.2, 0.2), "W = H = 0 is the minimum"),
        (
            lambda: theory.contrastive_collapse_spectrum(4, 1, 3, 1.0),
            "samples_per_class must be .* least 2",
        ),
        (lambda: theory.collapse_condition_number(4, 2, 0.0), "tau must be positive"),
        (lambda: theory.best_temperature(4, 2, -1.0), "classifier_weight must be positive"),
        (lambda: theory.best_temperature_of_fixed_step(3), "num_classes must be finite and at least 4"),
        (
            lambda: theory.collapse_rates(theory.collapse_spectrum(4, 2, 3, 1.0), 0.0),
            "step must be positive",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize(("K", "n", "tau"), [(1000, 10, 1e-3), (10, 5, 1e-6), (10, 5, 1e-9)])
def test_condition_numbers_keep_their_digits_at_small_temperatures(K, n, tau, dtype):
    """In the balanced metric they go from 2 theta to 2 (1 + theta), theta = tau / (K - 1)."""
    found = ufm.theory.collapse_condition_number(K, n, jnp.asarray(tau, dtype), classifier_weight=n)
    np.testing.assert_allclose(found, 1 + (K - 1) / tau, rtol={jnp.float32: 1e-6}.get(dtype, 1e-12))
