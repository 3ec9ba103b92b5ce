"""Minima of the regularized UFM: found from random starts, against closed forms and their certificate."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import ufm_jax as ufm
from experiments.harness import chunks
from experiments.harness.experiment import (
    Claim,
    Data,
    Progress,
    UfmConfig,
    check_fields,
    check_float64,
    check_one_for_each,
)
from ufm_jax import _checks

TITLE = "regularized UFM: found minima and closed forms"
DURATION = "90 s"

CASES = ("cross entropy", "label smoothing", "squared error")
BIASES = ("no bias", "free bias")


@dataclasses.dataclass(frozen=True)
class Config(UfmConfig):
    """Three losses, with and without a bias, classes of equal and of unequal sizes."""

    num_classes: tuple[int, ...] = (4, 8)
    """Numbers of classes, K."""
    samples_per_class: tuple[int, ...] = (7, 4)
    """Samples of each class, or their mean where sizes differ, n, one for each of num_classes."""
    extra_dim: int = 1
    """Dimensions of features and classifiers beyond K, d - K."""
    decay: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 3e-2, 0.06, 0.2)
    """Weight decays."""
    decay_ratio: tuple[float, ...] = (1.0, 0.1)
    """Feature decays, divided by the weight decay."""
    alpha: float = 0.1
    """Label smoothing."""
    trials: int = 2
    """Random starts of each setting."""
    steps: int = 500
    """Most iterations of a trial."""
    tolerance: float = 1e-12
    """Norm of the gradient at which a trial ends."""


def check(config: Config) -> None:
    check_float64(config, "minima agree to 1e-9")
    # The closed form of the squared error without a bias needs d = K.
    lowest = {"num_classes": 2, "samples_per_class": 1, "extra_dim": 0, "trials": 1, "steps": 1}
    check_fields(config, lowest, ["decay", "decay_ratio", "tolerance"])
    _checks.within("alpha", config.alpha, 0, 1)
    check_one_for_each(config, "num_classes", "samples_per_class")
    for K, n in zip(config.num_classes, config.samples_per_class, strict=True):
        if np.any(np.diff(unequal_sizes(K, n)) > 0):
            raise ValueError(
                f"samples_per_class must be larger for {K} classes: {n} is too small a mean for sizes that "
                "fall."
            )


def unequal_sizes(K: int, n: int) -> np.ndarray:
    """Sizes of K classes with mean n, each two fifths of the one before, at least 1: 20, 5, 2, 1."""
    shares = 0.4 ** np.arange(K)
    sizes = np.maximum(np.floor(n * K * shares / shares.sum()).astype(int), 1)
    sizes[0] += n * K - sizes.sum()
    return sizes


def targets_of(config: Config, K: int, n: int) -> np.ndarray:
    """Targets (2 sizes, one-hot and smoothed, N, K): label smoothing is cross entropy against these."""
    one_hot = np.stack([np.repeat(np.eye(K), sizes, axis=0) for sizes in ([n] * K, unequal_sizes(K, n))])
    smoothed = (1 - config.alpha) * one_hot + config.alpha / K
    return np.stack([one_hot, smoothed], 1).astype(config.dtype)


def run(config: Config, progress: Progress, store: chunks.ChunkFolder | None = None) -> Data:
    keys = jax.random.split(jax.random.key(config.seed), config.trials)
    scalars = {name: np.asarray(getattr(config, name), config.dtype) for name in ("decay", "decay_ratio")}
    sizes = list(zip(config.num_classes, config.samples_per_class, strict=True))
    found: list[dict[str, np.ndarray]] = []
    for i, (K, n) in enumerate(sizes):
        targets = targets_of(config, K, n)
        by_bias = []
        for j, bias in enumerate(BIASES):
            progress(2 * i + j, 2 * len(sizes))
            parts = []
            for loss, rows in [("cross_entropy", targets), ("squared_error", targets[:, :1])]:
                one = functools.partial(trial, config, K, loss, bias != "no bias")
                axes = {"targets": rows.reshape(-1, *rows.shape[2:]), **scalars, "key": keys}
                grid = ufm.trials.grid(one, axes, store=chunks.part(store, f"{i}-{bias}-{loss}"))
                # (sizes, targets, decay, ratio, trial)
                parts.append({k: x.reshape(2, -1, *x.shape[1:]) for k, x in grid.items()})
            by_bias.append({name: np.concatenate([p[name] for p in parts], 1) for name in parts[0]})
        found.append({name: np.stack([b[name] for b in by_bias]) for name in by_bias[0]})
    progress(1, 1)
    data = {name: np.stack([f[name] for f in found]) for name in found[0]}
    data["minimum"] = np.stack([closed_forms(config, K, n) for K, n in sizes])
    swept = ("num_classes", "samples_per_class", "decay", "decay_ratio")
    return {name: np.asarray(getattr(config, name)) for name in swept} | data


def trial(
    config: Config,
    K: int,
    loss: str,
    bias: bool,
    targets: jax.Array,
    decay: jax.Array,
    decay_ratio: jax.Array,
    key: jax.Array,
) -> dict[str, jax.Array]:
    """The value found, its certificate, and how far W is from a simplex and from an orthogonal frame."""
    problem = ufm.regularized(
        targets,
        K,
        getattr(ufm.losses, loss),
        weight_decay=decay,
        feature_decay=decay_ratio * decay,
        bias_decay=0.0 if bias else None,
    )
    start = problem.random_point(key, K + config.extra_dim, config.dtype)
    solver = ufm.solvers.trust_region()
    found = ufm.minimize(problem, start, solver, max_steps=config.steps, tolerance=config.tolerance)
    W = found.point.W
    gram = W @ W.T
    norm = jnp.linalg.norm(gram)
    unit = gram / jnp.where(norm > 0, norm, 1)
    return {
        "value": found.value,
        "gap": ufm.landscape.optimality_gap(problem, found.point),
        "simplex": ufm.metrics.nc2(W),
        "frame": jnp.linalg.norm(unit - jnp.eye(K, dtype=W.dtype) / K**0.5),
        "length": norm,
    }


def closed_forms(config: Config, K: int, n: int) -> np.ndarray:
    """Minima (bias, sizes, case, decay, ratio); infinite where none is known in closed form."""
    decay = np.asarray(config.decay)[:, None]
    lW, lH = np.broadcast_arrays(decay, decay * np.asarray(config.decay_ratio))
    found = np.full((2, 2, 3, *lW.shape), np.inf)
    found[:, 0, 0] = ufm.theory.regularized_cross_entropy_minimum(K, n, lW, lH)
    found[:, 0, 1] = ufm.theory.regularized_label_smoothing_minimum(K, n, lW, lH, config.alpha)
    targets = targets_of(config, K, n)[:, 0]
    for b, s, *at in np.ndindex(2, 2, *lW.shape):
        rates = lW[tuple(at)], lH[tuple(at)]
        minimum = ufm.theory.regularized_squared_error_minimum(targets[s], *rates, bias=bool(b))
        found[(b, s, 2, *at)] = minimum
    return found


def claims(config: Config, data: Data) -> list[Claim]:
    difference = data["value"] - data["minimum"][..., None]
    known = np.broadcast_to(np.isfinite(data["minimum"])[..., None], difference.shape)
    judged = []
    for i, name in enumerate(CASES):
        apart = difference[:, :, :, i][known[:, :, :, i]]
        judged.append(
            Claim(
                f"{name}: every minimum found is the closed form's, to 1e-9, and none lies below by 1e-10",
                bool(np.all(np.abs(apart) < 1e-9) and np.all(apart > -1e-10)),
                f"from {apart.min():.2g} to {apart.max():.2g} in {apart.size} trials",
            )
        )
    gap = data["gap"]
    judged.append(
        Claim(
            "the certificate is below 1e-9 at every minimum found, for any class sizes, with a bias or not",
            bool(np.all(gap < 1e-9)),
            f"largest {gap[:, :, 0].max():.2g} (equal sizes), {gap[:, :, 1].max():.2g} (unequal), "
            f"in {gap.size} trials",
        )
    )
    # Equal sizes, and decays below those at which all is zero.
    learned = data["length"][:, :, 0] > 1e-3
    simplex = np.where(learned, data["simplex"][:, :, 0], 0)
    frame = np.where(learned, data["frame"][:, :, 0], 0)
    entropies, squares = simplex[:, :, :2].max(), simplex[:, 1, 2].max()
    worst = max(entropies, squares, frame[:, 0, 2].max())
    judged.append(
        Claim(
            "equal sizes: W is a simplex ETF, and for squared error without bias a frame, to 1e-6",
            bool(learned.any() and worst < 1e-6),
            f"largest distance {entropies:.2g} (cross entropies), {squares:.2g} (squared error, bias), "
            f"{frame[:, 0, 2].max():.2g} (squared error, frame), where W is not 0: "
            f"{learned.sum()} trials",
        )
    )
    return judged


def plot(config: Config, data: Data) -> Figure:
    figure = Figure(figsize=(10, 3.6))
    left, right = figure.subplots(1, 2)
    decay = data["decay"]
    for i, name in enumerate(CASES):
        for b, bias in enumerate(BIASES):
            if b and i < 2:  # A free bias changes nothing for equal sizes.
                continue
            style = {"color": f"C{i}", "linestyle": ["-", "--"][b]}
            left.plot(decay, data["minimum"][0, b, 0, i, :, 0], **style, linewidth=1)
            values = data["value"][0, b, 0, i, :, 0]
            label = f"{name}, {bias}" if i == 2 else name
            left.plot(decay, values.mean(-1), "os"[b], color=f"C{i}", markersize=4, label=label)
        gap = data["gap"][:, :, :, i]
        for s, sizes in enumerate(("equal", "unequal")):
            worst = np.maximum(gap[:, :, s].max(axis=(0, 1, 3, 4)), 1e-18)
            right.plot(
                decay, worst, "o^"[s] + "-", color=f"C{i}", markersize=4, label=f"{name}, {sizes} sizes"
            )
    K, n = config.num_classes[0], config.samples_per_class[0]
    left.set(
        xscale="log",
        xlabel="weight decay $\\lambda_W$",
        ylabel="minimum",
        title=f"found, and closed form; K={K}, n={n}",
    )
    right.set(
        xscale="log",
        yscale="log",
        xlabel="weight decay $\\lambda_W$",
        title="certificate at what was found",
    )
    right.set_ylabel("largest possible distance to the minimum")
    left.legend(fontsize=7)
    right.legend(fontsize=7)
    return figure
