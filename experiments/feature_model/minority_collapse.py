"""Minority collapse: when the rows of small classes become one, against the threshold of theory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import ufm_jax as ufm
from experiments.harness import chunks
from experiments.harness.experiment import Claim, Data, Progress, UfmConfig, check_fields, check_float64

TITLE = "minority collapse against its threshold"
DURATION = "40 s"


@dataclasses.dataclass(frozen=True)
class Config(UfmConfig):
    """Two large classes beside three small ones, 60 samples together."""

    large_classes: int = 2
    """Number of large classes."""
    small_classes: int = 3
    """Number of small classes."""
    large_size: tuple[int, ...] = (27, 24, 21, 18)
    """Samples of each large class."""
    small_size: tuple[int, ...] = (2, 4, 6, 8)
    """Samples of each small class, one for each of large_size; all N must be equal."""
    extra_dim: int = 1
    """Dimensions of features and classifiers beyond K, d - K."""
    share: tuple[float, ...] = (0.3, 0.5, 0.7, 0.85, 0.92, 0.97, 0.99, 1.01, 1.03, 1.1, 1.3, 1.6)
    """Decays, as `N^2 lW lH` in units of the small size: from 1 on theory has small classes collapse."""
    trials: int = 2
    """Random starts of each setting."""
    steps: int = 500
    """Most iterations of a trial."""
    tolerance: float = 1e-12
    """Norm of the gradient at which a trial ends."""


def check(config: Config) -> None:
    check_float64(config, "certificates reach 1e-9")
    lowest = {"large_classes": 1, "small_classes": 2, "large_size": 2, "small_size": 1, "extra_dim": -1}
    check_fields(config, {**lowest, "trials": 1, "steps": 1}, ["share", "tolerance"])
    if len(config.large_size) != len(config.small_size) or len(set(_totals(config))) != 1:
        raise ValueError(
            "large_size and small_size must be as many and give equal numbers of samples, but give "
            f"{_totals(config)} for {config.large_size} and {config.small_size}."
        )


def _totals(config: Config) -> list[int]:
    pairs = zip(config.large_size, config.small_size, strict=False)
    return [config.large_classes * a + config.small_classes * b for a, b in pairs]


def run(config: Config, progress: Progress, store: chunks.ChunkFolder | None = None) -> Data:
    keys = jax.random.split(jax.random.key(config.seed), config.trials)
    K = config.large_classes + config.small_classes
    sizes = np.array(
        [
            [a] * config.large_classes + [b] * config.small_classes
            for a, b in zip(config.large_size, config.small_size, strict=True)
        ]
    )
    patterns = {
        "labels": np.stack([np.repeat(np.arange(K), row) for row in sizes]),
        "small": np.asarray(config.small_size, config.dtype),
    }
    found = []
    for i, bias in enumerate((False, True)):
        progress(i, 2)
        axes = {"pattern": patterns, "share": np.asarray(config.share, config.dtype), "key": keys}
        one = functools.partial(trial, config, bias)
        found.append(ufm.trials.grid(one, axes, store=chunks.part(store, f"bias-{bias}")))
    progress(1, 1)
    names = ("large_size", "small_size", "share")
    return {name: np.asarray(getattr(config, name)) for name in names} | {
        name: np.stack([f[name] for f in found])
        for name in found[0]  # (bias, pattern, share, trial)
    }


def trial(
    config: Config, bias: bool, pattern: dict[str, jax.Array], share: jax.Array, key: jax.Array
) -> dict[str, jax.Array]:
    """How far apart the rows of small classes are, and the certificate."""
    labels, large = pattern["labels"], config.large_classes
    K = large + config.small_classes
    decay = jnp.sqrt(share * pattern["small"]) / labels.shape[0]
    problem = ufm.regularized(
        labels, K, weight_decay=decay, feature_decay=decay, bias_decay=0.0 if bias else None
    )
    start = problem.random_point(key, K + config.extra_dim, config.dtype)
    solver = ufm.solvers.trust_region()
    found = ufm.minimize(problem, start, solver, max_steps=config.steps, tolerance=config.tolerance)
    W = found.point.W[large:]
    return {
        "threshold": jnp.asarray(ufm.theory.minority_collapse_threshold(labels.shape[0], decay, decay)),
        "apart": jnp.max(jnp.linalg.norm(W[:, None] - W, axis=-1)),
        "gap": ufm.landscape.optimality_gap(problem, found.point),
    }


def _parts(below: np.ndarray, above: np.ndarray) -> bool:
    """Whether rows differ below the threshold and are equal above it, where there are some of both."""
    return bool(below.size and above.size and np.all(below > 0.1) and np.all(above < 1e-6))


def claims(config: Config, data: Data) -> list[Claim]:
    share, apart = data["share"], data["apart"][0]
    below, above = apart[:, share <= 0.97], apart[:, share >= 1.03]
    gap = data["gap"]
    judged = [
        Claim(
            "rows of small classes differ by more than 0.1 below 0.97 of the threshold, and by less than "
            "1e-6 above 1.03 of it, whatever their size",
            _parts(below, above),
            f"at least {below.min(initial=np.inf):.2g} below, at most {above.max(initial=0):.2g} above, in "
            f"{len(apart)} patterns of sizes",
        ),
        Claim(
            "the certificate is below 1e-9 at every point found, with a bias or not",
            bool(np.all(gap < 1e-9)),
            f"largest {gap.max():.2g} in {gap.size} trials",
        ),
    ]
    below, above = (data["apart"][1][:, side] for side in (share <= 0.97, share >= 1.03))
    judged.append(
        Claim(
            "with a free bias the small classes collapse above the same threshold",
            _parts(below, above),
            f"rows differ by at most {above.max(initial=0):.2g} above; below at least "
            f"{below.min(initial=np.inf):.2g}",
        )
    )
    return judged


def plot(config: Config, data: Data) -> Figure:
    figure = Figure(figsize=(9, 3.4))
    for axes, found, title in zip(
        figure.subplots(1, 2), data["apart"], ("no bias", "free bias"), strict=True
    ):
        for i, (a, b) in enumerate(zip(data["large_size"], data["small_size"], strict=True)):
            values = np.maximum(found[i].max(-1), 1e-10)
            axes.plot(data["share"], values, "o-", markersize=4, label=f"sizes {a} and {b}")
        axes.axvline(1, color="black", linewidth=1, linestyle="--")
        axes.set(yscale="log", xlabel="threshold $N^2 \\lambda_W \\lambda_H$ / small size", title=title)
        axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("distance of small classes' rows")
    return figure
