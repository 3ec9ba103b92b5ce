"""What Figure 6 and Table 2 share: normalized against regularized networks of several depths."""

import dataclasses

import numpy as np

from experiments import data as datasets
from experiments import networks, training
from experiments.experiment import Data, Progress
from nets import resnet

TITLES = {"resnet18": "ResNet-18", "resnet34": "ResNet-34", "resnet50": "ResNet-50"}


@dataclasses.dataclass(frozen=True)
class Config(networks.VariantConfig):
    """Fields of both."""

    architecture: tuple[resnet.Architecture, ...] = ("resnet18", "resnet50")
    """Residual networks to compare on."""
    width: int = 8
    """Channels of the first stage; 64 is the original's."""
    tau: float = 1.0
    """Temperature of the normalized networks."""


def check(config: Config) -> None:
    if not config.architecture:
        raise ValueError("architecture needs at least one value.")
    networks.check(config)


def run(name: str, config: Config, progress: Progress, *, test: bool, shuffle: bool) -> Data:
    """Histories of every network: f"{metric}_{model}_{architecture}", (trials, epochs)."""
    seed = networks.seeds(config)
    tau = np.full(len(seed), config.tau, np.float32)
    k = datasets.num_classes(config.dataset)
    groups = [
        networks.Group(
            f"{model}_{architecture}",
            training.Setup(
                architecture,
                model,
                k,
                config.width,
                config.recipe,
                released=config.variant == "released",
                shuffle=shuffle,
            ),
            seed,
            tau,
        )
        for architecture in config.architecture
        for model in training.MODELS
    ]
    split = networks.training_split(config)
    test_split = datasets.load(config.dataset, "test") if test else None
    histories = networks.train(name, config, groups, split, progress, test=test_split)
    data = {
        f"{metric}_{group}": values
        for group, found in histories.items()
        for metric, values in found.items()
    }
    return {"epoch": np.arange(1, config.epochs + 1), **data}


def caption(config: Config) -> str:
    """The setting in a line."""
    how = ", as the released code" if config.variant == "released" else ""
    return rf"width {config.width}, $\tau={config.tau:g}$, {networks.describe(config)}{how}"
