"""The experiments on rates, temperatures and metrics: their claims judge the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm_jax as ufm
from experiments.feature_model import (
    class_sizes,
    metric,
    minority_collapse,
    near_collapse,
    rates,
    regularized_minima,
    temperature,
)
from experiments.harness.chunks import ChunkFolder
from tests.shared.marks import few


def test_a_perturbed_point_is_as_far_from_collapse_as_asked():
    labels = ufm.balanced_labels(4, 3)
    for problem in (ufm.normalized(labels, 4), ufm.regularized(labels, 4)):
        collapsed = near_collapse.collapsed(problem, 40)
        assert np.linalg.norm(jax.tree.leaves(problem.gradient(problem.evaluate(collapsed)))[0]) < 1e-12
        moved = near_collapse.perturbed(problem, collapsed, jax.random.key(0), 1e-2)
        for before, after in zip(collapsed, moved, strict=True):
            moves = jnp.linalg.norm(after - before, axis=1) / jnp.linalg.norm(before, axis=1)
            np.testing.assert_allclose(moves, 0.01, rtol=0.5)
            np.testing.assert_allclose(jnp.mean(moves), 0.01, rtol=0.1)


@pytest.mark.parametrize("module", few(1, rates, regularized_minima))
def test_settings_of_as_many_classes_keep_their_own_results(module, tmp_path):
    sizes = {"num_classes": (3, 3), "samples_per_class": (2, 4), "decay": (1e-2,), "steps": 5}
    if module is rates:
        config = rates.Config(**sizes, theta=(0.5,), relative_weight=(1.0,), decay_ratio=(1.0,))
    else:
        config = regularized_minima.Config(**sizes, decay_ratio=(1.0,), trials=1)
    kept = module.run(config, lambda *_: None, ChunkFolder(tmp_path))
    np.testing.assert_equal(kept, module.run(config, lambda *_: None))
    name = "predicted_regularized" if module is rates else "minimum"
    assert not np.allclose(kept[name][0], kept[name][1])


def rate_data(config, error=0.0):
    shapes = {"normalized": (1, 2, 2, 3), "regularized": (1, 2, 1, 3)}
    data = {"relative_weight": np.array([0.2, 1.0])}
    for model, shape in shapes.items():
        predicted = np.full(shape, 0.5)
        if model == "normalized":
            predicted[..., 0] = [1 / 1.2**2, 1 / 4]
        data[f"predicted_{model}"], data[f"measured_{model}"] = predicted, predicted + error
        data[f"late_{model}"] = np.zeros(shape, bool)
    return data


def test_rates_count_only_where_first_order_decides():
    config = rates.Config()
    assert all(c.holds for c in rates.claims(config, rate_data(config)))
    assert not any(c.holds for c in rates.claims(config, rate_data(config, 4e-4)))
    late = rate_data(config)
    late["measured_regularized"][0, 1] += 0.1
    assert not rates.claims(config, late)[1].holds
    late["late_regularized"][0, 1, 0, 0] = True
    assert rates.claims(config, late)[1].holds
    late["measured_regularized"][0, 0] = np.nan
    assert not rates.claims(config, late)[1].holds


def test_second_order_is_predicted_late_from_the_threshold_on():
    for weight in (0.2, 1.0):
        for factor, late in [(0.98, False), (1.02, True)]:
            theta = factor / np.sqrt(1 + weight)
            assert rates.predictions(rates.normalized_modes(10, 5, 12, theta, weight))[1][0] == late
    assert not rates.predictions(rates.normalized_modes(10, 5, 9, 5.0, 1.0))[1].any()


@pytest.mark.parametrize(("best", "holds"), [(1, True), (2, True), (3, True), (4, False), (0, False)])
def test_a_best_temperature_is_good_within_one_grid_point(best, holds):
    config = temperature.Config(num_classes=(10, 100))
    tau = 4.5 * 2 ** (np.arange(-2, 4) / 2)
    steps = np.abs(np.arange(6.0) - best)[None, None, :, None] + np.ones((2, 2, 1, 3))
    steps[:, 0] *= 3
    data = {"tau": np.stack([tau, 11 * tau]), "best": np.array([[4.5, 4.5], [1.0, 1.0]])}
    data |= {"gradient_descent": steps, "conjugate_gradient": np.full_like(steps, np.inf)}
    claims = temperature.claims(config, data)
    # At 100 classes nothing is claimed: collapse is out of reach there.
    assert [claims[0].holds, claims[1].holds] == [holds, holds]
    assert claims[4].holds
    data["gradient_descent"] = steps[:, ::-1]
    assert not temperature.claims(config, data)[4].holds


def test_a_crossing_is_interpolated_and_infinite_where_there_is_none():
    decay = np.array([1e-3, 1e-5])
    np.testing.assert_allclose(metric.crossing(decay, np.array([0.5, 0.7]), 0.6), 1e-4)
    assert metric.crossing(decay, np.array([0.5, 0.7]), 0.8) == np.inf
    np.testing.assert_allclose(metric.by_fixed_step(np.array([1e-6, 1e-3])), [1, 2])


def test_the_regularized_model_of_a_config_has_the_decays_said():
    config = metric.Config(decay=(1e-2, 1e-3), num_classes=4, samples_per_class=3)
    expected = [[(0.01, 0.01), (0.001, 0.001)], [(0.01 / 12,) * 2, (0.001 / 12,) * 2]]
    expected += [[(0.01, 1e-5), (0.001, 1e-5)]]
    np.testing.assert_allclose(metric.decays(config), expected)
    with pytest.raises(ValueError, match="each below the one before"):
        metric.check(metric.Config(decay=(1e-4, 1e-3)))


def test_weights_of_balanced_classes_are_all_the_balanced_metric():
    config = class_sizes.Config(samples_per_class=(3, 3), tau=(1.0,))
    W, H = class_sizes.weights_of(config, np.full((1, 2), 0.3), np.full((1, 6), 0.1))
    np.testing.assert_allclose(W[0, :, :, 0], [[1, 1], *[[3, 3]] * 5])
    np.testing.assert_allclose(H, 1)


def test_the_gap_is_zero_at_collapse_alone():
    config = class_sizes.Config(samples_per_class=(2, 2, 2))
    problem = class_sizes.problem_of(config, 1.5)
    assert ufm.landscape.optimality_gap(problem, near_collapse.collapsed(problem, 4)) < 1e-12
    point = problem.random_point(jax.random.key(0), 4)
    excess = problem.cost(point) - ufm.theory.cross_entropy_minimum(3, 1.5)
    assert ufm.landscape.optimality_gap(problem, point) >= excess > 0.1


def test_nothing_holds_where_nothing_collapses():
    config = temperature.Config(num_classes=(4,))
    never = {name: np.full((1, 2, 5, 3), np.inf) for name in temperature.SOLVERS}
    data = {"tau": np.array([[0.1, 0.2, 0.4, 0.8, 1.6]]), "best": np.array([[0.1, 0.1]]), **never}
    assert not any(c.holds for c in temperature.claims(config, data))
    inside = data | {
        "gradient_descent": np.abs(np.arange(5.0) - 4)[None, None, :, None] + np.ones((1, 2, 5, 3))
    }
    assert not temperature.claims(config, inside | {"best": np.array([[16.0, 16.0]])})[0].holds
    assert temperature.claims(config, inside | {"best": np.array([[1.6, 1.6]])})[0].holds

    sizes = class_sizes.Config(tau=(1.0,))
    data = {name: np.full((1, 6, 3), np.inf) for name in class_sizes.SOLVERS} | {"gap": np.zeros(1)}
    data |= {
        "alpha": np.ones((1, 10)),
        "beta": np.ones((1, 200)),
        "sizes": np.array(sizes.samples_per_class),
    }
    assert [c.holds for c in class_sizes.claims(sizes, data)] == [True] + [False] * 5
    class_sizes.plot(sizes, data)
    assert "never" in class_sizes.table(sizes, data)

    config = rates.Config()
    late = rate_data(config)
    late |= {name: np.ones_like(late[name]) for name in late if name.startswith("late_")}
    assert not any(c.holds for c in rates.claims(config, late))

    assert metric.crossing(np.array([1e-3, 1e-4, 1e-5]), np.array([20.0, np.inf, np.inf]), 25.0) == np.inf

    config = minority_collapse.Config(share=(0.5, 1.3))
    data = {"share": np.array([0.5, 1.3]), "apart": np.zeros((2, 1, 2, 2)), "gap": np.zeros(1)}
    data["apart"][0, :, 0] = 1
    assert [c.holds for c in minority_collapse.claims(config, data)] == [True, True, False]
    data["apart"][1, :, 0] = 1
    assert [c.holds for c in minority_collapse.claims(config, data)] == [True, True, True]
    below = {name: values[..., :1, :] if name == "apart" else values for name, values in data.items()}
    below["share"] = np.array([0.5])
    assert [c.holds for c in minority_collapse.claims(config, below)] == [False, True, False]
