"""Where Theorem 2's conditions end: a search for spurious minima at d <= K and at large tau."""

import dataclasses

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

TITLE = "spurious minima, where the conditions end"
DURATION = "90 s"

SETTLED = 1e-6
"""Relative gradient norm up to which, and relative negative curvature up to which, a point is a minimum."""
DIFFERENT = 1e-3
"""Relative difference of cost from which a minimum is not the best one."""
ROUNDING = 1e-12
"""What rounding of the logits may add to a cost."""


@dataclasses.dataclass(frozen=True)
class Config(UfmConfig):
    """Problems outside the conditions d > K and tau < 2(d-2)/(1 + (K mod 2)/K), and their borders."""

    num_classes: tuple[int, ...] = (4, 6, 6, 3, 4, 5, 2, 3, 4, 2, 3, 4)
    """Numbers of classes, K; the problems are (num_classes, dim), entry by entry."""
    dim: tuple[int, ...] = (2, 2, 3, 2, 3, 4, 2, 3, 4, 3, 4, 5)
    """Dimensions, d."""
    tau: tuple[float, ...] = (1.0, 5.0, 10.0, 20.0, 40.0)
    """Temperatures."""
    samples_per_class: int = 2
    """Samples of each class, n."""
    trials: int = 200
    """Random starts of each setting."""
    steps: int = 1000
    """Most iterations of a trial."""


def check(config: Config) -> None:
    check_float64(config, "minima are told from saddles")
    lowest = {"num_classes": 2, "dim": 2, "samples_per_class": 1, "trials": 1, "steps": 1}
    check_fields(config, lowest, positive=["tau"])
    check_one_for_each(config, "num_classes", "dim")


def run(config: Config, progress: Progress, store: chunks.ChunkFolder | None = None) -> Data:
    keys = jax.random.split(jax.random.key(config.seed), config.trials)
    axes = {"tau": np.asarray(config.tau), "key": keys}
    found = []
    for i, (K, d) in enumerate(zip(config.num_classes, config.dim, strict=True)):
        progress(i, len(config.dim))
        labels = ufm.balanced_labels(K, config.samples_per_class)

        def trial(tau, key, K=K, d=d, labels=labels):
            problem = ufm.normalized(labels, K, tau=tau)
            # Drawn here, where `random_point` would warn that d < K - 1 leaves no room for collapse.
            shapes = ufm.Point(jnp.zeros((K, d)), jnp.zeros((len(labels), d)))
            start = problem.manifold.random_point(key, shapes)
            solver = ufm.solvers.trust_region()
            end = ufm.minimize(problem, start, solver, max_steps=config.steps, tolerance=1e-14)
            verdict = ufm.landscape.certify(problem, end.point, SETTLED)
            # Relative to the scale of the certificate's gradient norm.
            G = ufm.landscape.logit_gradient(problem, end.point)
            eigenvalues = ufm.landscape.spectrum(problem, end.point)
            return {
                "cost": end.value,
                "gradient_norm": verdict.gradient_norm,
                "curvature": eigenvalues[0] / (tau * jnp.linalg.norm(G, ord=2)),
                "is_global_minimum": ufm.landscape.certify(problem, end.point).is_global_minimum,
            }

        found.append(ufm.trials.grid(trial, axes, store=chunks.part(store, str(i))))
    progress(1, 1)
    data = {name: np.stack([f[name] for f in found]) for name in found[0]}
    names = ("num_classes", "dim", "tau")
    return data | {name: np.asarray(getattr(config, name)) for name in names} | _verdicts(config, data)


def _verdicts(config: Config, data: Data) -> Data:
    """Which ends are minima, and which of these are spurious: (problem, tau, trial)."""
    best = np.min(data["cost"], axis=-1)
    minimum = np.asarray(
        [[ufm.theory.cross_entropy_minimum(K, tau) for tau in config.tau] for K in config.num_classes]
    )
    room = np.asarray(config.dim) >= np.asarray(config.num_classes) - 1
    best = np.where(room[:, None], minimum, best)[..., None]
    is_minimum = (data["gradient_norm"] <= SETTLED) & (data["curvature"] >= -SETTLED)
    return {
        "best": best[..., 0],
        "is_minimum": is_minimum,
        "is_spurious": is_minimum & (data["cost"] > best * (1 + DIFFERENT)),
    }


def _problem_name(K: int, d: int) -> str:
    return f"K={K}, d={d}"


def claims(config: Config, data: Data) -> list[Claim]:
    K, d = data["num_classes"], data["dim"]
    judged = []
    for words, chosen, expected in [
        ("d < K can have spurious minima", d < K, True),
        ("d = K has none", d == K, False),
        ("d > K has none at any tau, past Proposition 2's bound too", d > K, False),
    ]:
        if not np.any(chosen):
            continue
        spurious, minima = data["is_spurious"][chosen], data["is_minimum"][chosen]
        excess = (data["cost"] - data["best"][..., None])[chosen]
        rest = excess[~minima]
        # Nothing spurious is found where trials end elsewhere, either.
        all_best = np.all(excess <= DIFFERENT * data["best"][chosen][..., None] + ROUNDING)
        by_problem = "; ".join(
            f"{_problem_name(K[i], d[i])}: "
            + ", ".join(
                f"{data['is_spurious'][i, j].sum()} at tau {tau:g}" for j, tau in enumerate(config.tau)
            )
            for i in np.flatnonzero(chosen)
            if data["is_spurious"][i].any()
        )
        judged.append(
            Claim(
                f"spurious minima from random starts: {words}",
                bool(spurious.any() if expected else all_best),
                f"{spurious.sum()} spurious of {minima.sum()} minima in {minima.size} trials"
                + (f" ({by_problem})" if by_problem else "")
                + (
                    f"; the rest did not settle, at most {rest.max():.2g} above the best"
                    if rest.size
                    else ""
                ),
            )
        )
    return judged


def plot(config: Config, data: Data) -> Figure:
    figure = Figure(figsize=(10, 4.4))
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
    counts, minima = data["is_spurious"].sum(-1), data["is_minimum"].sum(-1)
    left.imshow(counts / config.trials, cmap="Oranges", vmin=0, vmax=1, aspect="auto")
    for (i, j), count in np.ndenumerate(counts):
        left.text(j, i, f"{count} / {minima[i, j]}", ha="center", va="center", fontsize=8)
    names = [_problem_name(K, d) for K, d in zip(config.num_classes, config.dim, strict=True)]
    left.set_xticks(range(len(config.tau)), [f"{tau:g}" for tau in config.tau])
    left.set_yticks(range(len(names)), names)
    left.set(xlabel=r"temperature $\tau$", title="spurious minima / minima found")
    left.grid(False)

    for i, _ in enumerate(names):
        for j, tau in enumerate(config.tau):
            here = data["is_minimum"][i, j]
            excess = data["cost"][i, j][here] - data["best"][i, j]
            right.plot(
                np.full(here.sum(), i + (j - (len(config.tau) - 1) / 2) * 0.15),
                np.maximum(np.abs(excess), 1e-17),
                "o",
                color=f"C{j}",
                markersize=3,
                alpha=0.5,
                label=rf"$\tau = {tau:g}$" if i == 0 else None,
            )
    right.set_yscale("log")
    right.set_xticks(range(len(names)), names, rotation=45, ha="right")
    right.set(title="minima found", ylabel="cost above the best")
    right.legend(fontsize=7)
    return figure
