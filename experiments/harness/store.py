"""Trained networks, a file each: what no later run trains again.

A file's name is decided by what decides the network and by nothing else, so every experiment finds the
networks that others have trained, and folders of several machines are brought together by copying.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import io
import json
import re
import shutil
import sys
import zipfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import numpy as np

import nets
import ufm_jax
from experiments.harness import provenance, writing
from experiments.harness.checkpoints import Checkpoints
from nets import datasets, training

FORMAT = 1
"""Part of what decides a network: raised on purpose, where those of earlier code are to be left alone."""

FOLDER = "networks"
"""Where they lie in the folder of the results."""

History = dict[str, np.ndarray]
"""Metrics after every epoch, (epochs,) each."""

Record = dict[str, Any]
"""What is kept beside a history, as JSON: `network`, `epochs` done, `seconds` they took, `made_by`, and the
digest of its `data`, of a network that is tested also of its `test_data`; several, where it went on with
others.
"""

_LIBRARIES = {"jax": "JAX", "flax": "Flax", "optax": "optax"}
"""The libraries that decide a network's numbers."""

_DECIDING = [
    *sorted(Path(nets.__path__[0]).glob("[!.]*.py")),
    *(
        Path(ufm_jax.__path__[0], f"{name}.py")
        for name in (
            *("_blocks", "_checks", "_products", "losses", "streaming"),
            *("riemannian/manifolds", "riemannian/transforms"),
        )
    ),
    *sorted(Path(ufm_jax.__path__[0], "metrics").glob("[!.]*.py")),
]
"""The modules that decide a network's numbers."""


