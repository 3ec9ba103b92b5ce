"""Figures 5, 7 and 8 in two metrics and over decays: which model collapses first, and what theory says."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import ufm_jax as ufm
from experiments.feature_model import near_collapse, two_models
from experiments.harness import chunks, plotting, tables
from experiments.harness.experiment import (
    Claim,
    Data,
    Progress,
    check_ufm,
    first_step,
    part,
    step_in_words,
)
from ufm_jax import _checks

TITLE = "normalized, balanced, regularized over decays"
DURATION = "2 min"

SOLVERS = {"gradient_descent": "GD", "conjugate_gradient": "CG", "trust_region": "TR"}
METRICS = ("plain", "balanced")
PLACES = {
    "mean": "beside the mean loss",
    "sum": "beside the sum of losses",
    "unequal": "of W alone, beside the mean loss",
}
"""Where a decay stands."""
_COLORS = ("C1", "black")


@dataclasses.dataclass(frozen=True)
class Config(two_models.Setting):
    """The setting of Figures 5, 7 and 8, with the metric and the decays swept."""

    decay: tuple[float, ...] = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)  # type: ignore[assignment]
    """Decays of the regularized UFM, falling."""
    feature_decay: float = 1e-5
    """Feature decay where the decays are unequal."""
    start_scale: float = 1.0
    """Standard deviation of the entries of the regularized UFM's start."""
    trials: int = 2
    """Random starts of each setting."""
    steps: int = 200
    """Most iterations of a trial; the trust region makes an eighth of them."""
    local_decay: tuple[float, ...] = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10)
    """Decays beside the mean loss, falling, of descents with a fixed step from near collapse."""
    local_steps: int = 100
    """Steps of these descents."""


def check(config: Config) -> None:
    check_ufm(config)
    for name in ("decay", "local_decay", "feature_decay", "start_scale"):
        _checks.positive(name, getattr(config, name))
    for name in ("decay", "local_decay"):
        values = getattr(config, name)
        if len(values) < 2 or np.any(np.diff(values) >= 0):
            raise ValueError(
                f"{name} needs at least two values, each below the one before, but is {values}."
            )
    _checks.at_least("local_steps", config.local_steps, 20)
    # As in `rates`; of single samples NC1 is 0 from the start.
    _checks.at_least("num_classes", config.num_classes, 3)
    _checks.at_least("samples_per_class", config.samples_per_class, 2)
    largest = 1 / (config.num_classes * config.samples_per_class**0.5)
    geometric = max(*np.sqrt(decays(config).prod(-1)).ravel(), *config.local_decay)
    if geometric >= largest:  # There W = H = 0 is the minimum.
        raise ValueError(
            f"decays must be below {largest:.3g} here (the geometric mean of both), not {geometric:.3g}."
        )


def decays(config: Config) -> np.ndarray:
    """Weight and feature decay beside the mean loss, (place, decay, 2)."""
    samples = config.num_classes * config.samples_per_class
    pairs = [
        [(decay, decay), (decay / samples, decay / samples), (decay, config.feature_decay)]
        for decay in config.decay
    ]
    return np.asarray(pairs, config.dtype).swapaxes(0, 1)


