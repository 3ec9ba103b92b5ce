"""What an experiment is: a config, a run that makes arrays, the claims they support, and a figure.

Each is one file in a folder of this package (`feature_model`, `landscape`, `networks`, `speed`), found
there by its `TITLE`. The file's name is the experiment's: fig5_start.py is `fig5-start`.
"""

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, Self

import numpy as np
from matplotlib.figure import Figure

import experiments
from ufm_jax import _checks

Data = dict[str, np.ndarray]
"""Named arrays: everything a figure draws, with its axes."""


class Progress(Protocol):
    """Called with the amount of work done, of all work, and a few words on where it stands."""

    def __call__(self, done: float, total: float, note: str = "") -> None:
        """Shows it."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Fields of every experiment."""

    scale: Literal["paper"] = "paper"
    """Size of the run: the paper's own, where there is no other."""
    out: Path = Path("results")
    """Folder for the results; the experiment writes into a folder of its own name there."""
    seed: int = 0
    """Seed of all random draws."""
    quiet: bool = False
    """Show no progress bar and no table, only the path of the picture."""

    @classmethod
    def at_scale(cls, scale: str) -> Self:
        """The defaults at the scale that was asked for; refusing an unknown one is left to tyro."""
        del scale
        return cls()


LOCAL = ("out", "quiet", "checkpoint_seconds", "reuse", "coordinator", "processes", "process")
"""Fields that decide where a run writes, what it prints and who shares it, and none of its numbers."""


@dataclasses.dataclass(frozen=True)
class UfmConfig(Config):
    """Fields of every experiment on the unconstrained feature model."""

    dtype: Literal["float32", "float64"] = "float64"
    """Floating type of the computation; on a TPU, which has no float64, the default is float32."""
    coordinator: str = ""
    """Of several processes that share the run: host:port of the first; auto on a TPU pod or under SLURM."""
    processes: int = 1
    """How many processes share the run; each is given the same command."""
    process: int = 0
    """Which of them this is, from 0; the first writes the results."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement about the data, whether it holds there, and the numbers that say so."""

    claim: str
    holds: bool
    measured: str


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment, as its file defines it: names in capitals and functions of these names.

    Attributes:
        name: as typed on the command line.
        title: one line for lists, `TITLE`.
        duration: usual time, for people, `DURATION`.
        config: its config class, all fields with defaults, `Config`.
        check: raises ValueError with one sentence where a config makes no sense.
        run: computes the data; the same config on the same machine gives the same arrays.
        claims: what the paper says of the experiment, judged on the data.
        plot: the figure, laid out like the paper's.
        table: numbers for reading, in Markdown; None where the claims say all.
        networks: the trained networks (`store.Network`) that a config needs, `needed` in the file; None
            where there are none.
    """

    name: str
    title: str
    duration: str
    config: type[Config]
    check: Callable[[Any], None]
    run: Callable[..., Data]
    claims: Callable[[Any, Data], list[Claim]]
    plot: Callable[[Any, Data], Figure]
    table: Callable[[Any, Data], str] | None = None
    networks: Callable[[Any], list[Any]] | None = None

    @classmethod
    def of_module(cls, module: Any) -> Self:
        """The experiment that a file defines."""
        return cls(
            name=module.__name__.rpartition(".")[2].replace("_", "-"),
            title=module.TITLE,
            duration=module.DURATION,
            config=module.Config,
            check=module.check,
            run=module.run,
            claims=module.claims,
            plot=module.plot,
            table=getattr(module, "table", None),
            networks=getattr(module, "needed", None),
        )

    @property
    def resumable(self) -> bool:
        """Whether `run` takes a `store`, the `ChunkFolder` in which its grids keep what is finished."""
        return "store" in inspect.signature(self.run).parameters


def all_experiments() -> dict[str, Experiment]:
    """Every experiment by name: the paper's figures in their order, then the others."""
    found = [Experiment.of_module(module) for module in _modules() if hasattr(module, "TITLE")]
    return {e.name: e for e in sorted(found, key=_natural_order)}


def _modules() -> Iterator[ModuleType]:
    """The modules of all families; the harness is none."""
    for family in pkgutil.iter_modules(experiments.__path__, "experiments."):
        if family.ispkg and family.name != __package__:
            inside = importlib.import_module(family.name)
            for file in pkgutil.iter_modules(inside.__path__, f"{family.name}."):
                if not file.ispkg:
                    yield importlib.import_module(file.name)


def _natural_order(experiment: Experiment) -> list[Any]:
    parts = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", experiment.name)]
    return [not experiment.name.startswith("fig"), *parts]


def expanded(folder: Path) -> Path:
    """The folder with its leading `~` in words; raises ValueError where no such home is known."""
    try:
        return folder.expanduser()
    except RuntimeError:
        raise ValueError(f"the home folder in '{folder}' is not known.") from None


def part(progress: Progress, index: int, count: int) -> Progress:
    """The progress of the part `index` of `count` equal parts of a whole."""
    return lambda done, total, note="": progress(index + done / total, count, note)


def first_step(reached: np.ndarray) -> np.ndarray:
    """The first step (last axis) at which a condition holds; infinite where it never does."""
    return np.where(reached.any(-1), reached.argmax(-1), np.inf)


def step_in_words(step: float) -> str:
    """What `first_step` found, or the median of it: a number, or never."""
    return f"{step:g}" if np.isfinite(step) else "never"


def check_float64(config: UfmConfig, why: str) -> None:
    """Raises ValueError where `config` is not in float64, in which, in words, `why`."""
    if config.dtype != "float64":
        raise ValueError(f"dtype must be float64, in which {why}, but is {config.dtype}.")


def check_fields(config: Any, lowest: Mapping[str, float], positive: Sequence[str] = ()) -> None:
    """Raises ValueError where a field is empty, below its lowest value or not positive, or the seed is bad.

    Fields may be tuples to sweep.
    """
    for name, low in lowest.items():
        _check_not_empty(name, getattr(config, name))
        _checks.at_least(name, getattr(config, name), low)
    _checks.within("seed", config.seed, 0, 2**32 - 1)
    for name in positive:
        _check_not_empty(name, getattr(config, name))
        _checks.positive(name, getattr(config, name))


def check_one_for_each(config: Any, *names: str) -> None:
    """Raises ValueError where fields that are read entry by entry have different numbers of values."""
    counts = [len(getattr(config, name)) for name in names]
    if len(set(counts)) > 1:
        raise ValueError(
            f"{', '.join(names)} need one value for each problem, but have {', '.join(map(str, counts))}."
        )


def check_ufm(config: Any) -> None:
    """Raises ValueError where a UFM experiment's sizes make no sense; fields may be tuples to sweep."""
    lowest = {"num_classes": 2, "samples_per_class": 1, "dim": 1, "trials": 1, "steps": 1}
    check_fields(config, lowest, positive=["tau"])
    dim, most_classes = config.dim, np.max(config.num_classes)
    if dim < most_classes - 1:
        raise ValueError(
            f"dim must be at least num_classes - 1 = {most_classes - 1}, the fewest dimensions "
            f"in which {most_classes} classes can collapse to a simplex, but is {dim}."
        )


def _check_not_empty(name: str, values: Any) -> None:
    if np.size(values) == 0:
        raise ValueError(f"{name} needs at least one value.")
