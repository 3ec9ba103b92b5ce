"""More classes than a simplex ETF has room for: minima against the best spherical packings as tau grows."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import ufm_jax as ufm
from experiments.harness import chunks, plotting, tables
from experiments.harness.experiment import (
    Claim,
    Data,
    Progress,
    UfmConfig,
    check_fields,
    check_float64,
    check_one_for_each,
    part,
)

TITLE = "more classes than dimensions, against packings"
DURATION = "2 min"

REACHED = 1e-3
"""Differences of angle (radians) and of one-vs-rest distance up to which a packing counts as reached."""
PUSH = 1e-3
"""Length of the random step with which a minimum is left for the next temperature."""


@dataclasses.dataclass(frozen=True)
class Config(UfmConfig):
    """Classes in the plane and in space, where the best packings are known."""

    num_classes: tuple[int, ...] = (4, 5, 6, 7, 8, 10, 12, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14)
    """Numbers of classes, K; the problems are (num_classes, dim), entry by entry."""
    dim: tuple[int, ...] = (2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3)
    """Dimensions, d."""
    tau: tuple[float, ...] = tuple(2.0**i for i in range(14))
    """Temperatures; they are visited from the smallest to the largest."""
    samples_per_class: int = 1
    """Samples of each class, n."""
    trials: int = 16
    """Random starts of each problem, and again of each temperature."""
    steps: int = 200
    """Most iterations of the trust region at a temperature."""


def check(config: Config) -> None:
    check_float64(config, "angles settle to 1e-8")
    lowest = {"num_classes": 2, "dim": 2, "samples_per_class": 1, "trials": 1, "steps": 1}
    check_fields(config, lowest, positive=["tau"])
    check_one_for_each(config, "num_classes", "dim")
    for K, d in zip(config.num_classes, config.dim, strict=True):
        ufm.theory.packing_angle(K, d)


def log_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The logarithm of the mean cross entropy of logits (N, K), a scalar.

    It has the minima of cross entropy and keeps its digits where cross entropy and its gradient have
    underflowed.
    """
    own = jnp.take_along_axis(logits, labels[:, None], -1)
    is_own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    # Cross entropy is log(1 + exp(x)) with x the log of the others' share against the true class's.
    x = jax.nn.logsumexp(jnp.where(is_own, -jnp.inf, logits - own), axis=-1)
    is_small = x < -40
    log_losses = jnp.where(is_small, x, jnp.log(jax.nn.softplus(jnp.where(is_small, 0, x))))
    return jax.nn.logsumexp(log_losses) - jnp.log(len(labels))


def soft_margin(problem: ufm.Problem, point: ufm.Point) -> jax.Array:
    """`-log(cross entropy) / tau`, which tends to the smallest margin `<w_y - w_k, h>` as tau grows."""
    return -log_cross_entropy(problem.scores(point), problem.labels) / problem.tau


def normalized_ufm(num_classes: int, labels: jax.Array, tau: jax.Array) -> ufm.Problem:
    """The normalized UFM with minus the soft margin for its cost, which has the same minima."""

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.broadcast_to(log_cross_entropy(logits, labels) / tau, labels.shape)

    return ufm.normalized(labels, num_classes, loss=loss, tau=tau)


def trial_of(config: Config, num_classes: int, dim: int) -> Callable[..., dict[str, jax.Array]]:
    """A trial from a random key: at each temperature the better of two ends, as arrays (tau, ...).

    One starts from the end at the temperature before, pushed off a saddle that it may have become; the
    other at random.
    """
    labels = ufm.balanced_labels(num_classes, config.samples_per_class)
    sphere = ufm.manifolds.Oblique()
    # Drawn here, where `random_point` of the problem would warn that collapse is out of reach.
    shapes = ufm.Point(jnp.zeros((num_classes, dim)), jnp.zeros((len(labels), dim)))
    tau = jnp.sort(jnp.asarray(config.tau, config.dtype))

    def at_temperature(point, inputs):
        tau, key = inputs
        problem = normalized_ufm(num_classes, labels, tau)
        of_push, of_start = jax.random.split(key)
        push = sphere.project(point, sphere.random_point(of_push, shapes))
        pushed = sphere.retract(point, jax.tree.map(lambda x: PUSH * x, push))
        starts = jax.tree.map(lambda *x: jnp.stack(x), pushed, sphere.random_point(of_start, shapes))
        solver = ufm.solvers.trust_region()
        ends = jax.lax.map(
            lambda start: ufm.minimize(problem, start, solver, max_steps=config.steps, tolerance=1e-10),
            starts,
        )
        end = jax.tree.map(lambda x: x[jnp.argmin(ends.value)], ends)
        return end.point, {
            "soft_margin": -end.value,
            "gradient_norm": end.gradient_norm,
            "angle": smallest_angle(end.point.W),
            "W": end.point.W,
            "H": end.point.H,
        }

    def trial(key):
        of_start, of_steps = jax.random.split(key)
        start = sphere.random_point(of_start, shapes)
        return jax.lax.scan(at_temperature, start, (tau, jax.random.split(of_steps, len(tau))))[1]

    return trial


