"""Deep UFM: linear models against their closed form, and whether ReLU models collapse in every layer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import ufm_jax as ufm
from experiments.harness import chunks
from experiments.harness.experiment import Claim, Data, Progress, UfmConfig, check_fields, check_float64

TITLE = "deep UFM: linear minima, ReLU models by layer"
DURATION = "80 s"

MODELS = {"linear": None, "ReLU": jax.nn.relu}


@dataclasses.dataclass(frozen=True)
class Config(UfmConfig):
    """Squared error, all factors (features and weights) with one decay."""

    factors: tuple[int, ...] = (2, 3, 4, 5, 6)
    """Factors of the logits: the features and the weights of each layer."""
    num_classes: int = 10
    """Number of classes, K."""
    samples_per_class: int = 2
    """Samples of each class, n."""
    width: int = 16
    """Width of all layers, at least K."""
    decay: tuple[float, ...] = (1e-3,)
    """Decays of every factor."""
    trials: int = 4
    """Random starts of each setting."""
    steps: int = 2000
    """Most iterations of a trial."""
    tolerance: float = 1e-8
    """Norm of the gradient at which a trial ends."""


def check(config: Config) -> None:
    check_float64(config, "minima agree to 1e-8")
    lowest = {"factors": 2, "num_classes": 2, "samples_per_class": 1, "trials": 1, "steps": 1}
    check_fields(config, {**lowest, "width": config.num_classes}, ["decay", "tolerance"])


def run(config: Config, progress: Progress, store: chunks.ChunkFolder | None = None) -> Data:
    axes = {
        "decay": np.asarray(config.decay, config.dtype),
        "key": jax.random.split(jax.random.key(config.seed), config.trials),
    }
    found = {}
    parts = [(depth, model) for depth in config.factors for model in MODELS]
    for i, (depth, model) in enumerate(parts):
        progress(i, len(parts))
        one = functools.partial(trial, config, depth, model)
        found[depth, model] = ufm.trials.grid(one, axes, store=chunks.part(store, f"{depth}-{model}"))
    progress(1, 1)
    data: Data = {name: np.asarray(getattr(config, name)) for name in ("factors", "decay")}
    # Layers that a model lacks are negative: (factors, model, decay, trial, layer).
    most = max(config.factors) - 1
    for name in found[parts[0]]:
        padded = [
            [
                _padded(found[depth, model][name], most) if name in LAYERED else found[depth, model][name]
                for model in MODELS
            ]
            for depth in config.factors
        ]
        data[name] = np.asarray(padded)
    targets = np.repeat(np.eye(config.num_classes), config.samples_per_class, axis=0)
    data["minimum"] = np.array(
        [
            [ufm.theory.deep_linear_minimum(targets, [decay] * depth) for decay in config.decay]
            for depth in config.factors
        ]
    )
    return data


LAYERED = ("nc1", "orthogonality")


def _padded(values: np.ndarray, layers: int) -> np.ndarray:
    room = [(0, 0)] * (values.ndim - 1) + [(0, layers - values.shape[-1])]
    return np.pad(values, room, constant_values=-1)


def trial(config: Config, depth: int, model: str, decay: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
    """The value found, the collapse of every layer, and the rank of the features before the classifier."""
    labels = ufm.balanced_labels(config.num_classes, config.samples_per_class)
    rates = [decay] * (depth - 1)
    problem = ufm.deep.problem(labels, config.num_classes, rates, decay, activation=MODELS[model])
    start = problem.random_point(key, config.width, config.dtype)
    solver = ufm.solvers.lbfgs()
    found = ufm.minimize(problem, start, solver, max_steps=config.steps, tolerance=config.tolerance)
    measured = problem.measure(found.point)
    values = jnp.linalg.svd(problem.features(found.point)[-1], compute_uv=False)
    return {
        "value": found.value,
        "nc1": jnp.nan_to_num(measured.nc1, posinf=1e9),
        "orthogonality": measured.orthogonality,
        "rank": jnp.sum(values > 1e-3 * jnp.max(values)),
    }


def best_of(data: Data, name: str) -> np.ndarray:
    """Of the trial with the lowest value, what is called `name`: (factors, model, decay) and more axes."""
    best = np.argmin(data["value"], axis=-1)[..., None]
    values = data[name]
    best = best.reshape(*best.shape, *[1] * (values.ndim - best.ndim))
    return np.take_along_axis(values, best, axis=3).squeeze(3)


def claims(config: Config, data: Data) -> list[Claim]:
    excess = best_of(data, "value") - data["minimum"][:, None]
    every = data["value"] - data["minimum"][:, None, :, None]
    linear, relu = excess[:, 0], excess[:, 1]
    judged = [
        Claim(
            "linear models: the lowest value found is the minimum, to 1e-8, and none is below by 1e-10",
            bool(np.all(np.abs(linear) < 1e-8) and np.all(every[:, 0] > -1e-10)),
            f"from {every[:, 0].min():.2g} to {linear.max():.2g} at {linear.size} settings",
        )
    ]
    lowest, rank = relu.min(1), best_of(data, "rank")[np.arange(len(relu)), 1, relu.argmin(1)]
    shallow, deep = data["factors"] <= 3, data["factors"] > 3
    if shallow.any():
        judged.append(
            Claim(
                "ReLU models of at most three factors: nothing lies below collapse in every layer by 1e-8",
                bool(np.all(every[shallow, 1] > -1e-8)),
                f"lowest value less that of collapse {every[shallow, 1].min():.2g}",
            )
        )
    if deep.any():
        judged.append(
            Claim(
                "ReLU models of more factors: collapse in every layer is not optimal, "
                "a point of lower rank is",
                bool(np.all((lowest[deep] < -1e-6) & (rank[deep] < config.num_classes))),
                "lowest value found less that of collapse: "
                + ", ".join(
                    f"{lowest[i]:.2g} ({config.factors[i]} factors, rank {rank[i]})"
                    for i in np.flatnonzero(deep)
                ),
            )
        )
    nc1 = best_of(data, "nc1")[:, 1]
    judged.append(
        Claim(
            "ReLU models: classes are points in every layer at the lowest value found, NC1 below 1e-6",
            bool(np.all(nc1 < 1e-6)),
            f"largest NC1 of a layer {nc1.max():.2g}",
        )
    )
    return judged


def plot(config: Config, data: Data) -> Figure:
    figure = Figure(figsize=(10, 3.4))
    left, right = figure.subplots(1, 2)
    every = data["value"] / data["minimum"][:, None, :, None]
    for i, depth in enumerate(config.factors):
        for m, (model, marker) in enumerate(zip(MODELS, "os", strict=True)):
            for d, decay in enumerate(config.decay):
                x = i + 0.2 * (d - (len(config.decay) - 1) / 2) + 0.06 * (2 * m - 1)
                y = every[i, m, d]
                label = f"{model}, decay {decay:g}" if i == 0 else None
                left.plot(
                    np.full(len(y), x),
                    y,
                    marker,
                    color=f"C{m}",
                    alpha=0.3 + 0.5 * d / max(len(config.decay) - 1, 1),
                    markersize=4,
                    label=label,
                )
        layers = best_of(data, "nc1")[i, 1, 0]
        layers = np.maximum(layers[layers >= 0], 1e-20)
        right.plot(
            np.arange(1, len(layers) + 1), layers, "o-", color=f"C{i}", label=f"{depth} factors: NC1"
        )
        frames = best_of(data, "orthogonality")[i, 1, 0]
        frames = np.maximum(frames[frames >= 0], 1e-20)
        right.plot(np.arange(1, len(frames) + 1), frames, "s--", color=f"C{i}", markersize=4)
    left.axhline(1, color="black", linewidth=1)
    left.set_xticks(range(len(config.factors)), [str(f) for f in config.factors])
    left.set(
        xlabel="factors", ylabel="value / minimum of the linear model", title="found from random starts"
    )
    title = f"ReLU, decay {config.decay[0]:g}: NC1; dashed, from a frame"
    right.set(yscale="log", xlabel="layer", title=title)
    right.set_xticks(np.arange(1, max(config.factors)))
    for axes in (left, right):
        axes.legend(fontsize=7)
    return figure
