"""How the regularized start decides Figures 5, 7 and 8: iterations needed against its scale."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import ufm_jax as ufm
from experiments.feature_model import two_models
from experiments.harness import chunks
from experiments.harness.experiment import Claim, Data, Progress, part, step_in_words

TITLE = "the regularized UFM's start, which decides them"
DURATION = "70 s"
check = two_models.check

SOLVERS: tuple[two_models.SolverName, ...] = ("gradient_descent", "conjugate_gradient", "trust_region")
EVENTS = {"accuracy": "100% training accuracy", "nc1": f"NC1 below {two_models.COLLAPSED:g}"}


@dataclasses.dataclass(frozen=True)
class Config(two_models.Setting):
    """The setting of Figures 5, 7 and 8, with the scale of the regularized start swept."""

    start_scale: tuple[float, ...] = (0.03, 1 / math.sqrt(128), 0.3, 1.0, 3.0)
    """Standard deviations of the entries of the regularized start; rows have norm 1 at 1/sqrt(dim)."""
    trials: int = 4
    """Random starts of each setting."""
    steps: int = 300
    """Most iterations of a trial."""


def run(config: Config, progress: Progress, store: chunks.ChunkFolder | None = None) -> Data:
    keys = jax.random.split(jax.random.key(config.seed), config.trials)
    scales = {"normalized": (1.0,), "regularized": config.start_scale}
    data: Data = {"start_scale": np.asarray(config.start_scale)}
    settings = [(solver, name) for solver in SOLVERS for name in scales]
    for i, (solver, name) in enumerate(settings):
        problem = two_models.models(config)[name]

        def trial(scale, key, solver=solver, problem=problem):
            return iterations_needed(problem, solver, config, scale, key)

        axes = {"scale": np.asarray(scales[name], config.dtype), "key": keys}
        found = ufm.trials.grid(
            trial,
            axes,
            progress=part(progress, i, len(settings)),
            store=chunks.part(store, f"{solver}-{name}"),
        )
        data |= {f"{event}_{name}_{solver}": steps for event, steps in found.items()}
    return data


def iterations_needed(
    problem: ufm.Problem, name: two_models.SolverName, config: Config, scale: jax.Array, key: jax.Array
) -> dict[str, jax.Array]:
    """The first step with perfect accuracy, and the first with NC1 collapsed; infinite where none is."""
    solver = two_models.SOLVERS[name]
    start = jax.tree.map(lambda x: scale * x, problem.random_point(key, config.dim, config.dtype))

    def events(iterate: ufm.solvers.Iterate) -> dict[str, jax.Array]:
        W, H = iterate.point
        nc1 = ufm.metrics.nc1(H, problem.labels, problem.num_classes)
        return {
            "accuracy": ufm.metrics.accuracy(W, H, problem.labels) == 1,
            "nc1": nc1 < two_models.COLLAPSED,
        }

    def both(iterate: ufm.solvers.Iterate) -> jax.Array:
        found = events(iterate)
        return found["accuracy"] & found["nc1"]

    result = ufm.minimize(
        problem, start, solver, max_steps=config.steps, tolerance=0.0, record=events, until=both
    )
    return {
        event: jnp.where(jnp.any(happened), jnp.argmax(happened), jnp.inf).astype(config.dtype)
        for event, happened in result.history.items()
    }


def claims(config: Config, data: Data) -> list[Claim]:
    judged = []
    for solver in SOLVERS:
        for event, words in EVENTS.items():
            ours = np.median(data[f"{event}_normalized_{solver}"])
            theirs = np.median(data[f"{event}_regularized_{solver}"], axis=1)
            judged.append(
                Claim(
                    f"{solver.replace('_', ' ')}: the normalized UFM needs fewer iterations to {words} "
                    "than the regularized one at every scale of its start",
                    bool(np.all(ours < theirs)),
                    f"normalized {step_in_words(ours)}; regularized "
                    + ", ".join(
                        f"{step_in_words(steps)} at scale {scale:.3g}"
                        for scale, steps in zip(config.start_scale, theirs, strict=True)
                    ),
                )
            )
    return judged


def plot(config: Config, data: Data) -> Figure:
    figure = Figure(figsize=(9, 3.4))
    panels = figure.subplots(1, 2)
    for axes, (event, words) in zip(panels, EVENTS.items(), strict=True):
        for solver, color, marker in zip(SOLVERS, ("C0", "C1", "C2"), "os^", strict=True):
            # What never happened is drawn at the last iteration.
            steps = np.minimum(data[f"{event}_regularized_{solver}"], config.steps)
            label = solver.replace("_", " ")
            middle = np.median(steps, axis=1)
            axes.plot(config.start_scale, middle, color=color, marker=marker, label=f"regularized, {label}")
            axes.fill_between(
                config.start_scale, steps.min(1), steps.max(1), color=color, alpha=0.2, linewidth=0
            )
            reference = np.minimum(np.median(data[f"{event}_normalized_{solver}"]), config.steps)
            axes.axhline(reference, color=color, linestyle="--", label=f"normalized, {label}")
        axes.set(xscale="log", title=f"iterations to {words}", xlabel="scale of the start", ylim=(0, None))
        axes.axvline(1 / math.sqrt(config.dim), color="gray", linewidth=1, linestyle=":")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    figure.supxlabel(
        f"K={config.num_classes}, n={config.samples_per_class}, d={config.dim}; median and range of "
        f"{config.trials} trials; dotted: rows of norm 1; at most {config.steps} iterations",
        fontsize=8,
    )
    return figure
