"""Seconds until the gradient is small: our solvers, in two metrics, beside those of other libraries.

One yardstick for all: the norm of the Riemannian gradient on the spheres, in the plain metric. All start at
the same point, and take turns.
"""

import dataclasses
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import ufm_jax as ufm
from experiments.harness import tables
from experiments.harness.experiment import Claim, Data, Progress, check_fields, check_one_for_each, part
from experiments.harness.experiment import Config as BaseConfig

TITLE = "time to a solution, beside other libraries"
DURATION = "8 min"

OURS = ("gradient_descent", "conjugate_gradient", "lbfgs", "trust_region")
FLOAT32_FIRST = (("conjugate_gradient", "balanced"), ("trust_region", "plain"))
"""The fastest of them once more: a first leg in float32, and what is left in float64."""
PYMANOPT = {"conjugate_gradient": "ConjugateGradient", "trust_region": "TrustRegions"}
PEER = "optax lbfgs"
GEOJAX = ("lbfgs", "conjugate_gradient", "trust_region")
NAMES = (
    *(f"{name} {metric}" for metric in ("balanced", "plain") for name in OURS),
    *(f"{name} {metric}, float32 first" for name, metric in FLOAT32_FIRST),
    PEER,
    *(f"pymanopt {name}" for name in PYMANOPT),
    *(f"geojax {name}" for name in GEOJAX),
)
"""Of all contenders, in the order of the table; a library that is not installed has none."""
TARGET = 0.35
"""Of the time of `optax.lbfgs`, at most, for our best solver at 100 classes."""
_PIECE = 50
"""Steps of one compiled program; in between the clock is read."""


@dataclasses.dataclass(frozen=True)
class Config(BaseConfig):
    """Sizes small and middling; 1000 classes by `--num_classes 1000 --samples_per_class 10 --dim 1024`."""

    dtype: Literal["float32", "float64"] = "float64"
    """Floating type of the computation."""
    num_classes: tuple[int, ...] = (10, 100)
    """Classes of each setting, K."""
    samples_per_class: tuple[int, ...] = (5, 30)
    """Samples of each class in each setting, n."""
    dim: tuple[int, ...] = (32, 128)
    """Dimension of features and classifiers in each setting, d."""
    tau: float = 1.0
    """Temperature."""
    tolerance: float = 1e-6
    """Norm of the Riemannian gradient, in the plain metric, at which the clock is stopped."""
    rounds: int = 5
    """Timings of each contender, after one that compiles."""
    seconds: float = 60.0
    """A run that takes longer is stopped, and a contender that has used as much is not timed again."""
    contender: tuple[str, ...] = ()
    """Which run, by name or its beginning, as trust_region or 'geojax lbfgs'; all if empty."""


Solve = Callable[[ufm.Point, float], tuple[int, ufm.Point]]
"""From a start and a limit in seconds to the steps made and the end."""


class Contender(NamedTuple):
    """A library's solver on a problem."""

    name: str
    solve: Solve


def check(config: Config) -> None:
    counts = dict.fromkeys(("samples_per_class", "dim", "rounds"), 1)
    check_fields(config, {"num_classes": 2} | counts, positive=["tau", "tolerance", "seconds"])
    check_one_for_each(config, "num_classes", "samples_per_class", "dim")
    for asked in config.contender:
        if not any(name.startswith(asked) for name in NAMES):
            raise ValueError(
                f"contender must be one of {', '.join(NAMES)}, or the beginning of one, but is {asked!r}."
            )


def run(config: Config, progress: Progress) -> Data:
    sizes = list(zip(config.num_classes, config.samples_per_class, config.dim, strict=True))
    found = []
    for i, (k, n, d) in enumerate(sizes):
        labels = ufm.balanced_labels(k, n)
        plain = ufm.normalized(labels, k, tau=config.tau)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of too few dimensions: here nothing has to collapse.
            start = plain.random_point(jax.random.key(config.seed), d, config.dtype)
        contenders = [
            contender
            for contender in _contenders(config, plain, n)
            if not config.contender or contender.name.startswith((PEER, *config.contender))
        ]
        found.append(_race(config, plain, start, contenders, part(progress, i, len(sizes))))
    return {
        "contender": np.array([contender.name for contender in contenders]),
        **{name: np.array([rows[name] for rows in found]) for name in found[0]},
    }


