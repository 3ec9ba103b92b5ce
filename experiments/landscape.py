"""Theorem 2, tested: hundreds of saddles, minima from random starts, and the ways down between them."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

import ufm_jax as ufm
from experiments import chunks, plotting
from experiments.experiment import Claim, Data, Experiment, Progress, UfmConfig, check_fields

KINDS = ("rank one", "rank one, reflected", "antipodal", "merged classes", "found from a random start")
MARKERS = "os^Dv"
CRITICAL = 1e-12
"""Norm of the gradient up to which a point counts as critical."""
ABOVE = 1e-8
"""Cost above the global minimum from which a critical point counts as a saddle."""


@dataclasses.dataclass(frozen=True)
class Config(UfmConfig):
    """Small problems inside the conditions of Theorem 2, so that dense spectra are cheap."""

    num_classes: tuple[int, ...] = (2, 3, 4, 5, 6)
    """Numbers of classes, K; the problems are (num_classes, samples_per_class, dim), entry by entry."""
    samples_per_class: tuple[int, ...] = (4, 3, 3, 3, 2)
    """Samples of each class, n."""
    dim: tuple[int, ...] = (5, 6, 7, 8, 10)
    """Dimensions, d, each larger than its K."""
    tau: tuple[float, ...] = (0.1, 0.5, 1.0, 2.5, 5.0)
    """Temperatures, each below Theorem 2's bound in every problem."""
    trials: int = 20
    """Random starts in each setting, for minima and again for saddles; half as many points of rank one."""
    steps: int = 4000
    """Most iterations of gradient descent in a trial."""


def check(config: Config) -> None:
    if config.dtype != "float64":
        raise ValueError(
            f"dtype must be float64, in which gradients reach {CRITICAL:g}, but is {config.dtype}."
        )
    sizes = (config.num_classes, config.samples_per_class, config.dim)
    lowest = {"num_classes": 2, "samples_per_class": 1, "trials": 1, "steps": 1}
    check_fields(config, lowest, positive=["tau"])
    if len({len(values) for values in sizes}) > 1:
        raise ValueError(
            "num_classes, samples_per_class and dim need one value for each problem, "
            f"but have {', '.join(str(len(values)) for values in sizes)}."
        )
    for K, _, d in zip(*sizes, strict=True):
        if d <= K:
            raise ValueError(f"Theorem 2 is for dim larger than num_classes, but they are {d} and {K}.")
        bound = ufm.theory.strict_saddle_threshold(K, d)
        if max(config.tau) >= bound:
            raise ValueError(
                f"Theorem 2 needs tau below {bound:g} at num_classes {K} and dim {d}, "
                f"but tau is {max(config.tau):g}."
            )


