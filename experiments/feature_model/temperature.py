"""The best temperature: iterations to collapse over temperatures, measured and predicted."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import ufm_jax as ufm
from experiments.harness import chunks
from experiments.harness.experiment import (
    Claim,
    Data,
    Progress,
    UfmConfig,
    check_ufm,
    part,
    step_in_words,
)

TITLE = "the best temperature, measured and predicted"
DURATION = "90 s"
check = check_ufm

SOLVERS = ("gradient_descent", "conjugate_gradient")
METRICS = ("plain", "balanced")


@dataclasses.dataclass(frozen=True)
class Config(UfmConfig):
    """Temperatures on one grid in units of (K-1)/2, the best one in the balanced metric."""

    tau: tuple[float, ...] = tuple(2 ** (j / 2) for j in range(-8, 5))
    """Temperatures, divided by (K-1)/2."""
    num_classes: tuple[int, ...] = (4, 10, 30, 100)
    """Numbers of classes, K."""
    samples_per_class: int = 5
    """Samples of each class, n."""
    dim: int = 128
    """Dimension of features and classifiers, d."""
    trials: int = 3
    """Random starts of each setting."""
    steps: int = 400
    """Most iterations."""


def is_collapsed(point: ufm.Point, labels: jax.Array, num_classes: int) -> jax.Array:
    """Whether NC1, which is a square, is below 1e-12, and NC2 and NC3 are below 1e-6."""
    W, H = point
    largest = jnp.maximum(ufm.metrics.nc2(W), ufm.metrics.nc3(W, H, labels))
    return (ufm.metrics.nc1(H, labels, num_classes) < 1e-12) & (largest < 1e-6)


def run(config: Config, progress: Progress, store: chunks.ChunkFolder | None = None) -> Data:
    n = config.samples_per_class
    keys = jax.random.split(jax.random.key(config.seed), config.trials)
    relative, weights = np.asarray(config.tau, config.dtype), np.asarray([1.0, n], config.dtype)
    taus = np.stack([relative * (K - 1) / 2 for K in config.num_classes])
    data: Data = {"num_classes": np.asarray(config.num_classes), "tau": taus}
    settings = [(solver, i) for solver in SOLVERS for i in range(len(config.num_classes))]
    steps = []
    for done, (solver, i) in enumerate(settings):
        one = functools.partial(iterations, config, config.num_classes[i], solver)
        steps.append(
            ufm.trials.grid(
                one,
                {"weight": weights, "tau": taus[i], "key": keys},
                progress=part(progress, done, len(settings)),
                store=chunks.part(store, f"{solver}-{i}"),
            )
        )
    for solver, found in zip(SOLVERS, np.array_split(np.stack(steps), len(SOLVERS)), strict=True):
        data[solver] = found  # (K, metric, tau, trial)
    predictions = [predicted(K, n, taus[i], weights) for i, K in enumerate(config.num_classes)]
    return data | {name: np.stack([p[name] for p in predictions]) for name in predictions[0]}


def iterations(
    config: Config, K: int, solver: str, weight: jax.Array, tau: jax.Array, key: jax.Array
) -> jax.Array:
    """Iterations to collapse from a random start; infinite where it does not come."""
    labels = ufm.balanced_labels(K, config.samples_per_class)
    problem = ufm.normalized(labels, K, tau=tau, classifier_weight=weight)
    result = ufm.minimize(
        problem,
        problem.random_point(key, config.dim, config.dtype),
        getattr(ufm.solvers, solver)(),
        max_steps=config.steps,
        # Where the slope at collapse is far below rounding nothing comes any more.
        tolerance=1e-26,
        until=lambda iterate: is_collapsed(iterate.point, labels, K),
    )
    return jnp.where(result.status == ufm.Status.STOPPED, result.steps, jnp.inf).astype(config.dtype)


def predicted(K: int, n: int, taus: np.ndarray, weights: np.ndarray) -> Data:
    """On a fine grid of temperatures the condition number in each metric, and the best temperatures."""
    tau = np.geomspace(taus.min(), taus.max(), 200)
    of_tau = jax.vmap(lambda t, w: ufm.theory.collapse_condition_number(K, n, t, w), (0, None))
    best = [ufm.theory.best_temperature(K, n, w) for w in weights]
    return {
        "curve_tau": tau,
        "condition_number": np.stack([jax.jit(of_tau)(tau, w) for w in weights]),
        "best": np.asarray(best),
    }


def claims(config: Config, data: Data) -> list[Claim]:
    best = [_best(config, data, solver, m) for solver in SOLVERS for m in range(len(METRICS))]
    # Of more classes than 30 nothing is claimed, nor of a grid on which every point is beside every other.
    return [
        *(best if min(config.num_classes) <= 30 and data["tau"].shape[1] > 2 else []),
        *(_faster(data, solver) for solver in SOLVERS),
    ]


def _best(config: Config, data: Data, solver: str, metric: int) -> Claim:
    """Where the measured best temperatures are, in grid points from the predicted ones."""
    words, good = [], []
    for i, K in enumerate(config.num_classes):
        order = np.argsort(data["tau"][i])
        tau, steps = data["tau"][i][order], np.median(data[solver][i, metric], axis=-1)[order]
        prediction = data["best"][i, metric]
        best, wanted = steps.argmin(), np.abs(np.log(tau / prediction)).argmin()
        words.append(
            f"K={K}: {tau[best]:.3g} for {prediction:.3g}, {step_in_words(steps[best])} iterations"
        )
        is_near = abs(best - wanted) <= 1 and tau[0] <= prediction <= tau[-1] and np.isfinite(steps[best])
        good += [bool(is_near)] if K <= 30 else []
    return Claim(
        f"{solver.replace('_', ' ')}, {METRICS[metric]} metric: the best temperature of the grid is within "
        "one grid point of the predicted one, for K up to 30",
        all(good),
        "; ".join(words),
    )


def _faster(data: Data, solver: str) -> Claim:
    """The balanced metric against the plain one."""
    plain, balanced = np.moveaxis(np.median(data[solver], axis=-1), 1, 0)
    both = np.isfinite(plain) & np.isfinite(balanced)
    return Claim(
        f"{solver.replace('_', ' ')}: the balanced metric needs no more iterations at any temperature at "
        "which both metrics lead to collapse",
        bool(both.any() and np.all(balanced[both] <= plain[both])),
        f"plain over balanced: {np.min(plain[both] / balanced[both], initial=np.inf):.2f} to "
        f"{np.max(plain[both] / balanced[both], initial=0):.2f}, at {both.sum()} temperatures",
    )


def plot(config: Config, data: Data) -> Figure:
    count = len(config.num_classes)
    figure = Figure(figsize=(2.2 + 2.1 * count, 5.2))
    panels = figure.subplots(2, count, sharex="col", squeeze=False)
    for row, solver in zip(panels, SOLVERS, strict=True):
        for i, (axes, K) in enumerate(zip(row, config.num_classes, strict=True)):
            axes.set(xscale="log", yscale="log", ylim=(1.5, 1.6 * config.steps), title=f"$K={K}$")
            _draw(axes, config, data, solver, i)
        row[0].set_ylabel(f"{solver.replace('_', ' ')}: iterations")
    for axes in panels[-1]:
        axes.set_xlabel(r"temperature $\tau$")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    figure.supxlabel(
        f"n={config.samples_per_class}, d={config.dim}; median and range of {config.trials} random starts; "
        f"dashed: predicted best temperature; crosses: no collapse in {config.steps} iterations",
        fontsize=8,
    )
    return figure


def _draw(axes: Axes, config: Config, data: Data, solver: str, i: int) -> None:
    """One number of classes: iterations, the condition number or its root, and the best temperatures."""
    for m, (metric, color, marker) in enumerate(zip(METRICS, ("C0", "C1"), "os", strict=True)):
        steps, tau = data[solver][i, m], data["tau"][i]
        middle = np.median(steps, axis=-1)
        there = np.isfinite(middle)
        axes.plot(
            tau[there], middle[there], color=color, marker=marker, markersize=4, label=f"{metric} metric"
        )
        axes.fill_between(
            tau[there], steps[there].min(-1), np.minimum(steps[there].max(-1), 1e9), color=color, alpha=0.2
        )
        axes.plot(tau[~there], np.full(sum(~there), config.steps / 1.4**m), "x", color=color)
        axes.axvline(data["best"][i, m], color=color, linestyle="--", linewidth=0.9)
        condition = data["condition_number"][i, m]
        curve = condition if solver == "gradient_descent" else np.sqrt(condition)
        axes.plot(
            data["curve_tau"][i],
            curve,
            color=color,
            linewidth=0.8,
            label=f"condition number, {metric} (CG: root)",
        )
