"""The command line: `python -m experiments NAME [--field value ...]`.

Exit codes: 0 the run finished, whatever its claims say; 1 it failed, with a traceback, or in one line where
another run or process was in its way (also 134); 2 bad input, with one line on stderr; 130 interrupted, by
Ctrl-C. Only a run that finished changes the results.
"""

import contextlib
import dataclasses
import difflib
import itertools
import os
import re
import shlex
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib as mpl
import tqdm

from experiments.harness import (
    checkpoints,
    chunks,
    plotting,
    processes,
    provenance,
    record,
    results_page,
    status,
    store,
    writing,
)
from experiments.harness.arguments import parse
from experiments.harness.experiment import (
    Claim,
    Config,
    Experiment,
    Progress,
    UfmConfig,
    all_experiments,
    expanded,
)

_USAGE = """\
usage: python -m experiments NAME [--field value ...]

  NAME --help             the fields of an experiment, and their defaults
  NAME --tau 0.5 1 5      a field that sweeps takes several values
  NAME --quiet            for scripts: print only the path of the picture
  networks-status [NAME] [--field value ...]
                          which of its networks are finished, and the time left
  report                  one page of all results
  record                  keep the results in the documents
"""

_STATUS_USAGE = """\
usage: python -m experiments networks-status [NAME] [--field value ...]

Which networks are finished, in training or missing, and the time that is left.
The fields are those of the experiment NAME, and without it those that all of
these have: \
"""

_EXIT_CODES = """\
Exit codes: 0 the run finished, whatever its claims say; 1 it failed, with a
traceback, or in one line where another run or process was in its way (also
134); 2 bad input, with one line on stderr; 130 interrupted, by Ctrl-C.
"""


