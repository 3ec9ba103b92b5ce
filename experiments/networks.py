"""What the experiments on networks share: their config, and training that keeps each finished network."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Self

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import data as datasets
from experiments import training
from experiments.checkpoints import Checkpoints
from experiments.experiment import Config, Progress
from experiments.store import History, Network, Record, Store, others
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
    """Networks of a setting trained as one batched program on each device."""
    data_parallel: int = 1
    """Devices that share every batch of each network; they must not be more than there are."""
    batch_norm: training.BatchNorm = "global"
    """Batch normalization by statistics of the whole batch, or of each device's part of it (replica)."""
    precision: training.Precision = "float32"
    """Of the products in the networks; all else is float32. tf32 has an effect on GPUs and TPUs alone."""
    checkpoint_seconds: float = 30.0
    """Least time between two checkpoints; a run that was stopped continues from the last one."""
    reuse: bool = False
    """Take networks also where other code, or another version of JAX, has trained or begun them."""

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


def training_split(config: NetworkConfig) -> datasets.Split:
    """The training samples that `config` asks for, with their own labels."""
    return _split(config.dataset, config.samples_per_class, config.seed)


def _split(dataset: datasets.Name, samples_per_class: int, seed: int) -> datasets.Split:
    split = datasets.load(dataset, "train")
    return datasets.first_of_each_class(split, samples_per_class or None, seed)


def seeds(config: NetworkConfig) -> list[int]:
    """One seed for each trial; those of fewer trials are the first of more."""
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


def check_kept(config: NetworkConfig, networks: Sequence[Network]) -> None:
    """Raises ValueError where other code, JAX or data have trained some, and `config.reuse` is not set.

    Where it is set, the same is said on stderr.
    """
    store = Store(config.out)
    kept = [record for network in networks if (record := store.record(network)) is not None]
    data = {name: datasets.digest(name) for name in {record["network"]["dataset"] for record in kept}}
    by_others = [others(record, data[record["network"]["dataset"]]) for record in kept]
    theirs = [words for words in by_others if words]
    if not theirs:
        return
    who = ", ".join(sorted(set().union(*theirs)))
    what = f"{len(theirs)} of {len(networks)} networks in '{store.folder}' were trained by {who}"
    if not config.reuse:
        raise ValueError(f"{what}: --reuse takes them as they are, another --out trains them anew.")
    print(f"{what}: taken as they are (--reuse).", file=sys.stderr)


def summary(config: NetworkConfig, networks: Sequence[Network]) -> dict[str, Any]:
    """How many of `networks` are finished or begun, the seconds of their epochs together, and by whom."""
    store = Store(config.out)
    records = [record for network in networks if (record := store.record(network)) is not None]
    makers = [maker for record in records for maker in record["made_by"]]
    return {
        "count": len(records),
        "seconds": round(sum(record["seconds"] for record in records), 1),
        "made_by": [maker for i, maker in enumerate(makers) if maker not in makers[:i]],
    }


def train(
    config: NetworkConfig,
    networks: Sequence[Network],
    progress: Progress,
    *,
    around: Callable[[Callable], Callable] = lambda program: program,
) -> list[History]:
    """The histories of `networks`, which are trained where `config.out` does not have them.

    Threads train networks beside each other, one on each device, or on each `config.data_parallel`
    devices that share its batches; `config.at_once` of the same setup can be one batched program there.
    Each is kept in the `Store` of `config.out` as soon as it is finished. The compiled program of an epoch
    is called as `around(program)`, by which it can be timed.

    Returns:
        For each network its metrics after every epoch, (epochs,): those of `training.epoch`.
    """
    store = Store(config.out)
    found = {network: history for network in networks if (history := store.history(network)) is not None}
    missing = [network for network in dict.fromkeys(networks) if network not in found]
    tally = _Tally(progress, sum(network.epochs for network in missing))
    places = _places(jax.local_devices(), config.data_parallel)
    free: queue.SimpleQueue[Place] = queue.SimpleQueue()
    for place in places:
        free.put(place)

    def work(batch: list[Network]) -> dict[Network, History]:
        place = free.get()
        try:
            return _train_batch(batch, place, store, config.checkpoint_seconds, tally, around)
        finally:
            free.put(place)

    pool = concurrent.futures.ThreadPoolExecutor(len(places))
    try:
        batches = [pool.submit(work, batch) for batch in _batches(missing, config.at_once)]
        for batch in concurrent.futures.as_completed(batches):
            found |= batch.result()
    finally:
        # After Ctrl-C nobody waits for the epochs that still run; what was kept before them stays.
        tally.stop()
        pool.shutdown(wait=False, cancel_futures=True)
    return [found[network] for network in networks]


