"""What the experiments on networks share: their config, and training with progress and checkpoints."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import data as datasets
from experiments import results, training
from experiments.checkpoints import Checkpoints
from experiments.experiment import Config, Progress, part
from ufm_jax import _checks

_LABELS_SEED = 1
"""Added to the seed for the draw of random labels, so that it differs from the draw of samples."""


@dataclasses.dataclass(frozen=True)
class NetworkConfig(Config):
    """Fields of every experiment on networks."""

    PAPER: ClassVar[dict[str, Any]] = {}
    """Defaults at the paper's scale; those of the fields are the laptop's."""

    scale: Literal["laptop", "paper"] = "laptop"
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
    at_once: int = 1
    """Networks trained as one batched program on each device; the others of a setting take turns."""
    data_parallel: int = 1
    """Devices that share every batch of each network; they must not be more than there are."""
    batch_norm: training.BatchNorm = "global"
    """Batch normalization by statistics of the whole batch, or of each device's part of it (replica)."""
    precision: training.Precision = "float32"
    """Of the products in the networks; all else is float32. tf32 has an effect on GPUs and TPUs alone."""
    checkpoint_seconds: float = 30.0
    """Least time between two checkpoints; a run that was stopped continues from the last one."""

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
        )


@dataclasses.dataclass(frozen=True)
class VariantConfig(NetworkConfig):
    """Fields of the experiments that compare with the regularized model."""

    variant: Literal["paper", "released"] = "paper"
    """released: as the authors' released code, which projects the regularized model's classifier to the
    sphere too, keeps a classifier bias, and does not shuffle the full training set."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Networks of one setup: they differ in `seed` and `tau`, one of each a network."""

    name: str
    setup: training.Setup
    seed: np.ndarray
    tau: np.ndarray


def check(config: NetworkConfig) -> None:
    """Raises ValueError where sizes make no sense, or the data set cannot be read or is too small."""
    _checks.within("seed", config.seed, 0, 2**31 - 1)
    lowest = {"epochs": 1, "batch_size": 2, "trials": 1, "at_once": 1, "data_parallel": 1}
    for name, low in lowest.items():
        _checks.at_least(name, getattr(config, name), low)
    for name in ("samples_per_class", "checkpoint_seconds"):
        _checks.at_least(name, getattr(config, name), 0)
    swept = {name: getattr(config, name, 1) for name in ("width", "tau")}
    for name, values in swept.items():
        if np.size(values) == 0:
            raise ValueError(f"{name} needs at least one value.")
    _checks.at_least("width", swept["width"], 1)
    _checks.positive("tau", swept["tau"])
    _check_devices(config, len(training_split(config).labels))


def _check_devices(config: NetworkConfig, samples: int) -> None:
    shared = config.data_parallel
    if shared > jax.local_device_count():
        raise ValueError(
            f"data_parallel must be at most {jax.local_device_count()}, the devices here, but is {shared}."
        )
    for size in (min(config.batch_size, samples), samples % config.batch_size):
        if config.batch_norm == "replica" and size % shared != 0:
            raise ValueError(
                f"under batch_norm replica, data_parallel must divide every batch, but {shared} does not "
                f"divide a batch of {size} ({samples} samples in batches of {config.batch_size})."
            )


def training_split(config: NetworkConfig, *, random_labels: bool = False) -> datasets.Split:
    """The training samples that `config` asks for."""
    split = datasets.load(config.dataset, "train")
    split = datasets.first_of_each_class(split, config.samples_per_class or None, config.seed)
    return datasets.random_labels(split, config.seed + _LABELS_SEED) if random_labels else split


def seeds(config: NetworkConfig) -> np.ndarray:
    """One seed for each trial, (trials,)."""
    return np.random.default_rng(config.seed).integers(0, 2**31 - 1, config.trials, np.int32)


def train(
    name: str,
    config: NetworkConfig,
    groups: Sequence[Group],
    split: datasets.Split,
    progress: Progress,
    *,
    test: datasets.Split | None = None,
    around: Callable[[Callable], Callable] = lambda program: program,
) -> dict[str, dict[str, np.ndarray]]:
    """Trains every network of `groups` on `split`.

    The networks of a group run beside each other, `config.at_once` on each device, or on each
    `config.data_parallel` devices that share its batches, and in turns where there are more. Checkpoints
    lie in a hidden folder of `config.out`, and are used by a later run of the same config; the command
    line removes them once the results are written. The compiled program of an epoch is called
    as `around(program)`, by which it can be timed.

    Returns:
        For each group's name its metrics after every epoch, (networks, epochs): those of
        `training.evaluate` and "loss"; with `test`, the former also of it, as "test_nc1" and so on.
    """
    whole = datasets.load(config.dataset, "train")
    data = [training.samples(x, whole) for x in (split, test) if x is not None]
    places = _places(jax.local_devices(), config.data_parallel)
    turn = config.at_once * len(places)
    parts = [
        (group, start, min(start + turn, len(group.seed)))
        for group in groups
        for start in range(0, len(group.seed), turn)
    ]
    rows: dict[str, list] = {group.name: [] for group in groups}
    for i, (group, start, stop) in enumerate(parts):
        folder = results.run_folder(config, name) / f"{group.name}-{start}-{stop}"
        rows[group.name].append(
            _train_beside(
                group,
                slice(start, stop),
                places,
                data,
                folder,
                config,
                part(progress, i, len(parts)),
                around,
            )
        )
    return {
        name: jax.tree.map(lambda *x: np.concatenate(x), *histories) for name, histories in rows.items()
    }