def main(arguments: Sequence[str]) -> int:
    """Runs the experiment that `arguments` names, and returns the exit code."""
    catalog = all_experiments()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(f"{_USAGE}\n{listing(catalog)}\n{_EXIT_CODES}", end="")
        return 0
    if arguments[0] == "networks-status":
        return _networks_status(catalog, arguments[1:])
    if arguments[0] in ("report", "record"):
        return {"report": results_page, "record": record}[arguments[0]].main(arguments[1:])
    if arguments[0].startswith("-"):
        return _bad_input(f"the name of an experiment comes first, before {arguments[0]}.")
    if arguments[0] not in catalog:
        near = difflib.get_close_matches(arguments[0].lower(), catalog, n=1)
        hint = f"did you mean {near[0]}? It must be" if near else "it must be"
        return _bad_input(f"unknown experiment '{arguments[0]}': {hint} one of {', '.join(catalog)}.")

    experiment = catalog[arguments[0]]
    try:
        config = _parse(experiment, arguments[1:])
        # Checks may evaluate closed forms, and JAX can be set up only before its first use.
        _set_up_jax(getattr(config, "dtype", "float32"))
        processes.start(config)
        config = _with_dtype_of_device(config, arguments)
        experiment.check(config)
        if experiment.networks is not None:
            store.check_kept(config.out, experiment.networks(config), config.reuse)
    except ValueError as error:
        return _bad_input(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        return _bad_input(f"cannot read '{error.filename}': {error.strerror}.")
    try:
        if processes.is_first():
            writing.check_writable(config.out / experiment.name)
    except OSError as error:
        return _bad_input(f"cannot write results into '{error.filename}': {error.strerror}.")
    try:
        with processes.stopping_together():
            run(experiment, config)
    except (processes.ProcessLostError, store.OthersError, checkpoints.OtherLayoutError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        outcome = (
            "to continue from the last checkpoint:"
            if _is_begun(experiment, config)
            else "nothing was written; to start again:"
        )
        print(f"\ninterrupted: {outcome} {_command(arguments)}", file=sys.stderr)
        return 130
    return 0


def _networks_status(catalog: Mapping[str, Experiment], arguments: Sequence[str]) -> int:
    """Prints how far the networks of one experiment, or of all, have come; returns the exit code."""
    needed = {name: e.networks for name, e in catalog.items() if e.networks is not None}
    if arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        if name not in needed:
            return _bad_input(
                f"networks-status takes one of {', '.join(needed)}, or none of them, but got '{name}'."
            )
        needed = {name: needed[name]}
    elif {"-h", "--help"} & {*arguments}:
        print(f"{_STATUS_USAGE}{', '.join(needed)}.")
        return 0
    _set_up_jax("float32")
    try:
        configs = {name: _parse(catalog[name], arguments) for name in needed}
        texts = [status.text(name, config.out, needed[name](config)) for name, config in configs.items()]
    except ValueError as error:
        return _bad_input(str(error))
    except OSError as error:
        return _bad_input(f"cannot read '{error.filename}': {error.strerror}.")
    print("\n".join(texts))
    return 0


def _trained(experiment: Experiment, config: Any) -> dict[str, Any] | None:
    """How the networks of a run were trained so far; None where it has none."""
    if experiment.networks is None:
        return None
    return store.summary(config.out, experiment.networks(config))


def _is_begun(experiment: Experiment, config: Any) -> bool:
    """Whether something is kept that the same command continues from."""
    trained = _trained(experiment, config)
    if trained is None:
        return writing.run_folder(config, experiment.name).exists()
    return trained["seconds"] > 0


def listing(catalog: Mapping[str, Experiment]) -> str:
    """The experiments in groups, one line each with their usual time, on as many columns as there are."""
    columns = min(shutil.get_terminal_size().columns, 108)
    names = max(map(len, catalog))
    costs = max(len(experiment.duration) for experiment in catalog.values())
    lines = []
    for group, members in itertools.groupby(sorted(catalog.values(), key=_group), key=_group):
        lines.append(_GROUPS[group])
        for e in members:
            start = f"  {e.name:<{names}}  {e.duration:>{costs}}  "
            lines += textwrap.wrap(start + e.title, columns, subsequent_indent=" " * len(start))
        lines.append("")
    return "\n".join(lines)


_GROUPS = [
    "Figures of the unconstrained feature model (time on two CPU cores):",
    "Networks (time at --scale laptop; --scale paper is CIFAR, and wants a GPU):",
    "Beyond the paper's figures:",
]


def _group(experiment: Experiment) -> int:
    if not experiment.name.startswith(("fig", "table")):
        return 2
    return 0 if issubclass(experiment.config, UfmConfig) else 1


def _command(arguments: Sequence[str]) -> str:
    """What to type in this folder for a run with these arguments."""
    python = Path(sys.executable)
    if shutil.which("python") == sys.executable:
        python = Path("python")
    elif python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return shlex.join([str(python), "-m", "experiments", *arguments])


def run(experiment: Experiment, config: Any) -> None:
    """Runs `experiment`, writes its results, and prints its claims and the path of its picture.

    If several processes share the run, all compute, and only the first does the rest.
    """
    start = time.perf_counter()
    provenance.git()  # That of the start is kept.
    chunk_folder = [chunks.of_run(experiment.name, config)] if experiment.resumable else []
    with _progress_bar(experiment.name, config.quiet or not processes.is_first()) as progress:
        data = experiment.run(config, progress, *chunk_folder)
    if not processes.is_first():
        return
    claims = experiment.claims(config, data)
    with mpl.rc_context(plotting.STYLE):
        figure = experiment.plot(config, data)
        seconds = time.perf_counter() - start
        trained = _trained(experiment, config)
        picture = writing.write(experiment, config, data, claims, figure, seconds, trained)
    writing.remove_run_folder(config, experiment.name)
    if not config.quiet:
        if experiment.table is not None:
            print(experiment.table(config, data) + "\n")
        print(claims_table(claims))
    print(picture)


def claims_table(claims: list[Claim]) -> str:
    """The claims as text, a verdict each."""
    lines = []
    for claim in claims:
        lines.append(f"{'holds' if claim.holds else 'FAILS':<6} {claim.claim}")
        lines.append(f"{'':<6} measured: {claim.measured}")
    return "\n".join(lines)


def _parse(experiment: Experiment, arguments: Sequence[str]) -> Config:
    """The config that the command line asks for; raises ValueError with one sentence on what is wrong."""
    title = experiment.title
    config = parse(
        experiment.config.at_scale(_scale(arguments)),
        arguments,
        name=experiment.name,
        description=f"{title[:1].upper()}{title[1:]} ({experiment.duration}).",
    )
    return dataclasses.replace(config, out=expanded(config.out))


def _scale(arguments: Sequence[str]) -> str:
    """The last value of --scale, which decides the defaults of the other fields; empty if there is none."""
    return next(reversed(re.findall(r"--scale[= ](\S+)", " ".join(arguments))), "")


def _set_up_jax(dtype: str) -> None:
    """float64 where asked for, and one JAX device a core, so that trials run beside each other on CPUs."""
    jax.config.update("jax_enable_x64", dtype == "float64")
    with contextlib.suppress(RuntimeError):  # Too late once JAX has started: then it stays as it is.
        if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
            # Two at least: a program for one device can round otherwise than one for several.
            jax.config.update("jax_num_cpu_devices", max(2, provenance.cores()))


def _with_dtype_of_device(config: Any, arguments: Sequence[str]) -> Any:
    """`config`, with the floating type that a TPU has unless `arguments` name one."""
    if getattr(config, "dtype", None) != "float64" or jax.default_backend() != "tpu":
        return config
    if any(argument.startswith("--dtype") for argument in arguments):
        raise ValueError("dtype must be float32 on a TPU, which has no float64.")
    jax.config.update("jax_enable_x64", False)
    return dataclasses.replace(config, dtype="float32")


@contextlib.contextmanager
def _remembered_interrupt() -> Iterator[Callable[[], None]]:
    """A function that raises KeyboardInterrupt if Ctrl-C has been pressed in the block.

    The exception itself can be lost, where it falls into a callback of JAX's.
    """
    pressed = False

    def remember(signum: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    previous = signal.getsignal(signal.SIGINT)
    if previous is not signal.SIG_IGN:  # As a shell starts what goes on in the background.
        signal.signal(signal.SIGINT, remember)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def _progress_bar(name: str, quiet: bool) -> Iterator[Progress]:
    layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left{postfix}"
    bar = tqdm.tqdm(desc=name, total=1.0, bar_format=layout, disable=quiet)
    with bar, _remembered_interrupt() as raise_if_interrupted:

        def progress(done: float, total: float, note: str = "") -> None:
            raise_if_interrupted()
            bar.set_postfix_str(note, refresh=False)
            bar.update(done / total - bar.n)

        yield progress


def _bad_input(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2
