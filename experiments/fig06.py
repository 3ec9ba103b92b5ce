"""Figure 6: normalized against regularized ResNet-18 and ResNet-50 on few samples of each class."""

import dataclasses
from typing import ClassVar

import numpy as np
from matplotlib.figure import Figure

from experiments import comparison, plotting
from experiments.experiment import Claim, Data, Experiment, Progress, first_step


@dataclasses.dataclass(frozen=True)
class Config(comparison.Config):
    """The paper's comparison of training speed and collapse."""

    PAPER: ClassVar = {"dataset": "cifar100", "width": 64, "trials": 1}

    samples_per_class: int = 30
    """Training samples of each class, n, drawn by the seed; 0 takes all."""
    trials: int = 2
    """Networks trained in each setting, from different seeds."""


def run(config: Config, progress: Progress) -> Data:
    return comparison.run("fig6", config, progress, test=False, shuffle=True)


def claims(config: Config, data: Data) -> list[Claim]:
    made = []
    for architecture in config.architecture:
        names = {model: f"{model}_{architecture}" for model in ("normalized", "regularized")}
        title = comparison.TITLES[architecture]
        epochs = {
            model: np.median(first_step(data[f"accuracy_{n}"] == 1)) + 1 for model, n in names.items()
        }
        made.append(
            Claim(
                f"{title}: the normalized network reaches 100% training accuracy in fewer epochs",
                bool(epochs["normalized"] < epochs["regularized"]),
                f"normalized {epochs['normalized']:g}, regularized {epochs['regularized']:g}, "
                f"of {config.epochs} epochs",
            )
        )
        nc1 = {model: data[f"nc1_{n}"].mean(0) for model, n in names.items()}
        lower = np.mean(nc1["normalized"] < nc1["regularized"])
        made.append(
            Claim(
                f"{title}: the normalized network ends more collapsed, and is so at most epochs",
                bool(nc1["normalized"][-1] < nc1["regularized"][-1] and lower > 0.5),
                f"final NC1: normalized {nc1['normalized'][-1]:.3g}, regularized "
                f"{nc1['regularized'][-1]:.3g}; NC1 is lower at {lower:.0%} of the epochs",
            )
        )
    return made


def plot(config: Config, data: Data) -> Figure:
    count = len(config.architecture)
    figure = Figure(figsize=(7.5, 0.6 + 2.6 * count))
    for row, architecture in zip(
        figure.subplots(count, 2, squeeze=False), config.architecture, strict=True
    ):
        for model, color in [("normalized", "C0"), ("regularized", "C1")]:
            for axes, metric in zip(row, ("accuracy", "nc1"), strict=True):
                values = data[f"{metric}_{model}_{architecture}"]
                plotting.draw_mean(
                    axes, data["epoch"], values, spread="deviation", color=color, label=model
                )
        title = comparison.TITLES[architecture]
        row[0].set(title=title, xlabel="epoch", ylabel="training accuracy", ylim=(-0.03, 1.05))
        row[1].set(title=title, xlabel="epoch", ylabel=r"$\mathcal{NC}_1$", yscale="log")
        row[0].legend(loc="lower right")
    figure.supxlabel(comparison.caption(config), fontsize=8)
    return figure


EXPERIMENT = Experiment(
    name="fig6",
    title="normalized vs. regularized ResNets, few samples",
    duration="4 min",
    config=Config,
    check=comparison.check,
    run=run,
    claims=claims,
    plot=plot,
)
