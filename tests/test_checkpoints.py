"""Checkpoints survive what happens to processes and disks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.checkpoints import Checkpoints

ROOT = Path(__file__).parent.parent


def tree(step):
    generator = np.random.default_rng(step)
    return {
        "a": generator.normal(size=(3, 4)).astype(np.float32),
        "b": [np.arange(5) + step, np.float32(step)],
    }


def assert_is(found, step):
    assert found[0] == step
    for name in ("a", "b"):
        np.testing.assert_equal(found[1][name], tree(step)[name])


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", seconds=0)
    assert checkpoints.restore(tree(0)) is None
    for step in (1, 2, 3):
        checkpoints.save(step, tree(step))
    checkpoints.close()
    return tmp_path / "run"


def reopened(folder):
    return Checkpoints(folder, seconds=0).restore(tree(0))


def test_the_newest_of_two_is_restored(saved):
    assert sorted(f.name for f in saved.iterdir()) == ["2", "3"]
    assert_is(reopened(saved), 3)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_newest_falls_back_and_says_so(saved, damage, capsys):
    files = [f for f in (saved / "3").rglob("*") if f.is_file()]
    if damage == "missing":
        for file in files:
            file.unlink()
    for file in files if damage != "missing" else []:
        content = bytearray(file.read_bytes())
        if damage == "truncated":
            content = content[: len(content) // 2]
        else:
            for i in range(0, len(content), 40):
                content[i] ^= 0x55
        file.write_bytes(content)
    assert_is(reopened(saved), 2)
    assert "the checkpoint after epoch 3 is damaged" in capsys.readouterr().err


def test_a_checkpoint_of_another_shape_is_not_used(saved):
    assert (
        Checkpoints(saved, seconds=0).restore({"a": np.zeros(2), "b": [np.zeros(1), np.zeros(1)]}) is None
    )


def test_saving_waits_its_time(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", seconds=1000)
    checkpoints.save(1, tree(1))
    assert checkpoints.restore(tree(0)) is None
    checkpoints.save(2, tree(2), now=True)
    assert_is(checkpoints.restore(tree(0)), 2)


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_file(tmp_path):
    def start(folder):
        sizes = (
            "--dataset synthetic --samples_per_class 5 --width 4 --epochs 40 --batch_size 32 --tau 0.5 1 5"
        )
        arguments = ["fig10", "--out", tmp_path / folder, "--checkpoint_seconds", "0", *sizes.split()]
        return subprocess.Popen(
            [sys.executable, "-m", "experiments", *map(str, arguments)],
            cwd=ROOT,
            # The runs after the first need not compile again.
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    whole = start("whole")
    assert whole.communicate(timeout=1800)[1] is not None
    assert whole.returncode == 0

    killed = 0
    for wanted in (3, 20, 43, 60):  # Epochs over both parts: two networks beside each other, then one.
        process = start("killed")
        while process.poll() is None:
            found = [f for f in (tmp_path / "killed").glob(".fig10-checkpoints/*/*/*") if f.name.isdigit()]
            newest = {f.parent: max(int(g.name) for g in found if g.parent == f.parent) for f in found}
            if sum(newest.values()) >= wanted:
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
                break
            time.sleep(0.01)
        process.communicate(timeout=1800)
    assert killed >= 3
    last = start("killed")
    last.communicate(timeout=1800)
    assert last.returncode == 0
    expected = (tmp_path / "whole" / "fig10" / "data.npz").read_bytes()
    assert (tmp_path / "killed" / "fig10" / "data.npz").read_bytes() == expected
    assert [f.name for f in (tmp_path / "killed").iterdir()] == ["fig10"]
