"""Finished chunks of a sweep, in files: what an interrupted run continues from."""

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, MutableMapping
from pathlib import Path

import jax
import numpy as np

import experiments
import ufm_jax
from experiments import results
from experiments.experiment import Config


class ChunkFolder(MutableMapping[str, dict[str, np.ndarray]]):
    """A `store` of `ufm_jax.trials.grid` that keeps every chunk in one file of the folder `path`.

    A file appears when it is complete, and the folder with the first of them. A damaged file counts as
    missing: it is named on stderr and removed, and its trials run again.
    """

    def __init__(self, path: Path):
        self._path = path

    def part(self, name: str) -> "ChunkFolder":
        """The store of another grid of the same sweep, in a folder inside this one."""
        return ChunkFolder(self._path / name)

    def __getitem__(self, name: str) -> dict[str, np.ndarray]:
        file = self._file(name)
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                return dict(arrays)  # Zip archives carry checksums.
        except FileNotFoundError:
            raise KeyError(name) from None
        except Exception as error:  # NumPy raises whatever its readers meet.
            print(f"\nthe kept chunk {file} is damaged ({error}): its trials run again.", file=sys.stderr)
            file.unlink()
            raise KeyError(name) from None

    def __setitem__(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        self._path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._path, prefix=".new-", delete=False) as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(file.name, self._file(name))

    def __delitem__(self, name: str) -> None:
        try:
            self._file(name).unlink()
        except FileNotFoundError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(file.stem for file in self._path.glob("*.npz")))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _file(self, name: str) -> Path:
        return self._path / f"{name}.npz"


def part(store: ChunkFolder | None, name: str) -> ChunkFolder | None:
    """The part `name` of `store`, where there is a store."""
    return None if store is None else store.part(name)


def of_run(name: str, config: Config) -> ChunkFolder:
    """The store for the grids of the experiment `name`; one of its own for all that decides the numbers.

    That is the config, this code to the letter, JAX, and the kind of device.
    """
    code = hashlib.sha256()
    for package in (ufm_jax, experiments):
        for file in sorted(Path(package.__path__[0]).rglob("*.py")):
            code.update(file.read_bytes())
    deciding = (code.hexdigest(), jax.__version__, jax.default_backend())
    return ChunkFolder(results.checkpoint_folder(config, name) / results.fingerprint(config, *deciding))
