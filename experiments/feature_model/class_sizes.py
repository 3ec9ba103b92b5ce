"""Classes of unequal sizes: which metric to use, held against the multipliers at the minimum."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

import ufm_jax as ufm
from experiments.harness import chunks, tables
from experiments.harness.experiment import (
    Claim,
    Data,
    Progress,
    UfmConfig,
    check_fields,
    check_float64,
    part,
    step_in_words,
)

TITLE = "Riemannian metrics for classes of unequal sizes"
DURATION = "20 s"

SOLVERS = {"conjugate_gradient": "CG", "gradient_descent": "GD"}
WEIGHTS = {
    "plain": "1",
    "mean": "mean of n_k",
    "sizes": "n_k",
    "root": "sqrt(n_k times mean)",
    "alpha": "alpha_k",
    "both": "alpha_k, and beta_i of features",
}
"""Weights of the metric, and how they are written."""


@dataclasses.dataclass(frozen=True)
class Config(UfmConfig):
    """Ten classes of sizes from 2 to 60."""

    samples_per_class: tuple[int, ...] = (60, 40, 30, 20, 20, 10, 10, 5, 3, 2)
    """Samples of each class, n_k, one value a class."""
    dim: int = 16
    """Dimension of features and classifiers, d."""
    tau: tuple[float, ...] = (1.0, 5.0)
    """Temperatures."""
    trials: int = 3
    """Random starts of each setting."""
    tolerance: float = 1e-8
    """Gradient norm, in the plain metric, at which a trial ends."""
    steps: int = 30000
    """Most iterations of a trial."""


def check(config: Config) -> None:
    check_float64(config, "multipliers are exact to 1e-8")
    check_fields(config, {"samples_per_class": 1, "trials": 1, "steps": 1}, ["tau", "tolerance"])
    K = len(config.samples_per_class)
    if K < 2 or config.dim < K:
        raise ValueError(
            f"samples_per_class needs at least two values, and dim at least as many, but they are "
            f"{config.samples_per_class} and {config.dim}."
        )


def problem_of(config: Config, tau: ArrayLike, weights: ufm.Point | None = None) -> ufm.Problem:
    """The problem, in the metric of these weights of W's and of H's rows, each a column."""
    K = len(config.samples_per_class)
    labels = jnp.repeat(jnp.arange(K), np.asarray(config.samples_per_class))
    problem = ufm.normalized(labels, K, tau=tau)
    if weights is None:
        return problem
    return dataclasses.replace(problem, manifold=ufm.manifolds.Weighted(problem.manifold, weights))


def run(config: Config, progress: Progress, store: chunks.ChunkFolder | None = None) -> Data:
    tau = np.asarray(config.tau, config.dtype)
    keys = jax.random.split(jax.random.key(config.seed), config.trials)
    minima = ufm.trials.grid(
        functools.partial(at_minimum, config),
        {"tau": tau, "key": keys[:1]},
        store=chunks.part(store, "minima"),
    )
    alpha, beta, gap = (x[:, 0] for x in minima)
    data: Data = {"tau": tau, "sizes": np.asarray(config.samples_per_class), "gap": gap}
    data |= {"alpha": alpha, "beta": beta}
    weights = weights_of(config, alpha, beta)
    for i, solver in enumerate(SOLVERS):
        steps = []
        for t in range(len(tau)):
            done = part(progress, i * len(tau) + t, len(SOLVERS) * len(tau))
            one = functools.partial(iterations, config, solver, tau[t])
            axes = {"weights": jax.tree.map(lambda w, t=t: w[t], weights), "key": keys}
            steps.append(
                ufm.trials.grid(one, axes, progress=done, store=chunks.part(store, f"{solver}-{t}"))
            )
        data[solver] = np.stack(steps)  # (tau, weights, trial)
    return data


def at_minimum(config: Config, tau: jax.Array, key: jax.Array) -> tuple[Any, ...]:
    """-alpha_k and -beta_i at the minimum, and how far its value can be from the global one's."""
    sizes = jnp.asarray(config.samples_per_class, tau.dtype)
    problem = problem_of(config, tau, ufm.Point(sizes[:, None], jnp.ones((), tau.dtype)))
    start = problem.random_point(key, config.dim, tau.dtype)
    solver = ufm.solvers.conjugate_gradient()
    found = ufm.minimize(problem, start, solver, max_steps=3000, tolerance=1e-11)
    plain = problem_of(config, tau)
    alpha, beta = ufm.landscape.multipliers(plain, found.point)
    return -alpha, -beta, ufm.landscape.optimality_gap(plain, found.point)


def weights_of(config: Config, alpha: np.ndarray, beta: np.ndarray) -> ufm.Point:
    """The weights of `WEIGHTS` in their order, for each temperature: W (tau, 6, K, 1), H (tau, 6, N, 1).

    A common factor changes no step of a line search but the first; the mean weight of a feature is 1.
    """
    sizes = np.asarray(config.samples_per_class, alpha.dtype)
    unit = beta.mean(-1, keepdims=True)
    ones = np.ones_like(alpha)
    mean = sizes.mean()
    W = [ones, ones * mean, ones * sizes, ones * np.sqrt(sizes * mean), alpha / unit, alpha / unit]
    H = [*[np.ones_like(beta)] * 5, beta / unit]
    return ufm.Point(*(np.stack(rows, 1)[..., None] for rows in (W, H)))