def smallest_angle(W: jax.Array) -> jax.Array:
    """The smallest angle between two of the unit rows (K, d), in radians."""
    cosines = jnp.where(jnp.eye(len(W), dtype=bool), -1, W @ W.T)
    return jnp.arccos(jnp.clip(jnp.max(cosines), -1, 1))


def run(config: Config, progress: Progress, store: chunks.ChunkFolder | None = None) -> Data:
    keys = jax.random.split(jax.random.key(config.seed), config.trials)
    problems = list(zip(config.num_classes, config.dim, strict=True))
    rows = []
    for i, (K, d) in enumerate(problems):
        found = ufm.trials.grid(
            trial_of(config, K, d),
            {"key": keys},
            progress=part(progress, i, len(problems)),
            store=chunks.part(store, f"{K}-{d}"),
        )
        rows.append(_best(config, K, found))
    tau = np.sort(np.asarray(config.tau, config.dtype))
    data = {name: np.stack([row[name] for row in rows]) for name in rows[0] if name != "W"}
    codes = {f"W_{K}_{d}": row["W"][-1] for (K, d), row in zip(problems, rows, strict=True)}
    return {
        "num_classes": np.asarray(config.num_classes),
        "dim": np.asarray(config.dim),
        "tau": tau,
        "packing_angle": np.asarray([ufm.theory.packing_angle(K, d) for K, d in problems]),
        "polygon_soft_margin": np.stack([_of_polygon(K, tau) for K in config.num_classes]),
        **data,
        **codes,
    }


def _best(config: Config, num_classes: int, found: Data) -> Data:
    """The trials (tau, trial), and the best of them at each temperature (tau, ...)."""
    trials = {name: found[name].T for name in ("soft_margin", "gradient_norm", "angle")}
    best = trials["soft_margin"].argmax(-1)
    each = np.arange(len(best))
    W, H = (found[name][best, each] for name in ("W", "H"))
    labels = ufm.balanced_labels(num_classes, config.samples_per_class)
    gnc2 = jax.lax.map(ufm.metrics.gnc2, jnp.asarray(W))
    gnc3 = jax.vmap(ufm.metrics.gnc3, (0, 0, None))(jnp.asarray(W), jnp.asarray(H), labels)
    kept = {f"best_{name}": values[each, best] for name, values in trials.items()}
    return trials | kept | {"gnc2": np.asarray(gnc2), "gnc3": np.asarray(gnc3), "W": W}


def _of_polygon(num_classes: int, tau: np.ndarray) -> np.ndarray:
    """The soft margin (tau,) of the regular polygon, with the features on the classifier."""
    W = ufm.theory.regular_polygon(num_classes)
    labels = ufm.balanced_labels(num_classes, 1)
    return np.stack([soft_margin(normalized_ufm(num_classes, labels, t), ufm.Point(W, W)) for t in tau])


