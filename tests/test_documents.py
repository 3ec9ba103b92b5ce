"""The code people copy from the documents runs as it stands."""

import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent


def test_the_code_of_the_readme_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) == 2
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert "CONVERGED" in capsys.readouterr().out
    assert names["values"].shape == (3, 4)
    assert np.all(np.isfinite(names["values"]))


def test_the_readme_names_every_experiment():
    from experiments.experiment import all_experiments

    text = (ROOT / "README.md").read_text()
    for name in all_experiments():
        assert f"| `make {name}` |" in text


def test_the_code_of_the_docs_runs():
    for document in (ROOT / "docs").glob("*.md"):
        for block in re.findall(r"```python\n(.*?)```", document.read_text(), re.S):
            exec(block, {})


def test_the_docs_name_tests_and_files_that_exist():
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").glob("*.py"))
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert len(documents) >= 5
    for document in documents:
        text = document.read_text()
        for name in re.findall(r"\b(test_\w+|Test[A-Z]\w+)`?", text):
            found = re.search(rf"(def|class) {name}\b", tests) or (ROOT / "tests" / f"{name}.py").exists()
            assert found, (document.name, name)
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert (document.parent / target).exists(), (document.name, target)
