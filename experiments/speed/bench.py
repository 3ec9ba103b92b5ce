"""The speed of the solvers, as ratios of things measured side by side.

Beside pymanopt, beside the machine's peak at matrix products, with and without NC1 at every step, and over
the sizes, where a step of three products should cost in proportion to K N d.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

import ufm_jax as ufm
from experiments.feature_model import fig9, two_models
from experiments.harness import plotting, tables
from experiments.harness.experiment import Claim, Data, Progress, check_fields, part
from experiments.harness.experiment import Config as BaseConfig
from experiments.speed.measuring import counted_products, seconds_of, take_turns
from ufm_jax import _checks

TITLE = "speed: against pymanopt, product peak, K N d law"
DURATION = "5 min"

SOLVERS = {
    "gradient_descent": "SteepestDescent",
    "conjugate_gradient": "ConjugateGradient",
    "trust_region": "TrustRegions",
}
TARGETS = {"gradient_descent": 12, "conjugate_gradient": 10, "trust_region": 6}
"""How many times faster than pymanopt each is meant to be on two cores; the grid of figure 9: 40 times."""
PEAK_SIZE = 1500
_SCALED = ("num_classes", "samples_per_class", "dim")


@dataclasses.dataclass(frozen=True)
class Config(BaseConfig):
    """Sizes at which products dominate; the grid is that of figure 9."""

    dtype: Literal["float32", "float64"] = "float64"
    """Floating type of the computation."""
    num_classes: int = 100
    """Classes, K."""
    samples_per_class: int = 30
    """Samples of each class, n."""
    dim: int = 128
    """Dimension of features and classifiers, d."""
    trials: int = 10
    """Trials of ours in one call; pymanopt runs one of them a round."""
    steps: int = 20
    """Steps of gradient descent and of conjugate gradient."""
    outer_steps: int = 4
    """Outer steps of the trust region."""
    rounds: int = 7
    """Rounds in which all programs take turns; medians over the rounds are reported."""
    grid_trials: int = 20
    """Trials of each temperature of the grid of figure 9; pymanopt runs one a temperature and round."""
    grid_steps: int = 200
    """Steps in that grid."""
    factors: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    """Factors on K, n and d, one at a time, in the comparison with the K N d law."""
    throughput: tuple[int, ...] = ()
    """Numbers of trials in one call; if empty 1 to 20 on CPUs, and 10 to 10000 elsewhere."""


def check(config: Config) -> None:
    counts = (
        "samples_per_class",
        "dim",
        "trials",
        "steps",
        "outer_steps",
        "rounds",
        "grid_trials",
        "grid_steps",
    )
    check_fields(config, {"num_classes": 2} | dict.fromkeys(counts, 1), positive=["factors"])
    if config.throughput:
        _checks.at_least("throughput", config.throughput, 1)
    try:
        import pymanopt  # noqa: F401
    except ImportError:
        raise ValueError("the comparison needs pymanopt: install it with `pip install pymanopt`.") from None


def run(config: Config, progress: Progress) -> Data:
    stages = [_solvers, _grid, _nc1, _scaling, _throughput]
    data: Data = {}
    for index, stage in enumerate(stages):
        data |= stage(config, part(progress, index, len(stages)))
    return data


def _problem(config: Any) -> ufm.Problem:
    labels = ufm.balanced_labels(config.num_classes, config.samples_per_class)
    return ufm.normalized(labels, config.num_classes)


def _starts(config: Any, problem: ufm.Problem, count: int) -> ufm.Point:
    keys = jax.random.split(jax.random.key(config.seed), count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of too few dimensions: here nothing has to collapse.
        return jax.jit(jax.vmap(lambda key: problem.random_point(key, config.dim, config.dtype)))(keys)


def _solvers(config: Config, progress: Progress) -> Data:
    """Each solver on the same starts, ours all in one call, beside a product of large matrices."""
    from experiments.speed.peers import pymanopt_solvers as peers

    problem = _problem(config)
    starts = _starts(config, problem, config.trials)
    peer = peers.pymanopt_problem(problem, config.dim)
    square = jax.random.normal(jax.random.key(0), (PEAK_SIZE, PEAK_SIZE), config.dtype)
    product = jax.jit(functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST))
    steps = {name: config.steps for name in SOLVERS} | {"trust_region": config.outer_steps}
    costs: dict[str, Any] = {}

    def ours(name: str, index: int) -> None:
        costs[name] = ufm.trials.run(trials[name], starts)

    def theirs(name: str, index: int) -> None:
        start = jax.tree.map(lambda x: x[index % config.trials], starts)
        result = peers.pymanopt_optimizer(SOLVERS[name], steps[name]).run(
            peer, initial_point=peers.pymanopt_point(start)
        )
        costs["pymanopt " + name] = result.cost

    trials = {
        name: functools.partial(_cost_found, problem, name=name, steps=steps[name]) for name in SOLVERS
    }
    programs: dict[str, Any] = {name: functools.partial(ours, name) for name in SOLVERS}
    programs |= {"pymanopt " + name: functools.partial(theirs, name) for name in SOLVERS}
    # Ten in a row, as a solver makes them: the first after a pause is slower.
    programs["peak"] = lambda index: [product(square, square) for _ in range(10)]
    seconds = take_turns(programs, config.rounds, progress)

    last = (config.rounds - 1) % config.trials
    differences = [abs(costs[n][last] - costs["pymanopt " + n]) / abs(costs[n][last]) for n in SOLVERS]
    few = jax.tree.map(lambda x: x[:3], starts)
    products = [
        counted_products(problem, few, functools.partial(_descend, name=name, steps=steps[name]))
        for name in SOLVERS
    ]
    first, later = seconds["first"], seconds["later"]
    return {
        "solver": np.array(list(SOLVERS)),
        "steps": np.array([steps[name] for name in SOLVERS]),
        "seconds": np.array([later[name] / config.trials for name in SOLVERS]),
        "pymanopt_seconds": np.array([later["pymanopt " + name] for name in SOLVERS]),
        "compile_seconds": np.array([first[n] - np.median(later[n]) for n in SOLVERS]),
        "pymanopt_compile_seconds": np.array(
            [first["pymanopt " + n] - np.median(later["pymanopt " + n]) for n in SOLVERS]
        ),
        "cost_difference": np.array(differences),
        "products": np.array(products),
        "peak_flops": 10 * 2 * PEAK_SIZE**3 / later["peak"],
    }


def _descend(problem: ufm.Problem, start: ufm.Point, name: str, steps: int) -> ufm.Result:
    return ufm.minimize(problem, start, two_models.SOLVERS[name], max_steps=steps, tolerance=0.0)


def _cost_found(problem: ufm.Problem, start: ufm.Point, name: str, steps: int) -> jax.Array:
    return _descend(problem, start, name, steps).value


def _grid(config: Config, progress: Progress) -> Data:
    """The descents of figure 9, all of ours in one call; of pymanopt's, one a temperature."""
    from experiments.speed.peers import pymanopt_solvers as peers

    setting = fig9.Config(
        seed=config.seed, trials=config.grid_trials, steps=config.grid_steps, dtype=config.dtype
    )
    problem = _problem(setting)
    starts = _starts(setting, problem, setting.trials)
    optimizer = peers.pymanopt_optimizer("SteepestDescent", setting.steps)
    problems = [
        peers.pymanopt_problem(dataclasses.replace(problem, tau=tau), setting.dim) for tau in setting.tau
    ]

    def trial(tau: jax.Array, start: ufm.Point) -> jax.Array:
        at_tau = dataclasses.replace(problem, tau=tau)
        return _cost_found(at_tau, start, "gradient_descent", setting.steps)

    def theirs(peer: Any, index: int) -> float:
        start = jax.tree.map(lambda x: x[index % setting.trials], starts)
        return optimizer.run(peer, initial_point=peers.pymanopt_point(start)).cost

    tau = np.asarray(setting.tau, config.dtype)
    programs: dict[str, Callable[[int], Any]] = {
        "ours": lambda index: ufm.trials.grid(trial, {"tau": tau, "start": starts})
    }
    for tau_peer, peer in zip(setting.tau, problems, strict=True):
        programs[f"pymanopt {tau_peer}"] = functools.partial(theirs, peer)
    seconds = take_turns(programs, min(config.rounds, 3), progress)
    one_each = np.sum([seconds["later"][f"pymanopt {name}"] for name in setting.tau], axis=0)
    return {
        "grid_seconds": seconds["later"]["ours"],
        "grid_compile_seconds": seconds["first"]["ours"] - np.median(seconds["later"]["ours"]),
        "grid_pymanopt_seconds": setting.trials * one_each,
    }


