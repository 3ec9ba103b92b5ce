"""Local rates of collapse: the factors by which NC1, NC2 and NC3 fall in a step, measured and predicted."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import ufm_jax as ufm
from experiments.feature_model import near_collapse
from experiments.harness import chunks
from experiments.harness.experiment import (
    Claim,
    Data,
    Progress,
    UfmConfig,
    check_fields,
    check_one_for_each,
)

TITLE = "local rates of collapse, measured and predicted"
DURATION = "30 s"

METRICS = {"nc1": r"$\mathcal{NC}_1$", "nc2": r"$\mathcal{NC}_2$", "nc3": r"$\mathcal{NC}_3$"}
MODELS = ("normalized", "regularized")
_WINDOW = (1e-23, 1e-10)
"""Where squares are measured: small enough for first order to be all, and no rounding yet."""


@dataclasses.dataclass(frozen=True)
class Config(UfmConfig):
    """Settings of both models; the step is one over the largest eigenvalue of the Hessian."""

    num_classes: tuple[int, ...] = (4, 10, 30)
    """Numbers of classes, K."""
    samples_per_class: tuple[int, ...] = (2, 5, 3)
    """Samples of each class, n, one for each of num_classes."""
    extra_dim: int = 2
    """Dimensions of features and classifiers beyond K, d - K."""
    theta: tuple[float, ...] = (0.1, 0.25, 0.5)
    """Temperatures of the normalized UFM, divided by K - 1."""
    relative_weight: tuple[float, ...] = (0.2, 1.0, 2.0)
    """Weights of the classifier in its metric, divided by n: 1 balances it, and the paper's is 1/n."""
    decay: tuple[float, ...] = (1e-2, 1e-3, 1e-4)
    """Weight decays of the regularized UFM."""
    decay_ratio: tuple[float, ...] = (1.0, 0.1)
    """Its feature decays, divided by the weight decay."""
    distance: float = 1e-2
    """How far from collapse a trial starts, for rows of length 1."""
    steps: int = 1500
    """Steps of gradient descent."""


def check(config: Config) -> None:
    lowest = {"num_classes": 3, "samples_per_class": 2, "extra_dim": -1, "steps": 4}
    check_fields(config, lowest, ["theta", "relative_weight", "decay", "decay_ratio", "distance"])
    check_one_for_each(config, "num_classes", "samples_per_class")
    # At larger decays W = H = 0 is the minimum.
    largest = min(1 / (K * n**0.5) for K, n in _sizes(config)) / max(config.decay_ratio) ** 0.5
    if max(config.decay) >= largest:
        raise ValueError(f"decay must be below {largest:.3g} here, but is {max(config.decay):g}.")


def _sizes(config: Config) -> list[tuple[int, int]]:
    return list(zip(config.num_classes, config.samples_per_class, strict=True))


def run(config: Config, progress: Progress, store: chunks.ChunkFolder | None = None) -> Data:
    fields = {
        "normalized": {"theta": config.theta, "weight": config.relative_weight},
        "regularized": {"decay": config.decay, "ratio": config.decay_ratio},
    }
    key = jax.random.key(config.seed)
    kinds = ("measured", "predicted", "late")
    found: dict[str, list[Any]] = {f"{kind}_{model}": [] for kind in kinds for model in MODELS}
    for i, (K, n) in enumerate(_sizes(config)):
        progress(i, len(config.num_classes))
        for model, trial in [("normalized", normalized), ("regularized", regularized)]:
            axes = {name: np.asarray(values, config.dtype) for name, values in fields[model].items()}
            one = functools.partial(trial, config, K, n, key)
            squares, *predictions = ufm.trials.grid(one, axes, store=chunks.part(store, f"{i}-{model}"))
            for kind, values in zip(kinds, [factors(squares), *predictions], strict=True):
                found[f"{kind}_{model}"].append(values)
    progress(1, 1)
    swept = ("num_classes", "samples_per_class", "theta", "relative_weight", "decay", "decay_ratio")
    return {name: np.asarray(getattr(config, name)) for name in swept} | {
        name: np.stack(values) for name, values in found.items()
    }


