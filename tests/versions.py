"""Runs the default tests on every supported Python: `make test-versions`.

    python tests/versions.py                                  # all of them
    python tests/versions.py --python 3.11 tests/test_losses.py

The first Python gets the oldest versions that pyproject.toml names, the others the newest there are. Each
has an environment of its own in .venv-VERSION. What is not installed is skipped.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHONS = {"3.11": "oldest", "3.12": "newest", "3.13": "newest"}
# As for `make test`. A flag that it does not know stops JAX, and JAX 0.12 no longer has the other one.
QUICKLY = {
    "oldest": "--xla_cpu_parallel_codegen_split_count=1 --xla_cpu_use_fusion_emitters=false",
    "newest": "--xla_cpu_parallel_codegen_split_count=1",
}


def main(arguments: list[str]) -> int:
    """Tests each Python, says how it went, and returns 1 if tests of one failed."""
    parser = argparse.ArgumentParser(description="Arguments that are not listed here are pytest's.")
    parser.add_argument("--python", action="append", choices=PYTHONS, help="one of them; may be repeated")
    chosen, for_pytest = parser.parse_known_args(arguments)
    outcomes = []
    for version in chosen.python or PYTHONS:
        title = f"Python {version}, {PYTHONS[version]} dependencies"
        python = interpreter(version)
        if python is None:
            outcomes.append(f"{title}: skipped, because there is no python{version} here.")
            continue
        print(f"\n=== {title}", flush=True)
        own = environment(version, python)
        tests = [own, "-m", "pytest", "-n", "2", "--dist", "worksteal", "-m", "not slow", *for_pytest]
        compiling = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": QUICKLY[PYTHONS[version]]}
        code = subprocess.run(tests, cwd=ROOT, env=os.environ | compiling, check=False).returncode
        outcomes.append(f"{title}: {'FAILED' if code else 'passed'}.")
    print("\n" + "\n".join(outcomes))
    return int(any("FAILED" in outcome for outcome in outcomes))


def interpreter(version: str) -> str | None:
    """The Python of this version on the path, or else among those of pyenv."""
    found = [shutil.which(f"python{version}")]
    found += sorted(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python")), reverse=True)
    for python in filter(None, found):
        # One of pyenv's on the path may refuse to run.
        if subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0:
            return python
    return None


def environment(version: str, python: str) -> str:
    """The Python of an environment in which the suite can run."""
    folder = ROOT / f".venv-{version}"
    own = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not own.exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
    install = [own, "-m", "pip", "install", "--quiet", "--upgrade", "--upgrade-strategy", "eager"]
    if PYTHONS[version] == "oldest":
        constraints = folder / "oldest.txt"
        constraints.write_text("\n".join(oldest()))
        install += ["--constraint", constraints]
    subprocess.run([*install, "--editable", ".[dev]"], cwd=ROOT, check=True)
    return str(own)


def oldest() -> list[str]:
    """The oldest versions that the library, the networks and the experiments allow, as constraints."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = project["dependencies"] + extras["nets"] + extras["experiments"] + extras["data"]
    return [line.replace(">=", "==") for line in needed if ">=" in line]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
