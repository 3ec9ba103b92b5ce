"""Theorem 2, tested: thousands of saddles, minima from random starts, and the ways down between them."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

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
)

TITLE = "Theorem 2 tested: saddles strict, minima global"
DURATION = "3 min"

KINDS = (
    "rank one",
    "rank one, reflected",
    "antipodal",
    "merged classes",
    "merged classes, other orders",
    "found from a random start",
    "on a line",
    "on a line, one sample reversed",
    "rank K",
)
OTHER_ORDERS = KINDS.index("merged classes, other orders")
MARKERS = "os^DdvPX*"
CRITICAL = 1e-12
"""Norm of the gradient up to which a point counts as critical."""
ABOVE = 1e-8
"""Cost above the global minimum from which a critical point counts as a saddle."""
SIZE = ("num_classes", "samples_per_class", "dim", "imbalance")


@dataclasses.dataclass(frozen=True)
class Config(UfmConfig):
    """Small problems with d > K or d = K >= 3, so that dense spectra are cheap."""

    num_classes: tuple[int, ...] = (2, 3, 4, 5, 6, 3, 4, 3, 4)
    """Numbers of classes, K; a problem is one entry of each of the four fields that describe sizes."""
    samples_per_class: tuple[int, ...] = (4, 3, 3, 3, 2, 3, 3, 1, 1)
    """Samples of the first class, n."""
    dim: tuple[int, ...] = (5, 6, 7, 8, 10, 3, 4, 5, 4)
    """Dimensions, d, each at least its K, and at least 3."""
    imbalance: tuple[int, ...] = (0, 0, 0, 0, 0, 0, 0, 1, 1)
    """By how many samples each class is larger than the one before it; 0 for balanced classes."""
    tau: tuple[float, ...] = (0.1, 0.5, 2.0, 5.0)
    """Temperatures."""
    trials: int = 20
    """Random starts in each setting, for minima and again for saddles; half as many built at random."""
    steps: int = 4000
    """Most iterations of a descent."""


def check(config: Config) -> None:
    check_float64(config, f"gradients reach {CRITICAL:g}")
    lowest = {"num_classes": 2, "samples_per_class": 1, "dim": 3, "imbalance": 0, "trials": 1, "steps": 1}
    check_fields(config, lowest, positive=["tau"])
    check_one_for_each(config, *SIZE)
    for K, d in zip(config.num_classes, config.dim, strict=True):
        if d < K:
            raise ValueError(f"Theorem 2 is for dim at least num_classes, but they are {d} and {K}.")


@dataclasses.dataclass(frozen=True)
class Size:
    """The sizes of a problem."""

    num_classes: int
    samples_per_class: int
    dim: int
    imbalance: int

    @property
    def is_balanced(self) -> bool:
        return self.imbalance == 0

    def problem(self, tau: Any) -> ufm.Problem:
        counts = self.samples_per_class + self.imbalance * np.arange(self.num_classes)
        labels = jnp.asarray(np.repeat(np.arange(self.num_classes), counts))
        return ufm.normalized(labels, self.num_classes, tau=tau)

    def __str__(self) -> str:
        n, more = self.samples_per_class, self.imbalance
        samples = f"{n}" if self.is_balanced else f"{n}, {n + more}, ..."
        return f"K={self.num_classes}, n={samples}, d={self.dim}"


def _sizes(config: Config) -> list[Size]:
    return [Size(*values) for values in zip(*(getattr(config, name) for name in SIZE), strict=True)]


def run(config: Config, progress: Progress, store: chunks.ChunkFolder | None = None) -> Data:
    sizes = _sizes(config)
    saddles, minima, spectra, rejected = [], [], {}, 0
    for i, size in enumerate(sizes):
        progress(i, len(sizes))
        own = chunks.part(store, str(i))
        reached = _minima(config, size, chunks.part(own, "minima"))
        lowest = reached["value"].min(axis=1)
        if size.is_balanced:
            lowest = np.asarray(ufm.theory.cross_entropy_minimum(size.num_classes, np.asarray(config.tau)))
            spectra[f"spectrum_{i}"] = _spectra_at_minimum(config, size)
        minima.append(reached | {"excess": reached["value"] - lowest[:, None]})
        columns = _described(config, size, dict(zip(config.tau, lowest, strict=True)), own)
        is_saddle = (columns["gradient_norm"] <= CRITICAL) & (columns["excess"] > ABOVE)
        rejected += int(np.sum(~is_saddle))
        columns |= {name: np.full(len(is_saddle), getattr(size, name)) for name in SIZE}
        saddles.append({name: np.asarray(values)[is_saddle] for name, values in columns.items()})
    progress(1, 1)
    return {
        **{f"saddle_{name}": np.concatenate([s[name] for s in saddles]) for name in saddles[0]},
        **{f"minimum_{name}": np.stack([m[name] for m in minima]) for name in minima[0]},
        **spectra,
        "rotations": np.array([(s.num_classes - 1) * (2 * s.dim - s.num_classes) // 2 for s in sizes]),
        "rejected": np.array(rejected),
        **{name: np.asarray(getattr(config, name)) for name in SIZE},
        "tau": np.asarray(config.tau),
    }


def _described(
    config: Config, size: Size, lowest: dict[float, float], store: chunks.ChunkFolder | None
) -> dict[str, np.ndarray]:
    """All candidates of one problem, what the library says of them, and where descent from them ends."""
    candidates = _candidates(config, size, store)
    minimum = np.array([lowest[tau] for tau in candidates["tau"]])
    described = ufm.trials.run(
        functools.partial(_describe, size), candidates, store=chunks.part(store, "described")
    )
    columns = described | {"tau": candidates["tau"], "kind": candidates["kind"]}
    columns["excess"] = columns.pop("cost") - minimum
    # In another order of the classes the way down is the same.
    descends = candidates["kind"] != OTHER_ORDERS
    ends = ufm.trials.run(
        functools.partial(_descend, config, size),
        jax.tree.map(lambda x: x[descends], candidates),
        store=chunks.part(store, "descents"),
    )
    for name, values in ends.items():
        columns[name] = np.full(len(minimum), np.nan)
        columns[name][descends] = values
    columns["end_excess"] = columns.pop("end_cost") - minimum
    return columns


def _candidates(config: Config, size: Size, store: chunks.ChunkFolder | None) -> dict[str, Any]:
    """Points built or found, of every kind, at every temperature: tau (S,), kind (S,), point (S, ...)."""
    parts = []
    for kind, (trial, axes) in _grids(config, size).items():
        if any(len(values) == 0 for values in axes.values()):
            continue
        points = ufm.trials.grid(trial, axes, store=chunks.part(store, kind.replace(" ", "-")))
        points = jax.tree.map(lambda x: x.reshape(-1, *x.shape[-2:]), points)
        tau = np.repeat(axes["tau"], len(points.H) // len(axes["tau"]))
        parts.append({"tau": tau, "kind": np.full(len(tau), KINDS.index(kind)), "point": points})
        if kind == "merged classes":
            parts.append(_in_other_orders(size, parts[-1]))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _grids(config: Config, size: Size) -> dict[str, tuple[Any, dict[str, Any]]]:
    """For each kind a trial that makes a critical point, and the axes that it is called on."""
    K, n, d, problem = size.num_classes, size.samples_per_class, size.dim, size.problem
    N = len(problem(1.0).labels)
    tau = np.asarray(config.tau)
    keys = jax.random.split(jax.random.key(config.seed), config.trials)
    few = {"tau": tau, "key": keys[: max(1, config.trials // 2)]}

    def merged(tau, groups):
        built = ufm.saddles.merged_classes(problem(tau), groups, d)
        return ufm.saddles.find_critical_point(problem(tau), built, tolerance=CRITICAL / 10).point

    def found(tau, key):
        # Every second start has features near the classifiers of random classes, where more saddles are.
        kind, classes, noise = jax.random.split(key, 3)
        start = problem(tau).random_point(noise, d)
        wrong = jax.random.randint(classes, (N,), 0, K)
        frame = ufm.theory.simplex_etf(K, d)
        near = ufm.Point(frame, ufm.manifolds.normalize(frame[wrong] + 0.3 * start.H))
        start = jax.tree.map(lambda a, b: jnp.where(jax.random.bernoulli(kind), a, b), near, start)
        return ufm.saddles.find_critical_point(problem(tau), start, tolerance=CRITICAL / 10).point

    def on_a_line(tau, key, one_reversed):
        of_classes, of_samples, one = jax.random.split(key, 3)
        s, t = jax.random.rademacher(of_classes, (K,)), jax.random.rademacher(of_samples, (N,))
        if one_reversed:
            s = s.at[1].set(-s[0])
            t = s[problem(tau).labels].at[jax.random.randint(one, (), 0, N)].multiply(-1)
        return ufm.saddles.sign_pattern(problem(tau), s, t, d)

    def rank_one(tau, key, reflected):
        return ufm.saddles.rank_one(problem(tau), key, d, reflected=reflected)

    grids: dict[str, tuple[Any, dict[str, Any]]] = {
        "found from a random start": (found, {"tau": tau, "key": keys}),
        "on a line": (functools.partial(on_a_line, one_reversed=False), few),
        "on a line, one sample reversed": (functools.partial(on_a_line, one_reversed=True), few),
    }
    if size.is_balanced:
        partitions = np.array(list(ufm.saddles.partitions(K)), int)
        grids |= {
            "rank one": (functools.partial(rank_one, reflected=False), few),
            "rank one, reflected": (functools.partial(rank_one, reflected=True), few),
            "antipodal": (lambda tau: ufm.saddles.antipodal(problem(tau), d), {"tau": tau}),
            "merged classes": (merged, {"tau": tau, "groups": partitions}),
        }
        if n > 2:
            possible = tau[tau >= ufm.saddles.full_rank_threshold(K, n)]
            grids["rank K"] = (lambda tau: ufm.saddles.full_rank(problem(tau), d), {"tau": possible})
    return grids


def _in_other_orders(size: Size, merged: dict[str, Any]) -> dict[str, Any]:
    """The saddles of merged classes with the classes renamed in every way that merges others."""
    labels = np.asarray(size.problem(1.0).labels)
    first_of_class = np.searchsorted(labels, np.arange(size.num_classes))
    tau, points = [], []
    for i, temperature in enumerate(merged["tau"]):
        W, H = merged["point"].W[i], merged["point"].H[i]
        for order in _orders(np.argmax(W @ W.T > 1 - 1e-6, axis=1)):
            tau.append(temperature)
            points.append(ufm.Point(W[order], H[first_of_class][order][labels]))
    kind = np.full(len(tau), OTHER_ORDERS)
    return {"tau": np.array(tau), "kind": kind, "point": jax.tree.map(lambda *x: np.stack(x), *points)}


def _orders(groups: np.ndarray) -> Iterator[list[int]]:
    """One permutation of the classes for each other way to merge them into groups of the same sizes."""

    def merged_by(order: Sequence[int]) -> tuple[int, ...]:
        renamed = groups[list(order)].tolist()
        return tuple(renamed.index(group) for group in renamed)

    seen = {merged_by(range(len(groups)))}
    for order in itertools.permutations(range(len(groups))):
        if merged_by(order) not in seen:
            seen.add(merged_by(order))
            yield list(order)


def _describe(size: Size, candidate: dict[str, Any]) -> dict[str, jax.Array]:
    """All that the library says of a critical point."""
    problem, point = size.problem(candidate["tau"]), candidate["point"]
    manifold = problem.manifold
    verdict = ufm.landscape.certify(problem, point)
    eigenvalues, eigenvectors = ufm.landscape.eigenpairs(problem, point)
    # Z is the Hessian on motions perpendicular to the span of W and H: is that where the smallest is?
    squares, basis = jnp.linalg.eigh(point.W.T @ point.W + point.H.T @ point.H)
    outside = basis * (squares < 1e-9 * squares[-1])
    moved = jax.tree.map(lambda v: v[0] @ outside, eigenvectors)
    return {
        "gradient_norm": manifold.norm(point, problem.gradient(problem.evaluate(point))),
        "cost": problem.cost(point),
        "is_critical": verdict.is_critical,
        "is_global_minimum": verdict.is_global_minimum,
        "margin": verdict.margin,
        "constructed": ufm.landscape.negative_curvature(problem, point).curvature,
        "proposition_2": _proposition_2(size, problem, point),
        "smallest": eigenvalues[0],
        "is_decided_by_Z": manifold.inner_product(point, moved, moved) > 0.5,
        "index": jnp.sum(eigenvalues < -1e-9 * jnp.abs(eigenvalues).max()),
    }


def _proposition_2(size: Size, problem: ufm.Problem, point: ufm.Point) -> jax.Array:
    """The curvature of the paper's own direction; NaN outside the paper's conditions."""
    bound = ufm.theory.strict_saddle_threshold(size.num_classes, size.dim)
    if not size.is_balanced or size.dim <= size.num_classes:
        return jnp.array(jnp.nan)
    return jnp.where(
        jnp.asarray(problem.tau) < bound, ufm.landscape.proposition_2(problem, point).curvature, jnp.nan
    )


def _descend(config: Config, size: Size, candidate: dict[str, Any]) -> dict[str, jax.Array]:
    """Descends after a step along the constructed direction, as often as that ends at a saddle."""
    problem = size.problem(candidate["tau"])

    def at_saddle(carry):
        point, escapes = carry
        return ~ufm.landscape.certify(problem, point).is_global_minimum & (
            escapes < 2 * problem.num_classes
        )

    def escape(carry):
        point, escapes = carry
        direction = ufm.landscape.negative_curvature(problem, point).direction
        start = problem.manifold.retract(point, jax.tree.map(lambda v: 1e-2 * v, direction))
        solver = ufm.solvers.conjugate_gradient()
        end = ufm.minimize(problem, start, solver, max_steps=config.steps, tolerance=1e-10).point
        return end, escapes + 1

    end, escapes = jax.lax.while_loop(at_saddle, escape, (candidate["point"], jnp.int32(0)))
    return {"end_cost": problem.cost(end), "escapes": escapes}


def _minima(config: Config, size: Size, store: chunks.ChunkFolder | None) -> dict[str, np.ndarray]:
    """Value and certificate (tau, trial) of what gradient descent reaches from random starts."""

    def trial(tau, key):
        problem = size.problem(tau)
        start = problem.random_point(key, size.dim)
        solver = ufm.solvers.gradient_descent()
        found = ufm.minimize(problem, start, solver, max_steps=config.steps, tolerance=1e-10)
        verdict = ufm.landscape.certify(problem, found.point)
        return {
            "value": found.value,
            "is_global_minimum": verdict.is_global_minimum,
            "margin": verdict.margin,
            "gap": verdict.gap,
        }

    keys = jax.random.split(jax.random.key(config.seed + 1), config.trials)
    return ufm.trials.grid(trial, {"tau": np.asarray(config.tau), "key": keys}, store=store)


def _spectra_at_minimum(config: Config, size: Size) -> np.ndarray:
    """Eigenvalues (tau, dimension) of the Hessian at the global minimum of balanced classes."""
    W = ufm.theory.simplex_etf(size.num_classes, size.dim)

    def spectrum(tau):
        problem = size.problem(tau)
        return ufm.landscape.spectrum(problem, ufm.Point(W, W[problem.labels]))

    return ufm.trials.grid(spectrum, {"tau": np.asarray(config.tau)})


def claims(config: Config, data: Data) -> list[Claim]:
    return [*_claims_of_saddles(data), *_claims_of_minima(data)]


def _claims_of_saddles(data: Data) -> list[Claim]:
    constructed, smallest = data["saddle_constructed"], data["saddle_smallest"]
    if not len(constructed):
        return [Claim("there are saddles", False, f"none of {data['rejected']} candidates is one")]
    distinct, settings = _distinct(data)
    beyond = np.max(smallest - constructed)
    denied = data["saddle_is_critical"] & ~data["saddle_is_global_minimum"]
    decides = data["saddle_is_decided_by_Z"]
    off = np.max((constructed - smallest)[decides], initial=0)
    paper = data["saddle_proposition_2"]
    paper = paper[~np.isnan(paper)]
    ends = data["saddle_end_excess"][data["saddle_kind"] != OTHER_ORDERS]
    arrived = np.abs(ends) <= ABOVE
    return [
        Claim(
            "at least 500 distinct saddles in at least 20 settings (K, n, d, tau)",
            distinct >= 500 and settings >= 20,
            f"{distinct} distinct of {len(constructed)} saddles in {settings} settings; {data['rejected']} "
            "candidates were no saddles (no critical point, or the minimum)",
        ),
        Claim(
            "the constructed direction has negative curvature at every saddle",
            bool(np.all(constructed < 0)),
            f"between {constructed.min():.3g} and {constructed.max():.3g}",
        ),
        Claim(
            "where the smallest eigenvector is one of Z, the constructed curvature is the smallest "
            "eigenvalue, to 1e-8",
            bool(decides.any() and off <= 1e-8),
            f"at {np.sum(decides)} saddles ({np.mean(decides):.1%}), to {off:.2g}",
        ),
        Claim(
            "the smallest eigenvalue is at or below the constructed curvature, to 1e-9",
            bool(beyond <= 1e-9),
            f"largest smallest-minus-constructed {beyond:.2g}; the construction attains between "
            f"{np.min(constructed / smallest):.0%} and {np.max(constructed / smallest):.0%} of it",
        ),
        *(_claims_of_proposition_2(data, paper) if len(paper) else []),
        Claim(
            "the certificate denies every saddle",
            bool(np.all(denied)),
            f"{np.sum(~denied)} of {len(constructed)} called global or not critical; margins between "
            f"{data['saddle_margin'].min():.3g} and {data['saddle_margin'].max():.3g}",
        ),
        Claim(
            "descent from every saddle along the constructed direction ends at the global value",
            bool(len(ends) and np.all(arrived)),
            f"{np.sum(arrived)} of {len(ends)}, largest excess {np.max(ends, initial=-np.inf):.2g}; "
            f"{np.sum(data['saddle_escapes'] > 1)} met another saddle on the way",
        ),
    ]


def _claims_of_proposition_2(data: Data, curvature: np.ndarray) -> list[Claim]:
    return [
        Claim(
            "Proposition 2's own direction has negative curvature at every saddle inside its conditions",
            bool(np.all(curvature < 0)),
            f"not at {np.sum(curvature >= 0)} of {len(curvature)}; between {curvature.min():.3g} and "
            f"{curvature.max():.3g}" + _by_kind(data),
        )
    ]


def _by_kind(data: Data) -> str:
    """Where the paper's direction curves upwards, in words."""
    fails = data["saddle_proposition_2"] >= 0
    counts = [(name, np.sum(fails & (data["saddle_kind"] == kind))) for kind, name in enumerate(KINDS)]
    words = ", ".join(f"{name}: {count}" for name, count in counts if count)
    return f" ({words})" if words else ""