def normalized(config: Config, K: int, n: int, key: jax.Array, theta: jax.Array, weight: jax.Array) -> Any:
    """The squares of the metrics after every step, (steps, 3), and the `predictions`."""
    problem = ufm.normalized(
        ufm.balanced_labels(K, n), K, tau=theta * (K - 1), classifier_weight=weight * n
    )
    modes = normalized_modes(K, n, K + config.extra_dim, theta, weight)
    return _descend(config, problem, modes, key)


def normalized_modes(K: int, n: int, dim: int, theta: Any, weight: Any) -> ufm.theory.Modes:
    """The spectrum at a setting."""
    return ufm.theory.collapse_spectrum(K, n, dim, theta * (K - 1), weight * n)


def regularized(config: Config, K: int, n: int, key: jax.Array, decay: jax.Array, ratio: jax.Array) -> Any:
    """The same of the regularized model."""
    problem = ufm.regularized(ufm.balanced_labels(K, n), K, weight_decay=decay, feature_decay=ratio * decay)
    modes = regularized_modes(K, n, K + config.extra_dim, decay, ratio)
    return _descend(config, problem, modes, key)


def regularized_modes(K: int, n: int, dim: int, decay: Any, ratio: Any) -> ufm.theory.Modes:
    """The spectrum at a setting."""
    return ufm.theory.regularized_collapse_spectrum(K, n, dim, decay, ratio * decay)


def _descend(config: Config, problem: ufm.Problem, modes: ufm.theory.Modes, key: jax.Array) -> Any:
    labels, K = problem.labels, problem.num_classes

    def squares(point: ufm.Point) -> jax.Array:
        W, H = point
        # NC1 is a square by itself.
        return jnp.stack(
            [ufm.metrics.nc1(H, labels, K), ufm.metrics.nc2(W) ** 2, ufm.metrics.nc3(W, H, labels) ** 2]
        )

    collapsed = near_collapse.collapsed(problem, K + config.extra_dim)
    start = near_collapse.perturbed(problem, collapsed, key, config.distance)
    step = ufm.theory.collapse_rates(modes).step
    return near_collapse.descend(problem, start, step, config.steps, squares), *predictions(modes)


def predictions(modes: ufm.theory.Modes) -> tuple[jax.Array, jax.Array]:
    """The factors of NC1, NC2 and NC3 to first order, (3,), and whether second order takes over late."""
    step, *first = ufm.theory.collapse_rates(modes)
    first_order = jnp.stack(first)
    if "samples outside the span" not in modes.names:
        return first_order, jnp.zeros(3, bool)

    def factor(name: str) -> jax.Array:
        return 1 - step * modes.eigenvalues[modes.names.index(name)]

    # The metrics see products of motions outside the span of W. On the spheres, where they shorten what is
    # inside, those of two samples; without, where a common shift of W is not seen, of a sample and of W.
    is_free = "scale" in modes.names
    other = "classifiers against means outside the span" if is_free else "samples outside the span"
    product = factor("samples outside the span") * factor(other)
    shift = factor("classifiers together outside the span") ** 2  # It changes the Gram matrix of W.
    return first_order, jnp.stack([product**2, jnp.maximum(product, shift), product]) > first_order


def factors(squares: np.ndarray) -> np.ndarray:
    """The measured factors of NC1, NC2 and NC3, (..., 3), of histories (..., steps, 3)."""
    found = np.apply_along_axis(near_collapse.factor_of_a_step, -2, squares, *_WINDOW)
    return found ** np.array([1, 0.5, 0.5])


