"""One look for all tables."""

from collections.abc import Iterable, Sequence
from typing import Any

from tabulate import tabulate


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown: what a row is about on the left; the rest, as it is written, on the right."""
    return tabulate(rows, header, "pipe", disable_numparse=True, colglobalalign="right", colalign=("left",))
