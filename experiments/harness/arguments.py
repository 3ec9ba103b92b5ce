"""Arguments of a command as a dataclass, and what is wrong with them in one sentence."""

import contextlib
import difflib
import io
import re
from collections.abc import Sequence
from typing import TypeVar, get_type_hints

import tyro

Fields = TypeVar("Fields")


def parse(
    default: Fields, arguments: Sequence[str], *, name: str, description: str | None = None
) -> Fields:
    """`default`, a dataclass, as the arguments of a command change it; raises ValueError if they cannot."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                type(default),
                default=default,
                prog=f"python -m experiments {name}",
                description=description,
                args=list(arguments),
                use_underscores=True,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as exit_request:
        if exit_request.code == 0:
            raise
        raise ValueError(_in_plain_words(complaint.getvalue(), type(default), name, arguments)) from None


def _in_plain_words(box: str, kind: type, name: str, arguments: Sequence[str]) -> str:
    """The message of the box in which tyro reports an error, as one sentence on the fields."""
    # A title, then paragraphs between rules; drawn with other characters where UTF-8 is not spoken.
    lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()[1:]]
    paragraphs = re.split(r"\n?[─-]{8,}\n?", "\n".join(lines))
    message, *rest = [" ".join(text.split()) for text in paragraphs if text.strip()]

    if unknown := re.match(r"Unrecognized options: ([^,\s]+)", message):
        field = re.split(r"[=,]", unknown[1].lstrip("-"))[0]
        if of := _field_before(unknown[1], arguments):
            return f"--{of} takes {_what_it_takes(kind, of)}, but got also '{unknown[1]}'."
        near = re.findall(r"Perhaps you meant: --(\S+)", " ".join(rest))
        near += difflib.get_close_matches(field.lower(), get_type_hints(kind), n=1)
        hint = f"did you mean --{near[0]}?" if near else "--help lists the fields."
        if unknown[1].startswith("-"):
            return f"{name} has no field {unknown[1].split('=')[0]}: {hint}"
        rule = "fields are given as --field value, several values with spaces between"
        return f"unexpected '{unknown[1]}': {rule}{'; ' + hint if near else '.'}"
    if missing := re.match(r"Missing value for argument '(--\S+)'", message):
        return f"{missing[1]} needs a value."
    if choice := re.match(r"invalid choice (.*) for argument '(--\S+)'. Expected one of \((.*)\)", message):
        allowed = re.findall(r"'(.*?)'", choice[3])
        return (
            f"{choice[2]} must be {'one of ' * (len(allowed) > 1)}{', '.join(allowed)}, but is {choice[1]}."
        )
    if value := re.match(r"Error parsing --(\w+): .*?((?:'[^']*'(?:, )?)+)", message):
        return f"--{value[1]} takes {_what_it_takes(kind, value[1])}, but got {value[2]}."
    return message


def _field_before(value: str, arguments: Sequence[str]) -> str | None:
    """The field that `value` was meant for; None where it is no value, or no field is before it."""
    last = None
    for argument in arguments:
        if argument.startswith("--"):
            last = argument.lstrip("-").partition("=")[0]
        if value in (argument, argument.partition("=")[2]):
            return None if argument == value and value.startswith("-") else last
    return None


def _what_it_takes(kind: type, field: str) -> str:
    """How many values of which kind a field of the dataclass `kind` takes, in words."""
    type_name = str(get_type_hints(kind).get(field.replace("-", "_")))
    if "bool" in type_name:
        return "no value"
    what = "integer" if "int" in type_name else "number" if "float" in type_name else "value"
    return f"{what}s with spaces between" if "tuple" in type_name else f"one {what}"
