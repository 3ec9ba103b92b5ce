"""Scores in blocks of samples, and samples over devices, against one device with all scores at once."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import ufm_jax as ufm
from tests.shared.marks import few
from tests.shared.problems import LABELS, PROBLEMS

SOLVERS = ["gradient_descent", "conjugate_gradient", "trust_region"]
K, D = 4, 6


def in_blocks(problem, block_size, shards=1):
    return dataclasses.replace(problem, block_size=block_size, shards=shards)


def assert_close(found, expected, atol=1e-14):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=atol), found, expected)


@jax.jit
def everything(problem, point, tangent):
    evaluation = problem.evaluate(point)
    return {
        "cost": (problem.cost(point), evaluation.value),
        "gradient": (problem.euclidean_gradient(evaluation), problem.gradient(evaluation)),
        "in reverse mode": jax.grad(problem.cost)(point),
        "Hessian": problem.hessian(point)(tangent),
        "slope": jax.jvp(problem.cost, (point,), (tangent,)),
    }


# Of twelve samples, and of seven where sizes differ: 5, and 3 on three shards, leave a smaller last block.
FEW = [("free bias", 3, 3), ("contrastive", 5, 1)]
MANY = [(name, size, shards) for name in PROBLEMS for size in (1, 5) for shards in (1, 3)]


@pytest.mark.parametrize(
    ("name", "block_size", "shards"),
    few(
        len(FEW),
        *FEW,
        *(
            case
            for case in MANY
            if case not in FEW and (case[0] not in ("unbalanced", "decayed bias") or case[2] == 1)
        ),
    ),
)
def test_blocks_give_cost_gradient_and_hessian(name, block_size, shards, key):
    problem = PROBLEMS[name]
    point = problem.random_point(key, D)
    tangent = problem.manifold.random_tangent(jax.random.key(1), point)
    found = everything(in_blocks(problem, block_size, shards), point, tangent)
    assert_close(found, everything(problem, point, tangent))


def test_blocks_keep_the_dtype_and_map_over_temperatures():
    @jax.jit
    def both(W, H):
        point = ufm.Point(W, H)

        def gradient(block_size, tau):
            problem = ufm.normalized(LABELS, K, tau=tau, block_size=block_size)
            evaluation = problem.evaluate(point)
            return evaluation.value, problem.gradient(evaluation)

        taus = jnp.array([0.5, 5.0], W.dtype)
        return [jax.vmap(lambda tau, size=size: gradient(size, tau))(taus) for size in (5, None)]

    rows = np.random.default_rng(0).normal(size=(K + len(LABELS), D)).astype(np.float32)
    found, expected = both(rows[:K], rows[K:])
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def run(problem, start, solver):
    """Few steps: gradient descent doubles rounding errors in each."""

    @jax.jit
    def program(problem, start):
        result = ufm.minimize(problem, start, getattr(ufm.solvers, solver)(), max_steps=6, tolerance=0.0)
        return result._replace(state=None)  # It keeps slopes, which blocks do not.

    compiled = program.lower(problem, start).compile()
    return compiled(problem, start), compiled.as_text()


@pytest.fixture(scope="module")
def start():
    return PROBLEMS["regularized"].random_point(jax.random.key(0), D)


@pytest.fixture(scope="module")
def whole(start):
    """Runs with all scores at once, on one device."""
    return {solver: run(PROBLEMS["regularized"], start, solver)[0] for solver in SOLVERS}


# The other two run in blocks on two devices below.
@pytest.mark.parametrize("solver", few(1, *SOLVERS))
def test_a_run_in_blocks_is_the_same_run(solver, start, whole):
    found, _ = run(in_blocks(PROBLEMS["regularized"], 5), start, solver)
    assert_close(found, whole[solver], atol=1e-12)


def check_collectives(program, in_loops):
    """Devices add up scalars and arrays of W's shape, not a block at a time, and exchange nothing else."""
    adds_W = 0
    for computation in re.split(r"\n(?=\S)", program):
        for shapes, kind in re.findall(
            r"= (.+?) (all-reduce|all-gather|all-to-all|collective-\w+|reduce-scatter)(?:-start)?\(",
            computation,
        ):
            assert kind == "all-reduce"
            sizes = set(re.findall(r"\w+\[([\d,]*)\]", shapes))
            assert sizes <= {"", f"{K},{D}"}
            if f"{K},{D}" in sizes:
                adds_W += 1
                # The loop over the blocks is another computation, called here.
                assert not in_loops or " while(" in computation
    assert adds_W >= 2  # At the start and in the loop over the steps.