def most_steps(config: Config, solver: str) -> int:
    """Iterations of a trial."""
    return max(1, config.steps // 8) if solver == "trust_region" else config.steps


def run(config: Config, progress: Progress, store: chunks.ChunkFolder | None = None) -> Data:
    keys = jax.random.split(jax.random.key(config.seed), config.trials)
    weights = np.asarray([1, config.samples_per_class], config.dtype)
    pairs = decays(config)
    data: Data = {"decay": np.asarray(config.decay), "local_decay": np.asarray(config.local_decay)}
    settings = {"normalized": weights, "regularized": pairs.reshape(-1, 2)}
    for i, solver in enumerate(SOLVERS):
        for j, (model, values) in enumerate(settings.items()):
            found = ufm.trials.grid(
                functools.partial(trial, config, solver, model),
                {"setting": values, "key": keys},
                progress=part(progress, 2 * i + j, 2 * len(SOLVERS) + 1),
                store=chunks.part(store, f"{solver}-{model}"),
            )
            shape = pairs.shape[:2] if model == "regularized" else (len(METRICS),)
            data[f"nc1_{model}_{solver}"] = found.reshape(*shape, *found.shape[1:])
    progress(2 * len(SOLVERS), 2 * len(SOLVERS) + 1)
    return data | local(config, chunks.part(store, "local")) | predicted(config)


def _problem(config: Config, model: str, setting: Any) -> ufm.Problem:
    """The normalized UFM with this weight of the classifier, or the regularized one with two decays."""
    K = config.num_classes
    labels = ufm.balanced_labels(K, config.samples_per_class)
    if model == "normalized":
        return ufm.normalized(labels, K, tau=config.tau, classifier_weight=setting)
    weight_decay, feature_decay = setting
    return ufm.regularized(labels, K, weight_decay=weight_decay, feature_decay=feature_decay)


def trial(config: Config, solver: str, model: str, setting: jax.Array, key: jax.Array) -> jax.Array:
    """NC1 after every step from a random start, until it is that of collapse."""
    problem = _problem(config, model, setting)
    scale = config.start_scale if model == "regularized" else 1.0

    def nc1(iterate: ufm.solvers.Iterate) -> jax.Array:
        return ufm.metrics.nc1(iterate.point.H, problem.labels, problem.num_classes)

    start = jax.tree.map(lambda x: scale * x, problem.random_point(key, config.dim, config.dtype))
    return ufm.minimize(
        problem,
        start,
        two_models.SOLVERS[solver],
        max_steps=most_steps(config, solver),
        tolerance=0.0,
        record=nc1,
        until=lambda iterate: nc1(iterate) < two_models.COLLAPSED,
    ).history


def local(config: Config, store: chunks.ChunkFolder | None) -> Data:
    """The factors of NC1 in a step of the best fixed length, measured on descents from near collapse."""
    K, n, d = config.num_classes, config.samples_per_class, config.dim

    def nc1(problem: ufm.Problem, modes: ufm.theory.Modes) -> jax.Array:
        key = jax.random.key(config.seed)
        start = near_collapse.perturbed(problem, near_collapse.collapsed(problem, d), key, 1e-3)
        step = ufm.theory.collapse_rates(modes).step

        def record(point: ufm.Point) -> jax.Array:
            return ufm.metrics.nc1(point.H, problem.labels, K)

        return near_collapse.descend(problem, start, step, config.local_steps, record)

    def normalized(weight: jax.Array) -> jax.Array:
        problem = _problem(config, "normalized", weight)
        return nc1(problem, ufm.theory.collapse_spectrum(K, n, d, config.tau, weight))

    def regularized(decay: jax.Array) -> jax.Array:
        problem = _problem(config, "regularized", (decay, decay))
        return nc1(problem, ufm.theory.regularized_collapse_spectrum(K, n, d, decay, decay))

    found = {}
    for name, trial, axes in [
        ("normalized", normalized, {"weight": np.asarray([1, n], config.dtype)}),
        ("regularized", regularized, {"decay": np.asarray(config.local_decay, config.dtype)}),
    ]:
        histories = ufm.trials.grid(trial, axes, store=chunks.part(store, name))
        # The first steps still see faster motions.
        tails = histories[:, 10:]
        found[f"local_{name}"] = np.array([near_collapse.factor_of_a_step(t, 1e-24, 1.0) for t in tails])
    return found


def predicted(config: Config) -> Data:
    """The same factors in closed form: in both metrics, of all decays swept, and on a fine grid of them."""
    K, n, d = config.num_classes, config.samples_per_class, config.dim

    def normalized(weight: jax.Array) -> jax.Array:
        return ufm.theory.collapse_rates(ufm.theory.collapse_spectrum(K, n, d, config.tau, weight)).nc1

    @jax.jit
    @jax.vmap
    def regularized(decays: jax.Array) -> jax.Array:
        modes = ufm.theory.regularized_collapse_spectrum(K, n, d, *decays)
        return ufm.theory.collapse_rates(modes).nc1

    fine = np.geomspace(config.local_decay[0], config.local_decay[-1] / 10, 400).astype(config.dtype)
    pairs = decays(config)
    return {
        "predicted_normalized": np.stack([normalized(w) for w in jnp.array([1.0, n])]),
        "predicted_regularized": np.asarray(regularized(pairs.reshape(-1, 2))).reshape(pairs.shape[:2]),
        "curve_decay": fine,
        "curve_regularized": np.asarray(regularized(np.stack([fine, fine], 1))),
    }


def crossing(decay: np.ndarray, factors: np.ndarray, of_normalized: float) -> float:
    """The decay at which rising factors pass another one, by interpolation; infinite where none does."""
    if not factors[0] < of_normalized < factors[-1]:
        return np.inf
    if not np.isfinite(factors[np.searchsorted(factors, of_normalized)]):  # Nobody knows where between.
        return np.inf
    return float(np.exp(np.interp(of_normalized, factors, np.log(decay))))


def iterations(data: Data, model: str, solver: str) -> np.ndarray:
    """Iterations until NC1 is collapsed, the median of the trials: by metric, or by place and decay."""
    return np.median(first_step(data[f"nc1_{model}_{solver}"] < two_models.COLLAPSED), axis=-1)


def by_fixed_step(factors: np.ndarray) -> np.ndarray:
    """Steps in which NC1 falls by `two_models.COLLAPSED` at these factors."""
    return np.log(two_models.COLLAPSED) / np.log(factors)


def claims(config: Config, data: Data) -> list[Claim]:
    balanced = first_step(data["nc1_normalized_gradient_descent"][1] < two_models.COLLAPSED)
    judged = [
        Claim(
            f"gradient descent, balanced metric: NC1 < {two_models.COLLAPSED:g} in at most 10 iterations",
            bool(np.all(balanced <= 10)),
            f"{step_in_words(balanced.min())} to {step_in_words(balanced.max())} iterations",
        )
    ]
    for m, metric in enumerate(METRICS[::-1]):
        judged += [_ahead(config, data, solver, 1 - m, metric) for solver in SOLVERS]
    at = [
        crossing(data["local_decay"], data["local_regularized"], data["local_normalized"][0]),
        crossing(data["curve_decay"], data["curve_regularized"], data["predicted_normalized"][0]),
    ]
    judged.append(
        Claim(
            "best fixed step, near collapse: the regularized UFM falls behind the plain normalized one at "
            "the predicted decay, within a factor of 2",
            bool(np.isfinite(at).all() and 0.5 < at[0] / at[1] < 2),
            f"measured at {at[0]:.3g}, predicted {at[1]:.3g}, beside the mean loss",
        )
    )
    return [*judged, _gain(data)]


def _ahead(config: Config, data: Data, solver: str, m: int, metric: str) -> Claim:
    """Whether the normalized UFM is ahead of the regularized one, whatever its decays."""
    ours, theirs = iterations(data, "normalized", solver)[m], iterations(data, "regularized", solver)
    words = [
        f"{place}: "
        + ", ".join(
            f"{step_in_words(steps)} at {decay:g}" for decay, steps in zip(config.decay, row, strict=True)
        )
        for place, row in zip(PLACES, theirs, strict=True)
    ]
    turns = crossing(data["decay"], np.maximum.accumulate(theirs[0]), ours)
    if np.isfinite(turns):
        words.append(f"the order turns at {turns:.2g} beside the mean loss")
    return Claim(
        f"{solver.replace('_', ' ')}, whole runs: the normalized UFM in the {metric} metric has NC1 < "
        f"{two_models.COLLAPSED:g} before the regularized one at every decay",
        bool(np.all(ours < theirs)),
        f"normalized {step_in_words(ours)}; regularized, {'; '.join(words)}",
    )


def _gain(data: Data) -> Claim:
    """What backtracking gains over the best fixed step."""
    gains = {}
    for name, model, at in [
        ("plain", "normalized", 0),
        ("balanced", "normalized", 1),
        ("regularized, beside the mean loss", "regularized", 0),
    ]:
        made = np.atleast_1d(iterations(data, model, "gradient_descent")[at])
        fixed = np.atleast_1d(by_fixed_step(data[f"predicted_{model}"][at]))
        gains[name] = (fixed / made)[np.isfinite(made)]
    plain, *others = gains.values()
    return Claim(
        "backtracking gains more over the best fixed step in the plain metric than in the balanced one and "
        "for the regularized UFM beside the mean loss",
        all(gain.size for gain in gains.values()) and bool(plain.min() > max(map(np.max, others))),
        "steps predicted at the best fixed length, over iterations of a whole run: "
        + "; ".join(
            f"{name} {g.min():.2g} to {g.max():.2g}" if g.size else f"{name}: no run collapses"
            for name, g in gains.items()
        ),
    )


def table(config: Config, data: Data) -> str:
    """Iterations until NC1 < 1e-6 in every setting, under every solver and by the best fixed step."""
    header = ["model", "decay", "fixed step, predicted", *SOLVERS.values()]

    def row(model: str, name: str, decay: str, at: Any) -> list[str]:
        measured = [iterations(data, model, solver)[at] for solver in SOLVERS]
        fixed = by_fixed_step(data[f"predicted_{model}"][at])
        return [name, decay, f"{fixed:.0f}", *map(step_in_words, measured)]

    rows = [row("normalized", f"normalized, {metric}", "", m) for m, metric in enumerate(METRICS)]
    for p, place in enumerate(PLACES):
        rows += [
            row("regularized", f"regularized, {place}", f"{decay:g}", (p, i))
            for i, decay in enumerate(config.decay)
        ]
    return tables.table(header, rows)


def plot(config: Config, data: Data) -> Figure:
    figure = Figure(figsize=(13, 5.8))
    panels = figure.subplots(2, 4)
    colors = plotting.sequence_colors(len(config.decay))
    for column, solver in enumerate(SOLVERS):
        above, below = panels[:, column]
        for i, color in enumerate(colors):
            label = f"regularized, {config.decay[i]:g}"
            _draw_histories(above, data[f"nc1_regularized_{solver}"][0, i], color=color, label=label)
        for m, (metric, color) in enumerate(zip(METRICS, _COLORS, strict=True)):
            values = data[f"nc1_normalized_{solver}"][m]
            _draw_histories(above, values, color=color, linewidth=2, label=f"normalized, {metric} metric")
            below.axhline(iterations(data, "normalized", solver)[m], color=color, linewidth=2)
        for p, (place, marker) in enumerate(zip(PLACES, "os^", strict=True)):
            steps = np.minimum(iterations(data, "regularized", solver)[p], most_steps(config, solver))
            below.plot(config.decay, steps, marker=marker, color="0.3", markersize=4, label=PLACES[place])
        above.set(title=solver.replace("_", " "), xlabel="iteration", yscale="log")
        above.set_ylim(two_models.COLLAPSED / 3, None)
        below.set(xlabel="decay", xscale="log", ylim=(0, None))
        below.invert_xaxis()
    panels[0, 0].set_ylabel(r"$\mathcal{NC}_1$")
    panels[1, 0].set_ylabel(rf"iterations to $\mathcal{{NC}}_1$ < {two_models.COLLAPSED:g}")
    _draw_local(panels[1, 3], data)
    panels[0, 3].set_axis_off()
    titles = ["curves (decays beside the mean loss)", "marks: the decay stands"]
    for axes, at, title in zip(panels[:, 0], (1.08, 0.3), titles, strict=True):
        handles = axes.get_legend_handles_labels()
        legend = panels[0, 3].legend(*handles, loc="upper left", bbox_to_anchor=(-0.15, at), title=title)
        legend.set_alignment("left")
        panels[0, 3].add_artist(legend)
    figure.supxlabel(
        f"K={config.num_classes}, n={config.samples_per_class}, d={config.dim}, tau={config.tau:g}; median "
        f"of {config.trials} trials; marks at the top: not in {config.steps} iterations "
        f"(trust region {most_steps(config, 'trust_region')})",
        fontsize=8,
    )
    return figure


def _draw_histories(axes: Axes, values: np.ndarray, **style: Any) -> None:
    """One line a trial, to the step at which it is collapsed."""
    for trial in values:
        end = int(np.minimum(first_step(trial < two_models.COLLAPSED), len(trial) - 1)) + 1
        axes.plot(np.arange(end), trial[:end], **style)
        style.pop("label", None)


def _draw_local(axes: Axes, data: Data) -> None:
    """Steps of the best fixed length near collapse: curves predicted, marks measured."""
    axes.plot(data["curve_decay"], by_fixed_step(data["curve_regularized"]), color="0.3", linewidth=1)
    axes.plot(data["local_decay"], by_fixed_step(data["local_regularized"]), "o", color="0.3", markersize=4)
    for m, color in enumerate(_COLORS):
        axes.axhline(float(by_fixed_step(data["predicted_normalized"][m])), color=color, linewidth=2)
        measured = by_fixed_step(data["local_normalized"][m])
        axes.plot(
            data["local_decay"], np.full(len(data["local_decay"]), measured), "x", color=color, markersize=4
        )
    axes.set(xscale="log", xlabel="decay beside the mean loss", ylim=(0, None))
    axes.set_title("best fixed step, near collapse")
    axes.invert_xaxis()