def _nc1(config: Config, progress: Progress) -> Data:
    """Gradient descent with NC1 recorded at every step, and with one number of the point instead."""
    problem = _problem(config)
    start = jax.tree.map(lambda x: x[0], _starts(config, problem, 1))

    def descent(measure: Callable[[ufm.Point], jax.Array]) -> Callable[[int], Any]:
        solver = ufm.solvers.gradient_descent()

        @jax.jit
        def program(start: ufm.Point) -> Any:
            options: Any = {"max_steps": config.steps, "tolerance": 0.0, "measure": measure}
            return ufm.minimize(problem, start, solver, **options).history

        return lambda index: program(start)

    programs = {
        "without": descent(lambda point: point.H[0, 0]),
        "with": descent(lambda point: ufm.metrics.nc1(point.H, problem.labels, config.num_classes)),
    }
    later = take_turns(programs, 2 * config.rounds, progress)["later"]
    return {"without_nc1_seconds": later["without"], "with_nc1_seconds": later["with"]}


def _scaling(config: Config, progress: Progress) -> Data:
    """Seconds of a step of three products, over each of K, n and d."""
    # One try a step, short enough to be accepted: every step costs the same.
    search = ufm.solvers.backtracking(
        max_iterations=0, optimism=0.5, sufficient_decrease=0.0, initial_step_size=0.1
    )
    solver = ufm.solvers.gradient_descent(search)

    def step_seconds(sizes: Config, rounds: int) -> float:
        problem = _problem(sizes)
        start = jax.tree.map(lambda x: x[0], _starts(sizes, problem, 1))

        @jax.jit
        def descend(start: ufm.Point) -> jax.Array:
            return ufm.minimize(problem, start, solver, max_steps=sizes.steps, tolerance=0.0).steps

        made = int(descend(start))
        return float(np.median([seconds_of(lambda: descend(start)) for _ in range(rounds)])) / max(made, 1)

    data: Data = {}
    for i, name in enumerate(_SCALED):
        values = sorted({max(2, round(factor * getattr(config, name))) for factor in config.factors})
        measured = []
        for j, value in enumerate(values):
            progress(i * len(values) + j, len(_SCALED) * len(values))
            measured.append(step_seconds(dataclasses.replace(config, **{name: value}), config.rounds))
        data |= {f"scaled_{name}": np.array(values), f"scaled_{name}_seconds": np.array(measured)}
    return data


