"""Local rates of collapse: the factors by which NC1, NC2 and NC3 fall in a step, measured and predicted."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import ufm_jax as ufm
from experiments import chunks, near_collapse, plotting
from experiments.experiment import Claim, Data, Experiment, Progress, UfmConfig, check_fields
from ufm_jax import _checks

METRICS = {"nc1": r"$\mathcal{NC}_1$", "nc2": r"$\mathcal{NC}_2$", "nc3": r"$\mathcal{NC}_3$"}
MODELS = ("normalized", "regularized")
_WINDOW = (1e-22, 1e-8)
"""Where squares are measured: small enough for first order to be all, and no rounding yet."""


@dataclasses.dataclass(frozen=True)
class Config(UfmConfig):
    """Settings of both models; the step is one over the largest eigenvalue of the Hessian."""

    num_classes: tuple[int, ...] = (3, 10, 30)
    """Numbers of classes, K."""
    samples_per_class: tuple[int, ...] = (2, 5)
    """Samples of each class, n."""
    extra_dim: int = 2
    """Dimensions of features and classifiers beyond K, d - K."""
    theta: tuple[float, ...] = (0.1, 0.3, 0.6)
    """Temperatures of the normalized UFM, divided by K - 1."""
    classifier_weight: tuple[float, ...] = (1.0, 5.0, 20.0)
    """Weights of the classifier in its metric; 1 is the paper's, n the balanced one."""
    decay: tuple[float, ...] = (1e-2, 1e-3, 1e-5)
    """Weight decays of the regularized UFM."""
    decay_ratio: tuple[float, ...] = (1.0, 0.1)
    """Its feature decays, divided by the weight decay."""
    distance: float = 1e-2
    """How far from collapse a trial starts, for rows of length 1."""
    steps: int = 1500
    """Steps of gradient descent."""


def check(config: Config) -> None:
    lowest = {"num_classes": 2, "samples_per_class": 2, "extra_dim": -1, "steps": 4}
    check_fields(config, lowest, ["theta", "classifier_weight", "decay", "decay_ratio", "distance"])
    largest = 1 / (max(config.num_classes) * max(config.samples_per_class) ** 0.5)
    _checks.within("decay", max(config.decay) * max(1, max(config.decay_ratio)), 0, largest)


def run(config: Config, progress: Progress, store: chunks.ChunkFolder | None = None) -> Data:
    sizes = [(K, n) for K in config.num_classes for n in config.samples_per_class]
    fields = {
        "normalized": {"theta": config.theta, "weight": config.classifier_weight},
        "regularized": {"decay": config.decay, "ratio": config.decay_ratio},
    }
    key = jax.random.key(config.seed)
    found: dict[str, list[Any]] = {f"{what}_{m}": [] for what in ("measured", "predicted") for m in MODELS}
    for i, (K, n) in enumerate(sizes):
        progress(i, len(sizes))
        for model, trial in [("normalized", normalized), ("regularized", regularized)]:
            axes = {name: np.asarray(values, config.dtype) for name, values in fields[model].items()}
            one = functools.partial(trial, config, K, n, key)
            squares, predicted = ufm.trials.grid(one, axes, store=chunks.part(store, f"{K}-{n}-{model}"))
            found[f"measured_{model}"].append(factors(squares))
            found[f"predicted_{model}"].append(predicted)
    progress(1, 1)
    shape = (len(config.num_classes), len(config.samples_per_class))
    data = {name: np.stack(x).reshape(*shape, *np.shape(x[0])) for name, x in found.items()}
    swept = ("num_classes", "samples_per_class", "theta", "classifier_weight", "decay", "decay_ratio")
    return {name: np.asarray(getattr(config, name)) for name in swept} | data


def normalized(config: Config, K: int, n: int, key: jax.Array, theta: jax.Array, weight: jax.Array) -> Any:
    """Squares of the metrics after every step, (steps, 3), and the predicted factors, (3,)."""
    tau, dim = theta * (K - 1), K + config.extra_dim
    problem = ufm.normalized(ufm.balanced_labels(K, n), K, tau=tau, classifier_weight=weight)
    modes = ufm.theory.collapse_spectrum(K, n, dim, tau, weight)
    return _descend(config, problem, near_collapse.collapsed(problem, dim), modes, key)


def regularized(config: Config, K: int, n: int, key: jax.Array, decay: jax.Array, ratio: jax.Array) -> Any:
    """The same of the regularized model."""
    dim = K + config.extra_dim
    decays = (decay, ratio * decay)
    problem = ufm.regularized(ufm.balanced_labels(K, n), K, weight_decay=decays[0], feature_decay=decays[1])
    modes = ufm.theory.regularized_collapse_spectrum(K, n, dim, *decays)
    lengths = near_collapse.regularized_lengths(K, n, *decays)
    return _descend(config, problem, near_collapse.collapsed(problem, dim, lengths), modes, key)