@dataclasses.dataclass(frozen=True)
class Network:
    """All that decides a trained network, but for the kind of device and `FORMAT`.

    A field that comes later has to be left out of `identity` where it has the value that all networks had
    before it, or every file's name changes.

    Attributes:
        setup: the architecture, the model, the width and the recipe.
        dataset: what it is trained on.
        samples_per_class: of the training set; 0 for all.
        random_labels: whether labels are drawn at random.
        data_seed: decides the draw of samples and of labels.
        seed: decides the start and the order of samples.
        tau: temperature; None for the regularized model, which has none.
        tested: whether the metrics of the test set are in its history, too.
    """

    setup: training.Setup
    dataset: datasets.Name
    samples_per_class: int
    random_labels: bool
    data_seed: int
    seed: int
    tau: float | None
    tested: bool

    @property
    def epochs(self) -> int:
        """Epochs of its training."""
        return self.setup.recipe.epochs

    @property
    def title(self) -> str:
        """What tells it from the other networks of an experiment, for people."""
        tau = "" if self.tau is None else f" tau={self.tau:g}"
        how = self.setup.recipe.initialization
        start = "" if how == "he" else f" start {how}"  # Files' names have no word for the first choice.
        return f"{self.setup.architecture} {self.setup.model}{tau} width {self.setup.width}{start}"

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides it, as JSON."""
        fields = dataclasses.asdict(self)
        if self.setup.recipe.initialization == "he":  # As of all networks before there was a choice.
            del fields["setup"]["recipe"]["initialization"]
        return {"format": FORMAT, "device": jax.default_backend(), **fields}

    @property
    def name(self) -> str:
        """The name of its file: a few words for people, and a digest of its identity."""
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:12]
        labels = " random labels" if self.random_labels else ""
        words = f"{self.dataset}{labels} n{self.samples_per_class or 'all'} {self.title} {digest}"
        return re.sub(r"[ =]", "-", words)


class Store:
    """The networks of one folder of results, finished and in training.

    Finished: a file `NAME.npz` with the history and, inside it, `network.json` with the record. In
    training: its checkpoints, and the record beside them.
    """

    def __init__(self, out: Path):
        """Of the results in `out`; nothing is made before there is something to keep."""
        self.folder = out / FOLDER
        self._training = self.folder / ".training"
        self._maker = origin()  # Here, because Python 3.11 cannot parse in two threads beside each other.

    def history(self, network: Network, *, quiet: bool = False) -> History | None:
        """The history of a finished network; None where its file is damaged, and a sentence on stderr."""
        file = self._file(network)
        if not file.exists():
            return None
        try:
            history = _read_history(file)
            record = read_record(file)
            if record is None or record["network"] != network.identity:
                raise ValueError("it does not say that it holds this network")
            if not history or any(values.shape != (network.epochs,) for values in history.values()):
                raise ValueError("it does not hold every epoch")
        except Exception as error:  # NumPy raises whatever its readers meet.
            if not writing.tells_of_damage(error):
                raise
            if not quiet:
                print(f"\n'{file}' is damaged ({error}): the network is trained again.", file=sys.stderr)
            return None
        return history

    def record(self, network: Network) -> Record | None:
        """The record of a network that is finished or in training; None where there is none to be read."""
        for file in (self._file(network), self._begun(network)):
            record = read_record(file)
            if record is not None and record["network"] == network.identity:
                return record
        return None

    def records(self) -> list[Record]:
        """The records of all networks here that can be read."""
        files = [*sorted(self.folder.glob("*.npz")), *sorted(self._training.glob("*.json"))]
        return [record for file in files if (record := read_record(file)) is not None]

    def claim(self, network: Network) -> AbstractContextManager[bool]:
        """Whether this run has a network to itself in the block: not while another one here trains it."""
        return writing.locked(self._training / f"{network.name}.lock", wait=False)

    def checkpoints(self, network: Network, seconds: float) -> Checkpoints:
        """Those of a network in training, without any of which nobody knows who made them."""
        record = read_record(self._begun(network))
        if record is None and self._begun(network).exists():
            print(
                f"\n'{self._begun(network)}' is damaged: the network is trained from its start.",
                file=sys.stderr,
            )
        if record is None or not record["epochs"]:
            shutil.rmtree(self._checkpoints(network), ignore_errors=True)
        return Checkpoints(self._checkpoints(network), seconds)

    def begin(self, network: Network, *, anew: bool) -> Record:
        """The record of a network as this code begins it `anew`, or goes on from a checkpoint.

        The latter is not kept before `note` or `finish`: nothing of it is this code's before an epoch.
        """
        digests = _digests(network.dataset, network.tested)
        record = None if anew else read_record(self._begun(network))
        if record is None:
            record = {"network": network.identity, "epochs": 0, "seconds": 0.0, "made_by": [], **digests}
            self.note(network, record)
        if self._maker not in record["made_by"]:
            record["made_by"].append(self._maker)
        for name, here in digests.items():
            if here not in record.get(name, here):
                record[name] += f" {here}"
        return record

    def note(self, network: Network, record: Record) -> None:
        """Keeps the record of a network in training."""
        writing.write_file(self._begun(network), _as_json(record))

    def finish(self, network: Network, record: Record, history: History) -> None:
        """Keeps a finished network, and removes its checkpoints."""
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **history)
        with zipfile.ZipFile(content, "a") as archive:
            archive.writestr("network.json", _as_json(record))
        writing.write_file(self._file(network), content.getvalue())
        shutil.rmtree(self._checkpoints(network), ignore_errors=True)
        self._begun(network).unlink(missing_ok=True)

    def _file(self, network: Network) -> Path:
        return self.folder / f"{network.name}.npz"

    def _checkpoints(self, network: Network) -> Path:
        return self._training / network.name

    def _begun(self, network: Network) -> Path:
        return self._training / f"{network.name}.json"


class OthersError(ValueError):
    """Networks were trained with other code, JAX or data."""


def check_kept(out: Path, networks: Sequence[Network], reuse: bool) -> None:
    """Raises OthersError where some were trained with other code, JAX or data, unless `reuse` is set.

    With `reuse` the same message goes to stderr instead.
    """
    store = Store(out)
    kept = [record for network in networks if (record := store.record(network)) and record["epochs"]]
    data = [(record["network"]["dataset"], record["network"]["tested"]) for record in kept]
    here = {which: _digests(*which) for which in data}
    by_others = [others(record, here[which]) for record, which in zip(kept, data, strict=True)]
    theirs = [words for words in by_others if words]
    if not theirs:
        return
    who = ", ".join(sorted(set().union(*theirs)))
    what = f"{len(theirs)} of {len(networks)} networks in '{store.folder}' were trained by {who}"
    if not reuse:
        raise OthersError(f"{what}: --reuse takes them as they are, another --out trains them again.")
    print(f"{what}: taken as they are (--reuse).", file=sys.stderr)


def summary(out: Path, networks: Sequence[Network]) -> dict[str, Any]:
    """How many of `networks` are finished or begun, the seconds of their epochs together, and by whom."""
    store = Store(out)
    records = [record for network in networks if (record := store.record(network)) is not None]
    makers = [maker for record in records for maker in record["made_by"]]
    return {
        "count": len(records),
        "seconds": round(sum(record["seconds"] for record in records), 1),
        "made_by": [maker for i, maker in enumerate(makers) if maker not in makers[:i]],
    }


def _as_json(record: Record) -> bytes:
    return (json.dumps(record, indent=1) + "\n").encode()


def read_record(file: Path) -> Record | None:
    """The record in a finished network's file, or beside checkpoints; None if missing or damaged."""
    try:
        if file.suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                if archive.testzip() is not None:
                    return None
                record = json.loads(archive.read("network.json"))
        else:
            record = json.loads(file.read_bytes())
        network = record["network"]
        known = [
            *((record["epochs"], int), (record["seconds"], float), (record["made_by"], list)),
            # Also what is read of a network that nobody asked for by its name.
            *((network["dataset"], str), (network["setup"]["recipe"], dict)),
        ]
        return record if all(isinstance(value, kind) for value, kind in known) else None
    except Exception as error:  # As above.
        if not writing.tells_of_damage(error):
            raise
        return None


