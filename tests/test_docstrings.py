"""Every public name says what it takes, what it returns, what it raises, and where it comes from."""

import inspect
import re
import sys
import types
import typing

import jax
import pytest
from jax.typing import ArrayLike
from numpy.typing import ArrayLike as NumpyArrayLike

import nets
import ufm_jax as ufm

MODULES = [ufm, nets, *(m for n, m in vars(ufm).items() if inspect.ismodule(m) and not n.startswith("_"))]
ENGINES = {"ufm_jax.metrics.measurement", "ufm_jax.sharding", "ufm_jax.trials"}
"""Modules without mathematics, which cite nothing."""

SHAPE = r"\(.*\b([A-Z]|d)\b.*\)|\(\.\.\.|scalar|matrix"
RANGE = r"positive|at least|at most|between|below|in \[|in \(|\bNone\b|[Mm]ost |axis"
SOURCE = (
    r"[Ee]quations? \(\d+\)|problem \(\d+\)|(Theorem|Lemma|Proposition) \d|Appendix [A-Z]|docs/\w+\.md"
    r"|(19|20)\d\d"
)


def public_names(module):
    """What a module exports: `__all__` where it has one, and else the functions and classes it defines."""
    own = (n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__)
    names = getattr(module, "__all__", own)
    values = {name: vars(module)[name] for name in names if not name.startswith("_")}
    return {n: v for n, v in values.items() if inspect.isclass(v) or inspect.isfunction(v)}


PUBLIC = {f"{v.__module__}.{n}": v for module in MODULES for n, v in public_names(module).items()}
METHODS = {
    f"{name}.{method}": function
    for name, value in PUBLIC.items()
    if inspect.isclass(value) and value.__module__.startswith("ufm_jax")
    for method, function in inspect.getmembers(value, inspect.isfunction)
    if not method.startswith("_")
}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}


def sections(function):
    """The text of each section of a docstring, by its heading; what comes before is that of ""."""
    docstring = inspect.getdoc(function) or ""
    text, *rest = re.split(r"^(Args|Attributes|Returns|Raises|Example|Reference):", docstring, flags=re.M)
    return {"": text} | dict(zip(rest[::2], rest[1::2], strict=True))


def described(function):
    """What `Args:` says of each parameter."""
    entries = re.split(r"^    (\w+):", sections(function).get("Args", ""), flags=re.M)
    return dict(zip(entries[1::2], entries[2::2], strict=True))


def without_none(annotation):
    """What an annotation says beside that the argument may be None."""
    parts = typing.get_args(annotation)
    if type(None) not in parts or typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return annotation
    return typing.Union[tuple(part for part in parts if part is not type(None))]  # noqa: UP007


def parameters(function):
    signature = inspect.signature(function)
    return {n: without_none(p.annotation) for n, p in signature.parameters.items() if n != "self"}


def checks_its_arguments(function):
    """Whether `function`, or a private function of its module that it calls, raises ValueError itself."""
    source = inspect.getsource(function)
    others = vars(sys.modules[function.__module__])
    helpers = {others[name] for name in re.findall(r"(?<!\.)\b(_\w+)\(", source) if name in others}
    checks = re.search(r"raise ValueError|\b_checks\.(?!is_concrete)\w+\(", source)
    return bool(checks) or any(
        checks_its_arguments(h) for h in helpers - {function} if inspect.isfunction(h)
    )


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_names_are_documented_with_their_source(name):
    value = PUBLIC[name]
    said = value.__doc__ or ""
    # A NamedTuple without a docstring has one that Python made, of its fields.
    assert len(said.split()) >= 5
    assert not said.startswith(f"{value.__name__}(")
    module = sys.modules[value.__module__]
    if value.__module__ not in ENGINES and inspect.isfunction(value):
        assert re.search(SOURCE, f"{said} {module.__doc__}"), "cites nothing, nor does its module"


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_functions_say_what_they_take_return_and_raise(name):
    function, said = FUNCTIONS[name], described(FUNCTIONS[name])
    assert list(said) == list(parameters(function))
    for parameter, annotation in parameters(function).items():
        if annotation == jax.Array and "random key" not in said[parameter]:
            assert re.search(SHAPE, said[parameter]), f"{parameter} needs a shape: {said[parameter]}"
        if annotation in (int, float):
            assert re.search(RANGE, said[parameter]), f"{parameter} needs a range: {said[parameter]}"
        if annotation in (ArrayLike, NumpyArrayLike):
            assert re.search(f"{SHAPE}|{RANGE}", said[parameter]), f"{parameter}: {said[parameter]}"
    if inspect.signature(function).return_annotation is not None:
        assert sections(function).get("Returns", "").strip()
    if checks_its_arguments(function):
        assert sections(function).get("Raises", "").strip(), "raises ValueError, and does not say so"


@pytest.mark.parametrize("name", sorted(METHODS))
def test_methods_are_documented(name):
    method, said = METHODS[name], described(METHODS[name])
    assert len((inspect.getdoc(method) or "").split()) >= 5
    assert not said or list(said) == list(parameters(method))
    if checks_its_arguments(method):
        assert re.search(r"Raises:?", inspect.getdoc(method) or "")


def test_the_checker_sees_what_is_missing():
    def half(rows: jax.Array, size: int) -> jax.Array:
        """Does something with rows of a matrix.

        Args:
            rows: some.
        """
        if size < 1:
            raise ValueError
        return rows

    assert list(described(half)) == ["rows"] != list(parameters(half))
    assert not re.search(SHAPE, described(half)["rows"])
    assert not re.search(RANGE, "how many")
    assert not re.search(SOURCE, half.__doc__)
    assert checks_its_arguments(half)
    assert "Raises" not in sections(half)