def stacked(histories: Sequence[History], *shape: int) -> History:
    """The metrics of several networks, each (*shape, epochs)."""
    return {
        name: np.stack([history[name] for history in histories]).reshape(*shape, -1)
        for name in histories[0]
    }


Place = tuple[jax.Device, ...]
"""The devices that train a network."""


def _places(devices: Sequence[jax.Device], data_parallel: int) -> list[Place]:
    """The devices in groups that each train one network; the rest stand idle."""
    starts = range(0, len(devices) - data_parallel + 1, data_parallel)
    places = [tuple(devices[i : i + data_parallel]) for i in starts]
    if data_parallel == 1 and devices[0].platform == "cpu":
        # These are one processor, where threads share a device as well, and so what is compiled for it.
        return places[:1] * len(places)
    return places


def _batches(networks: Sequence[Network], at_once: int) -> list[list[Network]]:
    """Networks that differ in seed and tau alone, at most `at_once` together."""
    alike: dict[Network, list[Network]] = {}
    for network in networks:
        tau = None if network.tau is None else 1.0
        alike.setdefault(dataclasses.replace(network, seed=0, tau=tau), []).append(network)
    return [members[i : i + at_once] for members in alike.values() for i in range(0, len(members), at_once)]


class _Stopped(Exception):
    """The run has failed elsewhere, or was interrupted."""


class _Tally:
    """The epochs that threads have done together, told to `progress` by one of them at a time."""

    def __init__(self, progress: Progress, total: int):
        self._progress, self._total = progress, total
        self._done = 0
        self._lock = threading.Lock()
        self._stopped = False

    def add(self, epochs: int, note: str) -> None:
        with self._lock:
            if self._stopped:
                raise _Stopped
            self._done += epochs
            self._progress(self._done, self._total, note)

    def stop(self) -> None:
        self._stopped = True


@dataclasses.dataclass
class _Member:
    """A network in training: `state` is that after the last checkpoint, None at the start."""

    network: Network
    checkpoints: Checkpoints
    record: Record
    history: History
    state: Any


def _train_batch(
    networks: Sequence[Network],
    place: Place,
    store: Store,
    seconds: float,
    tally: _Tally,
    around: Callable[[Callable], Callable],
) -> dict[Network, History]:
    """Trains networks of one setup on one place, those that have come equally far as one program."""
    setup, epochs = networks[0].setup, networks[0].epochs
    with _IN_TURN:
        data = jax.device_put(_samples_of(networks[0]), _everywhere(place))
        like, names = _shapes(setup, place, _shapes_of(data))
    with contextlib.ExitStack() as opened:
        by_epoch: dict[int, list[_Member]] = {}
        for network in networks:
            checkpoints, record = store.begin(network, seconds)
            opened.callback(checkpoints.close)
            history = {name: np.full(epochs, np.nan, np.float32) for name in names}
            done, (state, history) = checkpoints.restore((like, history)) or (0, (None, history))
            history = {name: np.array(values) for name, values in history.items()}
            by_epoch.setdefault(done, []).append(_Member(network, checkpoints, record, history, state))
        for done, members in sorted(by_epoch.items()):
            tally.add(done * len(members), "")
            _train_members(members, done, place, data, store, tally, around)
        return {member.network: member.history for members in by_epoch.values() for member in members}


def _train_members(
    members: Sequence[_Member],
    done: int,
    place: Place,
    data: tuple[training.Samples, ...],
    store: Store,
    tally: _Tally,
    around: Callable[[Callable], Callable],
) -> None:
    """Trains networks of one setup, each after `done` epochs, to their end, and keeps them."""
    networks = [member.network for member in members]
    epochs = networks[0].epochs
    seed = np.array([network.seed for network in networks], np.int32)
    tau = np.array([network.tau or 1.0 for network in networks], np.float32)
    with _IN_TURN:
        start, advance = _programs(networks[0].setup, place, _shapes_of(data), len(members))
        if done == 0:
            state = start(data, seed, tau)
        else:
            state = jax.tree.map(lambda *x: np.stack(x), *(member.state for member in members))
            state = jax.device_put(state, _everywhere(place))
    for member in members:
        member.state = None
    advance = around(advance)
    for epoch in range(done, epochs):
        begun = time.perf_counter()
        state, row = jax.block_until_ready(advance(data, state, seed, np.int32(epoch)))
        took = (time.perf_counter() - begun) / len(members)
        row = jax.device_get(row)
        for i, member in enumerate(members):
            for name, values in row.items():
                member.history[name][epoch] = values[i]
            member.record["epochs"] = epoch + 1
            member.record["seconds"] += took
            if epoch + 1 == epochs:
                store.finish(member.network, member.record, member.history)
            elif member.checkpoints.due():
                own = jax.tree.map(lambda x, i=i: x[i], state)
                member.checkpoints.save(epoch + 1, (own, member.history))
                store.note(member.network, member.record)
        accuracy, nc1 = (row[metric].mean() for metric in ("accuracy", "nc1"))
        note = f"{networks[0].title}, epoch {epoch + 1}/{epochs}, accuracy {accuracy:.3f}, NC1 {nc1:.3g}"
        tally.add(len(members), note)


