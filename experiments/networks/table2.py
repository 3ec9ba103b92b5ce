"""Table 2: test accuracy and test NC1 of normalized and regularized ResNets trained on the whole set."""

import dataclasses
from typing import ClassVar

import numpy as np
from matplotlib.figure import Figure

from experiments.harness import tables
from experiments.harness.experiment import Claim, Data, Progress
from experiments.harness.store import Network
from experiments.networks import two_models
from nets import datasets

TITLE = "test accuracy and test NC1 on the whole data set"
DURATION = "3 min"

PAPER = {
    "regularized_resnet18": (0.553, 3.838),
    "regularized_resnet50": (0.489, 4.486),
    "normalized_resnet18": (0.586, 3.143),
    "normalized_resnet50": (0.564, 3.127),
}
"""The paper's test accuracy and test NC1, on CIFAR-100 after 100 epochs."""


@dataclasses.dataclass(frozen=True)
class Config(two_models.Config):
    """The paper's comparison of generalization."""

    PAPER: ClassVar = {"dataset": "cifar100", "epochs": 100, "width": 64, "trials": 1}

    samples_per_class: int = 0
    """Training samples of each class, n, drawn by the seed; 0 takes all."""
    epochs: int = 50
    """Epochs of training."""
    trials: int = 2
    """Networks trained in each setting, from different seeds."""
    tau: float = 1.0
    """Temperature of the normalized networks."""


def check(config: Config) -> None:
    two_models.check(config)
    datasets.load(config.dataset, "test")


def _groups(config: Config) -> dict[str, list[Network]]:
    return two_models.groups(config, [config.tau], tested=True)


def needed(config: Config) -> list[Network]:
    """A network of each model, architecture and trial."""
    return two_models.flat(_groups(config))


def run(config: Config, progress: Progress) -> Data:
    return two_models.run(config, _groups(config), progress)


def claims(config: Config, data: Data) -> list[Claim]:
    judged = []
    for architecture in config.architecture:
        title = two_models.TITLES[architecture]
        ours, theirs = (_final(data, f"{model}_{architecture}") for model in ("normalized", "regularized"))
        for i, (what, form) in enumerate([("test accuracy", ".1%"), ("test NC1", ".3f")]):
            better = ours[i] > theirs[i] if i == 0 else ours[i] < theirs[i]
            measured = f"normalized {ours[i]:{form}}, regularized {theirs[i]:{form}}"
            if _is_the_papers(config, architecture):
                paper = [PAPER[f"{model}_{architecture}"][i] for model in ("normalized", "regularized")]
                measured += f" (paper: {paper[0]:{form}}, {paper[1]:{form}})"
            direction = "higher" if i == 0 else "lower"
            claim = f"{title}: normalization gives a {direction} {what}"
            judged.append(Claim(claim, bool(better), measured))
    return judged


def plot(config: Config, data: Data) -> Figure:
    figure = Figure(figsize=(7.5, 3.2))
    positions = np.arange(len(config.architecture))
    panels = figure.subplots(1, 2)
    for i, (axes, label) in enumerate(
        zip(panels, ["test accuracy", r"test $\mathcal{NC}_1$"], strict=True)
    ):
        for offset, model, color in [(-0.2, "regularized", "C1"), (0.2, "normalized", "C0")]:
            names = [f"{model}_{architecture}" for architecture in config.architecture]
            values = [_final(data, name)[i] for name in names]
            bars = axes.bar(positions + offset, values, 0.38, color=color, label=model)
            axes.bar_label(bars, fmt="{:.1%}" if i == 0 else "{:.3f}", padding=2, fontsize=8)
            for x, name in zip(positions + offset, names, strict=True):
                if _is_the_papers(config, name.split("_")[1]):
                    axes.hlines(PAPER[name][i], x - 0.19, x + 0.19, color="black", linestyle="--")
        titles = [two_models.TITLES[architecture] for architecture in config.architecture]
        axes.set(ylabel=label, xticks=positions, xticklabels=titles)
        axes.margins(y=0.12)
        axes.grid(False, axis="x")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    papers = any(_is_the_papers(config, architecture) for architecture in config.architecture)
    dashes = "; dashed: the paper's" if papers else ""
    figure.supxlabel(rf"$\tau={config.tau:g}$, {two_models.caption(config)}{dashes}", fontsize=8)
    return figure


def table(config: Config, data: Data) -> str:
    """The table in Markdown, beside the paper's numbers where it prints them."""
    papers = all(_is_the_papers(config, architecture) for architecture in config.architecture)
    header = ["network", "test accuracy", "test NC1"]
    if papers:
        header += ["paper: accuracy", "paper: NC1"]
    rows = []
    for architecture in config.architecture:
        for model in ("regularized", "normalized"):
            name = f"{model}_{architecture}"
            measured = [_final(data, name), *([PAPER[name]] if papers else [])]
            cells = [cell for accuracy, nc1 in measured for cell in (f"{accuracy:.1%}", f"{nc1:.3f}")]
            rows.append([f"{two_models.TITLES[architecture]}, {model}", *cells])
    return tables.table(header, rows)


def _final(data: Data, name: str) -> tuple[float, float]:
    """Test accuracy and test NC1 after the last epoch, means over the trials."""
    accuracy, nc1 = (data[f"test_{metric}_{name}"][:, -1].mean() for metric in ("accuracy", "nc1"))
    return float(accuracy), float(nc1)


def _is_the_papers(config: Config, architecture: str) -> bool:
    """Whether the paper prints numbers of this network, trained in this way."""
    at_paper = Config.at_scale("paper")
    sizes = ("dataset", "samples_per_class", "epochs", "width", "tau", "batch_size")
    names = (*sizes, "batch_norm", "precision", "initialization")
    same = all(getattr(config, name) == getattr(at_paper, name) for name in names)
    return same and f"normalized_{architecture}" in PAPER
