"""What the experiment `large` measures and claims."""

import jax
import numpy as np
import pytest

import ufm_jax as ufm
from experiments.speed import large
from ufm_jax.riemannian.minimize import iterate_at

CONFIG = large.Config(num_classes=4, samples_per_class=6, dim=5, block_size=4, dtype="float64", memory=4.0)


@pytest.mark.slow
def test_measures_of_spread_samples_are_those_of_the_metrics(key):
    problem = large.problem_of(CONFIG)
    point = jax.jit(problem.random_point, static_argnums=1)(key, CONFIG.dim)
    spread = ufm.sharding.shard_problem(large.problem_of(CONFIG, 4), large.mesh())
    placed = jax.device_put(point, ufm.sharding.placement(spread, large.mesh()))

    @jax.jit
    def measured(problem, point):
        return large.measure(problem, iterate_at(problem, problem.evaluate(point)))

    @jax.jit
    def expected(W, H):
        iterate = iterate_at(problem, problem.evaluate(ufm.Point(W, H)))
        return {
            "loss": iterate.value,
            "gradient_norm": iterate.gradient_norm,
            "accuracy": ufm.metrics.accuracy(W, H, problem.labels),
            "nc1": ufm.metrics.nc1(H, problem.labels, 4),
            "nc2": ufm.metrics.nc2(W),
            "nc3": ufm.metrics.nc3(W, H, problem.labels),
        }

    found = measured(spread, placed)
    for name, value in expected(*point).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-11, err_msg=name)


GIB = 2**30
GOOD = {
    "accuracy": np.array([0.2, 1.0]),
    "loss": np.array([2.0, 1.01]),
    "minimum": np.array(1.0),
    "nc1": np.array([5.0, 1e-3]),
    "samples_a_device": np.array(12),
    "step_bytes": np.array(1000),
    "whole_step_bytes": np.array(1000 + 12 * 4 * 8),
    "process_bytes": np.array(3 * GIB),
}


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({}, None),
        ({"accuracy": np.array([0.2, 0.999])}, 0),
        ({"loss": np.array([2.0, 1.06])}, 1),
        ({"loss": np.array([2.0, 0.999])}, 1),
        ({"nc1": np.array([5.0, 6e-3])}, 2),
        ({"whole_step_bytes": np.array(1000 + 12 * 4 * 7)}, 3),
        ({"process_bytes": np.array(5 * GIB)}, 4),
    ],
)
def test_each_claim_fails_where_the_data_does_not_bear_it(change, failing):
    holds = [claim.holds for claim in large.claims(CONFIG, GOOD | change)]
    assert [index for index, claim in enumerate(holds) if not claim] == (
        [] if failing is None else [failing]
    )


@pytest.mark.parametrize(("num_classes", "dim"), [(10, 3), (10, 20)])
def test_the_least_nc2_of_a_rank_is_reached_by_a_projection(num_classes, dim):
    """The best W of rank d is the simplex projected on any d of its directions; no random one is below."""
    least = large.least_nc2(num_classes, dim)
    simplex = np.eye(num_classes) - 1 / num_classes
    _, vectors = np.linalg.eigh(simplex)
    best = vectors[:, ::-1][:, : min(dim, num_classes - 1)]
    np.testing.assert_allclose(ufm.metrics.nc2(jax.numpy.asarray(best)), least, atol=1e-7)
    others = np.random.default_rng(0).normal(size=(20, num_classes, dim))
    assert np.all(jax.jit(jax.vmap(ufm.metrics.nc2))(others) >= least)
