"""One problem at the size of ImageNet's labels: samples over all devices, logits in blocks.

With fewer dimensions than classes less one, as here by default, no simplex ETF fits. Theorem 1's minimum
is then a bound that is not reached, and a W of rank d stays `least_nc2` away from the simplex.
"""

import dataclasses
import functools
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from matplotlib.figure import Figure

import ufm_jax as ufm
from experiments.feature_model.two_models import SolverName
from experiments.harness import plotting, tables
from experiments.harness.experiment import Claim, Data, Progress, check_fields
from experiments.harness.experiment import Config as BaseConfig
from experiments.speed import roofline
from experiments.speed.measuring import peak_memory, take_turns

TITLE = "1000 classes, 100,000 samples, in blocks"
DURATION = "3 min"

GIB = 2**30
PEAK_SIZE = 1500
SIZES = (
    roofline.Size(1000, 1_280_000, 2048),
    roofline.Size(10_000, 10_000_000, 1024),
    roofline.Size(100_000, 100_000_000, 512),
    roofline.Size(100_000, 100_000_000, 2048),
)
"""What the table on paper goes on to: ImageNet under a ResNet-50, then what pods are for."""
_MEASURES = ("loss", "gradient_norm", "accuracy", "nc1", "nc2", "nc3", "cdnv", "gnc3")


@dataclasses.dataclass(frozen=True)
class Config(BaseConfig):
    """A size at which scores, their slopes and exponentials would need more memory than all else."""

    dtype: Literal["float32", "float64"] = "float32"
    """Floating type of the computation."""
    num_classes: int = 1000
    """Classes, K."""
    samples_per_class: int = 100
    """Samples of each class, n."""
    dim: int = 512
    """Dimension of features and classifiers, d."""
    tau: float = 1.0
    """Temperature."""
    solver: SolverName = "conjugate_gradient"
    """Solver."""
    steps: int = 20
    """Iterations."""
    block_size: int = 1000
    """Samples on each device whose logits exist at one time."""
    memory: float = 2.5
    """GiB that the whole process is claimed to stay below."""
    rounds: int = 3
    """Timings of a gradient and of a product at the machine's peak, at the end."""


def check(config: Config) -> None:
    counts = ("samples_per_class", "dim", "steps", "block_size", "rounds")
    check_fields(config, {"num_classes": 2} | dict.fromkeys(counts, 1), positive=["tau", "memory"])
    ufm.sharding.shard_problem(problem_of(config), mesh())


def problem_of(config: Config, block_size: int | None = None) -> ufm.Problem:
    """In the balanced metric: 20 steps end nearer to the minimum than in the plain one."""
    k, n = config.num_classes, config.samples_per_class
    return ufm.normalized(
        ufm.balanced_labels(k, n), k, tau=config.tau, classifier_weight=n, block_size=block_size
    )


def mesh() -> Mesh:
    """All devices in one row."""
    return Mesh(np.array(jax.devices()), ("samples",))


