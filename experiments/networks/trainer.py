"""Training that keeps each network as soon as it is finished."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.harness.checkpoints import Checkpoints
from experiments.harness.experiment import Progress
from experiments.harness.store import History, Network, Record, Store
from experiments.networks.settings import NetworkConfig
from nets import datasets, training

_LABELS_SEED = 1
"""Added to the seed for the draw of random labels, so that it differs from the draw of samples."""


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
    split = datasets.first_of_each_class(
        datasets.load(dataset, "train"), samples_per_class or None, data_seed
    )
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