def iterations(config: Config, solver: str, tau: float, weights: ufm.Point, key: jax.Array) -> jax.Array:
    """Iterations until the gradient's norm in the plain metric is at the tolerance; infinite if never."""
    plain, problem = problem_of(config, tau), problem_of(config, tau, weights)
    start = problem.random_point(key, config.dim, config.dtype)

    def until(iterate: ufm.solvers.Iterate) -> jax.Array:
        gradient = jax.tree.map(lambda w, g: w * g, weights, iterate.gradient)
        return plain.manifold.norm(iterate.point, gradient) <= config.tolerance

    found = ufm.minimize(
        problem,
        start,
        getattr(ufm.solvers, solver)(),
        max_steps=config.steps,
        tolerance=0.0,
        until=until,
    )
    return jnp.where(found.status == ufm.Status.STOPPED, found.steps, jnp.inf).astype(config.dtype)


def claims(config: Config, data: Data) -> list[Claim]:
    judged = [
        Claim(
            "the minimum that the multipliers are taken at is global, to 1e-8",
            bool(np.all(data["gap"] < 1e-8)),
            f"largest possible distance of its value {data['gap'].max():.2g}",
        )
    ]
    steps = {solver: np.median(data[solver], axis=-1) for solver in SOLVERS}
    pairs = [("sizes", "plain"), ("root", "mean"), ("root", "sizes"), ("alpha", "root"), ("both", "alpha")]
    for better, worse in pairs:
        a, b = (list(WEIGHTS).index(name) for name in (better, worse))
        measured = [
            f"{step_in_words(steps[s][t, a])} against {step_in_words(steps[s][t, b])} "
            f"({SOLVERS[s]}, tau={tau:g})"
            for s in SOLVERS
            for t, tau in enumerate(config.tau)
        ]
        arrive = all(np.all(np.isfinite(steps[s][:, a])) for s in SOLVERS)
        fewer = arrive and all(np.all(steps[s][:, a] <= steps[s][:, b]) for s in SOLVERS)
        judged.append(
            Claim(
                f"weights {WEIGHTS[better]} need no more iterations than weights {WEIGHTS[worse]}",
                fewer,
                ", ".join(measured),
            )
        )
    return judged


def table(config: Config, data: Data) -> str:
    """Iterations by weights, solver and temperature, and the multipliers against the sizes."""
    columns = [(t, s) for t in range(len(config.tau)) for s in SOLVERS]
    header = ["weight of w_k", *(f"{SOLVERS[s]}, tau = {config.tau[t]:g}" for t, s in columns)]
    rows = [
        [words, *(step_in_words(np.median(data[s][t, i])) for t, s in columns)]
        for i, words in enumerate(WEIGHTS.values())
    ]
    relative = weights_of(config, data["alpha"], data["beta"]).W[:, -1, :, 0]
    multipliers = [
        [f"alpha_k, tau = {tau:g}", *(f"{x:.2f}" for x in row)]
        for tau, row in zip(config.tau, relative, strict=True)
    ]
    sizes = ["n_k", *map(str, config.samples_per_class)]
    return f"{tables.table(header, rows)}\n\n{tables.table(sizes, multipliers)}"


def plot(config: Config, data: Data) -> Figure:
    figure = Figure(figsize=(9, 3.4))
    left, right = figure.subplots(1, 2)
    relative = weights_of(config, data["alpha"], data["beta"]).W[:, -1, :, 0]
    sizes = np.sort(data["sizes"])
    left.plot(sizes, sizes, color="black", linewidth=1, label="$n_k$")
    root = np.sqrt(sizes * sizes.mean())
    left.plot(sizes, root, color="black", linewidth=1, linestyle="--", label=r"$\sqrt{n_k \bar n}$")
    for tau, row in zip(config.tau, relative, strict=True):
        left.plot(data["sizes"], row, "o", markersize=4, label=rf"$\alpha_k$, $\tau={tau:g}$")
    left.set(xscale="log", yscale="log", xlabel="samples of the class, $n_k$", ylabel="weight of $w_k$")
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    left.legend()
    at = np.arange(len(WEIGHTS))
    bars = [(s, t) for s in SOLVERS for t in range(len(config.tau))]
    width = 0.8 / len(bars)
    for b, (solver, t) in enumerate(bars):
        label = rf"{SOLVERS[solver]}, $\tau={config.tau[t]:g}$"
        # What never arrived is drawn at the last iteration.
        steps = np.minimum(np.median(data[solver][t], -1), config.steps)
        right.bar(at + (b - (len(bars) - 1) / 2) * width, steps, width, label=label)
    right.set_xticks(
        at, ["1", "mean", "$n_k$", r"$\sqrt{n_k \bar n}$", r"$\alpha_k$", r"$\alpha_k,\beta_i$"]
    )
    right.set(yscale="log", xlabel="weights of the metric", ylabel=f"iterations to {config.tolerance:g}")
    right.legend()
    figure.supxlabel(
        f"{len(config.samples_per_class)} classes, d={config.dim}, median of {config.trials} trials",
        fontsize=8,
    )
    return figure
