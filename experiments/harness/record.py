"""The record: `python -m experiments record` keeps what the runs in the results folder came to in docs/.

Each run leaves its summary and a small picture in docs/record, in place of an earlier run's. These and the
remarks in docs/record/remarks.toml are all that docs/results.md is made from. Networks trained on CIFAR are
kept there as well, in the files of `experiments.harness.store`. Exit codes: 0 it was written;
2 bad input.
"""

import dataclasses
import io
import json
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import PIL.Image

from experiments.harness import reading, store, writing
from experiments.harness.arguments import parse
from experiments.harness.experiment import expanded
from experiments.harness.reading import Run

WIDTH = 700
"""Width of the record's pictures."""
MOST_BYTES = 60_000
"""Size that they stay below, with fewer colours if need be."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Keeps the results of all runs in the documents."""

    results: Path = Path("results")
    """Folder of the runs."""
    docs: Path = Path("docs")
    """Folder of the documents."""


def keep(results: Path, docs: Path) -> list[str]:
    """Copies what matters of the runs in `results` into the record; a sentence on each it could not."""
    found, skipped = reading.read(results)
    for run in found:
        target = docs / "record" / run.place
        try:
            picture = small_picture(results / run.place / f"{run.experiment.name}.png")
        except OSError:
            skipped.append(f"{run.place} is left out: its picture is missing or damaged.")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(what_matters(run), indent=2, ensure_ascii=False) + "\n"
        writing.write_file(Path(f"{target}.png"), picture)
        writing.write_file(Path(f"{target}.json"), text.encode())
    return skipped + keep_networks(results, docs)


def keep_networks(results: Path, docs: Path) -> list[str]:
    """Copies finished networks that were trained on CIFAR; those on digits are made again in minutes.

    A network that is recorded stays: a sentence on each that was trained again.
    """
    again = []
    target = docs / "record" / store.FOLDER
    for file in sorted([*results.glob(f"{store.FOLDER}/*.npz"), *results.glob(f"*/{store.FOLDER}/*.npz")]):
        record = store.read_record(file)
        if record is not None and record["network"]["dataset"].startswith("cifar"):
            target.mkdir(parents=True, exist_ok=True)
            if not (target / file.name).exists():
                writing.write_file(target / file.name, file.read_bytes())
            elif (target / file.name).read_bytes() != file.read_bytes():
                again.append(f"{file} is left out: the record has this network of another training.")
    return again


def what_matters(run: Run) -> dict:
    """A run's summary with its table, without what is true only of the folder that it was written into."""
    kept = dict(run.summary)
    kept["config"] = {name: value for name, value in run.config.items() if name not in reading.LOCAL}
    if "/" in run.place:
        kept["config"]["out"] = f"results/{run.place.rpartition('/')[0]}"
    return kept | ({"table": run.table} if run.table else {})


def small_picture(path: Path) -> bytes:
    """The picture at `path` as a small PNG; raises OSError where it is none."""
    with PIL.Image.open(path) as picture:
        size = (WIDTH, round(WIDTH * picture.height / picture.width))
        small = picture.convert("RGB").resize(size, PIL.Image.Resampling.LANCZOS)
    for colors in (256, 128, 64, 32, 16):
        file = io.BytesIO()
        # A few rounds of k-means keep small marks in rare colours.
        few = small.quantize(colors, kmeans=3, dither=PIL.Image.Dither.NONE)
        few.save(file, "PNG", optimize=True)
        if file.tell() < MOST_BYTES:
            break
    return file.getvalue()


def recorded(docs: Path) -> list[Run]:
    """The runs in the record."""
    folder = docs / "record"
    found = []
    for file in folder.rglob("*.json"):
        try:
            summary = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"'{file}' is damaged ({error})") from None
        place = file.relative_to(folder).as_posix().removesuffix(".json")
        found.append(reading.from_summary(place, summary))
    return reading.in_order(found)


def remarks(docs: Path) -> dict[str, dict[str, dict]]:
    """By place and scale of a run: a `remark`, and words of each claim that `fails` in the run it is on."""
    return tomllib.loads((docs / "record" / "remarks.toml").read_text(encoding="utf-8"))


def speaks_of(remark: dict, run: Run) -> bool:
    """Whether the claims of `run` that fail are those that `remark` was written for."""
    failing = [claim.claim for claim in run.claims if not claim.holds]
    explained = all(any(words in claim for words in remark["fails"]) for claim in failing)
    return explained and all(any(words in claim for claim in failing) for words in remark["fails"])


def document(docs: Path) -> str:
    """docs/results.md, from the record alone."""
    found, written = recorded(docs), remarks(docs)
    return reading.render(
        "results.md",
        autoescape=False,  # It is Markdown; what the runs wrote goes through `escape`.
        runs=found,
        papers=[run for run in found if _is_papers(run.experiment.name)],
        ours=[run for run in found if not _is_papers(run.experiment.name)],
        missing=reading.missing(found),
        remark=lambda run: _remark(written, run),
        speaks_of=speaks_of,
        escape=_escape,
    )


def _is_papers(name: str) -> bool:
    return re.fullmatch(r"(fig|table)\d+", name) is not None


def _remark(all_remarks: dict[str, dict[str, dict]], run: Run) -> dict | None:
    return all_remarks.get(run.place, {}).get(str(run.config.get("scale")))


def _escape(text: str) -> str:
    """Text as Markdown that shows it as it is, also in a table."""
    return re.sub(r"([\\|<*~`$\[])", r"\\\1", " ".join(text.split()))


def main(arguments: Sequence[str]) -> int:
    """Makes the record that `arguments` ask for, prints the document's path, and returns the exit code."""
    try:
        options = parse(Options(), arguments, name="record")
        results, docs = expanded(options.results), expanded(options.docs)
        if not (docs / "record" / "remarks.toml").is_file():
            raise ValueError(f"there is no '{docs}/record/remarks.toml'")
        recorded(docs)  # What is wrong there is said before anything is written.
        # Without results the document is made again from the record.
        skipped = keep(results, docs) if results.is_dir() else []
        text = document(docs)
        writing.write_file(docs / "results.md", text.encode())
    except (ValueError, OSError) as error:
        print(f"error: the record cannot be made: {error}", file=sys.stderr)
        return 2
    for sentence in skipped:
        print(sentence)
    for run in recorded(docs):
        remark = _remark(remarks(docs), run)
        if remark is not None and not speaks_of(remark, run):
            print(f"{run.place}: its remark was written for other verdicts; see record/remarks.toml.")
    print(docs / "results.md")
    return 0