def _race(
    config: Config,
    plain: ufm.Problem,
    start: ufm.Point,
    contenders: list[Contender],
    progress: Progress,
) -> Data:
    """Seconds (contender, round), infinite where the tolerance was not reached; steps; last norms."""
    norm = jax.jit(lambda x: plain.manifold.norm(x, plain.gradient(plain.evaluate(x))))
    shape = (len(contenders), config.rounds)
    data = {"seconds": np.full(shape, np.nan), "steps": np.zeros(shape[0], int), "norm": np.zeros(shape[0])}
    used = np.zeros(shape[0])
    for turn in range(-1, config.rounds):
        for i, contender in enumerate(contenders):
            progress(turn + 1 + i / len(contenders), config.rounds + 1, contender.name)
            if used[i] >= config.seconds:
                continue
            began = time.perf_counter()
            # The first turn compiles.
            steps, end = contender.solve(start, config.seconds if turn >= 0 else 0.0)
            taken = time.perf_counter() - began
            if turn < 0:
                continue
            data["steps"][i], data["norm"][i] = steps, norm(end)
            reached = data["norm"][i] <= 1.01 * config.tolerance  # The norm is rounded in another order.
            data["seconds"][i, turn] = taken if reached else np.inf
            used[i] += taken if reached else np.inf
    return data


def _contenders(config: Config, plain: ufm.Problem, samples_per_class: int) -> list[Contender]:
    balanced = ufm.normalized(
        plain.labels, plain.num_classes, tau=config.tau, classifier_weight=samples_per_class
    )
    problems = {"balanced": balanced, "plain": plain}
    judged = [
        Contender(f"{name} {metric}", _ours(config, problem, getattr(ufm.solvers, name)()))
        for metric, problem in problems.items()
        for name in OURS
    ]
    in_two_legs = [
        Contender(
            f"{name} {metric}, float32 first",
            _float32_first(config, problems[metric], getattr(ufm.solvers, name)()),
        )
        for name, metric in FLOAT32_FIRST
        if config.dtype == "float64"
    ]
    return [
        *judged,
        *in_two_legs,
        Contender(PEER, _optax(config, plain)),
        *_pymanopt(config, plain),
        *_geojax(config, plain),
    ]


def _in_pieces(
    first: Callable[[ufm.Point], Any],
    piece: Callable[[Any, Any], tuple[Any, jax.Array, jax.Array]],
    end: Callable[[Any], ufm.Point],
) -> Solve:
    """A run of a state by `piece`: from it and the most steps to the next, steps made, whether to go on."""
    first, piece = jax.jit(first), jax.jit(piece)

    def solve(start: ufm.Point, seconds: float) -> tuple[int, ufm.Point]:
        began, state = time.perf_counter(), first(start)
        state, made, goes_on = piece(state, _PIECE if seconds else 1)
        steps = int(made)
        while goes_on and time.perf_counter() - began < seconds:
            state, made, goes_on = piece(state, _PIECE)
            steps += int(made)
        return steps, jax.block_until_ready(end(state))

    return solve


def _ours(config: Config, problem: ufm.Problem, solver: ufm.solvers.Solver) -> Solve:
    manifold = problem.manifold
    weights = manifold.weights if isinstance(manifold, ufm.manifolds.Weighted) else None

    def is_there(iterate: ufm.solvers.Iterate) -> jax.Array:
        # Whatever the metric of the problem, the yardstick is the plain one, and its gradient that of the
        # weighted metric times the weights.
        gradient = jax.tree.map(lambda w, g: w * g, weights, iterate.gradient)
        return optax.tree.norm(gradient) <= config.tolerance

    def piece(state: Any, steps: Any) -> tuple[Any, jax.Array, jax.Array]:
        result = ufm.solvers.resume(
            problem,
            state,
            solver,
            max_steps=steps,
            tolerance=config.tolerance if weights is None else 0.0,
            until=None if weights is None else is_there,
        )
        return result.state, result.steps, result.status == ufm.Status.OUT_OF_STEPS

    return _in_pieces(lambda start: solver.init(problem, start), piece, lambda state: state.iterate.point)