def claims(config: Config, data: Data) -> list[Claim]:
    dim, tau = data["dim"], data["tau"]
    packing = data["packing_angle"]
    largest = f"tau = {tau[-1]:g}"
    judged = []
    for d in np.unique(dim):
        short = (packing - data["best_angle"][:, -1])[dim == d]
        judged.append(
            Claim(
                f"d = {d}: the smallest angle reaches that of the best packing for every K, to {REACHED:g} "
                f"at {largest}",
                bool(np.all(np.abs(short) <= REACHED)),
                "packing minus found, radians: " + _by_classes(data, dim == d, short),
            )
        )
    plane = dim == 2
    if plane.any():
        above = (data["best_soft_margin"] - data["polygon_soft_margin"])[plane]
        judged.append(
            Claim(
                "d = 2: at every tau the best value found is that of the regular polygon, to 1e-9",
                bool(np.all(np.abs(above) <= 1e-9)),
                f"-log(loss)/tau, found minus polygon: {above.min():.2g} to {above.max():.2g}",
            )
        )
    excess = data["gnc2"][:, -1] - (1 - np.cos(packing))
    judged.append(
        Claim(
            "the softmax code is the packing: the one-vs-rest distance reaches 1 - cos(packing angle), to "
            f"{REACHED:g} at {largest}, and does not pass it",
            bool(np.all(np.abs(excess) <= REACHED) and excess.max() <= 1e-8),
            "found minus that: " + _by_classes(data, np.full(len(dim), True), excess),
        )
    )
    judged.append(
        Claim(
            f"features and classifier are aligned (GNC3 below {REACHED:g} at {largest})",
            bool(np.all(data["gnc3"][:, -1] < REACHED)),
            _by_classes(data, np.full(len(dim), True), data["gnc3"][:, -1]),
        )
    )
    return judged


def _by_classes(data: Data, chosen: np.ndarray, values: np.ndarray) -> str:
    names = [
        f"K={K}" + (f", d={d}" if chosen.all() else "")
        for K, d in zip(data["num_classes"][chosen], data["dim"][chosen], strict=True)
    ]
    return "; ".join(f"{value:.2g} at {name}" for value, name in zip(values, names, strict=True))


def table(config: Config, data: Data) -> str:
    """What was found at the largest temperature, beside the packing."""
    header = (
        "d",
        "K",
        "smallest angle",
        "packing",
        "one-vs-rest distance",
        "1 - cos(packing)",
        "GNC3",
        "starts",
    )
    rows = []
    for i, (K, d) in enumerate(zip(data["num_classes"], data["dim"], strict=True)):
        angle = data["packing_angle"][i]
        hits = np.sum(data["soft_margin"][i, -1] >= data["best_soft_margin"][i, -1] - 1e-8)
        angles = [f"{np.degrees(x):.4f}" for x in (data["best_angle"][i, -1], angle)]
        distances = [f"{x:.6f}" for x in (data["gnc2"][i, -1], 1 - np.cos(angle))]
        gnc3 = f"{data['gnc3'][i, -1]:.1e}"
        rows.append([d, K, *angles, *distances, gnc3, f"{hits} of {config.trials}"])
    return tables.table(header, rows)


def plot(config: Config, data: Data) -> Figure:
    dims = np.unique(data["dim"])
    figure = Figure(figsize=(10, 0.7 + 2.7 * len(dims)))
    tau = data["tau"]
    for row, d in zip(figure.subplots(len(dims), 3, squeeze=False), dims, strict=True):
        chosen = np.flatnonzero(data["dim"] == d)
        colors = plotting.sequence_colors(len(chosen))
        for color, i in zip(colors, chosen, strict=True):
            angle = data["packing_angle"][i]
            style = {"color": color, "marker": "o", "markersize": 2.5}
            label = f"$K={data['num_classes'][i]}$"
            row[0].plot(tau, np.degrees(data["best_angle"][i]), label=label, **style)
            row[1].plot(tau, data["gnc2"][i], **style)
            for axes, theory in [(row[0], np.degrees(angle)), (row[1], 1 - np.cos(angle))]:
                axes.axhline(theory, color=color, linewidth=0.8, linestyle="--", zorder=1)
            row[2].plot(tau, 1 - np.cos(angle) - data["best_soft_margin"][i], **style)
        row[0].set(ylabel=f"$d={d}$: degrees", title="smallest angle between classes")
        row[1].set(title="smallest one-vs-rest distance")
        row[2].set(title=r"$1-\cos\theta$ minus $-\log(\mathrm{loss})/\tau$", yscale="log")
        for axes in row:
            axes.set(xscale="log", xlabel=r"temperature $\tau$")
        for axes in row[:2]:
            axes.ticklabel_format(axis="y", useOffset=False)
        row[2].legend(*row[0].get_legend_handles_labels(), loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(
        f"minima of the normalized UFM, n={config.samples_per_class}, best of {config.trials} trials; "
        r"dashed: best packing, angle $\theta$",
        fontsize=10,
    )
    return figure
