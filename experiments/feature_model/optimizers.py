"""SGD, Adam and AdamW on the regularized UFM: collapse with decay in the gradient, and beside it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import ufm_jax as ufm
from experiments.harness import chunks, plotting
from experiments.harness.experiment import Claim, Data, Progress, UfmConfig, check_fields, part

TITLE = "SGD, Adam and AdamW: where the decay stands"
DURATION = "30 s"

OPTIMIZERS = {"sgd": "SGD with momentum", "adam": "Adam", "adamw": "AdamW"}
METRICS = {"nc0": r"$|W^T 1|^2 / \|W\|^2$", "nc1": r"$\mathcal{NC}_1$", "nc2": r"$\mathcal{NC}_2$"}


@dataclasses.dataclass(frozen=True)
class Config(UfmConfig):
    """Learning rates fall to 0 along a cosine, so that what is left at the end is no noise of the steps."""

    num_classes: int = 10
    """Number of classes, K."""
    samples_per_class: int = 5
    """Samples of each class, n."""
    dim: int = 16
    """Dimension of features and classifiers, d, at least K - 1."""
    decay: tuple[float, ...] = (1e-4, 5e-4, 2e-3, 5e-3)
    """Decays of weights and features under SGD and Adam, where the gradient holds them."""
    adamw_decay: tuple[float, ...] = (5e-3, 0.02, 0.1, 0.5, 1.0, 2.0)
    """Decays under AdamW, which shrinks weights and features beside the gradient's step."""
    sgd_rate: float = 0.5
    """Learning rate of SGD."""
    adam_rate: float = 0.01
    """Learning rate of Adam and AdamW."""
    trials: int = 4
    """Random starts of each setting."""
    steps: int = 8000
    """Updates of a trial."""


def check(config: Config) -> None:
    lowest = {"num_classes": 2, "samples_per_class": 1, "dim": config.num_classes - 1}
    positive = ["decay", "adamw_decay", "sgd_rate", "adam_rate"]
    check_fields(config, {**lowest, "trials": 1, "steps": 1}, positive)
    if np.any(np.diff(config.decay) <= 0):
        raise ValueError(f"decay must rise from value to value, but is {config.decay}.")


def decays(config: Config, optimizer: str) -> tuple[float, ...]:
    return config.adamw_decay if optimizer == "adamw" else config.decay


def run(config: Config, progress: Progress, store: chunks.ChunkFolder | None = None) -> Data:
    data: Data = {}
    for i, optimizer in enumerate(OPTIMIZERS):
        values = np.asarray(decays(config, optimizer), config.dtype)
        found = ufm.trials.grid(
            functools.partial(trial, config, optimizer),
            {"decay": values, "key": jax.random.split(jax.random.key(config.seed), config.trials)},
            progress=part(progress, i, len(OPTIMIZERS)),
            store=chunks.part(store, optimizer),
        )
        data |= {f"{name}_{optimizer}": of_metric for name, of_metric in found.items()}  # (decay, trial)
        data[f"decay_{optimizer}"] = values
    return data


def trial(config: Config, optimizer: str, decay: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
    """NC0 over the size of W, NC1 to NC3, accuracy, and the length of W, after the last update."""
    K = config.num_classes
    labels = ufm.balanced_labels(K, config.samples_per_class)
    inside = 0.0 if optimizer == "adamw" else decay
    problem = ufm.regularized(labels, K, weight_decay=inside, feature_decay=inside)
    start = problem.random_point(key, config.dim, config.dtype)
    solver = ufm.solvers.from_optax(_transformation(config, optimizer, decay))
    W, H = ufm.minimize(problem, start, solver, max_steps=config.steps, tolerance=0.0).point
    length = jnp.linalg.norm(W)
    return {
        "nc0": K * ufm.metrics.nc0(W) / length**2,
        "nc1": ufm.metrics.nc1(H, labels, K),
        "nc2": ufm.metrics.nc2(W),
        "nc3": ufm.metrics.nc3(W, H, labels),
        "accuracy": ufm.metrics.accuracy(W, H, labels),
        "length": length,
    }


def _transformation(config: Config, optimizer: str, decay: jax.Array) -> optax.GradientTransformation:
    rate = optax.cosine_decay_schedule(
        config.sgd_rate if optimizer == "sgd" else config.adam_rate, config.steps
    )
    match optimizer:
        case "sgd":
            return optax.sgd(rate, momentum=0.9)
        case "adam":
            return optax.adam(rate)
        case _:
            return optax.adamw(rate, weight_decay=decay)


def claims(config: Config, data: Data) -> list[Claim]:
    nc0 = {name: np.median(data[f"nc0_{name}"], 1) for name in OPTIMIZERS}
    nc1 = {name: np.median(data[f"nc1_{name}"], 1) for name in OPTIMIZERS}
    length = {name: np.median(data[f"length_{name}"], 1) for name in OPTIMIZERS}
    measured = {
        name: f"NC0 over the size of W {_series(nc0[name])}, NC1 {_series(nc1[name])} at decays "
        f"{_series(data[f'decay_{name}'])}"
        for name in OPTIMIZERS
    }
    collapsed = length["adam"][nc0["adam"] < 1e-6]
    judged = [
        Claim(
            f"under {OPTIMIZERS[name]}, whose gradient holds the decay, rows of W come to sum to zero, the "
            "sooner the larger the decay (at the largest NC0 is below 1e-6)",
            bool(nc0[name][-1] < 1e-6 and np.all(np.diff(nc0[name]) <= 1e-12)),
            measured[name],
        )
        for name in ("sgd", "adam")
    ]
    return [
        *judged,
        Claim(
            "under AdamW they do at no decay",
            bool(nc0["adamw"].min() > 1e-3),
            measured["adamw"],
        ),
        Claim(
            "which is not that its decay is too weak: it ends with shorter W than Adam at some decay",
            bool(length["adamw"].min() < collapsed.max(initial=0)),
            f"lengths of W: Adam {_series(length['adam'])}, AdamW {_series(length['adamw'])}",
        ),
    ]


def _series(values: np.ndarray) -> str:
    return ", ".join(f"{value:.2g}" for value in values)


def plot(config: Config, data: Data) -> Figure:
    figure = Figure(figsize=(10, 3.2))
    for axes, (metric, label) in zip(figure.subplots(1, 3), METRICS.items(), strict=True):
        for i, (name, words) in enumerate(OPTIMIZERS.items()):
            values = np.maximum(data[f"{metric}_{name}"].T, plotting.NC1_FLOOR)
            style: Any = {"color": f"C{i}", "marker": "osD"[i], "markersize": 4, "label": words}
            plotting.draw_trials(axes, np.median(data[f"length_{name}"], 1), values, **style)
        axes.set(yscale="log", xlabel=r"$\|W\|$ (shorter: more decay)", ylabel=f"{label} at the end")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(
        f"regularized UFM; K={config.num_classes}, n={config.samples_per_class}, d={config.dim}, "
        f"{config.steps} updates, {plotting.LINES['median']} of {config.trials} trials",
        fontsize=9,
    )
    return figure
