"""Runs that were made, as the results page and the record describe them."""

import dataclasses
import functools
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import docstring_parser
import jinja2

from experiments.harness import store
from experiments.harness.experiment import LOCAL, Claim, Experiment, all_experiments


@dataclasses.dataclass(frozen=True)
class Run:
    """The results of one run.

    Attributes:
        place: where they lie in the folder of all results: "fig9", or "released/fig6".
        experiment: what was run.
        summary: the content of summary.json; older code may have written less.
        table: the numbers for reading, in Markdown, if there are any.
    """

    place: str
    experiment: Experiment
    summary: Mapping[str, Any]
    table: str | None = None

    @property
    def anchor(self) -> str:
        """Its name in an address."""
        return self.place.replace("/", "-")

    @property
    def config(self) -> Mapping[str, Any]:
        """The config's fields, as JSON keeps them."""
        return self.summary.get("config") or {}

    @property
    def claims(self) -> list[Claim]:
        """The claims with their verdicts."""
        return [
            # Older code wrote some verdicts as words.
            Claim(str(c.get("claim", "")), c["holds"] in (True, "True"), str(c.get("measured", "")))
            for c in self.summary.get("claims") or []
            if "holds" in c
        ]

    @property
    def verdict(self) -> str:
        """How many of the claims hold, in words."""
        holding, count = sum(claim.holds for claim in self.claims), len(self.claims)
        if holding == count:
            return "no claims" if count == 0 else "holds" if count == 1 else f"all {count} hold"
        return f"{holding} of {count} hold"

    @property
    def all_hold(self) -> bool:
        """Whether no claim fails."""
        return all(claim.holds for claim in self.claims)

    @property
    def size(self) -> str:
        """The scale, the variant, and whether fields but for the seed differ from the scale's defaults."""
        said = {*LOCAL, "seed", "scale", "variant"}
        words = [str(self.config.get("scale", "unknown"))]
        if self.config.get("variant") == "released":
            words.append("as the released code")
        if changed(self.experiment, self.config).keys() - said:
            words.append("fields changed")
        return ", ".join(words)

    @property
    def time(self) -> str:
        """How long it took; of networks the training of all together, whoever trained them and when."""
        seconds = self._networks.get("seconds", self.summary.get("seconds"))
        if not isinstance(seconds, int | float):
            return "unknown"
        return duration(seconds) + (" of training" if self._networks else "")

    @property
    def hardware(self) -> str:
        """The devices it ran on; of networks, those that trained them."""
        makers = [maker.get("device") or {} for maker in self._networks.get("made_by", [])]
        words = [_hardware(device) for device in makers or [self.summary.get("device") or {}]]
        return " and ".join(dict.fromkeys(words))

    @property
    def _networks(self) -> Mapping[str, Any]:
        """How its networks were trained, if it has some."""
        return self.summary.get("networks") or {}

    @property
    def versions(self) -> str:
        """What it ran with."""
        found = self.summary.get("versions") or {}
        return ", ".join(f"{name} {version}" for name, version in found.items() if version) or "unknown"

    @property
    def jax(self) -> str:
        """The version of JAX it ran with."""
        return (self.summary.get("versions") or {}).get("jax") or "unknown"

    @property
    def commit(self) -> str:
        """The commit of the code, and that of the code that trained its networks if it differs."""
        own = _commit(self.summary.get("git"))
        theirs = {_commit(maker.get("git")) for maker in self._networks.get("made_by", [])} - {own}
        return own + (f" (networks: {', '.join(sorted(theirs))})" if theirs else "")

    @property
    def command(self) -> str:
        """The command that makes it."""
        return command(self.experiment, self.config)

    @property
    def fields(self) -> list[tuple[str, str, str]]:
        """Name, value and meaning of each field that decides its numbers."""
        meanings = _meanings(self.experiment)
        return [
            (name, _readable(value), meanings.get(name, ""))
            for name, value in self.config.items()
            if name not in (*LOCAL, "scale")
        ]


def _hardware(device: Mapping[str, Any]) -> str:
    count, kind = device.get("count", 1), device.get("kind", "unknown device")
    if device.get("platform") == "cpu":
        count = device.get("cores", count)
        cores = f"{count} CPU core{'s' if count != 1 else ''}"
        return f"{cores}, {device['processor']}" if device.get("processor") else cores
    return f"{count} x {kind}" if count != 1 else str(kind)


def _commit(git: Mapping[str, Any] | None) -> str:
    if not git or not git.get("commit"):
        return "unknown: run outside a checkout"
    return str(git["commit"])[:12] + (", with uncommitted changes" if git.get("dirty") else "")


def from_summary(place: str, summary: Any, table: str | None = None) -> Run:
    """The run that left `summary`; raises ValueError with a sentence where that is no summary of a run.

    In the record the summary itself holds the table.
    """
    if not isinstance(summary, dict):
        raise ValueError("its summary is not a summary of a run.")
    name = summary.get("experiment")
    experiment = all_experiments().get(name) if isinstance(name, str) else None
    if experiment is None:
        raise ValueError(f"its experiment, {name!r}, is not one of this version.")
    wanted = dict.fromkeys(("config", "device", "versions", "git", "networks"), dict) | {"claims": list}
    for key, kind in wanted.items():
        if not isinstance(summary.get(key) or kind(), kind):
            raise ValueError(f"'{key}' in its summary is damaged.")
    lists = {"claims": summary, "made_by": summary.get("networks") or {}}
    for key, holder in lists.items():
        if not all(isinstance(entry, dict) for entry in holder.get(key) or []):
            raise ValueError(f"'{key}' in its summary is damaged.")
    return Run(place, experiment, summary, table or summary.get("table"))


