"""Figure 6: normalized against regularized ResNet-18 and ResNet-50 on few samples of each class."""

import dataclasses
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure

from experiments.harness import plotting
from experiments.harness.experiment import Claim, Data, Progress, first_step, step_in_words
from experiments.harness.store import Network
from experiments.networks import two_models

TITLE = "normalized vs. regularized ResNets, few samples"
DURATION = "4 min"


@dataclasses.dataclass(frozen=True)
class Config(two_models.Config):
    """The paper's comparison of training speed and collapse."""

    PAPER: ClassVar = {"dataset": "cifar100", "width": 64, "trials": 1}

    samples_per_class: int = 30
    """Training samples of each class, n, drawn by the seed; 0 takes all."""
    trials: int = 2
    """Networks trained in each setting, from different seeds."""
    tau: tuple[float, ...] = (1.0,)
    """Temperatures of the normalized networks; each is held against the regularized ones."""


def check(config: Config) -> None:
    two_models.check(config)
    if len({two_models.group_name("", tau, config.tau) for tau in config.tau}) < len(config.tau):
        raise ValueError(f"tau must name each temperature once, to six digits, but is {config.tau}.")


def _groups(config: Config) -> dict[str, list[Network]]:
    return two_models.groups(config, config.tau, tested=False)


def needed(config: Config) -> list[Network]:
    """Of each architecture and trial a regularized network, and a normalized one of each temperature."""
    return two_models.flat(_groups(config))


def run(config: Config, progress: Progress) -> Data:
    return two_models.run(config, _groups(config), progress)


def claims(config: Config, data: Data) -> list[Claim]:
    return [
        claim
        for architecture in config.architecture
        for tau in config.tau
        for claim in _claims_at(config, data, architecture, tau)
    ]


def _claims_at(config: Config, data: Data, architecture: str, tau: float) -> list[Claim]:
    """The paper's two claims on an architecture, judged at one temperature."""
    names = {
        "normalized": two_models.group_name(architecture, tau, config.tau),
        "regularized": f"regularized_{architecture}",
    }
    title = two_models.TITLES[architecture] + (f", tau={tau:g}" if len(config.tau) > 1 else "")
    epochs = {model: np.median(first_step(data[f"accuracy_{n}"] == 1)) + 1 for model, n in names.items()}
    nc1 = {model: data[f"nc1_{n}"].mean(0) for model, n in names.items()}
    lower = np.mean(nc1["normalized"] < nc1["regularized"])
    return [
        Claim(
            f"{title}: the normalized network reaches 100% training accuracy in fewer epochs",
            bool(epochs["normalized"] < epochs["regularized"]),
            ", ".join(f"{model} {step_in_words(at)}" for model, at in epochs.items())
            + f", of {config.epochs} epochs",
        ),
        Claim(
            f"{title}: the normalized network ends more collapsed, and is so at most epochs",
            bool(nc1["normalized"][-1] < nc1["regularized"][-1] and lower > 0.5),
            f"final NC1: normalized {nc1['normalized'][-1]:.3g}, regularized "
            f"{nc1['regularized'][-1]:.3g}; NC1 is lower at {lower:.0%} of the epochs",
        ),
    ]


def plot(config: Config, data: Data) -> Figure:
    count = len(config.architecture)
    figure = Figure(figsize=(7.5 if len(config.tau) == 1 else 9, 0.6 + 2.6 * count))
    for row, architecture in zip(
        figure.subplots(count, 2, squeeze=False), config.architecture, strict=True
    ):
        for axes, metric in zip(row, ("accuracy", "nc1"), strict=True):
            for name, style in _curves(config, architecture):
                values = data[f"{metric}_{name}"]
                plotting.draw_trials(axes, data["epoch"], values, **style)
        title = two_models.TITLES[architecture]
        row[0].set(title=title, xlabel="epoch", ylabel="training accuracy", ylim=(-0.03, 1.05))
        row[1].set(title=title, xlabel="epoch", ylabel=r"$\mathcal{NC}_1$", yscale="log")
        if len(config.tau) == 1:
            row[0].legend(loc="lower right")
    if len(config.tau) > 1:
        # Curves of many temperatures leave no corner free.
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper")
    tau = rf"$\tau={config.tau[0]:g}$, " if len(config.tau) == 1 else ""
    figure.supxlabel(tau + two_models.caption(config), fontsize=8)
    return figure


def _curves(config: Config, architecture: str) -> list[tuple[str, dict[str, Any]]]:
    """The groups of an architecture, and how their lines look."""
    one = len(config.tau) == 1
    colors = ["C0"] if one else plotting.sequence_colors(len(config.tau))
    found: list[tuple[str, dict[str, Any]]] = [
        (
            two_models.group_name(architecture, tau, config.tau),
            {"color": color, "label": "normalized" if one else rf"normalized, $\tau={tau:g}$"},
        )
        for tau, color in zip(config.tau, colors, strict=True)
    ]
    regularized = {"color": "C1"} if one else {"color": "black", "linestyle": "--"}
    return [*found, (f"regularized_{architecture}", {**regularized, "label": "regularized"})]
