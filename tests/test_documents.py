"""The code people copy from documents and docstrings runs as it stands, and the pages are up to date."""

import doctest
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest

import experiments.landscape
import ufm_jax as ufm
from experiments.harness import cli
from experiments.harness.experiment import all_experiments
from tests.shared.marks import few

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
MODULES = ["ufm_jax", *(m.name for m in pkgutil.walk_packages(ufm.__path__, "ufm_jax."))]


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_the_docstrings_run(module):
    names = {"jax": jax, "jnp": jnp, "np": np, "optax": optax, "ufm": ufm}
    runner = doctest.DocTestRunner(verbose=False)
    said: list[str] = []
    for example in doctest.DocTestFinder().find(importlib.import_module(module), globs=names):
        runner.run(example, out=said.append)
    assert runner.failures == 0, "".join(said)


def run_blocks(document):
    """Runs the blocks of a page one after the other, as a reader does; returns the names they leave."""
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", document.read_text(), re.S):
        exec(compile(block, document.name, "exec"), names)
    return names


def test_the_code_of_the_readme_runs(capsys):
    names = run_blocks(ROOT / "README.md")
    assert "CONVERGED" in capsys.readouterr().out
    assert names["values"].shape == (3, 4)
    assert np.all(np.isfinite(names["values"]))


def test_the_code_of_the_guide_does_what_the_guide_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    names = run_blocks(ROOT / "docs" / "guide.md")
    assert "CONVERGED 0.125" in capsys.readouterr().out
    W, data = names["result"].point.W, names["data"]
    np.testing.assert_allclose(W @ W.T, np.eye(4), atol=1e-6)
    np.testing.assert_allclose(ufm.metrics.nc2(W), 0.518, atol=1e-3)
    assert ufm.metrics.nc1(names["result"].point.H, names["labels"], 4) < 1e-15
    assert 0 <= names["gap"] < 1e-10
    assert data["value"].shape == (16, 5)
    assert data["gap"].max() < 1e-8
    np.testing.assert_allclose(data["value"].T, [np.maximum(1 - names["tau"], 0) ** 2 / 2] * 5, atol=1e-12)
    simplex = {name: nc2 < 1e-6 for name, (nc2, _) in names["geometry"].items()}
    assert simplex == {"cross_entropy": False, "weighted": True, "adjusted": False}
    assert all(0 <= gap < 1e-9 for _, gap in names["geometry"].values())
    assert [file.name for file in tmp_path.iterdir()] == ["squared_error.png"]


def test_the_solver_of_contributing_converges(capsys):
    names = run_blocks(ROOT / "CONTRIBUTING.md")
    assert capsys.readouterr().out == "CONVERGED\n"
    expected = ufm.theory.cross_entropy_minimum(3, 1.0)
    np.testing.assert_allclose(names["result"].value, expected, atol=1e-5)


@pytest.fixture
def certified(tmp_path, monkeypatch):
    """The experiment of CONTRIBUTING.md, dropped in as a file without another change."""
    block = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)[1]
    (tmp_path / "certified.py").write_text(block)
    rooms = experiments.landscape
    monkeypatch.setattr(rooms, "__path__", [*rooms.__path__, str(tmp_path)])
    yield
    sys.modules.pop("experiments.landscape.certified")


def test_the_experiment_of_contributing_is_found(certified, capsys):
    assert cli.main([]) == 0
    assert re.search(r"^  certified .* 5 s  gradient descent: how far from", capsys.readouterr().out, re.M)


@pytest.mark.slow
def test_the_experiment_of_contributing_runs(certified, tmp_path, capsys):
    code = cli.main(["certified", "--tau", "0.5", "5", "--trials", "2", "--out", str(tmp_path / "results")])
    assert code == 0
    assert "holds  every minimum found is global, to 1e-6" in capsys.readouterr().out
    with np.load(tmp_path / "results" / "certified" / "data.npz") as data:
        assert data["gap"].shape == (2, 2)


@pytest.mark.slow
def test_the_page_on_riemannian_optimization_does_what_it_says(capsys):
    names = run_blocks(ROOT / "docs" / "riemannian.md")
    out = capsys.readouterr().out
    assert "is wrong" not in out
    largest = np.linalg.eigvalsh(names["A"])[-5:].sum()
    X = names["leading_subspace"]
    np.testing.assert_allclose(np.trace(X.T @ names["A"] @ X), largest, rtol=1e-12)
    assert names["bound"] - 5 < names["cuts"].max() <= names["bound"]
    # The two stable arrangements of Thomson's problem of 16 charges, as tables have them.
    np.testing.assert_allclose(names["found"], [92.9117, 92.9204], atol=1e-3)
    x, there = names["nearest"].point, names["there"]
    normal = x / jnp.array([9.0, 4.0, 1.0])
    np.testing.assert_allclose(jnp.cross(x - there, normal), 0, atol=1e-7)
    ahead, back = (names["nearest_to"](there + t * names["towards"]) for t in (1e-5, -1e-5))
    np.testing.assert_allclose(names["move"], (ahead - back) / 2e-5, atol=1e-7)
    assert names["steps"]["balanced"] < 0.6 * names["steps"]["plain"]
    assert names["result"].status == names["both_legs"].status == ufm.Status.CONVERGED
    assert names["both_legs"].steps < names["steps"]["balanced"] / 2