def read(results: Path) -> tuple[list[Run], list[str]]:
    """The runs in the folder `results` and in its folders, and a sentence on each folder that is no run."""
    runs, skipped = [], []
    for folder in _visible(results):
        try:
            inner = [] if (folder / "summary.json").exists() else _visible(folder)
        except OSError:  # Which `_read_folder` meets again.
            inner = []
        for run_folder in inner or [folder]:
            place = run_folder.relative_to(results).as_posix()
            try:
                runs.append(_read_folder(place, run_folder))
            except ValueError as error:
                skipped.append(f"{place} is left out: {error}")
    return in_order(runs), skipped


def in_order(runs: Iterable[Run]) -> list[Run]:
    """In the order of the experiments; several runs of one by their places."""
    order = list(all_experiments())
    return sorted(runs, key=lambda run: (order.index(run.experiment.name), run.place.count("/"), run.place))


def _visible(folder: Path) -> list[Path]:
    """The folders in it that are of runs."""
    folders = (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return sorted(p for p in folders if p.name != store.FOLDER)


def _read_folder(place: str, folder: Path) -> Run:
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        table = folder / "table.md"
        return from_summary(
            place, summary, table.read_text(encoding="utf-8").strip() if table.exists() else None
        )
    except FileNotFoundError:
        raise ValueError("it has no summary.json.") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError("its summary.json or table.md is damaged.") from None
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror}).") from None


def missing(runs: Iterable[Run]) -> list[tuple[Experiment, str, str]]:
    """What is not among `runs`: each experiment, the networks at the paper's scale and as released.

    Returns:
        The experiment, the command that makes it, and its usual duration where it is known.
    """
    found = {(run.experiment.name, run.size) for run in runs}
    names = {name for name, _ in found}
    wanted = []
    for name, experiment in all_experiments().items():
        default, paper = experiment.config(), experiment.config.at_scale("paper")
        if name not in names:
            wanted.append((experiment, command(experiment, _plain(default)), experiment.duration))
        if _plain(default).get("scale") == "paper":
            continue
        sizes = {"paper": _plain(paper)}
        if hasattr(paper, "variant"):
            released = {"variant": "released", "out": str(default.out / "released")}
            sizes["paper, as the released code"] = _plain(paper) | released
        for size, fields in sizes.items():
            if (name, size) not in found:
                wanted.append((experiment, command(experiment, fields), "not known"))
    return wanted


def command(experiment: Experiment, config: Mapping[str, Any]) -> str:
    """The command that runs `experiment` with `config`: only fields that differ from the scale's defaults.

    Fields that this version does not know are left out, and so is `quiet`.
    """
    different = changed(experiment, config)
    words = ["python", "-m", "experiments", experiment.name]
    for name in sorted(different, key=lambda name: (name != "scale", name == "out")):
        value = different[name]
        words.append(f"--{name}")
        if value is not True:  # A flag says all by itself.
            words.extend(str(v) for v in (value if isinstance(value, list) else [value]))
    return shlex.join(words)


def changed(experiment: Experiment, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `config`, but for `quiet`, that differ from the defaults at its scale.

    The scale is among them where it is not the default one.
    """
    defaults = _defaults(experiment, config)
    if "scale" in defaults:
        defaults["scale"] = _plain(experiment.config())["scale"]
    return {
        name: config[name]
        for name, default in defaults.items()
        # A field that takes several values now may have taken one when the run was made.
        if name in config and name != "quiet" and default not in (config[name], [config[name]])
    }


def unknown_fields(run: Run) -> list[str]:
    """Fields that the code had when the run was made, and that it has no longer."""
    return [name for name in run.config if name not in _defaults(run.experiment, run.config)]


def _defaults(experiment: Experiment, config: Mapping[str, Any]) -> dict[str, Any]:
    return _plain(experiment.config.at_scale(str(config.get("scale", ""))))


def _plain(config: Any) -> dict[str, Any]:
    """The fields of a config as JSON keeps them."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


@functools.cache
def _meanings(experiment: Experiment) -> dict[str, str]:
    """The first sentence on each field, from the docstrings below them."""
    found = {}
    for base in reversed(experiment.config.__mro__[:-1]):
        for field in docstring_parser.parse_from_object(base).params:
            text = " ".join((field.description or "").split())
            found[field.arg_name] = re.split(r"(?<=\.) ", text)[0]
    return found


def _readable(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_readable, value)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """A time for people: "8.4 s", "47 s", "5 min 47 s", "2 h 3 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def render(template: str, *, autoescape: bool, **values: Any) -> str:
    """The text of a template with `values` in it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("experiments.harness"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)
