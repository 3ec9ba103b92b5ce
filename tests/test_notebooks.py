"""The notebooks run from top to bottom, and what is committed in them is what they gave."""

import base64
import json
import re
import runpy
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest

from notebooks import execute

ROOT = Path(__file__).parent.parent
PATHS_OF_A_MACHINE = r"(?<![\w.])/(home|root|tmp|usr|opt|work|mnt|Users|private)\b|site-packages|C:\\"


def code(name):
    cells = [cell for cell in execute.read(name).cells if cell.cell_type == "code"]
    return {cell.id: cell for cell in cells}


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def pictures(cell):
    data = [output.data.get("image/png") for output in cell.outputs if "data" in output]
    return [base64.b64decode(picture) for picture in data if picture]


def executed(name, **parameters):
    notebook = execute.execute(execute.read(name), **parameters)
    assert execute.digest(notebook) == execute.digest(execute.read(name))
    return {cell.id: cell for cell in notebook.cells}


@pytest.mark.slow
def test_the_tpu_notebook_runs(tmp_path):
    cells = executed("ufm_on_tpu", SCALE=0.02, OUT=str(tmp_path))
    assert "CONVERGED" in printed(cells["loss"])
    assert len(pictures(cells["fig9"])) == len(pictures(cells["plots"])) == 1
    with np.load(tmp_path / "trials.npz") as found:
        assert found["nc2"].shape == (len(found["tau"]), 2)
        assert np.isfinite(found["loss"]).all()
    assert list((tmp_path / "trials").iterdir()) == []  # The finished arrays took the place of the chunks.


@pytest.mark.slow
def test_the_networks_notebook_runs(tmp_path):
    cells = executed("networks_on_gpu", SCALE=0.1, OUT=str(tmp_path))
    for cell, name, epochs in [("digits", "fig10", 2), ("compare", "fig6", 4)]:
        assert "100%" in printed(cells[cell])
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert summary["config"]["epochs"] == epochs
    assert len(pictures(cells["metrics"])) == len(pictures(cells["compare-plot"])) == 1


@pytest.mark.parametrize("name", execute.NAMES)
def test_committed_outputs_are_those_of_the_committed_code(name):
    notebook = execute.read(name)
    assert notebook.metadata["executed_code"] == execute.digest(notebook), "run `make notebooks`"
    cells = code(name)
    assert [cell.execution_count for cell in cells.values()] == list(range(1, len(cells) + 1))
    assert re.search(r"^SCALE = 1\.0 ", cells["parameters"].source, re.M)
    assert sum(len(pictures(cell)) for cell in cells.values()) == 2
    assert not any(output.output_type == "error" for cell in cells.values() for output in cell.outputs)


@pytest.mark.parametrize("name", execute.NAMES)
def test_committed_notebooks_are_small_and_name_no_machine(name):
    text = (execute.FOLDER / f"{name}.ipynb").read_text()
    assert len(text) < 200_000
    cells = code(name).values()
    for part in [printed(cell) for cell in cells] + [cell.source for cell in cells]:
        assert not re.search(PATHS_OF_A_MACHINE, part), part
    assert "execution" not in json.dumps([cell.metadata for cell in cells])


@pytest.mark.parametrize("name", execute.NAMES)
def test_the_notebooks_say_where_their_outputs_come_from(name):
    assert "two CPU cores" in execute.read(name).cells[0].source


@pytest.fixture(scope="module")
def address():
    """The module docs/address.py, which no package holds."""
    return types.SimpleNamespace(**runpy.run_path(str(ROOT / "docs" / "address.py")))


def test_everything_names_one_owner(address):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    owner = re.fullmatch(r"https://github\.com/([\w-]+)/ufm-jax", project["urls"]["Repository"])[1]
    for file in address.FILES:
        assert address.owned(file.read_text(), owner) == file.read_text(), "run `make address OWNER=name`"
    for name in execute.NAMES:
        source = code(name)["parameters"].source
        assert f'\nREPOSITORY = "https://github.com/{owner}/ufm-jax"' in source


