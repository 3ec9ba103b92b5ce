"""A saddle in two dimensions: the loss on a plane through it, and the paths of gradient descent off it."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import ufm_jax as ufm
from experiments.harness import plotting
from experiments.harness.experiment import Claim, Data, Progress, UfmConfig, check_float64, check_ufm
from ufm_jax import _checks

TITLE = "the loss on planes through a saddle, ways down"
DURATION = "20 s"


@dataclasses.dataclass(frozen=True)
class Config(UfmConfig):
    """A saddle where two pairs of four classes are merged, or one where all classifiers are equal."""

    saddle: Literal["merged", "rank_one"] = "merged"
    """Which saddle: the first two classes merged and the next two, and so on, whatever the seed, or all
    classifiers equal, with features that the seed draws."""
    num_classes: int = 4
    """Number of classes, K, at least 3 for merged classes."""
    samples_per_class: int = 3
    """Samples of each class, n."""
    dim: int = 7
    """Dimension, d, larger than K."""
    tau: float = 2.0
    """Temperature."""
    trials: int = 12
    """Paths of gradient descent, leaving at equal angles of the plane."""
    steps: int = 150
    """Iterations of each path."""
    step_size: float = 0.25
    """Step of gradient descent, as a multiple of the inverse of the Hessian's largest eigenvalue."""
    points: int = 121
    """Points of the plane along each axis."""


def check(config: Config) -> None:
    check_ufm(config)
    check_float64(config, "saddles are exact")
    if config.num_classes < 3 and config.saddle == "merged":
        raise ValueError(f"num_classes must be at least 3 to merge some, but is {config.num_classes}.")
    if config.dim <= config.num_classes:
        raise ValueError(
            "the direction of negative curvature needs dim larger than num_classes, "
            f"but they are {config.dim} and {config.num_classes}."
        )
    for name in ("step_size", "points"):
        _checks.positive(name, getattr(config, name))


def run(config: Config, progress: Progress) -> Data:
    progress(0, 1)
    problem = ufm.normalized(
        ufm.balanced_labels(config.num_classes, config.samples_per_class),
        config.num_classes,
        tau=config.tau,
    )
    data = jax.jit(lambda key: _compute(config, problem, _saddle(config, problem, key)))(
        jax.random.key(config.seed)
    )
    progress(1, 1)
    minimum = ufm.theory.cross_entropy_minimum(config.num_classes, config.tau)
    return {name: np.asarray(values) for name, values in (data | {"minimum": minimum}).items()}