def _places(devices: Sequence[jax.Device], data_parallel: int) -> np.ndarray:
    """The devices in groups that each train one network, (places, data_parallel); the rest stand idle."""
    count = len(devices) // data_parallel
    return np.array(devices[: count * data_parallel]).reshape(count, data_parallel)


def _train_beside(
    group: Group,
    members: slice,
    places: np.ndarray,
    data: list[training.Samples],
    folder: Path,
    config: NetworkConfig,
    progress: Progress,
    around: Callable[[Callable], Callable],
) -> dict[str, np.ndarray]:
    """The histories of the `members` of `group`, as many on each place as on the others."""
    count = members.stop - members.start
    used = max(m for m in range(1, len(places) + 1) if count % m == 0)
    mesh = Mesh(places[:used], ("network", "batch"))
    beside, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in [("network",), ()])
    data = jax.device_put(data, everywhere)
    seed, tau = jax.device_put((group.seed[members], group.tau[members].astype(np.float32)), beside)
    start, advance = _programs(group.setup, mesh)
    epochs = group.setup.recipe.epochs
    with contextlib.closing(Checkpoints(folder, config.checkpoint_seconds)) as checkpoints:
        like = jax.eval_shape(start, data, seed, tau)
        names = sorted(jax.eval_shape(advance, data, like, seed, np.int32(0))[1])
        history = {name: np.full((count, epochs), np.nan, np.float32) for name in names}
        found = checkpoints.restore((like, history))
        if found is None:
            done, state = 0, start(data, seed, tau)
        else:
            done, (state, history) = found
            state = jax.device_put(state, beside)
            history = jax.tree.map(np.array, history)
        advance = around(advance)
        for epoch in range(done, epochs):
            state, row = advance(data, state, seed, np.int32(epoch))
            for name, values in row.items():
                history[name][:, epoch] = values
            accuracy, nc1 = (history[metric][:, epoch].mean() for metric in ("accuracy", "nc1"))
            note = f"{group.name}, epoch {epoch + 1}/{epochs}, accuracy {accuracy:.3f}, NC1 {nc1:.3g}"
            progress(epoch + 1, epochs, note)
            checkpoints.save(epoch + 1, (state, history), now=epoch + 1 == epochs)
    return history


@functools.lru_cache(maxsize=8)
def _programs(setup: training.Setup, mesh: Mesh) -> tuple[Callable, Callable]:
    """Compiled: the start of the networks on a mesh, and an epoch of training and measuring of each."""
    beside, everywhere = PartitionSpec("network"), PartitionSpec()

    def start(data, seed, tau):
        return training.init(setup, data[0], seed, tau)

    def advance(data, state, seed, epoch):
        state, loss = training.train_epoch(setup, data[0], state, seed, epoch)
        row = {**training.evaluate(setup, data[0], state), "loss": loss}
        if len(data) > 1:
            row |= {f"test_{name}": x for name, x in training.evaluate(setup, data[1], state).items()}
        return state, row

    def compiled(function, specs, out_specs):
        def of_one_place(data, *arguments):
            if jax.tree.leaves(arguments[0])[0].shape[0] > 1:
                axes = [0 if spec == beside else None for spec in specs]
                return jax.vmap(function, (None, *axes))(data, *arguments)
            own = [
                jax.tree.map(lambda x: x[0], x) if spec == beside else x
                for x, spec in zip(arguments, specs, strict=True)
            ]
            return jax.tree.map(lambda x: x[None], function(data, *own))

        # Over the axis "batch" XLA divides the work by itself, see `training`.
        return jax.jit(
            jax.shard_map(
                of_one_place,
                mesh=mesh,
                in_specs=(everywhere, *specs),
                out_specs=out_specs,
                axis_names={"network"},
                check_vma=False,
            )
        )

    return (
        compiled(start, (beside, beside), beside),
        compiled(advance, (beside, beside, everywhere), (beside, beside)),
    )


def describe(config: NetworkConfig) -> str:
    """The data and the training of `config` in a few words, for captions."""
    n = config.samples_per_class
    size = f"n={n} a class" if n else "all samples"
    trials = f", mean of {config.trials} trials" if config.trials > 1 else ""
    return f"{config.dataset}, {size}, {config.epochs} epochs{trials}"