def test_the_page_on_temperatures_prints_its_numbers(capsys):
    run_blocks(ROOT / "docs" / "temperature.md")
    found = [float(x) for x in capsys.readouterr().out.split()]
    np.testing.assert_allclose(found, [4.36, 33.4, 49.5], rtol=2e-3)


@pytest.mark.slow
def test_the_page_on_models_prints_its_numbers(capsys):
    run_blocks(ROOT / "docs" / "models.md")
    first, second, _, deep, *_ = capsys.readouterr().out.splitlines()
    assert abs(float(first)) < 1e-12
    assert abs(float(deep)) < 1e-12
    assert all(abs(float(x)) < y for x, y in zip(second.split(), (1e-10, 1e-8), strict=True))


# Those that a test above, or test_training_loop, holds to what they say.
WITH_THEIR_OWN_TEST = (
    *("README.md", "CONTRIBUTING.md", "guide.md", "riemannian.md", "training_loop.md"),
    *("temperature.md", "models.md"),
)
OTHERS = {
    d.name: d for d in DOCUMENTS if "```python" in d.read_text() and d.name not in WITH_THEIR_OWN_TEST
}
LONG = {name: OTHERS.pop(name) for name in ("landscape.md", "large.md", "networks.md")}


@pytest.mark.parametrize("document", few(len(OTHERS), **OTHERS, **LONG))
def test_the_code_of_the_other_documents_runs(document):
    run_blocks(document)


def test_make_lists_and_runs_every_experiment():
    catalog = all_experiments()
    # Without the variables of a `make test ARGS=...` around it.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    listed, planned = (
        subprocess.check_output(["make", *arguments, "ARGS="], cwd=ROOT, env=env, text=True)
        for arguments in (["help"], ["-n", *catalog])
    )
    for name, experiment in catalog.items():
        assert re.search(
            rf"^  {name} +{re.escape(experiment.title)} \({experiment.duration}\)$", listed, re.M
        )
        assert re.search(rf"-m experiments {name} *$", planned, re.M)


def test_the_documents_name_tests_and_files_that_exist():
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").glob("*.py"))
    assert len(DOCUMENTS) >= 15
    for document in DOCUMENTS:
        text = document.read_text()
        for name in re.findall(r"\b(test_\w+|Test[A-Z]\w+)`?", text):
            found = re.search(rf"(def|class) {name}\b", tests) or (ROOT / "tests" / f"{name}.py").exists()
            assert found, (document.name, name)
        for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text):
            page = document.parent / target if target else document
            assert page.exists(), (document.name, target)
            if anchor and page.suffix == ".md":
                headings = re.findall(r"^#+ (.*)", page.read_text(), re.M)
                anchors = [
                    re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings
                ]
                assert anchor in anchors, (document.name, anchor)


def test_the_reference_names_what_the_library_exports():
    text = (ROOT / "docs" / "reference.md").read_text()
    rows = re.findall(r"^\| \[([\w.]+)\]\(\.\./([\w./]+)\) \| (.*) \|$", text, re.M)
    for name, file, summary in rows:
        module = importlib.import_module(name)
        assert inspect.getsourcefile(module) == str(ROOT / file)
        assert (inspect.getdoc(module) or "").split("\n")[0] == summary
    # Every module is one that `import ufm_jax as ufm` gives, or a part of the solvers' package.
    given = {m.__name__ for n, m in vars(ufm).items() if inspect.ismodule(m) and n[0] != "_"}
    parts = {f"ufm_jax.riemannian.{m.name}" for m in pkgutil.iter_modules(ufm.riemannian.__path__)}
    described = {name for name, *_ in rows}
    known = given | parts | {"nets", "nets.datasets", "nets.training"}
    assert known == described | {"ufm_jax.riemannian", "ufm_jax.riemannian.solvers"}
    names = re.findall(r"^\| \[ufm\.(\w+)\]\(\.\./([\w./]+)#([\w.]+)\)", text, re.M)
    assert {n for n, *_ in names} == {
        n for n in ufm.__all__ if n[0] != "_" and not inspect.ismodule(getattr(ufm, n))
    }
    for name, file, anchor in names:
        value = getattr(ufm, name)
        assert (file, anchor) == (f"{value.__module__.replace('.', '/')}.py", f"{value.__module__}.{name}")