def _claims_of_minima(data: Data) -> list[Claim]:
    certified, excess = data["minimum_is_global_minimum"], data["minimum_excess"]
    judged = [
        Claim(
            "every random start reaches the global minimum, and the certificate says so",
            bool(np.all(certified) and np.all(np.abs(excess) <= ABOVE)),
            f"{np.sum(certified)} of {certified.size} certified, the gap at most "
            f"{data['minimum_gap'].max():.2g}; largest excess {excess.max():.2g}",
        )
    ]
    balanced = data["imbalance"] == 0
    if balanced.any():
        zeros, positive = _count_zeros(data)
        rotations = data["rotations"][balanced]
        judged.append(
            Claim(
                "at the global minimum the Hessian is zero along rotations and positive otherwise",
                bool(np.all(zeros == rotations[:, None]) and np.all(positive > 0)),
                f"zeros {', '.join(str(z) for z in zeros[:, 0])} against the rotation group's "
                f"{', '.join(str(r) for r in rotations)}; else at least {positive.min():.2g}",
            )
        )
    return judged


def _distinct(data: Data) -> tuple[int, int]:
    """Saddles that differ in setting, cost or curvatures, to nine digits; and settings that have any."""
    setting = np.stack([data[f"saddle_{name}"] for name in (*SIZE, "tau")], axis=1)
    numbers = np.stack([data[f"saddle_{name}"] for name in ("excess", "smallest", "constructed")], axis=1)
    rows = np.concatenate([setting, np.round(numbers, 9)], axis=1)
    return len(np.unique(rows, axis=0)), len(np.unique(setting, axis=0))