def test_badges_are_shown_once_there_is_an_owner(address):
    readme = address.owned((ROOT / "README.md").read_text(), "OWNER")
    assert "badge" not in readme.replace("a badge beside each", "")
    for owner in ("someone", "some-one-else"):
        owned = address.owned(readme, owner)
        for name in execute.NAMES:
            assert f"/github/{owner}/ufm-jax/blob/main/notebooks/{name}.ipynb" in owned
        assert owned.count("![Open in Colab]") == 2
        assert address.owned(owned, "OWNER") == readme


def install(name="ufm_on_tpu"):
    names = {"REPOSITORY": "folder"}
    source = code(name)["install"].source
    exec(source.split("\nif importlib")[0], names)
    return names


def test_both_notebooks_install_alike_and_ask_for_the_jax_of_the_package():
    assert len({code(name)["install"].source for name in execute.NAMES}) == 1
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"jax>={install()['OLDEST_JAX']}" in project["dependencies"]


class Distribution:
    def __init__(self, name, version):
        self.metadata, self.version = {"Name": name}, version


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Stands in for git and pip: the commands given, and of pip the text of its constraints as well."""
    made = []

    def run(command, check):
        assert check
        if command[0] == "git":
            Path(command[-1]).mkdir()
            made.append(command)
        else:
            made.append((command, Path(command[command.index("--constraint") + 1]).read_text()))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    return made


def pretend(monkeypatch, **versions):
    found = [Distribution(name.replace("_", "-"), version) for name, version in versions.items()]
    monkeypatch.setattr("importlib.metadata.distributions", lambda: found)


def test_the_install_cell_keeps_the_jax_that_is_there(monkeypatch, calls, tmp_path):
    kept = {"jax": "0.8.1", "jaxlib": "0.8.1+local", "libtpu": "0.0.24", "jax_cuda12_plugin": "0.8.1"}
    pretend(monkeypatch, **kept, numpy="2.0", jaxtyping="0.3", jaxopt="0.8")
    install()["install"]("folder")
    ((command, constraints),) = calls
    assert command[0] == sys.executable
    assert command[-2:] == ["--editable", "folder[experiments]"]
    expected = {f"{name.replace('_', '-')}=={version}" for name, version in kept.items()}
    assert set(constraints.split()) == expected
    assert Path.cwd() == tmp_path / "folder"


def test_the_install_cell_clones_once_and_takes_any_jax_where_there_is_none(monkeypatch, calls, tmp_path):
    pretend(monkeypatch, numpy="2.0")
    for times in (1, 2):
        monkeypatch.chdir(tmp_path)
        install()["install"]("https://github.com/someone/ufm-jax")
        assert len(calls) == 1 + times
    clone, (command, constraints), again = calls
    assert clone[:2] == ["git", "clone"]
    assert clone[-2:] == ["https://github.com/someone/ufm-jax", "ufm-jax"]
    assert command[-1] == again[0][-1] == "ufm-jax[experiments]"
    assert constraints == ""
    assert Path.cwd() == tmp_path / "ufm-jax"


@pytest.mark.parametrize("version", ["0.7.2", "0.4.38"])
def test_the_install_cell_refuses_an_old_jax_in_one_sentence(monkeypatch, calls, version):
    pretend(monkeypatch, jax=version)
    with pytest.raises(RuntimeError, match=rf"jax {version}, but ufm-jax needs 0\.8 or newer: .*\.$"):
        install()["install"]("folder")
    assert calls == []


def test_the_install_cell_asks_for_an_address(monkeypatch, calls):
    pretend(monkeypatch, jax="0.10.2")
    with pytest.raises(ValueError, match="names no owner"):
        install()["install"]("https://github.com/OWNER/ufm-jax")
    assert calls == []
