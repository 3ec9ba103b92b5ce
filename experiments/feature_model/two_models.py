"""What Figures 5, 7, 8 and fig5-lbfgs share: the normalized against the regularized UFM under a solver."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from matplotlib.figure import Figure

import ufm_jax as ufm
from experiments.harness import chunks, plotting
from experiments.harness.experiment import (
    Claim,
    Data,
    Progress,
    UfmConfig,
    check_ufm,
    first_step,
    part,
    step_in_words,
)
from ufm_jax import _checks

SolverName = Literal["gradient_descent", "conjugate_gradient", "lbfgs", "trust_region"]
SOLVERS: dict[str, ufm.solvers.Solver] = {
    "gradient_descent": ufm.solvers.gradient_descent(),
    "conjugate_gradient": ufm.solvers.conjugate_gradient(),
    "lbfgs": ufm.solvers.lbfgs(),
    "trust_region": ufm.solvers.trust_region(theta=1.0),
}
"""As in Manopt and pymanopt, whose trust region asks for quadratic convergence."""
COLLAPSED = 1e-6
"""NC1 below this counts as collapsed."""


@dataclasses.dataclass(frozen=True)
class Setting(UfmConfig):
    """The paper's setting; d = 128 is ours, since Theorem 2 wants d > K."""

    num_classes: int = 100
    """Classes, K."""
    samples_per_class: int = 30
    """Samples of each class, n."""
    dim: int = 128
    """Dimension of features and classifiers, d."""
    tau: float = 1.0
    """Temperature of the normalized UFM."""
    decay: float = 1e-4
    """Weight decay and feature decay of the regularized UFM."""


@dataclasses.dataclass(frozen=True)
class Config(Setting):
    """The paper's comparison, from the start that Riemannian toolboxes draw."""

    start_scale: float = 1.0
    """Standard deviation of the entries of the regularized UFM's start."""
    trials: int = 10
    """Random starts of each model."""
    steps: int = 100
    """Iterations."""
    average: plotting.Average = "median"
    """What lines show: the median with quartiles, or the mean, as the paper's, with the middle 80%."""


def under(solver: SolverName, steps: int) -> tuple[type[Config], Callable, Callable, Callable, Callable]:
    """`Config`, `check`, `run`, `claims` and `plot` of the comparison of the two models under `solver`."""
    words = "L-BFGS" if solver == "lbfgs" else solver.replace("_", " ")
    config = dataclasses.make_dataclass(
        "Config", [("steps", int, dataclasses.field(default=steps))], bases=(Config,), frozen=True
    )
    return config, check, functools.partial(run, solver), claims, functools.partial(plot, words)


def check(config: Any) -> None:
    check_ufm(config)
    _checks.at_least("decay", config.decay, 0)
    _checks.at_least("the number of start_scale values", np.size(config.start_scale), 1)
    _checks.positive("start_scale", config.start_scale)


def models(config: Setting) -> dict[str, ufm.Problem]:
    """The two models that these figures compare."""
    labels = ufm.balanced_labels(config.num_classes, config.samples_per_class)
    k, decay = config.num_classes, config.decay
    return {
        "normalized": ufm.normalized(labels, k, tau=config.tau),
        "regularized": ufm.regularized(labels, k, weight_decay=decay, feature_decay=decay),
    }


def minima(config: Setting) -> Data:
    """The loss of each model at its global minimum; without decay the regularized model's tends to 0."""
    k, n, decay = config.num_classes, config.samples_per_class, config.decay
    found = {
        "normalized": ufm.theory.cross_entropy_minimum(k, config.tau),
        "regularized": ufm.theory.regularized_cross_entropy_minimum(k, n, decay, decay) if decay else 0.0,
    }
    return {f"minimum_{name}": np.asarray(value) for name, value in found.items()}