def run(config: Config, progress: Progress) -> Data:
    devices = mesh()
    problem = ufm.sharding.shard_problem(problem_of(config, config.block_size), devices)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of too few dimensions: the claims speak of them.
        key = jax.random.key(config.seed)
        start = ufm.sharding.random_point(problem, devices, key, config.dim, config.dtype)
    solver: ufm.solvers.Solver = getattr(ufm.solvers, config.solver)()
    state = jax.jit(solver.init)(problem, start)
    del start
    # What the old state held is free for the new one.
    step = jax.jit(solver.step, donate_argnums=1)
    measures = jax.jit(measure)

    rows, seconds = [measures(problem, state.iterate)], []
    for index in range(config.steps):
        progress(index, config.steps + 1, f"loss {float(rows[-1]['loss']):.6f}")
        began = time.perf_counter()
        state = jax.block_until_ready(step(problem, state))
        seconds.append(time.perf_counter() - began)
        rows.append(jax.block_until_ready(measures(problem, state.iterate)))
    progress(config.steps, config.steps + 1, "timing")
    history = {name: np.array([row[name] for row in rows]) for name in _MEASURES}
    return {
        "step": np.arange(config.steps + 1),
        **history,
        "minimum": np.array(ufm.theory.cross_entropy_minimum(config.num_classes, config.tau)),
        "step_seconds": np.array(seconds),
        **_rates(config, problem, state.iterate.point),
        "devices": np.array(devices.size),
        "samples_a_device": np.array(len(problem.labels) // devices.size),
        "step_bytes": np.array(_step_bytes(config, config.block_size)),
        "whole_step_bytes": np.array(_step_bytes(config, None)),  # Compiled and never run.
        "process_bytes": np.array(peak_memory()),
    }


def measure(problem: ufm.Problem, iterate: Any) -> dict[str, jax.Array]:
    """The metrics of a point whose features are spread over devices, without an N x K matrix."""
    W, H = iterate.point
    labels, k = problem.labels, problem.num_classes
    first = ufm.streaming.first_pass(k, W.shape[1], H.dtype).add(H, labels)
    found = first.second_pass(W, decisions=False).add(H, labels).metrics()

    def is_wrong(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return (jnp.argmax(logits, -1) != labels).astype(logits.dtype)

    return {
        "loss": iterate.value,
        "gradient_norm": iterate.gradient_norm,
        "accuracy": 1 - dataclasses.replace(problem, loss=is_wrong).cost(iterate.point),
        **{name: found[name] for name in ("nc1", "nc2", "nc3", "cdnv", "gnc3")},
    }


def _rates(config: Config, problem: ufm.Problem, point: ufm.Point) -> Data:
    """Products a second in a gradient, whose count is known, beside those of a large square matrix."""
    # A square on each device, so that all of them multiply.
    shape = (jax.device_count(), PEAK_SIZE, PEAK_SIZE)
    each = NamedSharding(mesh(), PartitionSpec("samples"))
    square = jax.jit(lambda: jnp.full(shape, 0.5, config.dtype), out_shardings=each)()
    product = jax.jit(functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST))
    gradient = jax.jit(lambda problem, point: ufm.solvers.iterate_at(problem, problem.evaluate(point)))
    programs: dict[str, Callable[[int], Any]] = {
        "gradient": lambda index: gradient(problem, point),
        "peak": lambda index: [product(square, square) for _ in range(10)],
    }
    seconds = take_turns(programs, config.rounds)["later"]
    samples = config.num_classes * config.samples_per_class
    flops = roofline.GRADIENT_PRODUCTS * roofline.product_flops(config.num_classes, samples, config.dim)
    return {
        "gradient_seconds": seconds["gradient"],
        "gradient_flops": flops / seconds["gradient"],
        "peak_flops": jax.device_count() * 10 * 2 * PEAK_SIZE**3 / seconds["peak"],
    }


def _step_bytes(config: Config, block_size: int | None) -> int:
    """What a first step holds on one device, as its compiled program states it; 0 where it does not."""
    devices = mesh()
    problem = ufm.sharding.shard_problem(problem_of(config, block_size), devices)
    solver: ufm.solvers.Solver = getattr(ufm.solvers, config.solver)()
    where = ufm.sharding.placement(problem, devices)
    start = ufm.Point(
        jax.ShapeDtypeStruct((config.num_classes, config.dim), config.dtype, sharding=where.W),
        jax.ShapeDtypeStruct((len(problem.labels), config.dim), config.dtype, sharding=where.H),
    )
    program = jax.jit(
        lambda problem, start: solver.step(problem, solver.init(problem, start)), donate_argnums=1
    )
    held = program.lower(problem, start).compile().memory_analysis()
    if held is None:
        return 0
    ends = held.argument_size_in_bytes + held.output_size_in_bytes - held.alias_size_in_bytes
    return ends + held.temp_size_in_bytes


def least_nc2(num_classes: int, dim: int) -> float:
    """The least NC2 of a W of rank d: `W W^T` can meet the simplex on d of its K - 1 directions."""
    return float(np.sqrt(2 - 2 * np.sqrt(min(dim / (num_classes - 1), 1))))


def claims(config: Config, data: Data) -> list[Claim]:
    gap = data["loss"] - data["minimum"]
    scores = data["samples_a_device"] * config.num_classes * np.dtype(config.dtype).itemsize
    saved = data["whole_step_bytes"] - data["step_bytes"]
    rounding = 10 * np.finfo(config.dtype).eps * data["minimum"]
    return [
        Claim(
            "every sample is classified correctly at the end",
            bool(data["accuracy"][-1] == 1),
            f"accuracy {data['accuracy'][-1]:.6f} after {config.steps} steps",
        ),
        Claim(
            "the loss comes within 5% of the way to Theorem 1's minimum, and not below it",
            bool(-rounding <= gap[-1] <= 0.05 * gap[0]),
            f"{gap[-1]:.3g} above it, from {gap[0]:.3g}",
        ),
        Claim(
            "NC1 falls by a factor of 1000",
            bool(data["nc1"][0] > 0 and data["nc1"][-1] * 1000 <= data["nc1"][0]),
            f"from {data['nc1'][0]:.3g} to {data['nc1'][-1]:.3g}",
        ),
        Claim(
            "a step in blocks holds less than one with all logits, by a matrix of them or more",
            bool(saved >= scores),
            f"{_gib(data['step_bytes'])} against {_gib(data['whole_step_bytes'])} on a device; the matrix "
            f"of its logits is {_gib(scores)}",
        ),
        Claim(
            f"the process stays below {config.memory:g} GiB",
            bool(data["process_bytes"] <= config.memory * GIB),
            f"{_gib(data['process_bytes'])} at most",
        ),
    ]


def _gib(size: Any) -> str:
    return f"{float(size) / GIB:.3g} GiB"


def table(config: Config, data: Data) -> str:
    """The run by step, its speed, and what the same step costs on paper elsewhere."""
    header = ["step", "loss above minimum", "gradient norm", "accuracy", "NC1", "NC2", "NC3"]
    rows = [
        [
            step,
            f"{data['loss'][step] - data['minimum']:.3g}",
            f"{data['gradient_norm'][step]:.2e}",
            f"{data['accuracy'][step]:.4f}",
            f"{data['nc1'][step]:.3g}",
            f"{data['nc2'][step]:.4f}",
            f"{data['nc3'][step]:.4f}",
        ]
        for step in sorted({0, *range(4, config.steps, 4), config.steps})
    ]
    rate, peak = (float(np.median(data[name])) / 1e9 for name in ("gradient_flops", "peak_flops"))
    samples = config.num_classes * config.samples_per_class
    size = roofline.Size(
        config.num_classes,
        samples,
        config.dim,
        block_size=config.block_size,
        itemsize=np.dtype(config.dtype).itemsize,
    )
    return "\n".join(
        [
            tables.table(header, rows),
            "",
            f"K = {config.num_classes}, N = {samples}, d = {config.dim}, {config.dtype}, "
            f"{config.solver.replace('_', ' ')}, {int(data['devices'])} devices. "
            f"The least NC2 of rank {config.dim} is {least_nc2(config.num_classes, config.dim):.4f}.",
            f"A step takes {np.median(data['step_seconds']):.3g} s, a cost with its gradient "
            f"{np.median(data['gradient_seconds']):.3g} s: {rate:.3g} GFLOP/s in products, "
            f"{rate / peak:.0%} of the {peak:.3g} that a large product reaches beside it.",
            "",
            "A step of conjugate gradient on paper:",
            "",
            roofline.table([size, *SIZES]),
        ]
    )


def plot(config: Config, data: Data) -> Figure:
    figure = Figure(figsize=(10, 3.2))
    left, middle, right = figure.subplots(1, 3)
    left.plot(data["step"], data["loss"], label="loss")
    plotting.draw_theory(left, data["step"], np.full(len(data["step"]), data["minimum"]), "Theorem 1")
    left.set(xlabel="iteration", ylabel="loss")
    left.legend()
    middle.plot(data["step"], data["accuracy"])
    middle.set(xlabel="iteration", ylabel="training accuracy", ylim=(-0.03, 1.05))
    for name in ("nc1", "nc2", "nc3"):
        right.plot(data["step"], data[name], label=rf"$\mathcal{{NC}}_{name[-1]}$")
    floor = np.full(len(data["step"]), least_nc2(config.num_classes, config.dim))
    if floor[0] > 0:
        label = rf"least $\mathcal{{NC}}_2$ of rank {config.dim}"
        plotting.draw_theory(right, data["step"], floor, label, linestyle="--")
    right.set(xlabel="iteration", yscale="log")
    right.legend()
    figure.suptitle(
        f"normalized UFM, K={config.num_classes}, n={config.samples_per_class}, d={config.dim}, "
        f"tau={config.tau:g}, {config.solver.replace('_', ' ')}: {_gib(data['process_bytes'])} in all, "
        f"{np.median(data['step_seconds']):.3g} s a step",
        fontsize=9,
    )
    return figure