def claims(config: Config, data: Data) -> list[Claim]:
    judged = []
    for model in MODELS:
        errors = np.abs(data[f"measured_{model}"] - data[f"predicted_{model}"])
        early = ~data[f"late_{model}"].any(-1)
        # Where two motions fall nearly alike, a regression tells their factors no better.
        close = np.all(errors < 3e-4, axis=-1)
        worst = errors[early].max(0, initial=0)
        judged.append(
            Claim(
                f"{model} UFM: NC1, NC2 and NC3 fall by the predicted factors, to 3e-4, in every setting "
                "where first order decides to the end",
                bool(early.any() and close[early].all()),
                f"in {close[early].sum()} of {early.sum()} of these, of {early.size} in all; largest "
                "differences " + ", ".join(f"{e:.2g} ({m})" for e, m in zip(worst, METRICS, strict=True)),
            )
        )
    nc1, predicted = data["measured_normalized"][..., 0], 1 / (1 + data["relative_weight"]) ** 2
    errors = np.abs(nc1 - predicted)[~data["late_normalized"][..., 0]]
    judged.append(
        Claim(
            "normalized UFM: the factor of NC1 is 1/(1 + w/n)^2 at all temperatures, K and n, to 1e-4",
            bool(errors.size and np.all(errors < 1e-4)),
            f"largest difference {errors.max(initial=0):.2g} in {errors.size} of {nc1.size} settings, "
            "where first order decides to the end",
        )
    )
    return judged


def lines(config: Config, points: int = 60) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each model where its predictions are drawn, and the factors (K, second field, points, 3)."""
    theta = np.linspace(min(config.theta) / 2, max(config.theta) * 1.2, points)
    decay = np.geomspace(min(config.decay) / 1.5, max(config.decay) * 1.2, points)
    found = {}
    for model, modes, x, second in [
        ("normalized", normalized_modes, theta, config.relative_weight),
        ("regularized", regularized_modes, decay, config.decay_ratio),
    ]:
        curves = []
        for K, n in _sizes(config):
            predict = functools.partial(modes, K, n, K + config.extra_dim)
            of_all = jax.vmap(
                jax.vmap(lambda a, b, predict=predict: predictions(predict(a, b))[0], (0, None)), (None, 0)
            )
            curves.append(np.asarray(jax.jit(of_all)(x, np.asarray(second))))
        found[model] = (x, np.stack(curves))
    return found


def plot(config: Config, data: Data) -> Figure:
    figure = Figure(figsize=(9.8, 5.4))
    rows = figure.subplots(2, 3)
    names = {
        "normalized": [f"$w/n={r:g}$" for r in config.relative_weight],
        "regularized": [f"$l_H/l_W={r:g}$" for r in config.decay_ratio],
    }
    drawn = lines(config)
    for row, model, at in zip(rows, MODELS, ("theta", "decay"), strict=True):
        x, predicted = drawn[model]
        for k, (K, n) in enumerate(_sizes(config)):
            marker = "os^Dv<>"[k % 7]
            for i, name in enumerate(names[model]):
                for m, axes in enumerate(row):
                    axes.plot(x, predicted[k, i, :, m], color=f"C{i}", linewidth=0.9, alpha=0.8)
                    values = data[f"measured_{model}"][k, :, i, m]
                    late = data[f"late_{model}"][k, :, i, m]
                    # Marks of several K lie on each other: the later ones are smaller.
                    style = {"marker": marker, "linestyle": "", "markersize": max(3.5, 8 - 2 * k)}
                    filled = {"color": f"C{i}", "markeredgecolor": "white", "markeredgewidth": 0.6}
                    hollow = {"color": "white", "markeredgecolor": f"C{i}"}
                    label = f"{name}, $K={K}$, $n={n}$"
                    axes.plot(data[at][~late], values[~late], **style, **filled, label=label)
                    axes.plot(data[at][late], values[late], **style, **hollow)
        for axes, title in zip(row, METRICS.values(), strict=True):
            xlabel = r"$\theta=\tau/(K-1)$" if model == "normalized" else "weight decay $l_W$"
            scale = "linear" if model == "normalized" else "log"
            axes.set(xscale=scale, xlabel=xlabel, title=f"{title}, {model}")
        row[0].set_ylabel("factor of a step")
        row[2].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.supxlabel(
        f"lines: predicted to first order; marks: measured, hollow where second order takes over; "
        f"d=K+{config.extra_dim}, gradient descent, step one over the largest eigenvalue",
        fontsize=8,
    )
    return figure