def check_sharded_run(problem, solver, expected, devices):
    mesh = Mesh(np.array(devices), ("samples",))
    sharded = ufm.sharding.shard_problem(problem, mesh)
    start = ufm.sharding.random_point(sharded, mesh, jax.random.key(0), D)
    found, program = run(sharded, start, solver)
    assert_close(found, expected, atol=1e-12)
    check_collectives(program, problem.block_size is not None)
    for point in (start, found.point):
        assert {x.data.shape for x in point.H.addressable_shards} == {(len(point.H) // len(devices), D)}
        assert point.W.is_fully_replicated
    assert {x.data.shape for x in sharded.labels.addressable_shards} == {(len(point.H) // len(devices),)}


# The slow test below has all solvers, also without blocks.
@pytest.mark.parametrize(("solver", "block_size"), [("conjugate_gradient", 2), ("trust_region", 2)])
def test_a_run_on_two_devices_is_the_same_run(solver, block_size, whole):
    problem = in_blocks(PROBLEMS["regularized"], block_size)
    check_sharded_run(problem, solver, whole[solver], jax.devices()[:2])


def test_devices_exchange_sums_of_the_classifier_alone_in_float32_too():
    """Long float32 sums are taken in parts, and each device adds up its own."""
    problem = ufm.sharding.shard_problem(
        ufm.normalized(ufm.balanced_labels(K, 64), K), Mesh(np.array(jax.devices()[:2]), ("samples",))
    )
    mesh = problem.labels.sharding.mesh
    point = ufm.sharding.random_point(problem, mesh, jax.random.key(0), D, np.float32)
    gradient = jax.jit(lambda problem, point: problem.gradient(problem.evaluate(point)))
    program = gradient.lower(problem, point).compile().as_text()
    exchanged = re.findall(r"= (.+?) (?:all-reduce|all-gather|all-to-all)(?:-start)?\(", program)
    assert {x for shapes in exchanged for x in re.findall(r"\w+\[([\d,]*)\]", shapes)} <= {"", f"{K},{D}"}
    alone = ufm.normalized(ufm.balanced_labels(K, 64), K)
    expected = alone.gradient(alone.evaluate(jax.device_put(point, jax.devices()[0])))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), gradient(problem, point), expected
    )


_EIGHT = """
import jax
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 8)
import ufm_jax as ufm
from tests.test_blocks import SOLVERS, in_blocks, run, check_sharded_run, D, K
labels = ufm.balanced_labels(K, 10)
problems = [ufm.normalized(labels, K, loss=ufm.losses.focal), ufm.regularized(labels, K)]
for problem in problems:
    start = problem.random_point(jax.random.key(0), D)
    for solver in SOLVERS:
        expected = run(problem, start, solver)[0]
        for block_size in (None, 2):
            check_sharded_run(in_blocks(problem, block_size), solver, expected, jax.devices())
print("same on", jax.device_count())
"""


@pytest.mark.slow
def test_runs_on_eight_devices_are_the_same_runs():
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", _EIGHT], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.stdout == "same on 8\n", done.stderr


def test_no_matrix_of_all_scores_exists():
    """In none of the programs that a solver is made of, nor in reverse mode, is there an N x K array."""
    classes, samples = 64, 2048
    labels = jax.ShapeDtypeStruct((samples,), jnp.int32)
    point = ufm.Point(jax.ShapeDtypeStruct((classes, D), float), jax.ShapeDtypeStruct((samples, D), float))

    def programs(problem, point):
        evaluation = problem.evaluate(point)
        return problem.gradient(evaluation), problem.hessian(point)(point), jax.grad(problem.cost)(point)

    def compiled(block_size):
        problem = dataclasses.replace(PROBLEMS["regularized"], num_classes=classes, block_size=block_size)
        problem = dataclasses.replace(problem, labels=labels)
        return jax.jit(programs).lower(problem, point).compile()

    all_scores = 8 * classes * samples
    assert compiled(None).memory_analysis().temp_size_in_bytes > all_scores
    program = compiled(100)
    assert program.memory_analysis().temp_size_in_bytes < all_scores
    assert "f64[100,64]" in program.as_text()
    assert not re.search(r"\[(2048,64|64,2048|20,100,64|20,64,100)\]", program.as_text())


def test_products_in_blocks_are_four_for_a_gradient_with_its_cost_and_seven_for_a_hessian():
    problem = in_blocks(PROBLEMS["cross_entropy"], 4)
    point = ufm.Point(jnp.ones((K, D)), jnp.ones((len(LABELS), D)))

    def with_cost(point):
        evaluation = problem.evaluate(point)
        return evaluation.value, problem.gradient(evaluation)

    def products(function):
        return jax.jit(function).lower(point).as_text().count("dot_general")

    assert products(with_cost) == 4
    assert products(lambda x: problem.hessian_given(problem.evaluate(x), x)(x)) == 7


def test_random_points_are_the_same_on_any_mesh(start):
    mesh = Mesh(np.array(jax.devices()[:2]).reshape(1, 2), ("hosts", "cores"))
    found = ufm.sharding.random_point(PROBLEMS["regularized"], mesh, jax.random.key(0), D)
    assert_close(found, start)


def test_samples_that_do_not_divide_are_refused():
    mesh = Mesh(np.array(jax.devices()[:2]), ("samples",))
    problem = ufm.normalized(jnp.array([0, 0, 1]), 2)
    for call in (
        lambda: ufm.sharding.shard_problem(problem, mesh),
        lambda: ufm.sharding.random_point(problem, mesh, jax.random.key(0), 3),
    ):
        with pytest.raises(ValueError, match="3 samples do not divide by 2 devices: use 1, the most"):
            call()


def test_a_block_of_nothing_is_refused():
    for make in (ufm.normalized, ufm.regularized, ufm.contrastive):
        with pytest.raises(ValueError, match="block_size must be finite and at least 1, but is 0"):
            make(LABELS, 4, block_size=0)


def test_a_mesh_of_explicit_axes_is_refused():
    explicit = (jax.sharding.AxisType.Explicit,)
    mesh = Mesh(np.array(jax.local_devices()[:2]), ("x",), axis_types=explicit)
    with pytest.raises(ValueError, match="the axes of the mesh must be Auto"):
        ufm.sharding.shard_problem(ufm.normalized(ufm.balanced_labels(2, 2), 2), mesh)
