"""The house around the code: what an import pulls in, and that every public name is documented."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import chex
import pytest

import ufm_jax as ufm
from experiments.experiment import all_experiments

ROOT = Path(__file__).parent.parent
MODULES = [
    ufm.landscape,
    ufm.losses,
    ufm.manifolds,
    ufm.metrics,
    ufm.saddles,
    ufm.solvers,
    ufm.streaming,
    ufm.theory,
    ufm.transforms,
    ufm.trials,
]


def test_importing_the_library_is_light():
    code = "import sys, ufm_jax; print(*sys.modules)"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True, cwd="/").split())
    assert "ufm_jax" in loaded
    assert loaded.isdisjoint({"flax", "tensorflow_datasets", "matplotlib", "tyro", "tqdm", "experiments"})


def test_the_arrows_between_packages_point_one_way():
    forbidden = {"ufm_jax": "nets|experiments", "nets": "experiments"}
    for package, others in forbidden.items():
        for file in (ROOT / package).rglob("*.py"):
            assert not re.search(rf"^\s*(from|import) ({others})\b", file.read_text(), re.M), file


def public_names(module):
    """What a module exports: `__all__` where it has one, and else what it defines itself."""
    defined = (name for name, value in vars(module).items() if _home(value) == module.__name__)
    names = getattr(module, "__all__", defined)
    return {
        n: vars(module)[n] for n in names if not n.startswith("_") and not inspect.ismodule(vars(module)[n])
    }


def _home(value):
    return value.__module__ if inspect.isclass(value) or inspect.isfunction(value) else None


def public_functions():
    """Every function of the surface, and every method that its classes define."""
    for module in [ufm, *MODULES]:
        for name, value in public_names(module).items():
            if inspect.isfunction(value):
                yield f"{value.__module__}.{name}", value
            for method, inside in vars(value).items() if inspect.isclass(value) else []:
                if inspect.isfunction(inside) and not method.startswith("_"):
                    yield f"{value.__module__}.{name}.{method}", getattr(value, method)


FUNCTIONS = dict(public_functions())
SOURCE = r"equations? \(\d+\)|Theorem \d|Lemma \d|Proposition \d|problem \(4\)|Appendix|docs/\w+\.md|References?:|\b(19|20)\d\d\b"
SHAPE = (
    r"\(.*\b([A-Z]|d)\b.*\)|\(\.\.\.|scalar|`like`|matrix|random key|point|tangent|of this|of all|of tau"
)
RANGE = r"positive|at least|at most|between|below|in \[|in \(|\bNone\b|[Mm]ost |whether|axis"


def sections(docstring):
    """The text of each section of a docstring, by its heading; the summary's is empty."""
    text, *rest = re.split(r"^(Args|Attributes|Returns|Raises|Example|Reference):", docstring, flags=re.M)
    return {"": text} | dict(zip(rest[::2], rest[1::2], strict=True))


def described(docstring):
    """What `Args:` says of each parameter."""
    entries = re.split(r"^    (\w+):", sections(docstring).get("Args", ""), flags=re.M)
    return dict(zip(entries[1::2], entries[2::2], strict=True))


def raises_value_error(function):
    """Whether the source of `function`, or of a private helper of its module that it calls, raises or checks."""
    source = inspect.getsource(function)
    helpers = {n: v for n, v in vars(sys.modules[function.__module__]).items() if inspect.isfunction(v)}
    called = {n for n in re.findall(r"\b(_\w+)\(", source) if n in helpers and helpers[n] is not function}
    checks = re.search(r"raise ValueError|\b_checks\.(?!is_concrete)\w+\(", source)
    return bool(checks) or any(raises_value_error(helpers[n]) for n in called)


@pytest.mark.parametrize("name", sorted({n for m in [ufm, *MODULES] for n in public_names(m)}))
def test_public_names_are_documented(name):
    values = [public_names(m)[name] for m in [ufm, *MODULES] if name in public_names(m)]
    for value in values:
        # A class that is only a tuple of its fields has a docstring that Python made.
        assert value.__doc__, name
        assert len(value.__doc__.split()) >= 5, name
        assert not value.__doc__.startswith(f"{name}("), name


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_functions_say_what_they_take_return_and_raise(name):
    function = FUNCTIONS[name]
    docstring, signature = inspect.getdoc(function) or "", inspect.signature(function)
    is_method = inspect.isclass(getattr(sys.modules[function.__module__], name.split(".")[-2], None))
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    said = described(docstring)
    if not is_method or said:
        assert list(said) == [p.name for p in parameters]
        if signature.return_annotation is not None and signature.return_annotation != "None":
            assert "Returns" in sections(docstring)
    for parameter in parameters:
        text = said.get(parameter.name, docstring)
        annotation = inspect.formatannotation(parameter.annotation)
        if parameter.annotation == chex.Array:
            assert re.search(SHAPE, text), (parameter.name, "needs a shape", text)
        if parameter.annotation in (int, float, chex.Numeric):
            assert re.search(RANGE, text), (parameter.name, "needs a range", text)
        assert annotation != "inspect._empty"
    if raises_value_error(function):
        assert "Raises" in sections(docstring) or docstring.startswith("Raises"), "needs Raises"


def test_make_lists_every_experiment_with_its_duration():
    listing = subprocess.check_output(["make", "help"], cwd=ROOT, text=True)
    for name in all_experiments():
        line = next(line for line in listing.splitlines() if line.split()[:1] == [name])
        assert re.search(r"\(\d+ (s|min)", line), line
    assert subprocess.check_output(["make"], cwd=ROOT, text=True) == listing


def test_the_pinned_set_names_no_index():
    assert not re.search(r"index|http|file:|find-links|@", (ROOT / "constraints.txt").read_text())
