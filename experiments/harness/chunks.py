"""Finished chunks of a sweep, in files: what an interrupted run continues from."""

import io
import sys
from collections.abc import Iterator, MutableMapping
from pathlib import Path

import numpy as np

from experiments.harness import writing
from experiments.harness.experiment import Config


class ChunkFolder(MutableMapping[str, dict[str, np.ndarray]]):
    """A `store` of `ufm_jax.trials.grid` that keeps every chunk in one file of the folder `path`.

    A file appears when it is complete, and the folder with the first of them. A damaged file counts as
    missing: it is named on stderr and removed, and its trials run again.
    """

    def __init__(self, path: Path):
        self.path = path

    def __getitem__(self, name: str) -> dict[str, np.ndarray]:
        file = self._file(name)
        try:
            stream = file.open("rb")
        except FileNotFoundError:
            raise KeyError(name) from None
        try:
            with stream, np.load(stream, allow_pickle=False) as arrays:
                return dict(arrays)  # Zip archives carry checksums.
        except Exception as error:  # NumPy raises whatever its readers meet.
            if not writing.tells_of_damage(error):
                raise
            print(f"\nthe kept chunk {file} is damaged ({error}): its trials run again.", file=sys.stderr)
            file.unlink()
            raise KeyError(name) from None

    def __setitem__(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **arrays)
        writing.write_file(self._file(name), content.getvalue())

    def __delitem__(self, name: str) -> None:
        try:
            self._file(name).unlink()
        except FileNotFoundError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(file.stem for file in self.path.glob("*.npz")))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.npz"


def part(store: ChunkFolder | None, name: str) -> ChunkFolder | None:
    """The store of another grid of the same sweep, in a folder inside `store`, where there is one."""
    return None if store is None else ChunkFolder(store.path / name)


def of_run(name: str, config: Config) -> ChunkFolder:
    """The store for the grids of the experiment `name` under `config`."""
    return ChunkFolder(writing.run_folder(config, name))
