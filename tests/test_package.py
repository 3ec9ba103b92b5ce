"""The house around the code: what an import pulls in, which way it points, and what make lists."""

import re
import subprocess
import sys
from pathlib import Path

from experiments.experiment import all_experiments

ROOT = Path(__file__).parent.parent


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


def test_make_lists_every_experiment_with_its_duration():
    listing = subprocess.check_output(["make", "help"], cwd=ROOT, text=True)
    for name in all_experiments():
        line = next(line for line in listing.splitlines() if line.split()[:1] == [name])
        assert re.search(r"\(\d+ (s|min)", line), line
    assert subprocess.check_output(["make"], cwd=ROOT, text=True) == listing


def test_the_pinned_set_names_no_index():
    assert not re.search(r"index|http|file:|find-links|@", (ROOT / "constraints.txt").read_text())