def _throughput(config: Config, progress: Progress) -> Data:
    """Trials of gradient descent a second, over the number of them in one call."""
    on_cpu = jax.default_backend() == "cpu"
    counts = config.throughput or ((1, 2, 5, 10, 20) if on_cpu else (10, 100, 1000, 10000))
    problem = _problem(config)

    def trial(key: jax.Array) -> jax.Array:
        start = problem.random_point(key, config.dim, config.dtype)
        return _cost_found(problem, start, "gradient_descent", config.steps)

    rates = []
    for done, count in enumerate(counts):
        progress(done, len(counts))
        call = functools.partial(
            ufm.trials.run, trial, jax.random.split(jax.random.key(config.seed), count)
        )
        call()
        rates.append(count / np.median([seconds_of(call) for _ in range(3)]))
    return {"throughput_trials": np.array(counts), "throughput": np.array(rates)}


def ratios(data: Data) -> np.ndarray:
    """How many times faster than pymanopt each solver is, by medians."""
    return np.median(data["pymanopt_seconds"], -1) / np.median(data["seconds"], -1)


def shares_of_peak(config: Config, data: Data) -> np.ndarray:
    """The share of the machine's product peak that each solver's products reach."""
    flops = 2 * config.num_classes**2 * config.samples_per_class * config.dim * data["products"]
    return flops / np.median(data["seconds"], -1) / np.median(data["peak_flops"])


def grid_ratio(data: Data) -> float:
    return float(np.median(data["grid_pymanopt_seconds"]) / np.median(data["grid_seconds"]))


def nc1_share(data: Data) -> float:
    """What recording NC1 adds to a step, as a share of the step."""
    return float(np.median(data["with_nc1_seconds"]) / np.median(data["without_nc1_seconds"])) - 1


