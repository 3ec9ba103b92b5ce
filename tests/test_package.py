"""The house around the code: what an import pulls in, what a missing extra says, what make lists."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import MORE

ROOT = Path(__file__).parent.parent


def test_every_test_is_collected():
    """None is hidden in a function, where pytest does not look."""
    for file in Path(__file__).parent.glob("test_*.py"):
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, ast.FunctionDef):
                inside = {x.name for x in ast.walk(function) if isinstance(x, ast.FunctionDef)}
                hidden = [name for name in inside - {function.name} if name.startswith("test_")]
                assert not hidden, (file.name, function.name, hidden)


def test_importing_the_library_is_light():
    code = "import sys, ufm_jax; print(*sys.modules)"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True, cwd="/").split())
    assert "ufm_jax" in loaded
    assert loaded.isdisjoint({"flax", "tensorflow_datasets", "matplotlib", "tyro", "tqdm", "experiments"})


def test_the_library_imports_its_dependencies_alone():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = {re.match(r"\w+", needed)[0] for needed in project["dependencies"]} | {"ufm_jax"}
    for file in (ROOT / "ufm_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in allowed | sys.stdlib_module_names, (file, name)


@pytest.mark.parametrize(
    ("package", "command", "sentence"),
    [
        (
            "tyro",
            ["-m", "experiments"],
            "error: tyro is not installed, which experiments need: run",
        ),
        ("flax", ["-m", "experiments", "fig9"], "error: flax is not installed"),
        ("flax", ["-c", "import nets"], "nets needs Flax, which is not installed: run `pip install -e"),
    ],
)
def test_a_missing_extra_is_one_sentence(package, command, sentence, tmp_path):
    """Here a module of that name says what Python says where there is none."""
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError(name={package!r})")
    run = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stderr.splitlines()[-1].removeprefix("ModuleNotFoundError: ").startswith(sentence)
    if command[0] == "-m":
        assert run.returncode == 2
        assert run.stderr.count("\n") == 1


def test_what_the_library_alone_is_tested_by_imports_no_more():
    ours = MORE.replace(r"|tests\.shared\.(descents|pytorch_numbers)", "")
    assert ours != MORE
    for file in (ROOT / "tests" / "shared").glob("*.py"):
        needs_more = re.search(ours, file.read_text(), re.M)
        assert not needs_more or re.search(MORE, f"from tests.shared.{file.stem} import x"), file.name


def test_make_alone_is_make_help():
    listing = subprocess.check_output(["make", "help"], cwd=ROOT, text=True)
    assert subprocess.check_output(["make"], cwd=ROOT, text=True) == listing


def test_the_pinned_set_names_no_index():
    assert not re.search(r"index|http|file:|find-links|@", (ROOT / "constraints.txt").read_text())