def run(
    solver: SolverName, config: Config, progress: Progress, store: chunks.ChunkFolder | None = None
) -> Data:
    data: Data = {"step": np.arange(config.steps + 1)} | minima(config)
    keys = jax.random.split(jax.random.key(config.seed), config.trials)
    for i, (name, problem) in enumerate(models(config).items()):
        scale = 1.0 if name == "normalized" else config.start_scale
        trial = functools.partial(histories, problem, solver, config.dim, config.steps, config.dtype, scale)
        found = ufm.trials.grid(
            trial, {"key": keys}, progress=part(progress, i, 2), store=chunks.part(store, name)
        )
        data |= {f"{metric}_{name}": values for metric, values in found.items()}
    return data


def histories(
    problem: ufm.Problem, solver: SolverName, dim: int, steps: int, dtype: Any, scale: Any, key: jax.Array
) -> dict[str, jax.Array]:
    """Accuracy, NC1, CDNV and loss after every step from one random start; NC4, GNC3 at its end."""

    def record(iterate: ufm.solvers.Iterate) -> dict[str, jax.Array]:
        point = iterate.point
        return {
            "accuracy": ufm.metrics.accuracy(point.W, point.H, problem.labels),
            "nc1": ufm.metrics.nc1(point.H, problem.labels, problem.num_classes),
            "cdnv": ufm.metrics.cdnv(point.H, problem.labels, problem.num_classes),
            "loss": iterate.value,
        }

    start = jax.tree.map(lambda x: scale * x, problem.random_point(key, dim, dtype))
    result = ufm.minimize(problem, start, SOLVERS[solver], max_steps=steps, tolerance=0.0, record=record)
    W, H = result.point
    # NC4 costs a product of its own, and GNC2 would cost a quarter of the trial.
    at_end = {"nc4": ufm.metrics.nc4(W, H, problem.labels), "gnc3": ufm.metrics.gnc3(W, H, problem.labels)}
    return {**result.history, **at_end}


def claims(config: Config, data: Data) -> list[Claim]:
    judged = []
    for what, condition in [
        ("reaches 100% training accuracy", lambda name: data[f"accuracy_{name}"] == 1),
        (f"collapses (NC1 below {COLLAPSED:g})", lambda name: data[f"nc1_{name}"] < COLLAPSED),
    ]:
        steps = {name: first_step(condition(name)) for name in ("normalized", "regularized")}
        judged.append(
            Claim(
                f"the normalized UFM {what} in fewer iterations (medians of the trials)",
                bool(np.median(steps["normalized"]) < np.median(steps["regularized"])),
                "; ".join(
                    f"{name}: {step_in_words(np.median(found))} ({step_in_words(found.min())} to "
                    f"{step_in_words(found.max())})"
                    for name, found in steps.items()
                )
                + f", of {config.steps} iterations",
            )
        )
    return judged


def plot(words: str, config: Config, data: Data) -> Figure:
    figure = Figure(figsize=(10, 3.2))
    left, middle, right = figure.subplots(1, 3)
    for name, color in [("normalized", "C0"), ("regularized", "C1")]:
        style: Any = {"average": config.average, "color": color, "label": name}
        nc1 = np.maximum(data[f"nc1_{name}"], plotting.NC1_FLOOR)
        plotting.draw_trials(left, data["step"], data[f"accuracy_{name}"], **style)
        plotting.draw_trials(middle, data["step"], nc1, **style)
        above = np.maximum(data[f"loss_{name}"] - data[f"minimum_{name}"], plotting.LOSS_FLOOR)
        plotting.draw_trials(right, data["step"], above, **style)
    plotting.show_the_start(left, config.steps)
    left.set(xlabel="iteration", ylabel="training accuracy", ylim=(-0.03, 1.05))
    middle.set(xlabel="iteration", ylabel=r"$\mathcal{NC}_1$", yscale="log")
    right.set(xlabel="iteration", ylabel="loss above the model's minimum", yscale="log")
    left.legend()
    figure.suptitle(
        f"UFM under {words}; K={config.num_classes}, n={config.samples_per_class}, d={config.dim}, "
        f"{plotting.LINES[config.average]} of {config.trials} trials",
        fontsize=9,
    )
    return figure
