"""Figure 4: normalized ResNet-18 of several widths on random labels, a test of the feature model."""

import dataclasses
from typing import ClassVar

import numpy as np
from matplotlib.figure import Figure

from experiments.feature_model.fig9 import METRICS
from experiments.harness import plotting
from experiments.harness.experiment import Claim, Data, Progress
from experiments.harness.store import Network
from experiments.networks import settings, trainer
from nets import datasets, training

TITLE = "ResNets of several widths on random labels"
DURATION = "5 min"
check = settings.check


@dataclasses.dataclass(frozen=True)
class Config(settings.NetworkConfig):
    """The paper's widths; a wide network can place its features where it likes, as the UFM assumes."""

    PAPER: ClassVar = {
        "dataset": "cifar10",
        "samples_per_class": 200,
        "epochs": 200,
        "width": (4, 8, 16, 32, 64),
        "trials": 1,
    }

    epochs: int = 120
    """Epochs of training."""
    trials: int = 2
    """Networks trained in each setting, from different seeds."""
    width: tuple[int, ...] = (4, 8, 16, 32)
    """Channels of the first stage, one network each; 64 is ResNet-18's own."""
    tau: float = 1.0
    """Temperature."""


def needed(config: Config) -> list[Network]:
    """A network of each width and trial."""
    k = datasets.num_classes(config.dataset)
    setups = [training.Setup("resnet18", "normalized", k, width, config.recipe) for width in config.width]
    return [
        settings.network(config, setup, seed, config.tau, random_labels=True)
        for setup in setups
        for seed in settings.seeds(config)
    ]


def run(config: Config, progress: Progress) -> Data:
    histories = trainer.train(config, needed(config), progress)
    data = trainer.stacked(histories, len(config.width), config.trials)
    return {"width": np.asarray(config.width), "epoch": np.arange(1, config.epochs + 1), **data}


def claims(config: Config, data: Data) -> list[Claim]:
    width = data["width"]
    final = {name: data[name][:, :, -1].mean(1) for name in METRICS}
    first = {name: data[name][:, :, 0].mean(1) for name in METRICS}
    order = np.argsort(width)
    judged = []
    if len(width) > 1:
        for name in ("nc1", "nc2", "nc3"):
            judged.append(
                Claim(
                    f"wider is more collapsed: {name.upper()} at the end falls with the width",
                    bool(np.all(np.diff(final[name][order]) < 0)),
                    _by_width(width, final[name]),
                )
            )
    widest = order[-1]
    falls = [final[name][widest] < 0.5 * first[name][widest] for name in ("nc1", "nc2", "nc3")]
    judged.append(
        Claim(
            "collapse happens on random labels: the widest network fits them all, and its NC1, NC2 and NC3 "
            "fall below half of what they were after the first epoch",
            bool(final["accuracy"][widest] == 1 and all(falls)),
            f"width {width[widest]}: accuracy {final['accuracy'][widest]:.4g}; "
            + ", ".join(
                f"{name.upper()} {first[name][widest]:.3g} to {final[name][widest]:.3g}"
                for name in ("nc1", "nc2", "nc3")
            ),
        )
    )
    return judged


def _by_width(width: np.ndarray, values: np.ndarray) -> str:
    return ", ".join(f"{v:.3g} at width {w}" for w, v in zip(width, values, strict=True))


def plot(config: Config, data: Data) -> Figure:
    figure = Figure(figsize=(12, 3.2))
    colors = plotting.sequence_colors(len(data["width"]))
    for axes, (name, label) in zip(figure.subplots(1, 4), METRICS.items(), strict=True):
        for color, width, trials in zip(colors, data["width"], data[name], strict=True):
            plotting.draw_trials(axes, data["epoch"], trials, color=color, label=f"width {width}")
        axes.set(title=label, xlabel="epoch")
        if name == "accuracy":
            axes.set_ylim(-0.03, 1.05)
        else:
            axes.set_yscale("log")
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=len(data["width"]))
    figure.supxlabel(
        rf"normalized ResNet-18 on random labels, $\tau={config.tau:g}$, {settings.describe(config)}",
        fontsize=8,
    )
    return figure
