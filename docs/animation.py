"""Four classes of features collapse onto a tetrahedron: `make animation` draws docs/images/collapse.gif.

Both models start from random points in three dimensions and descend by gradient descent: the normalized one
in the metric that balances it, the regularized one with the decays of figure 5. What is drawn are the
iterates of these two runs; collapse.png is the last frame, for print.
"""

import functools
import io
from pathlib import Path

import jax
import matplotlib as mpl
import numpy as np
import PIL.Image
from matplotlib.figure import Figure

import ufm_jax as ufm
from experiments.harness import plotting

IMAGES = Path(__file__).parent / "images"
NUM_CLASSES, SAMPLES, DIM, STEPS, FRAMES = 4, 20, 3, 200, 60
COLORS = ("#006BA4", "#FF800E", "#595959", "#A2C8EC")
LINES = {"nc1": r"$\mathcal{NC}_1$", "nc2": r"$\mathcal{NC}_2$", "nc3": r"$\mathcal{NC}_3$"}


def run(problem: ufm.Problem) -> dict[str, np.ndarray]:
    """The iterates of gradient descent, (step, ...), with accuracy, NC1, NC2 and NC3."""

    def record(point: ufm.Point) -> dict[str, jax.Array]:
        W, H = point
        labels = problem.labels
        return {
            "W": W,
            "H": H,
            "accuracy": ufm.metrics.accuracy(W, H, labels),
            "nc1": ufm.metrics.nc1(H, labels, NUM_CLASSES),
            "nc2": ufm.metrics.nc2(W),
            "nc3": ufm.metrics.nc3(W, H, labels),
        }

    start = problem.random_point(jax.random.key(1), DIM, "float64")
    solver = ufm.solvers.gradient_descent()
    found = ufm.minimize(problem, start, solver, max_steps=STEPS, tolerance=0.0, measure=record)
    return jax.device_get(found.history)


def frame(runs: dict[str, dict[str, np.ndarray]], labels: np.ndarray, step: int) -> PIL.Image.Image:
    """Both models after `step` iterations: features and classifiers above, the course so far below."""
    figure = Figure(figsize=(7.2, 5.2), dpi=100)
    above = figure.add_gridspec(2, 2, height_ratios=(2.2, 1))
    for column, (name, data) in enumerate(runs.items()):
        axes = figure.add_subplot(above[0, column], projection="3d")
        W, H = data["W"][step], data["H"][step]
        size = 1.0 if name == "normalized" else np.linalg.norm(data["H"], axis=-1).max() * 0.6
        draw_points(axes, W / np.linalg.norm(W, axis=-1).max() * size, H, labels, size)
        axes.set_title(f"{name}\naccuracy {data['accuracy'][step]:.0%}", fontsize=10)
        below = figure.add_subplot(above[1, column])
        for metric, label in LINES.items():
            values = np.maximum(data[metric][: step + 1], 1e-8)
            below.plot(np.arange(step + 1), values, label=label)
        below.set(yscale="log", xscale="symlog", xlim=(0, STEPS), ylim=(1e-6, 1e3), xlabel="iteration")
        below.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
        if column == 0:
            below.legend(loc="lower left", fontsize=8)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return PIL.Image.open(content).convert("RGB")


def draw_points(axes, W: np.ndarray, H: np.ndarray, labels: np.ndarray, size: float) -> None:
    """Features as dots, classifiers as lines from the origin, in the class's colour, and the sphere."""
    for k, color in enumerate(COLORS):
        axes.plot(*zip(np.zeros(DIM), W[k], strict=True), color=color, linewidth=2.5)
        axes.scatter(*H[labels == k].T, color=color, s=14, depthshade=False)
    longitude, latitude = np.mgrid[0 : 2 * np.pi : 25j, 0 : np.pi : 13j]
    sphere = (np.cos(longitude) * np.sin(latitude), np.sin(longitude) * np.sin(latitude), np.cos(latitude))
    axes.plot_wireframe(*(size * x for x in sphere), color="0.85", linewidth=0.4, zorder=0)
    limits = (-0.75 * size, 0.75 * size)
    axes.set(xlim=limits, ylim=limits, zlim=limits, box_aspect=(1, 1, 1))
    axes.set_axis_off()


def main() -> None:
    """Draws the animation and its last frame."""
    jax.config.update("jax_enable_x64", True)
    labels = ufm.balanced_labels(NUM_CLASSES, SAMPLES)
    problems = {
        "normalized": ufm.normalized(labels, NUM_CLASSES, classifier_weight=SAMPLES),
        "regularized": ufm.regularized(labels, NUM_CLASSES),
    }
    runs = {name: run(problem) for name, problem in problems.items()}
    steps = np.unique(np.geomspace(1, STEPS + 1, 4 * FRAMES).astype(int) - 1)
    draw = functools.partial(frame, runs, np.asarray(labels))
    with mpl.rc_context(plotting.STYLE):
        frames = [draw(int(step)) for step in steps]
    palette = frames[-1].quantize(64)
    small = [x.quantize(palette=palette, dither=PIL.Image.Dither.NONE) for x in frames]
    durations = [100] * (len(small) - 1) + [3000]
    animated = {"save_all": True, "append_images": small[1:], "duration": durations, "loop": 0}
    small[0].save(IMAGES / "collapse.gif", **animated, optimize=True)
    frames[-1].save(IMAGES / "collapse.png", optimize=True)
    print(IMAGES / "collapse.gif")


if __name__ == "__main__":
    main()
