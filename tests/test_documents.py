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
