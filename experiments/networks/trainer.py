"""Training that keeps each network as soon as it is finished."""

import concurrent.futures
import contextlib
import functools
import queue
import threading
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.harness.experiment import Progress
from experiments.harness.store import History, Network, Store, check_kept
from experiments.networks.settings import NetworkConfig
from nets import training

_PAUSE = 2.0
"""Seconds between two looks at networks that another run trains."""


def train(
    config: NetworkConfig,
    networks: Sequence[Network],
    progress: Progress,
    *,
    around: Callable[[Callable], Callable] = lambda program: program,
) -> list[History]:
    """The histories of `networks`, which are trained where `config.out` does not have them.

    Threads train networks beside each other, one on each device, or on each `config.data_parallel`
    devices that share its batches. Each is kept in the `Store` of `config.out` as soon as it is finished.
    What another run in the same folder trains is left to it, and waited for at the end.
    The compiled program of an epoch is called as `around(program)`, by which it can be timed.

    Returns:
        For each network its metrics after every epoch, (epochs,): those of `training.epoch`.

    Raises:
        OthersError: other code, libraries or data have begun one of them, and `config.reuse` is not set.
    """
    if not config.reuse:
        check_kept(config.out, networks, reuse=False)
    store = Store(config.out)
    found = {network: history for network in networks if (history := store.history(network)) is not None}
    missing = [network for network in dict.fromkeys(networks) if network not in found]
    tally = _Tally(progress, sum(network.epochs for network in missing))
    places = _places(jax.local_devices(), config.data_parallel)
    free: queue.SimpleQueue[Place] = queue.SimpleQueue()
    for place in places:
        free.put(place)

    def work(network: Network) -> History | None:
        place = free.get()
        try:
            with store.claim(network) as claimed:
                if not claimed:
                    return None
                if not config.reuse:  # Another run may have come since the command line looked.
                    check_kept(config.out, [network], reuse=False)
                if (history := store.history(network, quiet=True)) is not None:
                    tally.add(network.epochs, f"{network.title} was trained by another run")
                    return history
                return _train_one(network, place, store, config.checkpoint_seconds, tally, around)
        finally:
            free.put(place)

    pool = concurrent.futures.ThreadPoolExecutor(len(places))
    try:
        while missing:
            trained = {pool.submit(work, network): network for network in missing}
            for one in concurrent.futures.as_completed(trained):
                if (history := one.result()) is not None:
                    found[trained[one]] = history
            missing = [network for network in missing if network not in found]
            if missing:
                tally.add(0, f"waiting for {missing[0].title}, which another run trains")
                time.sleep(_PAUSE)
    finally:
        # After Ctrl-C nobody waits for the epochs that still run; what was kept before them stays.
        tally.stop()
        pool.shutdown(wait=False, cancel_futures=True)
    return [found[network] for network in networks]


def stacked(histories: Sequence[History], *shape: int) -> History:
    """The metrics that all of several networks have, each (*shape, epochs)."""
    common = [name for name in histories[0] if all(name in history for history in histories)]
    return {name: np.stack([history[name] for history in histories]).reshape(*shape, -1) for name in common}


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


def _train_one(
    network: Network,
    place: Place,
    store: Store,
    seconds: float,
    tally: _Tally,
    around: Callable[[Callable], Callable],
) -> History:
    """Trains a network on one place, from its last checkpoint if it has one, and keeps it."""
    epochs, seed = network.epochs, np.int32(network.seed)
    with _IN_TURN:
        data = jax.device_put(_samples_of(network), _everywhere(place))
        like, names = _shapes(network.setup, place, _shapes_of(data))
    history = {name: np.full(epochs, np.nan, np.float32) for name in names}
    with contextlib.closing(store.checkpoints(network, seconds)) as checkpoints:
        done, (state, history) = checkpoints.restore((like, history)) or (0, (None, history))
        record = store.begin(network, anew=done == 0)
        history = {name: np.array(values) for name, values in history.items()}
        tally.add(done, "")
        with _IN_TURN:
            start, advance = _programs(network.setup, place, _shapes_of(data))
            if state is None:
                state = start(data, seed, np.float32(network.tau or 1.0))
            else:
                state = jax.device_put(state, _everywhere(place))
        advance = around(advance)
        for epoch in range(done, epochs):
            begun = time.perf_counter()
            state, row = jax.block_until_ready(advance(data, state, seed, np.int32(epoch)))
            record["epochs"] = epoch + 1
            record["seconds"] += time.perf_counter() - begun
            row = jax.device_get(row)
            for name, value in row.items():
                history[name][epoch] = value
            if epoch + 1 == epochs:
                store.finish(network, record, history)
            elif checkpoints.due():
                # The record first: it must name all who had a hand in a checkpoint.
                store.note(network, record)
                checkpoints.save(epoch + 1, (state, history))
            note = f"{network.title}, epoch {epoch + 1}/{epochs}"
            tally.add(1, f"{note}, accuracy {row['accuracy']:.3f}, NC1 {row['nc1']:.3g}")
    return history


_IN_TURN = threading.Lock()
"""Held while data are read and programs compiled, so that a second thread finds what a first has made."""


_draw = functools.lru_cache(maxsize=2)(training.draw)


def _samples_of(network: Network) -> tuple[training.Samples, ...]:
    """What `network` is trained on, and with `tested` the test set."""
    n = network
    return _draw(n.dataset, n.samples_per_class, n.random_labels, n.data_seed, tested=n.tested)


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
    setup: training.Setup, place: Place, data: tuple[training.Samples, ...]
) -> tuple[Callable, Callable]:
    """The start of a network of `setup` on `data` of these shapes, and, compiled, an epoch of it."""
    everywhere = _everywhere(place)
    start = jax.jit(
        lambda data, seed, tau: training.init(setup, data[0], seed, tau), out_shardings=everywhere
    )
    # Over the axis "batch" XLA divides the work by itself, see `training`.
    with jax.set_mesh(_mesh(place)):
        state, _ = _shapes(setup, place, data)
        lowered = jax.jit(
            functools.partial(training.epoch, setup), in_shardings=everywhere, out_shardings=everywhere
        ).lower(data, state, np.int32(0), np.int32(0))
        return start, lowered.compile()
