"""One look for all figures."""

from typing import Any, Literal

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes

STYLE: Any = {
    **matplotlib.style.library["tableau-colorblind10"],
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,
}
"""Matplotlib settings, on top of a palette that colour-blind readers can tell apart."""


NC1_FLOOR = 1e-33
"""Rounding error of NC1 ends near here, and exact zeros are drawn here."""
LOSS_FLOOR = 1e-16
"""The same for the distance of a loss from its minimum."""


def sequence_colors(count: int) -> list:
    """Colours for an ordered sweep, dark to light, told apart without hue."""
    return [mpl.colormaps["viridis"](x) for x in np.linspace(0, 0.92, count)]


Average = Literal["median", "mean"]
LINES: dict[Average, str] = {
    "median": "median and quartiles",
    "mean": "mean and middle 80%",
}
"""What `draw_trials` draws, for captions. On a logarithmic axis a mean follows its largest values."""


def draw_trials(
    axes: Axes, x: np.ndarray, values: np.ndarray, average: Average = "median", **style: Any
) -> None:
    """A line through the average over the first axis (trials), over a band that shows their spread.

    Args:
        axes: where to draw.
        x: positions, (S,).
        values: (trials, S).
        average: the median over a band of the quartiles, or the mean over the middle 80% of the trials.
        style: for the line; its colour serves the band too.
    """
    tail = 0.25 if average == "median" else 0.1
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)
    (line,) = axes.plot(x, np.median(values, 0) if average == "median" else values.mean(0), **style)
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def show_the_start(axes: Axes, steps: int) -> None:
    """Steps evenly up to ten and logarithmically from there, where all that happens happens early."""
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xlim(0, steps)
    ticks = [0, 5, 10, *(x for x in (20, 50, 100, 200, 500, 1000) if x <= steps)]
    axes.set_xticks(ticks, [str(x) for x in ticks])
    axes.minorticks_off()


def draw_theory(axes: Axes, x: np.ndarray, values: np.ndarray, label: str, **style: Any) -> None:
    """The closed form a measurement is held against: a thin black line."""
    axes.plot(x, values, **{"color": "black", "linewidth": 1, "zorder": 1, "label": label, **style})
