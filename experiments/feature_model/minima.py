"""What Figures 3, 11, 12 and 13 share: minima found from random starts against their closed form.

Two sweeps at the size of the paper's Figures 11 to 13: over the number of classes at one temperature, and
over the temperature at one number of classes.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

import ufm_jax as ufm
from experiments.feature_model.two_models import SolverName
from experiments.harness import chunks, plotting
from experiments.harness.experiment import Claim, Data, Progress, UfmConfig, check_ufm, part
from ufm_jax import _checks


@dataclasses.dataclass(frozen=True)
class Config(UfmConfig):
    """Sizes as in the paper's Figures 11 to 13 (d = 16, n = 3, K = 3 for the sweep over tau)."""

    num_classes: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
    """Numbers of classes of the first sweep, K."""
    at_tau: float = 1.0
    """Temperature of the first sweep."""
    tau: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0)
    """Temperatures of the second sweep."""
    at_num_classes: int = 3
    """Number of classes of the second sweep."""
    samples_per_class: int = 3
    """Samples of each class, n."""
    dim: int = 16
    """Dimension of features and classifiers, d."""
    trials: int = 20
    """Random starts of each setting."""
    steps: int = 2000
    """Most iterations of a trial."""
    tolerance: float = 1e-14
    """Norm of the Riemannian gradient at which a trial ends."""
    solver: SolverName = "gradient_descent"
    """How minima are found."""


_EQUAL = {"float32": "1e-5", "float64": "1e-8"}
"""The difference up to which two values are equal."""


class Setting(NamedTuple):
    """What one of these figures puts into the frame.

    Attributes:
        problem: (config, labels, K, tau) to the problem, in the balanced metric: only the answer counts.
        minimum: (config, K, tau) to the closed form that found values are held against.
        title: name of the loss.
        theory: name of the closed form.
        at_collapse: where collapse need not be optimal, (config, K, tau) to the value there.
        threshold: where collapse need not be optimal, (config, K) to the temperature up to which it is.
    """

    problem: Callable[[Any, jax.Array, int, Any], ufm.Problem]
    minimum: Callable[[Any, int, Any], jax.Array]
    title: str
    theory: str
    at_collapse: Callable[[Any, int, Any], jax.Array] | None = None
    threshold: Callable[[Any, int], float] | None = None

    def is_collapse(self, config: Any, num_classes: int, tau: float) -> bool:
        """Whether the closed form is attained by collapse."""
        return self.threshold is None or tau <= self.threshold(config, num_classes)


def parts(setting: Setting) -> Iterator[Callable]:
    """`check`, `run`, `claims` and `plot` of the experiment that compares minima with a closed form."""
    return (functools.partial(function, setting) for function in (check, run, claims, plot))


def check(setting: Setting, config: Config) -> None:
    check_ufm(config)
    _checks.at_least("at_num_classes", config.at_num_classes, 2)
    _checks.positive("at_tau", config.at_tau)
    check_ufm(dataclasses.replace(config, num_classes=(config.at_num_classes,), tau=(config.at_tau,)))
    _checks.at_least("tolerance", config.tolerance, 0)
    # The theory knows the ranges of its own parameters.
    setting.minimum(config, config.at_num_classes, config.at_tau)


def run(
    setting: Setting, config: Config, progress: Progress, store: chunks.ChunkFolder | None = None
) -> Data:
    # Each number of classes has shapes, and so a compiled program, of its own; temperatures share one.
    parts = len(config.num_classes) + 1
    sweeps = [(k, (config.at_tau,)) for k in config.num_classes] + [(config.at_num_classes, config.tau)]
    *by_classes, by_tau = (
        _found(setting, config, k, tau, part(progress, i, parts), chunks.part(store, str(i)))
        for i, (k, tau) in enumerate(sweeps)
    )
    curve_tau = np.geomspace(min(config.tau), max(config.tau), 200)
    curves = {"minimum": setting.minimum, "at_collapse": setting.at_collapse}
    first = {name: np.concatenate([found[name] for found in by_classes]) for name in by_tau}
    return {
        "num_classes": np.asarray(config.num_classes),
        "tau": np.asarray(config.tau),
        **{f"{name}_by_num_classes": values for name, values in first.items()},
        **{f"{name}_by_tau": values for name, values in by_tau.items()},
        "curve_tau": curve_tau,
        **{
            f"{name}_curve": np.asarray(value(config, config.at_num_classes, curve_tau))
            for name, value in curves.items()
            if value is not None
        },
    }


