"""Claims hold of data that bear them, and each fails alone where one thing is not so."""

import dataclasses

import numpy as np
import pytest

from experiments.feature_model import (
    class_sizes,
    deep,
    fig5_start,
    fig11,
    fig12,
    metric,
    optimizers,
    regularized_minima,
)
from experiments.landscape import focal_map, landscape, landscape_window
from experiments.speed import bench, bench_metrics, bench_networks, bench_solvers


def failing(module, config, data):
    return {i for i, claim in enumerate(module.claims(config, data)) if not claim.holds}


def changed(values, at, value):
    """A copy of an array with other values at one place."""
    copy = np.array(values)
    copy[at] = value
    return copy


def landscape_data():
    saddles = 600
    ones = np.ones(saddles)
    saddle = {
        "constructed": -ones * np.linspace(0.1, 0.2, saddles),
        "smallest": -ones * np.linspace(0.1, 0.2, saddles) * np.where(np.arange(saddles) % 2, 1, 1.5),
        "is_decided_by_Z": np.arange(saddles) % 2 == 1,
        "is_critical": ones.astype(bool),
        "is_global_minimum": ~ones.astype(bool),
        "margin": -ones,
        "proposition_2": np.where(np.arange(saddles) < 9, np.nan, -0.05),
        "excess": ones,
        "end_excess": np.where(np.arange(saddles) < 3, np.nan, 1e-15),
        "escapes": ones,
        "kind": np.where(np.arange(saddles) < 3, landscape.OTHER_ORDERS, 0),
        "tau": np.arange(saddles) % 20,
        **{name: ones for name in landscape.SIZE},
    }
    eigenvalues = np.array([[1e-17, -1e-17, 0.1, 1.0]])
    return {
        **{f"saddle_{name}": values for name, values in saddle.items()},
        "rejected": np.array(0),
        "minimum_is_global_minimum": np.ones((2, 1, 3), bool),
        "minimum_excess": np.zeros((2, 1, 3)),
        "minimum_gap": np.zeros((2, 1, 3)),
        "imbalance": np.array([0, 1]),
        "spectrum_0": eigenvalues,
        "rotations": np.array([2, 7]),
    }


