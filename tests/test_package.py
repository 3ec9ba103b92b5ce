"""The house around the code: what an import pulls in, and that every public name is documented."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

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
    ufm.sharding,
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


def public_callables():
    for module in [ufm, *MODULES]:
        for name in getattr(module, "__all__", None) or vars(module):
            value = getattr(module, name)
            if name.startswith("_") or not callable(value) or inspect.ismodule(value):
                continue
            if getattr(value, "__module__", "").startswith("ufm_jax"):
                yield f"{value.__module__}.{name}", value


@pytest.mark.parametrize(("name", "value"), sorted(dict(public_callables()).items()))
def test_public_names_are_documented(name, value):
    assert value.__doc__, name
    assert len(value.__doc__.split()) >= 5, name


def test_make_lists_every_experiment_with_its_duration():
    listing = subprocess.check_output(["make", "help"], cwd=ROOT, text=True)
    for name in all_experiments():
        line = next(line for line in listing.splitlines() if line.split()[:1] == [name])
        assert re.search(r"\(\d+ (s|min)", line), line
    assert subprocess.check_output(["make"], cwd=ROOT, text=True) == listing


def test_the_pinned_set_names_no_index():
    assert not re.search(r"index|http|file:|find-links|@", (ROOT / "constraints.txt").read_text())