def _found(
    setting: Setting,
    config: Config,
    num_classes: int,
    tau: tuple[float, ...],
    progress: Progress,
    store: chunks.ChunkFolder | None,
) -> Data:
    """Values and NC metrics (tau, trial) of found minima, and the closed forms (tau,)."""
    labels = ufm.balanced_labels(num_classes, config.samples_per_class)

    def trial(tau: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        problem = setting.problem(config, labels, num_classes, tau)
        start = problem.random_point(key, config.dim, config.dtype)
        result = ufm.minimize(
            problem,
            start,
            getattr(ufm.solvers, config.solver)(),
            max_steps=config.steps,
            tolerance=config.tolerance,
        )
        # Without a classifier the class means stand in for it.
        W = result.point.W
        if W is None:
            W = ufm.metrics.class_means(result.point.H, labels, num_classes, global_mean=None)
        return {
            "value": result.value,
            "gradient_norm": result.gradient_norm,
            "steps": result.steps,
            "nc1": ufm.metrics.nc1(result.point.H, labels, num_classes),
            "nc2": ufm.metrics.nc2(W),
            "nc3": ufm.metrics.nc3(W, result.point.H, labels),
            "nc4": ufm.metrics.nc4(W, result.point.H, labels),
            "cdnv": ufm.metrics.cdnv(result.point.H, labels, num_classes),
            "gnc2": ufm.metrics.gnc2(W),
            "gnc3": ufm.metrics.gnc3(W, result.point.H, labels),
        }

    temperatures = np.asarray(tau, config.dtype)
    keys = jax.random.split(jax.random.key(config.seed), config.trials)
    found = ufm.trials.grid(trial, {"tau": temperatures, "key": keys}, progress=progress, store=store)
    found["minimum"] = np.asarray(setting.minimum(config, num_classes, temperatures))
    if setting.at_collapse is not None:
        found["at_collapse"] = np.asarray(setting.at_collapse(config, num_classes, temperatures))
    return found


def claims(setting: Setting, config: Config, data: Data) -> list[Claim]:
    judged = []
    for sweep, at in [
        ("num_classes", f"tau = {config.at_tau:g}"),
        ("tau", f"K = {config.at_num_classes}"),
    ]:
        gap = _gap(data, sweep)
        worst = np.unravel_index(np.nanargmax(gap), gap.shape)
        judged.append(
            Claim(
                f"every value found over {_symbol(sweep)} at {at} equals {setting.theory}, to "
                f"{_EQUAL[config.dtype]}",
                bool(np.all(gap <= float(_EQUAL[config.dtype]))),
                f"largest difference {gap[worst]:.2g}, at {_symbol(sweep)} = {data[sweep][worst[0]]:g}, "
                f"in {gap.size} trials",
            )
        )
    judged += _collapse_claim(setting, config, data)
    if setting.threshold is not None:
        judged.append(_parting_claim(setting, config, data))
    return judged


def _settings(config: Config) -> list[tuple[str, int, int, float]]:
    """Every setting of both sweeps: its sweep, its index there, K and tau."""
    by_classes = [("num_classes", i, k, config.at_tau) for i, k in enumerate(config.num_classes)]
    return by_classes + [("tau", i, config.at_num_classes, t) for i, t in enumerate(config.tau)]


def _collapse_claim(setting: Setting, config: Config, data: Data) -> list[Claim]:
    """Neural collapse wherever it is optimal; no claim where it is nowhere."""
    found: dict[str, list[float]] = {"nc1": [], "nc2": [], "nc3": []}
    left_out = []
    for sweep, i, k, tau in _settings(config):
        if not setting.is_collapse(config, k, tau):
            continue
        # Where the loss at collapse no longer feels the angles, its gradient is below the rounding error.
        felt = abs(jax.grad(lambda t, k=k: setting.minimum(config, k, t))(tau)) >= 1e-12
        if not felt:
            left_out.append(f"K={k}, tau={tau:g}")
            continue
        for name, values in found.items():
            values.append(data[f"{name}_by_{sweep}"][i].max())
    if not found["nc1"]:
        return []
    worst = {name: np.max(values) for name, values in found.items()}
    measured = ", ".join(f"largest {name.upper()} {value:.2g}" for name, value in worst.items())
    if left_out:
        measured += "; without " + ", ".join(left_out) + ", where the gradient has underflowed"
    return [
        Claim(
            "every minimum found is a neural collapse where collapse is optimal (NC1, NC2, NC3 below 1e-4)",
            all(value < 1e-4 for value in worst.values()),
            measured,
        )
    ]


def _parting_claim(setting: Setting, config: Config, data: Data) -> Claim:
    """Found minima equal the value at collapse up to the threshold, and fall below it beyond."""
    assert setting.threshold is not None
    right, sides, equal = True, set(), float(_EQUAL[config.dtype])
    for sweep, i, k, tau in _settings(config):
        below = data[f"at_collapse_by_{sweep}"][i] - data[f"value_by_{sweep}"][i]
        is_collapse = setting.is_collapse(config, k, tau)
        sides.add(is_collapse)
        if is_collapse:
            right &= bool(np.all(np.abs(below) <= equal))
        else:
            right &= bool(np.all(below > equal))
    threshold = setting.threshold(config, config.at_num_classes)
    largest = (data["at_collapse_by_tau"][:, None] - data["value_by_tau"]).max()
    return Claim(
        "minima equal the value at collapse up to tau* and fall below it beyond",
        right and len(sides) == 2,
        f"tau* = {threshold:.4g} at K = {config.at_num_classes}; up to {largest:.3g} below collapse",
    )


def _gap(data: Data, sweep: str) -> np.ndarray:
    """Found minus closed form, (setting, trial): absolute, and relative where the value exceeds 1."""
    theory = data[f"minimum_by_{sweep}"][:, None]
    return np.abs(data[f"value_by_{sweep}"] - theory) / np.maximum(np.abs(theory), 1)


def _symbol(sweep: str) -> str:
    return {"num_classes": "K", "tau": "tau"}[sweep]


def plot(setting: Setting, config: Config, data: Data) -> Figure:
    figure = Figure(figsize=(7.5, 5.4))
    panels = figure.subplots(2, 2, sharex="col", height_ratios=(2, 1))
    for (above, below), sweep, axis, at in [
        (panels[:, 0], "num_classes", "number of classes $K$", rf"$\tau = {config.at_tau:g}$"),
        (panels[:, 1], "tau", r"temperature $\tau$", f"$K = {config.at_num_classes}$"),
    ]:
        x = data[sweep]
        curve = "curve" if sweep == "tau" else f"by_{sweep}"
        curve_x = data["curve_tau"] if sweep == "tau" else x
        plotting.draw_theory(above, curve_x, data[f"minimum_{curve}"], setting.theory)
        if setting.at_collapse is not None:
            at_collapse = data[f"at_collapse_{curve}"]
            plotting.draw_theory(
                above, curve_x, at_collapse, "the value at collapse", linestyle="--", color="C1"
            )
        found = data[f"value_by_{sweep}"]
        above.plot(np.repeat(x, found.shape[1]), found.ravel(), "o", markersize=4, alpha=0.5, label="found")
        # An exact agreement has no logarithm: it is drawn at the bottom, at the rounding unit.
        gap = np.maximum(_gap(data, sweep), np.finfo(found.dtype).eps / 2)
        below.semilogy(np.repeat(x, gap.shape[1]), gap.ravel(), "o", markersize=3, alpha=0.5)
        above.set(title=at, ylabel="loss")
        below.set(xlabel=axis, ylabel="|found - closed form|")
        below.set_ylim(bottom=1e-17)
        if sweep == "tau":
            below.set_xscale("log")
            if setting.threshold is not None:
                threshold = setting.threshold(config, config.at_num_classes)
                above.axvline(threshold, color="gray", linewidth=1, linestyle=":")
                label = rf"$\tau^* = {threshold:.3g}$"
                above.annotate(label, (threshold, 0.9), xycoords=("data", "axes fraction"), ha="right")
    panels[0, 0].legend()
    figure.suptitle(
        f"{setting.title.capitalize()}, normalized UFM; d={config.dim}, n={config.samples_per_class}, "
        f"{config.trials} random starts each",
        fontsize=10,
    )
    return figure
