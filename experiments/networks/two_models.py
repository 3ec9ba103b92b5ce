"""What Figure 6 and Table 2 share: normalized against regularized networks of several depths."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from experiments.harness.experiment import Data, Progress
from experiments.harness.store import Network
from experiments.networks import settings, trainer
from nets import datasets, resnet, training

TITLES = {"resnet18": "ResNet-18", "resnet34": "ResNet-34", "resnet50": "ResNet-50"}


@dataclasses.dataclass(frozen=True)
class Config(settings.NetworkConfig):
    """Fields of both."""

    variant: Literal["paper", "released"] = "paper"
    """released: as the authors' released code, which projects the regularized model's classifier to the
    sphere too, keeps a classifier bias, and does not shuffle the full training set."""
    architecture: tuple[resnet.Architecture, ...] = ("resnet18", "resnet50")
    """Residual networks to compare on."""
    width: int = 8
    """Channels of the first stage; 64 is the original's."""


def check(config: Config) -> None:
    """Raises ValueError where there is no architecture, or `settings.check` finds something wrong."""
    if not config.architecture:
        raise ValueError("architecture needs at least one value.")
    settings.check(config)


def group_name(architecture: str, tau: float, taus: Sequence[float]) -> str:
    """What the normalized networks of a temperature are called: with it, where there are several."""
    return f"normalized_{architecture}" + (f"_tau{tau:g}" if len(taus) > 1 else "")


def groups(config: Config, taus: Sequence[float], *, tested: bool) -> dict[str, list[Network]]:
    """A network for each trial: "regularized_resnet18" and so on, and `group_name` of normalized ones."""
    k = datasets.num_classes(config.dataset)
    released = config.variant == "released"
    # The released code does not shuffle the full training set.
    shuffle = not released or config.samples_per_class != 0
    found = {}
    for architecture in config.architecture:
        names: list[tuple[str, training.Model, float]] = [
            (group_name(architecture, tau, taus), "normalized", tau) for tau in taus
        ]
        for name, model, tau in [*names, (f"regularized_{architecture}", "regularized", 1.0)]:
            setup = training.Setup(
                architecture, model, k, config.width, config.recipe, released=released, shuffle=shuffle
            )
            found[name] = [
                settings.network(config, setup, seed, tau, tested=tested) for seed in settings.seeds(config)
            ]
    return found


def flat(members: Mapping[str, list[Network]]) -> list[Network]:
    """The networks of all groups."""
    return [network for its in members.values() for network in its]


def run(config: Config, members: Mapping[str, list[Network]], progress: Progress) -> Data:
    """Histories of the networks of each group: f"{metric}_{group}", (trials, epochs)."""
    found = iter(trainer.train(config, flat(members), progress))
    data = {"epoch": np.arange(1, config.epochs + 1)}
    for group, its in members.items():
        histories = trainer.stacked([next(found) for _ in its], config.trials)
        data |= {f"{metric}_{group}": values for metric, values in histories.items()}
    return data


def caption(config: Config) -> str:
    """The setting in a line, but for the temperature."""
    how = ", as the released code" if config.variant == "released" else ""
    return f"width {config.width}, {settings.describe(config)}{how}"