def _count_zeros(data: Data) -> tuple[np.ndarray, np.ndarray]:
    """At the minima (problem, tau): eigenvalues that are zero to rounding, and the smallest other one."""
    zeros, others = [], []
    for i in np.flatnonzero(data["imbalance"] == 0):
        eigenvalues = data[f"spectrum_{i}"]
        is_zero = np.abs(eigenvalues) < 1e-10 * eigenvalues.max(1, keepdims=True)
        zeros.append(is_zero.sum(1))
        others.append(np.where(is_zero, np.inf, eigenvalues).min(1))
    return np.array(zeros), np.array(others)


def plot(config: Config, data: Data) -> Figure:
    figure = Figure(figsize=(12, 9))
    (left, right), (table, ways) = figure.subplots(2, 2)
    _plot_curvatures(left, data)
    _plot_papers(right, data)
    _plot_table(table, config, data)
    _plot_ways_down(ways, data)
    return figure


def table(config: Config, data: Data) -> str:
    """The saddles of each setting in Markdown: how many, their curvatures, and their least index."""
    header = [
        *("problem", "tau", "saddles", "constructed curvature", "smallest eigenvalue", "least index"),
        "Proposition 2 positive",
    ]
    rows = []
    for size, tau in itertools.product(_sizes(config), config.tau):
        here = _in_setting(data, size, tau)
        if here.any():
            ranges = [data[f"saddle_{name}"][here] for name in ("constructed", "smallest")]
            cells = [f"{values.min():.3g} to {values.max():.3g}" for values in ranges]
            least = data["saddle_index"][here].min()
            paper = data["saddle_proposition_2"][here]
            positive = "-" if np.isnan(paper).all() else np.sum(paper >= 0)
            rows.append([size, tau, here.sum(), *cells, least, positive])
    return tables.table(header, rows)


