"""What experiments/speed/roofline.py says on paper, against compiled programs and arithmetic by hand."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import ufm_jax as ufm
from experiments.speed import large, roofline

SIZE = roofline.Size(num_classes=32, samples=2048, dim=24, devices=2, block_size=512, itemsize=8)


def problem_in(block_size, weight=1.0):
    return ufm.normalized(ufm.balanced_labels(32, 64), 32, classifier_weight=weight, block_size=block_size)


def test_products_are_those_of_the_program():
    """XLA counts the body of a loop once, so there is one block here; besides products it has little."""
    problem = problem_in(2048)
    point = ufm.Point(jax.ShapeDtypeStruct((32, 128), float), jax.ShapeDtypeStruct((2048, 128), float))

    def with_cost(point):
        evaluation = problem.evaluate(point)
        return evaluation.value, problem.gradient(evaluation)

    def products(function):
        flops = jax.jit(function).lower(point).cost_analysis()["flops"]
        return flops / roofline.product_flops(32, 2048, 128)

    assert 0 < products(with_cost) - roofline.GRADIENT_PRODUCTS < 0.5
    hessian = products(lambda x: problem.hessian_given(problem.evaluate(x), x)(x))
    assert 0 < hessian - roofline.HESSIAN_PRODUCTS < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("weight", [1.0, 64.0])
@pytest.mark.parametrize("solver", list(roofline.COPIES))
def test_memory_and_sums_are_those_of_the_program(solver, weight):
    mesh = Mesh(np.array(jax.devices()[: SIZE.devices]), ("samples",))
    problem = ufm.sharding.shard_problem(problem_in(SIZE.block_size, weight), mesh)
    pair = getattr(ufm.solvers, solver)()
    with pytest.warns(UserWarning, match="neural collapse is out of reach"):
        start = ufm.sharding.random_point(problem, mesh, jax.random.key(0), SIZE.dim)
    state = jax.jit(pair.init)(problem, start)
    program = jax.jit(pair.step, donate_argnums=1).lower(problem, state).compile()

    held = program.memory_analysis()
    held = held.argument_size_in_bytes + held.output_size_in_bytes + held.temp_size_in_bytes
    held -= program.memory_analysis().alias_size_in_bytes
    said = roofline.step(SIZE, solver).memory
    assert 0.6 * said < held <= said

    lines = [x for x in program.as_text().splitlines() if " all-reduce(" in x]
    sums = sum(len(re.findall(r"f64\[32,24\]", line.split(" all-reduce(")[0])) for line in lines)
    # A loop's body is there once: the Hessian's sum, and the gradient's. And those of gradients where
    # values no longer tell steps apart: a search has a first try and others, the trust region one.
    assert sums == (2 + 1 if solver == "trust_region" else 1 + 2)
    assert roofline.step(SIZE, solver).sent == 2 * 1 / 2 * 32 * 24 * 8


def test_what_bounds_a_step():
    """Fewer samples a device than `itemsize flops / (products link)` leave the links as the bound."""
    for machine in roofline.MACHINES:
        for num_classes, dim in [(1000, 512), (100_000, 2048)]:
            per_device = 4 * machine.flops / (5 * machine.link)
            for factor, bound in [(0.5, "links"), (2, "arithmetic")]:
                samples = round(factor * per_device) * 4096
                size = roofline.Size(num_classes, samples, dim, devices=4096)
                seconds = roofline.step(size).seconds(machine)
                assert seconds[bound] == max(seconds["links"], seconds["arithmetic"])


def test_the_fewest_devices_hold_the_problem_and_half_as_many_do_not():
    size = roofline.Size(100_000, 100_000_000, 512)
    for machine in roofline.MACHINES:
        fewest = roofline.fewest_devices(size, machine)
        assert fewest is not None
        held = [roofline.step(dataclasses.replace(size, devices=n)).memory for n in (fewest, fewest // 2)]
        assert held[0] <= 0.9 * machine.memory < held[1]
    # W alone, replicated, is too large.
    assert roofline.fewest_devices(roofline.Size(10**6, 10**8, 10**4), roofline.MACHINES[0]) is None
    assert "| more than 4096 |" in roofline.table([roofline.Size(10**6, 10**8, 10**4)])


def test_the_document_has_the_table_that_the_formulas_give():
    largest = roofline.Size(100_000, 100_000_000, 512)
    assert largest in large.SIZES
    assert roofline.table([largest]) in (Path(__file__).parent.parent / "docs" / "large.md").read_text()