def _float32_first(config: Config, problem: ufm.Problem, solver: ufm.solvers.Solver) -> Solve:
    """In float32 to ten times the tolerance, or as far as it gets, and from there in float64."""
    rough = _ours(dataclasses.replace(config, tolerance=10 * config.tolerance), problem, solver)
    fine = _ours(config, problem, solver)
    sphere = ufm.manifolds.Oblique()

    def to_float32(x: ufm.Point) -> ufm.Point:
        return optax.tree.cast(x, jnp.float32)

    @jax.jit
    def to_float64(x: ufm.Point) -> ufm.Point:
        x = optax.tree.cast(x, jnp.float64)
        return sphere.retract(x, optax.tree.zeros_like(x))  # Unit rows again, to the last digit.

    def solve(start: ufm.Point, seconds: float) -> tuple[int, ufm.Point]:
        began = time.perf_counter()
        steps, x = rough(to_float32(start), seconds)
        more, end = fine(to_float64(x), max(0.0, seconds - (time.perf_counter() - began)))
        return steps + more, end

    return solve


def _optax(config: Config, problem: ufm.Problem) -> Solve:
    """L-BFGS on free rows, which the cost normalizes, as one compiled loop."""
    solver = optax.lbfgs(memory_size=10)

    def unit(x: ufm.Point) -> ufm.Point:
        return jax.tree.map(lambda rows: rows / jnp.linalg.norm(rows, axis=-1, keepdims=True), x)

    def cost(x: ufm.Point) -> jax.Array:
        return problem.cost(unit(x))

    value_and_gradient = optax.value_and_grad_from_state(cost)

    def norm(x: ufm.Point, gradient: ufm.Point) -> jax.Array:
        """Of the Riemannian gradient at x/|x|: the gradient in x is that, divided by the rows' lengths."""
        scaled = jax.tree.map(
            lambda rows, g: g * jnp.linalg.norm(rows, axis=-1, keepdims=True), x, gradient
        )
        return optax.tree.norm(scaled)

    def first(start: ufm.Point) -> Any:
        return start, solver.init(start), jnp.asarray(jnp.inf, config.dtype)

    def advance(carry: Any) -> Any:
        x, state, _, steps = carry
        value, gradient = value_and_gradient(x, state=state)
        updates, state = solver.update(gradient, state, x, value=value, grad=gradient, value_fn=cost)
        x = optax.apply_updates(x, updates)
        return x, state, norm(x, optax.tree.get(state, "grad")), steps + 1

    def piece(state: Any, most: Any) -> tuple[Any, jax.Array, jax.Array]:
        def goes_on(carry: Any) -> jax.Array:
            return (carry[2] > config.tolerance) & (carry[3] < most)

        *state, steps = jax.lax.while_loop(goes_on, advance, (*state, jnp.int32(0)))
        return tuple(state), steps, state[2] > config.tolerance

    return _in_pieces(first, piece, lambda state: unit(state[0]))


def _pymanopt(config: Config, problem: ufm.Problem) -> list[Contender]:
    """Its solvers, if it is installed."""
    try:
        from experiments.speed.peers import pymanopt_solvers
    except ImportError:
        return []

    def contender(name: str) -> Contender:
        def solve(start: ufm.Point, seconds: float) -> tuple[int, ufm.Point]:
            optimizer = pymanopt_solvers.pymanopt_optimizer(
                PYMANOPT[name], 100_000, max_time=seconds, min_gradient_norm=config.tolerance
            )
            its = pymanopt_solvers.pymanopt_problem(problem, start.H.shape[1])
            result = optimizer.run(its, initial_point=pymanopt_solvers.pymanopt_point(start))
            return result.iterations, ufm.Point(*(jnp.asarray(x.T) for x in result.point))

        return Contender(f"pymanopt {name}", solve)

    return [contender(name) for name in PYMANOPT]


def _geojax(config: Config, problem: ufm.Problem) -> list[Contender]:
    """Its solvers, if it is installed."""
    try:
        from experiments.speed.peers import geojax_solvers
    except ImportError:
        return []

    def contender(name: str) -> Contender:
        def solve(start: ufm.Point, seconds: float) -> tuple[int, ufm.Point]:
            return geojax_solvers.geojax_run(name, problem, start, config.tolerance, seconds)

        return Contender(f"geojax {name}", solve)

    return [contender(name) for name in GEOJAX]