_IN_TURN = threading.Lock()
"""Held while data are read and programs compiled, so that a second thread finds what a first has made."""


def _samples_of(network: Network) -> tuple[training.Samples, ...]:
    """What `network` is trained on, and with `tested` the test set."""
    n = network
    return _samples(n.dataset, n.samples_per_class, n.random_labels, n.data_seed, n.tested)


@functools.lru_cache(maxsize=2)
def _samples(
    dataset: datasets.Name, samples_per_class: int, random_labels: bool, data_seed: int, tested: bool
) -> tuple[training.Samples, ...]:
    split = _split(dataset, samples_per_class, data_seed)
    if random_labels:
        split = datasets.random_labels(split, data_seed + _LABELS_SEED)
    whole = datasets.load(dataset, "train")
    splits = [split, datasets.load(dataset, "test")] if tested else [split]
    return tuple(training.samples(x, whole) for x in splits)


def _mesh(place: Place) -> Mesh:
    return Mesh(np.array(place), ("batch",))


def _everywhere(place: Place) -> NamedSharding:
    return NamedSharding(_mesh(place), PartitionSpec())


def _shapes_of(data: tuple[training.Samples, ...]) -> tuple[training.Samples, ...]:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), data)


@functools.lru_cache(maxsize=8)
def _shapes(
    setup: training.Setup, place: Place, data: tuple[training.Samples, ...]
) -> tuple[training.State, list[str]]:
    """The state of a network of `setup` on `data` of these shapes, and the names of its metrics."""
    with jax.set_mesh(_mesh(place)):
        state = jax.eval_shape(functools.partial(training.init, setup), data[0], np.int32(0), np.float32(1))
        _, row = jax.eval_shape(
            functools.partial(training.epoch, setup), data, state, np.int32(0), np.int32(0)
        )
    return state, sorted(row)


@functools.lru_cache(maxsize=8)
def _programs(
    setup: training.Setup, place: Place, data: tuple[training.Samples, ...], members: int
) -> tuple[Callable, Callable]:
    """The start of networks of `setup` on `data` of these shapes, and, compiled, an epoch of each.

    All that is a network's own has a leading axis of `members`.
    """

    def of_all(function: Callable, axes: tuple[int | None, ...]) -> Callable:
        if members > 1:
            return jax.vmap(function, axes)

        def of_one(*arguments: Any) -> Any:
            own = (
                x if axis is None else jax.tree.map(lambda x: x[0], x)
                for x, axis in zip(arguments, axes, strict=True)
            )
            return jax.tree.map(lambda x: x[None], function(*own))

        return of_one

    everywhere = _everywhere(place)
    start = jax.jit(
        of_all(lambda data, seed, tau: training.init(setup, data[0], seed, tau), (None, 0, 0)),
        out_shardings=everywhere,
    )
    epoch = of_all(functools.partial(training.epoch, setup), (None, 0, 0, None))
    seed, tau = np.zeros(members, np.int32), np.ones(members, np.float32)
    # Over the axis "batch" XLA divides the work by itself, see `training`.
    with jax.set_mesh(_mesh(place)):
        state = jax.eval_shape(start, data, seed, tau)
        lowered = jax.jit(epoch, in_shardings=everywhere, out_shardings=everywhere).lower(
            data, state, seed, np.int32(0)
        )
        return start, lowered.compile()


def describe(config: NetworkConfig) -> str:
    """The data and the training of `config` in a few words, for captions."""
    n = config.samples_per_class
    size = f"n={n} a class" if n else "all samples"
    trials = f", mean of {config.trials} trials" if config.trials > 1 else ""
    return f"{config.dataset}, {size}, {config.epochs} epochs{trials}"
