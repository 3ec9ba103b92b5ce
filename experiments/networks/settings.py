"""The fields of the experiments on networks, and the networks that they ask for."""

import dataclasses
from typing import Any, ClassVar, Literal, Self

import jax
import numpy as np

from experiments.harness import plotting
from experiments.harness.experiment import Config, check_fields
from experiments.harness.store import Network
from nets import datasets, resnet, training
from ufm_jax import _checks


@dataclasses.dataclass(frozen=True)
class NetworkConfig(Config):
    """Fields of every experiment on networks."""

    PAPER: ClassVar[dict[str, Any]] = {}
    """Defaults at the paper's scale; those of the fields are the laptop's."""

    scale: Literal["laptop", "paper"] = "laptop"  # type: ignore[assignment]
    """laptop: digits and narrow networks, minutes on two cores. paper: CIFAR at the paper's size."""
    dataset: datasets.Name = "digits"
    """Data set; digits comes with scikit-learn, cifar10 and cifar100 are read through TFDS."""
    samples_per_class: int = 100
    """Training samples of each class, n, drawn by the seed; 0 takes all."""
    epochs: int = 100
    """Epochs of training."""
    batch_size: int = 128
    """Samples of a step."""
    trials: int = 1
    """Networks trained in each setting, from different seeds."""
    data_parallel: int = 1
    """Devices that share every batch of each network; they must not be more than there are."""
    batch_norm: training.BatchNorm = "global"
    """Batch normalization by statistics of the whole batch, or of each device's part of it (replica)."""
    precision: training.Precision = "float32"
    """Of the products in the networks; all else is float32. tf32 has an effect on GPUs and TPUs alone."""
    initialization: resnet.Initialization = "he"
    """How convolutions start: as in PyTorch's own residual networks (he), or as PyTorch's layers do by
    default and the authors' released networks with them (pytorch)."""
    checkpoint_seconds: float = 30.0
    """Least time between two checkpoints; a run that was stopped continues from the last one."""
    reuse: bool = False
    """Take networks also where other code, libraries or data have trained or begun them."""

    @classmethod
    def at_scale(cls, scale: str) -> Self:
        return cls(scale="paper", **cls.PAPER) if scale == "paper" else cls()

    @property
    def recipe(self) -> training.Recipe:
        """The paper's recipe with the sizes of this config."""
        return training.Recipe(
            epochs=self.epochs,
            batch_size=self.batch_size,
            data_parallel=self.data_parallel,
            batch_norm=self.batch_norm,
            precision=self.precision,
            initialization=self.initialization,
        )


def check(config: NetworkConfig) -> None:
    """Raises ValueError where sizes make no sense, or the data set cannot be read or is too small."""
    _check_sizes(config)
    split = datasets.load(config.dataset, "train")
    few = datasets.first_of_each_class(split, config.samples_per_class or None, config.seed)
    _check_devices(config, len(few.labels))


def _check_sizes(config: NetworkConfig) -> None:
    _checks.within("seed", config.seed, 0, 2**31 - 1)
    lowest = {"epochs": 1, "batch_size": 2, "trials": 1, "data_parallel": 1, "samples_per_class": 0}
    lowest |= {"checkpoint_seconds": 0} | ({"width": 1} if hasattr(config, "width") else {})
    check_fields(config, lowest, positive=["tau"] if hasattr(config, "tau") else [])


def _check_devices(config: NetworkConfig, samples: int) -> None:
    shared = config.data_parallel
    if shared > jax.local_device_count():
        raise ValueError(
            f"data_parallel must be at most {jax.local_device_count()}, the devices here, but is {shared}."
        )
    if config.batch_norm == "replica" and shared == 1:
        raise ValueError("batch_norm replica needs data_parallel of at least 2: one device has one part.")
    for size in (min(config.batch_size, samples), samples % config.batch_size):
        if config.batch_norm == "replica" and size % shared != 0:
            raise ValueError(
                f"under batch_norm replica, data_parallel must divide every batch, but {shared} does not "
                f"divide a batch of {size} ({samples} samples in batches of {config.batch_size})."
            )


def seeds(config: NetworkConfig) -> list[int]:
    """One seed for each trial; those of fewer trials are the first of more.

    Raises ValueError where sizes of `config` make no sense.
    """
    _check_sizes(config)
    return np.random.default_rng(config.seed).integers(0, 2**31 - 1, config.trials, np.int32).tolist()


def network(
    config: NetworkConfig,
    setup: training.Setup,
    seed: int,
    tau: float,
    *,
    random_labels: bool = False,
    tested: bool = False,
) -> Network:
    """The network of `setup` on the data of `config`."""
    return Network(
        setup=setup,
        dataset=config.dataset,
        samples_per_class=config.samples_per_class,
        random_labels=random_labels,
        data_seed=config.seed,
        seed=seed,
        tau=float(tau) if setup.model == "normalized" else None,
        tested=tested,
    )


def describe(config: NetworkConfig) -> str:
    """The data and the training of `config` in a few words, for captions."""
    n = config.samples_per_class
    size = f"n={n} a class" if n else "all samples"
    trials = f", {plotting.LINES['median']} of {config.trials} trials" if config.trials > 1 else ""
    start = "" if config.initialization == "he" else ", PyTorch's default start"
    return f"{config.dataset}, {size}, {config.epochs} epochs{start}{trials}"