def _saddle(config: Config, problem: ufm.Problem, key: jax.Array) -> ufm.Point:
    if config.saddle == "rank_one":
        return ufm.saddles.rank_one(problem, key, config.dim)
    # An odd class out joins the last pair.
    groups = np.minimum(np.arange(config.num_classes) // 2, config.num_classes // 2 - 1)
    if groups[-1] == 0:
        groups[-1] = 1
    built = ufm.saddles.merged_classes(problem, groups, config.dim)
    return ufm.saddles.find_critical_point(problem, built).point


def _compute(config: Config, problem: ufm.Problem, saddle: ufm.Point) -> dict[str, jax.Array]:
    manifold = problem.manifold
    constructed, curvature = ufm.landscape.negative_curvature(problem, saddle)
    eigenvalues, eigenvectors = ufm.landscape.eigenpairs(problem, saddle)
    first, second, largest = (jax.tree.map(lambda v, i=i: v[i], eigenvectors) for i in (0, 1, -1))
    # The smallest eigenvalue is often multiple, and the constructed direction among its eigenvectors.
    overlaps = [jnp.abs(manifold.inner_product(saddle, constructed, v)) for v in (first, second)]
    smallest = jax.tree.map(lambda a, b: jnp.where(overlaps[0] <= overlaps[1], a, b), first, second)
    seconds = [_perpendicular(manifold, saddle, constructed, other) for other in (smallest, largest)]

    def at(first, second, x, y):
        step = jax.tree.map(lambda a, b: x * a + y * b, first, second)
        return manifold.retract(saddle, step)

    def coordinates(point):
        off = jax.tree.map(jnp.subtract, point, saddle)
        return jnp.stack([manifold.inner_product(saddle, off, v) for v in (constructed, *seconds)])

    step_size = config.step_size / eigenvalues[-1]

    def descend(angle):
        def step(point, _):
            evaluation = problem.evaluate(point)
            downhill = jax.tree.map(lambda g: -step_size * g, problem.gradient(evaluation))
            return manifold.retract(point, downhill), (coordinates(point), evaluation.value)

        start = at(constructed, seconds[0], 0.05 * jnp.cos(angle), 0.05 * jnp.sin(angle))
        return jax.lax.scan(step, start, length=config.steps)[1]

    angles = 2 * jnp.pi * (jnp.arange(config.trials) + 0.5) / config.trials
    path, cost = jax.vmap(descend)(angles)
    axis = jnp.linspace(-1, 1, config.points) * 1.15 * jnp.max(jnp.abs(path))

    def loss_on(second):
        return jax.vmap(lambda y: jax.vmap(lambda x: problem.cost(at(constructed, second, x, y)))(axis))(
            axis
        )

    return {
        "axis": axis,
        "loss_smallest": loss_on(seconds[0]),
        "loss_largest": loss_on(seconds[1]),
        "path": path,
        "cost": cost,
        "saddle_cost": problem.cost(saddle),
        "constructed": curvature,
        "eigenvalues": eigenvalues,
    }


def _perpendicular(manifold, point: ufm.Point, to: ufm.Point, vector: ufm.Point) -> ufm.Point:
    """`vector` without its part along the unit vector `to`, of unit norm."""
    rest = jax.tree.map(lambda v, u: v - manifold.inner_product(point, to, vector) * u, vector, to)
    return jax.tree.map(lambda v: v / manifold.norm(point, rest), rest)


def claims(config: Config, data: Data) -> list[Claim]:
    excess = data["cost"][:, -1] - data["minimum"]
    index = int(np.sum(data["eigenvalues"] < -1e-9))
    return [
        Claim(
            "every path of gradient descent that leaves the saddle reaches the global minimum (to 1e-4)",
            bool(np.all(np.abs(excess) <= 1e-4)),
            f"excess up to {excess.max():.2g} after {config.steps - 1} steps, from "
            f"{data['saddle_cost'] - data['minimum']:.3g} at the saddle",
        ),
        Claim(
            "the constructed direction has negative curvature",
            bool(data["constructed"] < 0),
            f"{data['constructed']:.4g}; eigenvalues from {data['eigenvalues'][0]:.4g} to "
            f"{data['eigenvalues'][-1]:.4g}, {index} of {len(data['eigenvalues'])} negative",
        ),
    ]


def plot(config: Config, data: Data) -> Figure:
    figure = Figure(figsize=(13, 4.2))
    panels = figure.subplots(1, 3, width_ratios=(1, 1, 1))
    colors = plotting.sequence_colors(config.trials)
    axis = data["axis"]
    for axes, which, column, words in [
        (panels[0], "smallest", 1, "a smallest eigenvector"),
        (panels[1], "largest", 2, "a largest eigenvector"),
    ]:
        loss = data[f"loss_{which}"]
        levels = np.linspace(data["minimum"], loss.max(), 25)
        filled = axes.contourf(axis, axis, loss, levels=levels, cmap="cividis")
        axes.contour(axis, axis, loss, levels=levels, colors="white", linewidths=0.3)
        for path in data["path"]:
            axes.plot(path[:, 0], path[:, column], color="white", linewidth=1.2)
            axes.plot(path[-1, 0], path[-1, column], "o", color="C1", markersize=4)
        axes.plot(0, 0, "*", color="red", markersize=12, markeredgecolor="white")
        axes.set(xlabel="constructed direction", ylabel=words, aspect="equal", title=f"plane with {words}")
        axes.grid(False)
        figure.colorbar(filled, ax=axes, shrink=0.75, format="%.2f", label="loss")
    for cost, color in zip(data["cost"], colors, strict=True):
        panels[2].plot(cost, color=color, linewidth=1)
    panels[2].axhline(data["saddle_cost"], color="red", linewidth=1, linestyle="--", label="the saddle")
    panels[2].axhline(data["minimum"], color="black", linewidth=1, linestyle=":", label="global minimum")
    panels[2].set(xlabel="iteration", ylabel="loss", title=f"{config.trials} paths of gradient descent")
    panels[2].legend()
    return figure
