"""How far networks have come: finished, in training or missing, and the time that is left."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness.reading import duration
from experiments.harness.store import Network, Record, Store


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far one network has come.

    Attributes:
        network: which one.
        state: "finished", "in training" or "missing".
        epochs: those that are kept.
        seconds: of an epoch, its own or those of networks like it; None where none was timed yet.
    """

    network: Network
    state: str
    epochs: int
    seconds: float | None

    @property
    def left(self) -> float | None:
        """Seconds until it is finished; None where they are not known."""
        epochs = self.network.epochs - self.epochs
        return 0.0 if epochs == 0 else None if self.seconds is None else epochs * self.seconds


def of_networks(out: Path, networks: Sequence[Network]) -> list[Progress]:
    """How far each of `networks` has come in the results in `out`."""
    store = Store(out)
    timed = store.records()
    found = []
    for network in networks:
        record = store.record(network)
        epochs = record["epochs"] if record else 0
        state = "missing" if record is None else "finished" if epochs == network.epochs else "in training"
        own = [record] if record and epochs else [r for r in timed if _are_alike(r, network)]
        seconds = [r["seconds"] / r["epochs"] for r in own]
        found.append(Progress(network, state, epochs, float(np.median(seconds)) if seconds else None))
    return found


def _are_alike(record: Record, network: Network) -> bool:
    """Whether an epoch of both is the same work."""
    return record["epochs"] > 0 and _work(record["network"]) == _work(network.identity)


def _work(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What of a network's identity decides the work of an epoch."""
    outer = {"device", "dataset", "samples_per_class", "tested"}
    inner = {"architecture", "width", "recipe"}
    setup = {name: value for name, value in identity["setup"].items() if name in inner}
    setup["recipe"] = setup["recipe"] | {"epochs": None}
    return setup | {name: value for name, value in identity.items() if name in outer}


def text(name: str, out: Path, networks: Sequence[Network]) -> str:
    """The progress of the networks of the experiment `name`: a line on all, and one on each."""
    found = of_networks(out, networks)
    finished = sum(progress.state == "finished" for progress in found)
    lines = [f"{name}: {finished} of {len(found)} networks finished in '{Store(out).folder}'{_left(found)}"]
    for progress in found:
        time = "" if progress.seconds is None else f"{duration(progress.seconds)} an epoch"
        epochs = f"{progress.epochs:>4} of {progress.network.epochs} epochs"
        which = f"{progress.network.title} seed {progress.network.seed}"
        lines.append(f"  {progress.state:<11}  {epochs}  {time:<20}  {which}")
    return "\n".join(lines)


def _left(found: Sequence[Progress]) -> str:
    """What is left of all, one after another, in words; empty if nothing."""
    known = [progress.left for progress in found if progress.left is not None]
    unknown = len(found) - len(known)
    words = [f"about {duration(sum(known))} left"] if sum(known) > 0 else []
    words += [f"{unknown} of a kind that was not timed yet"] if unknown else []
    return "".join(f", {word}" for word in words)