def _medians(data: Data) -> np.ndarray:
    """Median seconds (setting, contender), infinite where one did not get there."""
    return np.nanmedian(data["seconds"], axis=-1)


def _is_ours(data: Data) -> np.ndarray:
    return np.isin([str(name).split()[0] for name in data["contender"]], OURS)


def claims(config: Config, data: Data) -> list[Claim]:
    seconds, names = _medians(data), list(data["contender"])
    judged: list[Claim] = []
    if not np.any(_is_ours(data)):
        return judged
    for i, (k, n, d) in enumerate(
        zip(config.num_classes, config.samples_per_class, config.dim, strict=True)
    ):
        ours = np.where(_is_ours(data), seconds[i], np.inf)
        best = int(np.argmin(ours))
        peer = names.index(PEER)
        its_time, stopped = seconds[i, peer], ""
        if not np.isfinite(its_time):  # It would have taken longer, nobody knows how much.
            its_time = config.seconds if np.isfinite(data["norm"][i, peer]) else np.nan
            stopped = f", which stopped at {data['norm'][i, peer]:.1e}"
        ratio = ours[best] / its_time
        judged.append(
            Claim(
                f"K={k}, n={n}, d={d}: our fastest solver takes at most {TARGET} of optax.lbfgs's time",
                bool(ratio <= TARGET),
                f"{names[best]}: {ours[best]:.3g} s and {data['steps'][i, best]} steps, {ratio:.2f} of it"
                + stopped,
            )
        )
    return judged


def table(config: Config, data: Data) -> str:
    """The comparison in Markdown."""
    settings = list(zip(config.num_classes, config.samples_per_class, config.dim, strict=True))
    conditions = (
        f"Gradient norm {config.tolerance:g}, tau={config.tau:g}, {config.dtype}, "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}; medians of up to {config.rounds} turns, "
        "compiled before; in brackets steps."
    )
    rows = []
    seconds = _medians(data)
    for j, name in enumerate(data["contender"]):
        cells = [
            f"{seconds[i, j]:.3g} s ({data['steps'][i, j]})"
            if np.isfinite(seconds[i, j])
            else f"norm {data['norm'][i, j]:.1e} after {data['steps'][i, j]} steps"
            for i in range(len(settings))
        ]
        rows.append([str(name).replace("_", " "), *cells])
    header = ["", *(f"K={k}, n={n}, d={d}" for k, n, d in settings)]
    lines = [conditions, "", tables.table(header, rows)]
    absent = [
        peer for peer in ("pymanopt", "geojax") if not any(peer in name for name in data["contender"])
    ]
    if absent:
        lines += [
            "",
            f"Not installed, and so not compared: {', '.join(absent)} (pip install -e '.[bench]').",
        ]
    return "\n".join(lines)


def plot(config: Config, data: Data) -> Figure:
    settings = list(zip(config.num_classes, config.samples_per_class, config.dim, strict=True))
    seconds, ours = _medians(data), _is_ours(data)
    where = np.arange(len(ours))
    figure = Figure(figsize=(1.5 + 4 * len(settings), 1.4 + 0.16 * len(where)))
    for i, (axes, (k, n, d)) in enumerate(
        zip(figure.subplots(1, len(settings), sharey=True, squeeze=False)[0], settings, strict=True)
    ):
        there = np.isfinite(seconds[i])
        # No bars: on a logarithmic axis their lengths would mean nothing.
        axes.scatter(seconds[i][there], where[there], color=np.where(ours, "C0", "0.4")[there])
        for j in where[there]:
            # Within one decade the axis has hardly a number.
            axes.annotate(
                f"{seconds[i, j]:.3g}",
                (seconds[i, j], j),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize="x-small",
            )
        for j in where[~there]:
            axes.text(
                0.02,
                j,
                f"stopped at {data['norm'][i, j]:.1e}",
                transform=axes.get_yaxis_transform(),
                va="center",
            )
        axes.set(xscale="log", xlabel="seconds", title=f"K={k}, n={n}, d={d}", xmargin=0.2)
        axes.set_yticks(where, [str(name).replace("_", " ") for name in data["contender"]])
    axes.set_ylim(len(where) - 0.5, -0.5)  # Of all panels, which share it.
    figure.suptitle(f"Seconds to a gradient norm of {config.tolerance:g}", fontsize=10)
    return figure