def run(config: Config, progress: Progress, store: chunks.ChunkFolder | None = None) -> Data:
    sizes = list(zip(config.num_classes, config.samples_per_class, config.dim, strict=True))
    saddles, minima, spectra, rejected = [], [], {}, 0
    for i, (K, n, d) in enumerate(sizes):
        progress(i, len(sizes))
        size = {"num_classes": K, "samples_per_class": n, "dim": d}
        own = chunks.part(store, str(i))
        candidates = _candidates(config, K, n, d, own)
        describe = functools.partial(_describe, config, K, n)
        described = ufm.trials.run(describe, candidates, store=chunks.part(own, "described"))
        is_saddle = (described["gradient_norm"] <= CRITICAL) & (described["excess"] > ABOVE)
        rejected += np.sum(~is_saddle)
        columns = described | {"tau": candidates["tau"], "kind": candidates["kind"]}
        columns |= {name: np.full(len(is_saddle), value) for name, value in size.items()}
        saddles.append({name: np.asarray(values)[is_saddle] for name, values in columns.items()})
        minima.append(_minima(config, K, n, d, chunks.part(own, "minima")))
        spectra[f"spectrum_{i}"] = _spectra_at_minimum(config, K, n, d)
    progress(1, 1)
    return {
        **{f"saddle_{name}": np.concatenate([s[name] for s in saddles]) for name in saddles[0]},
        **{f"minimum_{name}": np.stack([m[name] for m in minima]) for name in minima[0]},
        **spectra,
        "rotations": np.array([(K - 1) * (2 * d - K) // 2 for K, _, d in sizes]),
        "rejected": np.array(rejected),
        **{name: np.asarray(getattr(config, name)) for name in ("num_classes", "samples_per_class")},
        "dim": np.asarray(config.dim),
        "tau": np.asarray(config.tau),
    }


def _problem(K: int, n: int, tau: Any) -> ufm.Problem:
    return ufm.normalized(ufm.balanced_labels(K, n), K, tau=tau)


def _candidates(config: Config, K: int, n: int, d: int, store: chunks.ChunkFolder | None) -> dict[str, Any]:
    """Points built or found, of every kind, at every temperature: tau (S,), kind (S,), point (S, ...)."""
    tau = np.asarray(config.tau, config.dtype)
    keys = jax.random.split(jax.random.key(config.seed), config.trials)
    few = keys[: max(1, config.trials // 2)]

    def rank_one(tau, key, reflected):
        return ufm.saddles.rank_one(_problem(K, n, tau), key, d, config.dtype, reflected=reflected)

    def antipodal(tau):
        return ufm.saddles.antipodal(_problem(K, n, tau), d, config.dtype)

    def merged(tau, groups):
        problem = _problem(K, n, tau)
        built = ufm.saddles.merged_classes(problem, groups, d, config.dtype)
        return ufm.saddles.find_critical_point(problem, built, tolerance=CRITICAL / 10).point

    def found(tau, key):
        # Every second start has features near the classifiers of random classes, where more saddles are.
        problem = _problem(K, n, tau)
        kind, classes, noise = jax.random.split(key, 3)
        start = problem.random_point(noise, d, config.dtype)
        wrong = jax.random.randint(classes, (K * n,), 0, K)
        frame = ufm.theory.simplex_etf(K, d, config.dtype)
        near = ufm.Point(frame, ufm.manifolds.normalize(frame[wrong] + 0.3 * start.H))
        start = jax.tree.map(lambda a, b: jnp.where(jax.random.bernoulli(kind), a, b), near, start)
        return ufm.saddles.find_critical_point(problem, start, tolerance=CRITICAL / 10).point

    partitions = np.array(list(ufm.saddles.partitions(K)), int)
    grids: list[tuple[Callable, dict[str, Any]]] = [
        (functools.partial(rank_one, reflected=False), {"key": few}),
        (functools.partial(rank_one, reflected=True), {"key": few}),
        (antipodal, {}),
        (merged, {"groups": partitions}),
        (found, {"key": keys}),
    ]
    parts = []
    for kind, (trial, axes) in enumerate(grids):
        if trial is merged and len(partitions) == 0:
            continue
        points = ufm.trials.grid(trial, {"tau": tau, **axes}, store=chunks.part(store, str(kind)))
        count = points.H.size // (len(tau) * K * n * d)
        parts.append(
            {
                "tau": np.repeat(tau, count),
                "kind": np.full(len(tau) * count, kind),
                "point": jax.tree.map(lambda x: x.reshape(-1, *x.shape[-2:]), points),
            }
        )
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _describe(config: Config, K: int, n: int, candidate: dict[str, Any]) -> dict[str, jax.Array]:
    """All that the library says of a critical point, and where descent from it ends."""
    problem, point = _problem(K, n, candidate["tau"]), candidate["point"]
    minimum = ufm.theory.cross_entropy_minimum(K, problem.tau)
    verdict = ufm.landscape.certify(problem, point)
    alpha, beta = ufm.landscape.multipliers(problem, point)
    constructed = ufm.landscape.negative_curvature(problem, point)
    eigenvalues = ufm.landscape.spectrum(problem, point)
    end, escapes = _descend(config, problem, point)
    return {
        "gradient_norm": problem.manifold.norm(point, problem.gradient(problem.evaluate(point))),
        "excess": problem.cost(point) - minimum,
        "is_critical": verdict.is_critical,
        "is_global_minimum": verdict.is_global_minimum,
        "margin": verdict.margin,
        "alpha_range": jnp.stack([alpha.min(), alpha.max()]),
        "beta_range": jnp.stack([beta.min(), beta.max()]),
        "constructed": constructed.curvature,
        "smallest": ufm.landscape.smallest_eigenvalue(problem, point, jax.random.key(config.seed)),
        "index": jnp.sum(eigenvalues < -1e-9 * jnp.abs(eigenvalues).max()),
        "end_excess": problem.cost(end) - minimum,
        "escapes": escapes,
    }


def _descend(config: Config, problem: ufm.Problem, point: ufm.Point) -> tuple[ufm.Point, jax.Array]:
    """Gradient descent after a step along the constructed direction, as often as it ends at a saddle."""

    def at_saddle(carry):
        point, escapes = carry
        return ~ufm.landscape.certify(problem, point).is_global_minimum & (
            escapes < 2 * problem.num_classes
        )

    def escape(carry):
        point, escapes = carry
        direction = ufm.landscape.negative_curvature(problem, point).direction
        start = problem.manifold.retract(point, jax.tree.map(lambda v: 1e-2 * v, direction))
        solver = ufm.solvers.gradient_descent()
        return ufm.minimize(
            problem, start, solver, max_steps=config.steps, tolerance=1e-10
        ).point, escapes + 1

    return jax.lax.while_loop(at_saddle, escape, (point, jnp.int32(0)))


def _minima(
    config: Config, K: int, n: int, d: int, store: chunks.ChunkFolder | None
) -> dict[str, np.ndarray]:
    """Excess and certificate (tau, trial) of what gradient descent reaches from random starts."""

    def trial(tau, key):
        problem = _problem(K, n, tau)
        start = problem.random_point(key, d, config.dtype)
        found = ufm.minimize(
            problem, start, ufm.solvers.gradient_descent(), max_steps=config.steps, tolerance=1e-10
        )
        verdict = ufm.landscape.certify(problem, found.point)
        excess = found.value - ufm.theory.cross_entropy_minimum(K, tau)
        return {"excess": excess, "is_global_minimum": verdict.is_global_minimum, "margin": verdict.margin}

    keys = jax.random.split(jax.random.key(config.seed + 1), config.trials)
    axes = {"tau": np.asarray(config.tau, config.dtype), "key": keys}
    return ufm.trials.grid(trial, axes, store=store)


def _spectra_at_minimum(config: Config, K: int, n: int, d: int) -> np.ndarray:
    """Eigenvalues (tau, dimension) of the Hessian at the global minimum."""
    W = ufm.theory.simplex_etf(K, d, config.dtype)
    minimum = ufm.Point(W, W[ufm.balanced_labels(K, n)])
    return ufm.trials.grid(
        lambda tau: ufm.landscape.spectrum(_problem(K, n, tau), minimum),
        {"tau": np.asarray(config.tau, config.dtype)},
    )


def claims(config: Config, data: Data) -> list[Claim]:
    constructed, smallest = data["saddle_constructed"], data["saddle_smallest"]
    distinct, settings = _distinct(data)
    beyond = np.max(smallest - constructed)
    called_global = np.sum(data["saddle_is_global_minimum"])
    certified, excess = data["minimum_is_global_minimum"], data["minimum_excess"]
    zeros, positive = _count_zeros(data)
    ends = data["saddle_end_excess"]
    return [
        Claim(
            "at least 500 distinct saddles in at least 20 settings (K, n, d, tau)",
            distinct >= 500 and settings >= 20,
            f"{distinct} distinct of {len(constructed)} saddles in {settings} settings; {data['rejected']} "
            "candidates were no saddles (no critical point, or the minimum)",
        ),
        Claim(
            "the constructed direction of Proposition 2 has negative curvature at every saddle",
            bool(np.all(constructed < 0)),
            f"between {constructed.min():.3g} and {constructed.max():.3g}",
        ),
        Claim(
            "the smallest eigenvalue is at or below the constructed curvature, to 1e-9",
            bool(beyond <= 1e-9),
            f"largest smallest-minus-constructed {beyond:.2g}; the construction attains between "
            f"{np.min(constructed / smallest):.0%} and {np.max(constructed / smallest):.0%} of it",
        ),
        Claim(
            "every random start reaches the global minimum, and the certificate says so",
            bool(np.all(certified) and np.all(excess <= ABOVE)),
            f"{np.sum(certified)} of {certified.size} certified; largest excess {excess.max():.2g}",
        ),
        Claim(
            "the certificate denies every saddle",
            not called_global,
            f"{called_global} of {len(constructed)} called global; margins between "
            f"{data['saddle_margin'].min():.3g} and {data['saddle_margin'].max():.3g}",
        ),
        Claim(
            "at the global minimum the Hessian is zero along rotations and positive otherwise",
            bool(np.all(zeros == data["rotations"][:, None]) and np.all(positive > 0)),
            f"zeros {', '.join(str(z) for z in zeros[:, 0])} against the rotation group's "
            f"{', '.join(str(r) for r in data['rotations'])}; else at least {positive.min():.2g}",
        ),
        Claim(
            "descent from every saddle along the constructed direction ends at the global value",
            bool(np.all(ends <= ABOVE)),
            f"{np.sum(ends <= ABOVE)} of {len(ends)}, largest excess {ends.max():.2g}; "
            f"{np.sum(data['saddle_escapes'] > 1)} met another saddle on the way",
        ),
    ]


def _distinct(data: Data) -> tuple[int, int]:
    """Saddles that differ in setting, cost or curvatures, to nine digits; and settings that have any."""
    setting = np.stack(
        [data[f"saddle_{name}"] for name in ("num_classes", "samples_per_class", "dim", "tau")], axis=1
    )
    numbers = np.stack([data[f"saddle_{name}"] for name in ("excess", "smallest", "constructed")], axis=1)
    rows = np.concatenate([setting, np.round(numbers, 9)], axis=1)
    return len(np.unique(rows, axis=0)), len(np.unique(setting, axis=0))


def _count_zeros(data: Data) -> tuple[np.ndarray, np.ndarray]:
    """At the minima (problem, tau): eigenvalues that are zero to rounding, and the smallest other one."""
    zeros, others = [], []
    for i in range(len(data["rotations"])):
        eigenvalues = data[f"spectrum_{i}"]
        is_zero = np.abs(eigenvalues) < 1e-10 * eigenvalues.max(1, keepdims=True)
        zeros.append(is_zero.sum(1))
        others.append(np.where(is_zero, np.inf, eigenvalues).min(1))
    return np.array(zeros), np.array(others)


def plot(config: Config, data: Data) -> Figure:
    figure = Figure(figsize=(11, 7.6))
    (left, right), (table, ways) = figure.subplots(2, 2)
    _plot_curvatures(left, data)
    _plot_spectra(right, config, data)
    _plot_table(table, config, data)
    _plot_ways_down(ways, data)
    return figure


def table(config: Config, data: Data) -> str:
    """The saddles of each setting in Markdown: how many, their curvatures, and their least index."""
    lines = [
        "| K | n | d | tau | saddles | constructed curvature | smallest eigenvalue | least index |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    sizes = zip(config.num_classes, config.samples_per_class, config.dim, strict=True)
    for size, tau in itertools.product(sizes, config.tau):
        here = np.isclose(data["saddle_tau"], tau)
        for name, value in zip(("num_classes", "samples_per_class", "dim"), size, strict=True):
            here &= data[f"saddle_{name}"] == value
        if here.any():
            ranges = [data[f"saddle_{name}"][here] for name in ("constructed", "smallest")]
            cells = [f"{values.min():.3g} to {values.max():.3g}" for values in ranges]
            least = data["saddle_index"][here].min()
            lines.append(f"| {' | '.join(map(str, [*size, tau, here.sum(), *cells, least]))} |")
    return "\n".join(lines)


def _kinds() -> list[tuple[int, str, Any]]:
    """Kind, name and colour; the most numerous are drawn first."""
    colors = plotting.sequence_colors(len(KINDS))
    return [(kind, KINDS[kind], colors[kind]) for kind in (4, 1, 0, 3, 2)]


def _plot_curvatures(axes: Axes, data: Data) -> None:
    for kind, name, color in _kinds():
        of_kind = data["saddle_kind"] == kind
        axes.loglog(
            -data["saddle_smallest"][of_kind],
            -data["saddle_constructed"][of_kind],
            MARKERS[kind],
            color=color,
            markersize=4,
            alpha=0.6,
            label=f"{name} ({np.sum(of_kind)})",
        )
    ends = np.array([data["saddle_smallest"].min(), data["saddle_smallest"].max()])
    plotting.draw_theory(axes, -ends, -ends, "equal")
    axes.set(
        title="curvature at saddles",
        xlabel=r"$-$ smallest eigenvalue of the Hessian",
        ylabel=r"$-$ curvature of Proposition 2's direction",
    )
    axes.legend(fontsize=7)


def _plot_spectra(axes: Axes, config: Config, data: Data) -> None:
    middle = len(config.tau) // 2
    colors = plotting.sequence_colors(len(data["rotations"]))
    sizes = zip(config.num_classes, config.samples_per_class, config.dim, strict=True)
    for i, (K, n, d) in enumerate(sizes):
        eigenvalues = np.abs(data[f"spectrum_{i}"][middle])
        rank = np.arange(1, len(eigenvalues) + 1)
        axes.semilogy(
            rank, np.maximum(np.sort(eigenvalues), 1e-18), color=colors[i], label=f"K={K}, n={n}, d={d}"
        )
        axes.axvline(data["rotations"][i] + 0.5, color=colors[i], linewidth=1, linestyle=":")
    axes.set(
        title=rf"|eigenvalues| at the global minimum, $\tau = {config.tau[middle]:g}$",
        xlabel="rank; dotted: dimension of the rotations, $(K-1)(2d-K)/2$",
    )
    axes.legend(fontsize=7, loc="lower right")


def _plot_table(axes: Axes, config: Config, data: Data) -> None:
    axes.axis("off")
    axes.set_title("strict saddles / saddles, and least index")
    rows = []
    for K in config.num_classes:
        row = []
        for tau in config.tau:
            here = (data["saddle_num_classes"] == K) & np.isclose(data["saddle_tau"], tau)
            strict = np.sum(data["saddle_smallest"][here] < 0)
            least = data["saddle_index"][here].min() if here.any() else "-"
            row.append(f"{strict} / {here.sum()}, {least}")
        rows.append(row)
    sizes = zip(config.num_classes, config.samples_per_class, config.dim, strict=True)
    table = axes.table(
        rows,
        rowLabels=[f"K={K}, n={n}, d={d}" for K, n, d in sizes],
        colLabels=[rf"$\tau = {tau:g}$" for tau in config.tau],
        bbox=Bbox.from_bounds(0.16, 0.1, 0.84, 0.8),
        cellLoc="center",
    )
    table.set_fontsize(9)


def _plot_ways_down(axes: Axes, data: Data) -> None:
    for kind, name, color in _kinds():
        of_kind = data["saddle_kind"] == kind
        before = data["saddle_excess"][of_kind]
        after = np.maximum(np.abs(data["saddle_end_excess"][of_kind]), 1e-17)
        axes.loglog(before, after, MARKERS[kind], color=color, markersize=4, alpha=0.6, label=name)
    axes.axhline(ABOVE, color="gray", linewidth=1, linestyle=":")
    axes.set(
        title="descent from each saddle along that direction",
        xlabel="cost of the saddle above the global minimum",
        ylabel="|cost of the end - global minimum|",
    )


EXPERIMENT = Experiment(
    name="landscape",
    title="Theorem 2 tested: saddles strict, minima global",
    duration="2 min",
    config=Config,
    check=check,
    run=run,
    claims=claims,
    plot=plot,
    table=table,
    resumable=True,
)