def _in_setting(data: Data, size: Size, tau: float) -> np.ndarray:
    here = np.isclose(data["saddle_tau"], tau)
    for name in SIZE:
        here &= data[f"saddle_{name}"] == getattr(size, name)
    return here


def _kinds() -> list[tuple[int, str, Any]]:
    """Kind, name and colour; the most numerous are drawn first."""
    colors = plotting.sequence_colors(len(KINDS))
    return [(kind, KINDS[kind], colors[kind]) for kind in (4, 5, 1, 0, 6, 7, 3, 8, 2)]


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
        title="constructed direction at every saddle",
        xlabel=r"$-$ smallest eigenvalue of the Hessian",
        ylabel=r"$-$ curvature of the constructed direction",
    )
    axes.legend(fontsize=7)


def _plot_papers(axes: Axes, data: Data) -> None:
    """The paper's curvature over the smallest eigenvalue: below 0 it curves upwards."""
    share = data["saddle_proposition_2"] / data["saddle_smallest"]
    for kind, name, color in _kinds():
        of_kind = (data["saddle_kind"] == kind) & ~np.isnan(share)
        axes.semilogx(
            -data["saddle_smallest"][of_kind],
            share[of_kind],
            MARKERS[kind],
            color=color,
            markersize=4,
            alpha=0.6,
            label=f"{name} ({np.sum(share[of_kind] <= 0)} of {np.sum(of_kind)})" if of_kind.any() else None,
        )
    axes.axhline(0, color="red", linewidth=1, linestyle="--")
    axes.set(
        title="Proposition 2's direction; in brackets, where it curves upwards",
        xlabel=r"$-$ smallest eigenvalue of the Hessian",
        ylabel="its curvature / the smallest eigenvalue",
    )
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7)


def _plot_table(axes: Axes, config: Config, data: Data) -> None:
    axes.axis("off")
    axes.set_title("strict saddles / saddles, and least index")
    rows = []
    for size in _sizes(config):
        row = []
        for tau in config.tau:
            here = _in_setting(data, size, tau)
            strict = np.sum(data["saddle_smallest"][here] < 0)
            least = data["saddle_index"][here].min() if here.any() else "-"
            row.append(f"{strict} / {here.sum()}, {least}")
        rows.append(row)
    table = axes.table(
        rows,
        rowLabels=[str(size) for size in _sizes(config)],
        colLabels=[rf"$\tau = {tau:g}$" for tau in config.tau],
        bbox=Bbox.from_bounds(0.2, 0.05, 0.8, 0.9),
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
