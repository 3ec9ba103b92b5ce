"""Writing a run's results: all of them or none."""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
from matplotlib.figure import Figure

import experiments
import nets
import ufm_jax
from experiments.harness import provenance
from experiments.harness.experiment import LOCAL, Claim, Config, Data, Experiment


def check_writable(folder: Path) -> None:
    """Makes the folder above the result's `folder`, and raises OSError where it cannot be written there.

    Writing replaces the whole folder, so it must hold nothing but what a run leaves.
    """
    out = folder.parent
    out.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(folder) and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is a file, or a link to nothing", str(folder))
    others = sorted({x.name for x in folder.glob("[!.]*")} - _results(folder.name))
    if others:
        raise FileExistsError(
            errno.EEXIST, f"it holds {others[0]!r}, which no run writes there", str(folder)
        )
    with tempfile.TemporaryDirectory(dir=out, prefix=".check-"):
        pass


def _results(name: str) -> set[str]:
    """The files that `write` leaves of the experiment `name`."""
    return {"data.npz", "summary.json", "table.md", f"{name}.png", f"{name}.pdf"}


def write(
    experiment: Experiment,
    config: Config,
    data: Data,
    claims: list[Claim],
    figure: Figure,
    seconds: float,
    networks: dict[str, Any] | None = None,
) -> Path:
    """Writes the data, the summary, a table if there is one, and the figure; returns the path of its PNG.

    The summary also says how the `networks` of the run were trained, where it has some. The files appear
    together, in place of an earlier run's, once all of them are complete.
    """
    with _replacing(config.out / experiment.name) as folder:
        np.savez(folder / "data.npz", allow_pickle=False, **data)
        (folder / "summary.json").write_text(
            json.dumps(_summary(experiment, config, claims, seconds, networks), indent=2, default=str)
            + "\n"
        )
        if experiment.table is not None:
            (folder / "table.md").write_text(experiment.table(config, data) + "\n")
        figure.savefig(folder / f"{experiment.name}.png", dpi=200)
        figure.set_layout_engine(
            "none"
        )  # Everything has its place now, and finding it takes half the time.
        # Without a date the same figure is the same file.
        figure.savefig(folder / f"{experiment.name}.pdf", metadata={"CreationDate": None})
    return config.out / experiment.name / f"{experiment.name}.png"


def run_folder(config: Config, name: str) -> Path:
    """Where the experiment `name` keeps what a run that was stopped continues from.

    One folder for all that decides the numbers: the config, this code to the letter, JAX, and the kind of
    device.
    """
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in LOCAL}
    deciding = [json.dumps(fields, sort_keys=True, default=str), jax.__version__, jax.default_backend()]
    digest = hashlib.sha256("".join([*deciding, _code_digest()]).encode()).hexdigest()[:12]
    return config.out / f".{name}-checkpoints" / digest


def remove_run_folder(config: Config, name: str) -> None:
    """Removes the `run_folder` of a finished run, and leaves those of other configs."""
    folder = run_folder(config, name)
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # Others are in it, or it was never made.
        folder.parent.rmdir()


@functools.cache
def _code_digest() -> str:
    """A digest of this code to the letter, as it was at the first call."""
    hasher = hashlib.sha256()
    for package in (ufm_jax, nets, experiments):
        for file in sorted(Path(package.__path__[0]).rglob("[!.]*.py")):  # Editors leave others.
            hasher.update(file.read_bytes())
    return hasher.hexdigest()


def tells_of_damage(error: Exception) -> bool:
    """Whether what a reader raised is about the file, not about memory or a disk that does not answer."""
    if isinstance(error, OSError):  # Where a damaged archive says that its parts begin before it: EINVAL.
        return isinstance(error, FileNotFoundError) or error.errno == errno.EINVAL
    return not isinstance(error, MemoryError)


def write_file(path: Path, content: bytes) -> None:
    """Writes a file that is whole or not there: a write that is interrupted leaves the earlier one."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as new:
        try:
            new.write(content)
            new.flush()
            os.fsync(new.fileno())  # Else the name may reach the disk before the content.
            new.close()
            Path(new.name).chmod(0o644)
            Path(new.name).replace(path)
        except BaseException:
            Path(new.name).unlink(missing_ok=True)
            raise


_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
"""What file systems without locks answer."""


@contextlib.contextmanager
def locked(file: Path, *, wait: bool) -> Iterator[bool]:
    """Holds the lock `file` in the block: True, or, without `wait`, False where another run holds it.

    The system ends a lock with its process, however that dies. A file system that knows no locks, as some
    clusters have, grants all of them.
    """
    lock = filelock.FileLock(file, mode=0o666, blocking=wait, fallback_to_soft=False)
    free = True
    try:
        lock.acquire()
    except filelock.Timeout:
        free = False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield free
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):  # Windows keeps it: it is open.
                file.unlink()
            lock.release()


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` when the block ends without an error."""
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        new.chmod(0o755)
        yield new
        # Runs that share their networks end together.
        with locked(folder.parent / f".{folder.name}.lock", wait=True):
            if folder.exists():
                old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-old-"))
                folder.rename(old / folder.name)
                try:
                    new.rename(folder)
                except BaseException:
                    (old / folder.name).rename(folder)
                    raise
                shutil.rmtree(old, ignore_errors=True)  # The result is in its place.
            else:
                new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _summary(
    experiment: Experiment,
    config: Config,
    claims: list[Claim],
    seconds: float,
    networks: dict[str, Any] | None,
) -> dict[str, Any]:
    fields = dataclasses.asdict(config)
    return {
        "experiment": experiment.name,
        "scale": fields.get("scale"),
        "config": fields,
        "seed": config.seed,
        # A comparison of arrays is no Python bool, and JSON would keep it as a word.
        "claims": [dataclasses.asdict(claim) | {"holds": bool(claim.holds)} for claim in claims],
        "seconds": round(seconds, 3),
        "versions": provenance.versions(),
        "device": provenance.device(),
        "git": provenance.git(),
    } | ({} if networks is None else {"networks": networks})
