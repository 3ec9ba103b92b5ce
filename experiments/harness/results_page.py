"""The results page: `python -m experiments report`, one page of all runs in the results folder.

The page is one file beside the runs that it shows, without scripts or anything from elsewhere. Exit codes:
0 it was written; 2 bad input.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import markdown_it
import markupsafe
import PIL.Image

from experiments.harness import reading, writing
from experiments.harness.arguments import parse
from experiments.harness.experiment import expanded
from experiments.harness.reading import Run

PAGE = "index.html"


@dataclasses.dataclass(frozen=True)
class Options:
    """Makes the results page."""

    results: Path = Path("results")
    """Folder of the runs, in which the page is written."""


def build(results: Path) -> str:
    """The page of the runs in the folder `results`, as HTML."""
    found, skipped = reading.read(results)
    return reading.render(
        "results_page.html",
        autoescape=True,
        runs=found,
        skipped=skipped,
        missing=reading.missing(found),
        unknown_fields=reading.unknown_fields,
        picture=lambda run: _picture(results, run),
        files=lambda run: _files(results, run),
        html=_html,
    )


def write(results: Path) -> Path:
    """Writes the page into the folder `results`; returns its path."""
    page = results / PAGE
    writing.write_file(page, build(results).encode())
    return page


def _picture(results: Path, run: Run) -> dict[str, object] | None:
    """Address and size of a run's picture; None where it is missing or damaged."""
    path = Path(run.place) / f"{run.experiment.name}.png"
    try:
        with PIL.Image.open(results / path) as image:
            return {"address": quote(path.as_posix()), "width": image.width, "height": image.height}
    except (OSError, PIL.UnidentifiedImageError):
        return None


def _files(results: Path, run: Run) -> list[tuple[str, str, str]]:
    """Name, address and size of each file of a run."""
    return [
        (file.name, quote(file.relative_to(results).as_posix()), _size(file.stat().st_size))
        for file in sorted((results / run.place).iterdir())
        if file.is_file()
    ]


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{max(count / 1e3, 0.1):.1f} kB"


def _html(markdown: str) -> markupsafe.Markup:
    """Markdown with tables as HTML; HTML inside it is shown, not interpreted."""
    parser = markdown_it.MarkdownIt("commonmark", {"html": False}).enable("table")
    return markupsafe.Markup(parser.render(markdown))


def main(arguments: Sequence[str]) -> int:
    """Makes the page that `arguments` ask for, prints its path, and returns the exit code."""
    try:
        options = parse(Options(), arguments, name="report")
        results = expanded(options.results)
        if not results.is_dir():
            raise ValueError(f"there is no folder '{results}'; `make fig9` makes one.")
        print(write(results))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot write into '{results}': {error.strerror}.", file=sys.stderr)
        return 2
    return 0