def test_landscape():
    config, good = landscape.Config(), landscape_data()
    assert failing(landscape, config, good) == set()
    for name, at, value, expected in [
        ("saddle_tau", slice(None), np.arange(600) % 19, {0}),
        ("saddle_constructed", 0, 0.01, {1}),
        ("saddle_smallest", 1, -1.0, {2}),
        ("saddle_smallest", 0, -0.05, {3}),
        ("saddle_proposition_2", 9, 0.0, {4}),
        ("saddle_is_global_minimum", 0, True, {5}),
        ("saddle_is_critical", 0, False, {5}),
        ("saddle_end_excess", 3, 1e-7, {6}),
        ("saddle_end_excess", 3, -1e-7, {6}),
        ("saddle_end_excess", 0, 1e-7, set()),  # Of another order of the classes, not descended from.
        ("minimum_is_global_minimum", (1, 0, 0), False, {7}),
        ("minimum_excess", (1, 0, 0), 1e-7, {7}),
        ("minimum_excess", (1, 0, 0), np.nan, {7}),
        ("rotations", 0, 3, {8}),
        ("rotations", 1, 3, set()),  # Of an unbalanced problem.
        ("spectrum_0", (0, 2), -0.1, {8}),
        ("spectrum_0", (0, 0), 1e-8, {8}),
    ]:
        data = good | {name: changed(good[name], at, value)}
        assert failing(landscape, config, data) == expected, (name, at, value)
    # The same saddles again are no other ones.
    names = [name for name in good if name.startswith("saddle_")]
    repeated = {name: good[name][np.arange(600) // 2] for name in names}
    assert failing(landscape, config, good | repeated) == {0}
    nowhere = {name: good[name][:0] for name in names}
    assert failing(landscape, config, good | nowhere) == {0}


def test_landscape_window():
    config = landscape_window.Config()
    good = {
        "cost": np.array([[3.0, 1.00005], [3.0, 1.0]]),
        "minimum": np.array(1.0),
        "saddle_cost": np.array(3.0),
        "constructed": np.array(-0.1),
        "eigenvalues": np.array([-0.1, 0.0, 1.0]),
    }
    assert failing(landscape_window, config, good) == set()
    for change, expected in [
        ({"cost": np.array([[3.0, 1.0002], [3.0, 1.0]])}, {0}),
        ({"cost": np.array([[3.0, np.nan], [3.0, 1.0]])}, {0}),
        ({"constructed": np.array(0.0)}, {1}),
    ]:
        assert failing(landscape_window, config, good | change) == expected


def test_focal_map():
    config = focal_map.Config(num_classes=(10, 100), tau=(1.0, 2.0), gamma=(3.0,))
    good = {
        "num_classes": np.array(config.num_classes),
        "certified": changed(np.ones((2, 5, 5), bool), (1, 0, 0), False),
        "searched_certified": changed(np.ones((2, 2, 1), bool), (1, 0, 0), False),
        "excess": np.full((2, 2, 1, 3), 1e-9),
    }
    assert failing(focal_map, config, good) == set()
    for name, at, value, expected in [
        ("excess", (1, 0, 0, 0), -1e-11, {0}),
        ("excess", (0, 0, 0, 0), -1e-11, {0}),
        ("excess", (0, 0, 0, 0), 1e-5, {1}),
        ("excess", (0, 0, 0, 0), np.nan, {0, 1}),
        ("certified", (0, 0, 0), False, {2}),
    ]:
        assert failing(focal_map, config, good | {name: changed(good[name], at, value)}) == expected


def test_optimizers():
    config = optimizers.Config()
    good: dict[str, np.ndarray] = {}
    for name in optimizers.OPTIMIZERS:
        count = len(optimizers.decays(config, name))
        nc0 = np.linspace(1, 0.5, count) if name == "adamw" else np.geomspace(1e-3, 1e-9, count)
        good |= {f"{of}_{name}": np.repeat(nc0[:, None], 3, 1) for of in ("nc0", "nc1")}
        lengths = np.linspace(9, 1 if name == "adamw" else 3, count)
        good |= {f"length_{name}": np.repeat(lengths[:, None], 3, 1), f"decay_{name}": nc0}
    assert failing(optimizers, config, good) == set()
    for name, at, value, expected in [
        ("nc0_sgd", -1, 1e-5, {0}),
        ("nc0_adam", 1, 1e-2, {1}),
        ("nc0_adamw", 3, 1e-4, {2}),
        ("length_adamw", slice(None), 5.1, {3}),
        # Of Adam's lengths only those count at which rows sum to zero.
        ("nc0_adam", slice(None), 1e-5, {1, 3}),
    ]:
        data = good | {name: changed(good[name], at, value)}
        assert failing(optimizers, config, data) == expected, (name, at)


def test_regularized_minima():
    config = regularized_minima.Config()
    # K, bias, sizes, case, decay, ratio, trial.
    shape = (2, 2, 2, 3, 6, 2, 2)
    good = {
        "minimum": changed(np.ones(shape[:-1]), (0, 0, 1, slice(2)), np.inf),
        "value": np.ones(shape),
        "gap": np.zeros(shape),
        "length": np.ones(shape),
        # A frame is no simplex: that of the squared error without a bias.
        "simplex": changed(np.zeros(shape), (slice(None), 0, 0, 2), 0.3),
        "frame": changed(np.ones(shape), (slice(None), 0, 0, 2), 0),
    }
    assert failing(regularized_minima, config, good) == set()
    at = (0, 0, 0, 0, 0, 0)
    for case in range(3):
        for off in (2e-9, -2e-10, np.nan):
            data = good | {"value": changed(good["value"], (0, 0, 0, case, *at[4:]), 1 + off)}
            assert failing(regularized_minima, config, data) == {case}
    for name, place, value, expected in [
        ("value", (0, 0, 1, 0), 5.0, set()),  # No closed form is known there.
        ("gap", (1, 1, 1, 2, 0, 0, 0), 2e-9, {3}),
        ("simplex", (*at, 0), 2e-6, {4}),
        ("simplex", (0, 1, 0, 2), 2e-6, {4}),
        ("simplex", (0, 0, 1, 0), 2e-6, set()),  # Sizes are unequal.
        ("frame", (0, 0, 0, 2), 2e-6, {4}),
        ("length", slice(None), 0.0, {4}),
    ]:
        data = good | {name: changed(good[name], place, value)}
        assert failing(regularized_minima, config, data) == expected, (name, place)
    zero = {"length": changed(good["length"], at, 0), "simplex": changed(good["simplex"], at, 1)}
    assert failing(regularized_minima, config, good | zero) == set()


def collapses_at(*first):
    """Histories (setting, 1 trial, 101 steps) of NC1 that are collapsed from these steps on."""
    return np.where(np.arange(101) >= np.reshape(first, (-1, 1, 1)), 0.0, 1.0)


def metric_data(config):
    places = (len(metric.PLACES), len(config.decay))
    good = {"decay": np.array(config.decay), "local_decay": np.array(config.local_decay)}
    for solver in metric.SOLVERS:
        good[f"nc1_normalized_{solver}"] = collapses_at(10, 9)
        good[f"nc1_regularized_{solver}"] = collapses_at(*[50] * np.prod(places)).reshape(*places, 1, -1)
    # Fixed steps: 55 where 10 are made, 9 where 9 are, and 60 where 50 are.
    plain, balanced, regularized = metric.two_models.COLLAPSED ** (1 / np.array([55, 9, 60]))
    rising = np.linspace(0.1, 0.9, len(config.local_decay))
    return good | {
        "local_regularized": rising,
        "local_normalized": np.array([plain, balanced]),
        "curve_decay": np.array(config.local_decay),
        "curve_regularized": rising,
        "predicted_normalized": np.array([plain, balanced]),
        "predicted_regularized": np.full(places, regularized),
    }


def test_metric():
    config = metric.Config()
    good = metric_data(config)
    assert failing(metric, config, good) == set()
    gd, cg, tr = (f"nc1_normalized_{solver}" for solver in metric.SOLVERS)
    regularized = "nc1_regularized_conjugate_gradient"
    one_decay = good[regularized].copy()
    one_decay[2, 4] = collapses_at(9)[0]
    for change, expected in [
        ({gd: collapses_at(10, 11)}, {0}),
        ({gd: collapses_at(50, 9)}, {4, 8}),
        ({cg: collapses_at(10, 50)}, {2}),
        ({cg: collapses_at(50, 10)}, {5}),
        ({tr: collapses_at(200, 10)}, {6}),
        ({tr: collapses_at(10, 200)}, {3}),
        ({regularized: one_decay}, {2, 5}),
        ({"local_normalized": np.array([0.95, 0.2])}, {7}),
        ({"curve_regularized": np.linspace(0.7, 0.9, 7)}, {7}),
        ({"predicted_regularized": np.full((3, 5), 0.97)}, {8}),
    ]:
        assert failing(metric, config, good | change) == expected, change


def test_class_sizes():
    config, names = class_sizes.Config(tau=(1.0, 2.0)), list(class_sizes.WEIGHTS)
    steps = dict(zip(names, [60.0, 50, 45, 40, 30, 20], strict=True))
    every = np.tile(np.array(list(steps.values()))[None, :, None], (2, 1, 3))
    good = dict.fromkeys(class_sizes.SOLVERS, every) | {"gap": np.zeros(2)}
    assert failing(class_sizes, config, good) == set()
    assert failing(class_sizes, config, good | {"gap": np.array([0, 2e-8])}) == {0}
    pairs = [("sizes", "plain"), ("root", "mean"), ("root", "sizes"), ("alpha", "root"), ("both", "alpha")]
    for i, (better, worse) in enumerate(pairs, 1):
        for solver in class_sizes.SOLVERS:
            fewer = changed(good[solver], (1, names.index(worse)), steps[better] - 1)
            assert failing(class_sizes, config, good | {solver: fewer}) == {i}


def test_deep():
    config, zero = deep.Config(factors=(3, 6), num_classes=10), np.zeros((2, 2, 1, 1))
    good = {
        "value": changed(zero, (1, 1), -1e-2),
        "minimum": np.zeros((2, 1)),
        "rank": zero + 3,
        "nc1": zero[..., None],
        "factors": np.array([3, 6]),
    }
    assert failing(deep, config, good) == set()
    for name, at, value, expected in [
        ("value", (0, 0), 2e-8, {0}),
        ("value", (1, 0), -2e-10, {0}),
        ("value", (0, 1), -2e-8, {1}),
        ("value", (1, 1), 0.0, {2}),
        ("rank", (1, 1), 10, {2}),
        ("nc1", (0, 1), 2e-6, {3}),
    ]:
        assert failing(deep, config, good | {name: changed(good[name], at, value)}) == expected


def test_the_start_of_figure_5():
    config = fig5_start.Config()
    good = {"start_scale": np.array(config.start_scale)}
    for solver in fig5_start.SOLVERS:
        for event in fig5_start.EVENTS:
            good[f"{event}_normalized_{solver}"] = np.array([[3.0, 4.0, np.inf]])
            good[f"{event}_regularized_{solver}"] = np.full((len(config.start_scale), 3), 5.0)
    assert failing(fig5_start, config, good) == set()
    for i, (solver, event) in enumerate((s, e) for s in fig5_start.SOLVERS for e in fig5_start.EVENTS):
        name = f"{event}_regularized_{solver}"
        assert failing(fig5_start, config, good | {name: changed(good[name], 2, 4.0)}) == {i}
        # Where neither comes about there is no faster one.
        never = {n: np.full_like(good[n], np.inf) for n in (name, f"{event}_normalized_{solver}")}
        assert failing(fig5_start, config, good | never) == {i}


def minima_data(config):
    sweeps = {"num_classes": len(config.num_classes), "tau": len(config.tau)}
    good = {"num_classes": np.array(config.num_classes), "tau": np.array(config.tau)}
    for sweep, count in sweeps.items():
        good |= {f"nc{i}_by_{sweep}": np.full((count, 2), 1e-6) for i in (1, 2, 3)}
        good |= {f"value_by_{sweep}": np.full((count, 2), 5.0), f"minimum_by_{sweep}": np.full(count, 5.0)}
    return good


def test_minima():
    config = fig11.Config(num_classes=(2, 3), tau=(0.5, 1.0, 2.0))
    good = minima_data(config)
    assert failing(fig11, config, good) == set()
    for name, at, value, expected in [
        ("value_by_num_classes", (1, 0), 5 - 1e-7, {0}),
        ("value_by_tau", (2, 1), 5 + 1e-7, {1}),
        ("value_by_tau", (2, 1), 5 + 4e-8, set()),  # 1e-8 of a value above 1.
        ("nc1_by_tau", (2, 1), 2e-4, {2}),
        ("nc2_by_num_classes", (0, 0), 2e-4, {2}),
        ("nc3_by_tau", (0, 0), np.nan, {2}),
    ]:
        data = good | {name: changed(good[name], at, value)}
        assert failing(fig11, config, data) == expected, (name, value)
    # What float32 rounds away counts there as equal.
    rounded = good | {"value_by_tau": good["value_by_tau"] * (1 - 1e-6)}
    assert failing(fig11, config, rounded) == {1}
    assert failing(fig11, dataclasses.replace(config, dtype="float32"), rounded) == set()


def test_minima_part_from_collapse_at_a_threshold():
    config = fig12.Config(num_classes=(2, 3), at_tau=1.0, at_num_classes=3, tau=(1.0, 20.0))
    good = minima_data(config)
    good |= {"at_collapse_by_num_classes": np.full(2, 5.0), "at_collapse_by_tau": np.array([5.0, 5.5])}
    assert failing(fig12, config, good) == set()
    for name, at, value, expected in [
        ("at_collapse_by_tau", 0, 5.1, {3}),
        ("at_collapse_by_num_classes", 1, 4.9, {3}),
        ("at_collapse_by_tau", 1, 5.0, {3}),
        ("nc2_by_tau", 0, 1.0, {2}),
        ("nc2_by_tau", 1, 1.0, set()),  # There the minimum is no collapse.
    ]:
        data = good | {name: changed(good[name], at, value)}
        assert failing(fig12, config, data) == expected, (name, at)
    one_side = fig12.Config(num_classes=(2, 3), at_tau=1.0, at_num_classes=3, tau=(1.0, 1.0))
    good["at_collapse_by_tau"] = np.full(2, 5.0)
    assert failing(fig12, one_side, good) == {3}, "nothing was seen beyond the threshold"


def test_bench():
    config = bench.Config()
    targets = np.array(list(bench.TARGETS.values()))
    rounds = np.ones(3)
    flops = 2 * config.num_classes**2 * config.samples_per_class * config.dim
    good = {
        "solver": np.array(list(bench.TARGETS)),
        "seconds": np.ones((3, 3)),
        "pymanopt_seconds": targets[:, None] * rounds,
        "products": np.full(3, 7.0),
        "peak_flops": 10 * flops * rounds,
        "grid_seconds": rounds,
        "grid_pymanopt_seconds": 40 * rounds,
        "with_nc1_seconds": 1.2 * rounds,
        "without_nc1_seconds": rounds,
    }
    assert failing(bench, config, good) == set()
    for i in range(3):
        slower = changed(good["seconds"], i, 1.01)
        assert failing(bench, config, good | {"seconds": slower}) == ({0, 4} if i == 0 else {i})
    for change, expected in [
        ({"grid_seconds": 1.01 * rounds}, {3}),
        ({"peak_flops": 10.1 * flops * rounds}, {4}),
        ({"with_nc1_seconds": 1.21 * rounds}, {5}),
    ]:
        assert failing(bench, config, good | change) == expected


def test_bench_solvers():
    config = bench_solvers.Config()
    good = {
        "contender": np.array(["lbfgs balanced", "trust_region plain", bench_solvers.PEER, "pymanopt x"]),
        "seconds": np.array([[[0.5], [0.3], [1.0], [0.1]], [[0.3], [np.inf], [1.0], [0.1]]]),
        "steps": np.ones((2, 4), int),
        "norm": np.full((2, 4), 1e-7),
    }
    assert failing(bench_solvers, config, good) == set()
    for at, value, expected in [((0, 1), 0.4, {0}), ((1, 0), 0.4, {1}), ((0, 2), 0.8, {0})]:
        data = good | {"seconds": changed(good["seconds"], at, value)}
        assert failing(bench_solvers, config, data) == expected
    # A peer that was stopped took the whole time at least; one that broke down says nothing.
    stopped = good | {"seconds": changed(good["seconds"], (0, 2), np.inf)}
    assert failing(bench_solvers, config, stopped) == set()
    broken = stopped | {"norm": changed(good["norm"], (0, 2), np.nan)}
    assert failing(bench_solvers, config, broken) == {0}


def test_bench_networks():
    config = bench_networks.Config()
    good = {
        "seconds": np.full(3, 1.2),
        "pytorch_seconds": np.ones(3),
        "epochs_seconds": np.array(1.0),
        "epochs_compiled_seconds": np.array(0.96),
    }
    assert failing(bench_networks, config, good) == set()
    assert failing(bench_networks, config, good | {"seconds": np.full(3, 1.21)}) == {0}
    assert failing(bench_networks, config, good | {"epochs_compiled_seconds": np.array(0.94)}) == {1}
    # Without PyTorch nothing is said of it.
    alone = good | {"pytorch_seconds": np.empty(0)}
    assert len(bench_networks.claims(config, alone)) == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, set()),
        ({"nc1_seconds": np.full(3, 1.51)}, {0}),
        ({"metrics_seconds": np.full(3, 0.051)}, {1}),
        ({"vocabulary_bytes": np.array(6 * 2**30 + 1)}, {2}),
    ],
)
def test_bench_metrics(change, expected):
    good = {
        "nc1_seconds": np.full(3, 1.5),
        "nc1_numpy_seconds": np.ones(3),
        "metrics_seconds": np.full(3, 0.05),
        "epoch_seconds": np.ones(3),
        "vocabulary_bytes": np.array(6 * 2**30),
        "vocabulary_features_bytes": np.array(2 * 2**30),
    }
    assert failing(bench_metrics, bench_metrics.Config(), good | change) == expected