def _descend(
    config: Config, problem: ufm.Problem, collapsed: ufm.Point, modes: ufm.theory.Modes, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    labels, K = problem.labels, problem.num_classes

    def squares(point: ufm.Point) -> jax.Array:
        W, H = point
        # NC1 is a square by itself.
        return jnp.stack(
            [ufm.metrics.nc1(H, labels, K), ufm.metrics.nc2(W) ** 2, ufm.metrics.nc3(W, H, labels) ** 2]
        )

    rates = ufm.theory.collapse_rates(modes)
    start = near_collapse.perturbed(problem, collapsed, key, config.distance)
    history = near_collapse.descend(problem, start, rates.step, config.steps, squares)
    return history, jnp.stack(rates[1:])


def factors(squares: np.ndarray) -> np.ndarray:
    """The measured factors of NC1, NC2 and NC3, (..., 3), of histories (..., steps, 3)."""
    found = np.apply_along_axis(near_collapse.factor_of_a_step, -2, squares, *_WINDOW)
    return found ** np.array([1, 0.5, 0.5])


def claims(config: Config, data: Data) -> list[Claim]:
    made = []
    for model in MODELS:
        errors = np.abs(data[f"measured_{model}"] - data[f"predicted_{model}"])
        worst = errors.reshape(-1, 3).max(0)
        close = np.all(errors < 1e-4, axis=-1)
        made.append(
            Claim(
                f"{model} UFM: NC1, NC2 and NC3 fall by the predicted factors, to 1e-4, in every setting",
                bool(close.all()),
                f"in {close.sum()} of {close.size} settings; largest differences "
                + ", ".join(f"{e:.2g} ({m.upper()})" for e, m in zip(worst, METRICS, strict=True)),
            )
        )
    nc1 = data["measured_normalized"][..., 0]  # (K, n, theta, weight)
    spread = np.ptp(nc1, axis=(0, 2)).max()
    made.append(
        Claim(
            "normalized UFM: NC1 falls by the same factor at all temperatures and numbers of classes",
            bool(spread < 1e-4),
            f"at one n and weight, factors are within {spread:.2g}",
        )
    )
    return made


def curves(
    config: Config, K: int, n: int, points: int = 60
) -> dict[str, tuple[np.ndarray, Callable[[int], np.ndarray]]]:
    """For each model where its predicted factors are drawn, and the factors (points, 3) of a line."""
    dim = K + config.extra_dim

    def factors_of(modes: ufm.theory.Modes) -> jax.Array:
        return jnp.stack(ufm.theory.collapse_rates(modes)[1:])

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def at_theta(theta: jax.Array, weight: jax.Array) -> jax.Array:
        return factors_of(ufm.theory.collapse_spectrum(K, n, dim, theta * (K - 1), weight))

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def at_decay(decay: jax.Array, ratio: jax.Array) -> jax.Array:
        return factors_of(ufm.theory.regularized_collapse_spectrum(K, n, dim, decay, ratio * decay))

    theta = np.geomspace(min(config.theta) / 1.5, min(max(config.theta) * 1.5, 0.95), points)
    decay = np.geomspace(min(config.decay) / 1.5, max(config.decay) * 1.2, points)
    return {
        "normalized": (theta, lambda i: np.asarray(at_theta(theta, config.classifier_weight[i]))),
        "regularized": (decay, lambda i: np.asarray(at_decay(decay, config.decay_ratio[i]))),
    }


def plot(config: Config, data: Data) -> Figure:
    figure = Figure(figsize=(9.5, 5.6))
    panels = figure.subplots(2, 3)
    n = config.samples_per_class[-1]
    names = {
        "normalized": [f"$w={w:g}$" for w in config.classifier_weight],
        "regularized": [f"$l_H/l_W={r:g}$" for r in config.decay_ratio],
    }
    for k, (K, marker) in enumerate(zip(config.num_classes, "os^Dv<>", strict=False)):
        of_model = curves(config, K, n)
        for row, model in zip(panels, MODELS, strict=True):
            x, line = of_model[model]
            measured = data[f"measured_{model}"][k, -1]
            at = data["theta" if model == "normalized" else "decay"]
            for i, name in enumerate(names[model]):
                predicted = line(i)
                for m, axes in enumerate(row):
                    axes.plot(x, predicted[:, m], color=f"C{i}", linewidth=0.9, alpha=0.8)
                    label = f"{name}, $K={K}$"
                    axes.plot(at, measured[:, i, m], marker, color=f"C{i}", markersize=4.5, label=label)
    for row, model in zip(panels, MODELS, strict=True):
        for axes, title in zip(row, METRICS.values(), strict=True):
            xlabel = r"$\theta=\tau/(K-1)$" if model == "normalized" else "weight decay $l_W$"
            axes.set(xscale="log", xlabel=xlabel, title=f"{title}, {model}", ylim=(0, 1.02))
        row[0].set_ylabel("factor of a step")
        row[2].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.supxlabel(
        f"lines: predicted, marks: measured; n={n}, d=K+{config.extra_dim}, "
        "gradient descent, step one over the largest eigenvalue",
        fontsize=8,
    )
    return figure


EXPERIMENT = Experiment(
    name="rates",
    title="local rates of collapse, measured and predicted",
    duration="40 s",
    config=Config,
    check=check,
    run=run,
    claims=claims,
    plot=plot,
    resumable=True,
)