def claims(config: Config, data: Data) -> list[Claim]:
    size = f"K={config.num_classes}, n={config.samples_per_class}, d={config.dim}, {config.dtype}"
    judged = []
    at_peak = shares_of_peak(config, data)
    for name, ratio, share in zip(data["solver"], ratios(data), at_peak, strict=True):
        judged.append(
            Claim(
                f"{name} is at least {TARGETS[str(name)]} times faster than pymanopt a trial ({size})",
                bool(ratio >= TARGETS[str(name)]),
                f"{ratio:.1f} times; {ratio / share:.1f} if it made its products alone, at the peak",
            )
        )
    judged += [
        Claim(
            "the grid of figure 9 is at least 40 times faster than pymanopt",
            grid_ratio(data) >= 40,
            f"{grid_ratio(data):.0f} times",
        ),
        Claim(
            f"gradient descent sustains at least 70% of the matrix-product peak ({size})",
            bool(at_peak[0] >= 0.7),
            f"{at_peak[0]:.0%} of {np.median(data['peak_flops']) / 1e9:.0f} GFLOP/s",
        ),
        Claim(
            f"NC1 recorded at every step costs at most 20% of the step ({size})",
            nc1_share(data) <= 0.2,
            f"{nc1_share(data):.1%}",
        ),
    ]
    return judged


def table(config: Config, data: Data) -> str:
    """The comparison in Markdown."""
    conditions = (
        f"K={config.num_classes}, n={config.samples_per_class}, d={config.dim}, {config.dtype}, "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}; medians of {config.rounds} interleaved "
        f"rounds; product peak {np.median(data['peak_flops']) / 1e9:.0f} GFLOP/s."
    )
    header = [
        *("", "steps", "ours, ms a trial", "pymanopt, ms", "ratio", "products", "share of peak"),
        *("compile, s", "pymanopt's, s", "costs differ by"),
    ]
    shares = shares_of_peak(config, data)
    rows = [
        [
            str(name).replace("_", " "),
            data["steps"][i],
            f"{1e3 * np.median(data['seconds'][i]):.1f}",
            f"{1e3 * np.median(data['pymanopt_seconds'][i]):.0f}",
            f"{ratios(data)[i]:.1f}",
            f"{data['products'][i]:.1f}",
            f"{shares[i]:.0%}",
            f"{data['compile_seconds'][i]:.1f}",
            f"{data['pymanopt_compile_seconds'][i]:.1f}",
            f"{data['cost_difference'][i]:.0e}",
        ]
        for i, name in enumerate(data["solver"])
    ]
    grid = [
        "figure 9's grid",
        config.grid_steps,
        f"{1e3 * np.median(data['grid_seconds']):.0f} in all",
        f"{1e3 * np.median(data['grid_pymanopt_seconds']):.0f} in all",
        f"{grid_ratio(data):.0f}",
        *("", "", f"{data['grid_compile_seconds']:.1f}", "", ""),
    ]
    return f"{conditions}\n\n{tables.table(header, [*rows, grid])}"


def plot(config: Config, data: Data) -> Figure:
    figure = Figure(figsize=(12, 3.2))
    panels = figure.subplots(1, 4)
    names = {"num_classes": "classes K", "samples_per_class": "samples of a class n", "dim": "dimension d"}
    for axes, (name, label) in zip(panels, names.items(), strict=False):
        values, seconds = data[f"scaled_{name}"], data[f"scaled_{name}_seconds"]
        base = int(np.argmin(np.abs(values - getattr(config, name))))
        # N = nK: a step's products grow with the square of K.
        law = (values / values[base]) ** (2.0 if name == "num_classes" else 1.0) * seconds[base]
        axes.plot(values, 1e3 * seconds, marker="o", markersize=4, label="measured")
        plotting.draw_theory(axes, values, 1e3 * law, r"$\propto K N d$", linestyle="--")
        axes.set(xlabel=label, xscale="log", yscale="log", ylabel="ms a step")
        axes.set_xticks(values, [str(v) for v in values])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.legend()
    panels[3].plot(data["throughput_trials"], data["throughput"], marker="o", markersize=4)
    panels[3].set(xlabel="trials in one call", xscale="log", ylabel="trials a second", ylim=(0, None))
    panels[3].set_xticks(data["throughput_trials"], [f"{v:,}" for v in data["throughput_trials"]])
    panels[3].xaxis.set_minor_locator(NullLocator())
    figure.supxlabel(
        f"one step of gradient descent from K={config.num_classes}, n={config.samples_per_class}, "
        f"d={config.dim}, {config.dtype}; right: {config.steps} steps a trial",
        fontsize=8,
    )
    return figure
