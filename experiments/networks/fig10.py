"""Figure 10: what the temperature does to collapse and training accuracy of a normalized ResNet-18."""

import dataclasses
from typing import ClassVar

import numpy as np
from matplotlib.figure import Figure

from experiments.feature_model.fig9 import METRICS, by_tau, draw_temperatures
from experiments.harness.experiment import Claim, Data, Progress, first_step, step_in_words
from experiments.harness.store import Network
from experiments.networks import settings, trainer
from nets import datasets, training

TITLE = "ResNets: collapse and accuracy over temperatures"
DURATION = "3 min"
check = settings.check


@dataclasses.dataclass(frozen=True)
class Config(settings.NetworkConfig):
    """The paper's sweep; the grid of temperatures is read off its figure."""

    PAPER: ClassVar = {"dataset": "cifar10", "epochs": 200, "width": 64}

    tau: tuple[float, ...] = (0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 100.0)
    """Temperatures."""
    width: int = 16
    """Channels of the first stage; 64 is ResNet-18's own."""


def needed(config: Config) -> list[Network]:
    """A network of each temperature and trial."""
    k = datasets.num_classes(config.dataset)
    setup = training.Setup("resnet18", "normalized", k, config.width, config.recipe)
    return [
        settings.network(config, setup, seed, tau) for tau in config.tau for seed in settings.seeds(config)
    ]


def run(config: Config, progress: Progress) -> Data:
    histories = trainer.train(config, needed(config), progress)
    data = trainer.stacked(histories, len(config.tau), config.trials)
    tau = np.asarray(config.tau, np.float32)
    return {"tau": tau, "epoch": np.arange(1, config.epochs + 1), **data}


def claims(config: Config, data: Data) -> list[Claim]:
    tau = data["tau"]
    final = {name: data[name][:, :, -1].mean(1) for name in METRICS}
    epochs = np.median(first_step(data["accuracy"] == 1), axis=1) + 1
    moderate, fast = (tau >= 0.1) & (tau <= 10), (tau >= 1) & (tau <= 10)
    judged = []
    if moderate.any():
        perfect = final["accuracy"] == 1
        outside = "" if moderate.all() else ", and not outside"
        judged.append(
            Claim(
                f"perfect training accuracy for tau from 0.1 to 10{outside}",
                bool(np.all(perfect == moderate)),
                by_tau(tau, final["accuracy"], "final accuracy"),
            )
        )
    if fast.any() and not fast.all():
        judged.append(
            Claim(
                "perfect accuracy comes first for tau from 1 to 10",
                bool(np.isfinite(epochs[fast]).all() and epochs[fast].max() <= epochs[~fast].min()),
                by_tau(tau, epochs, "first epoch:", step_in_words),
            )
        )
    for name in ("nc1", "nc2", "nc3"):
        best = tau[np.nanargmin(final[name])] if not np.isnan(final[name]).all() else np.nan
        if 5 in tau and len(tau) > 1:
            judged.append(
                Claim(
                    f"the best {name.upper()} is at tau = 5",
                    bool(best == 5),
                    by_tau(tau, final[name], f"final {name.upper()}"),
                )
            )
    return judged


def plot(config: Config, data: Data) -> Figure:
    figure = draw_temperatures(data, "epoch", "epoch")
    figure.supxlabel(
        f"normalized ResNet-18 of width {config.width}, {settings.describe(config)}", fontsize=8
    )
    return figure