def _read_history(file: Path) -> History:
    """The arrays in a finished network's file; archives carry checksums."""
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files if name != "network.json"}


@functools.cache
def origin() -> dict[str, Any]:
    """Who trains networks here: the code, JAX, the commit and the device."""
    return {
        "code": code_digest(),
        **{name: importlib.metadata.version(name) for name in _LIBRARIES},
        "git": provenance.git(),
        "device": provenance.device(),
    }


def _digests(dataset: datasets.Name, tested: bool) -> dict[str, str]:
    """Digests of the data that a network is trained on, and tested on, as they are here."""
    found = {"data": datasets.digest(dataset, "train")}
    return found | ({"test_data": datasets.digest(dataset, "test")} if tested else {})


def others(record: Record, digests: dict[str, str]) -> set[str]:
    """What other than this code, this JAX and data of these digests has trained a network, in words."""
    words = set()
    if any(record.get(name, here) != here for name, here in digests.items()):  # Earlier ones do not say.
        words.add(f"other data of the name {record['network']['dataset']}")
    for maker in record["made_by"]:
        git = maker["git"] or {"commit": "unknown", "dirty": False}
        if maker["code"] != code_digest():
            words.add(f"code of commit {git['commit'][:12]}{' with changes' if git['dirty'] else ''}")
        for name, title in _LIBRARIES.items():
            here = importlib.metadata.version(name)
            if maker.get(name, here) != here:  # As above.
                words.add(f"{title} {maker[name]} (here {here})")
    return words


@functools.cache
def code_digest() -> str:
    """A digest of the modules that decide a network's numbers, without their comments and docstrings."""
    hasher = hashlib.sha256()
    for file in _DECIDING:
        hasher.update(f"{file.name} {without_words(file.read_text(encoding='utf-8'))}".encode())
    return hasher.hexdigest()[:12]


def without_words(source: str) -> str:
    """Source code without comments, docstrings and quotes, all laid out alike."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [x for x in body if not _is_docstring(x)]  # type: ignore[attr-defined]
    # Which quotes stand where depends on the version of Python.
    return ast.unparse(tree).translate(str.maketrans("", "", "\\'\""))


def _is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
