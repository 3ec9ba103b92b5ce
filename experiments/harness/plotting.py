"""One look for all figures."""

from typing import Any

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


def sequence_colors(count: int) -> list:
    """Colours for an ordered sweep, dark to light, told apart without hue."""
    return [mpl.colormaps["viridis"](x) for x in np.linspace(0, 0.92, count)]


def draw_mean(
    axes: Axes, x: np.ndarray, values: np.ndarray, *, spread: str = "quantiles", **style: Any
) -> None:
    """A line through the mean over the first axis (trials), over a band that shows their spread.

    Args:
        axes: where to draw.
        x: positions, (S,).
        values: (trials, S).
        spread: "quantiles", the middle 80% of the trials, or "deviation", one standard deviation.
        style: for the line; its colour serves the band too.
    """
    mean = values.mean(0)
    if spread == "quantiles":
        low, high = np.quantile(values, [0.1, 0.9], axis=0)
    else:
        low, high = mean - values.std(0), mean + values.std(0)
    (line,) = axes.plot(x, mean, **style)
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def draw_theory(axes: Axes, x: np.ndarray, values: np.ndarray, label: str, **style: Any) -> None:
    """The closed form a measurement is held against: a thin black line."""
    axes.plot(x, values, **{"color": "black", "linewidth": 1, "zorder": 1, "label": label, **style})
