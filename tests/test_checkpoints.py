"""Checkpoints survive what happens to processes and disks."""

import numpy as np
import pytest

from experiments.harness.checkpoints import Checkpoints


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


def test_a_digest_that_differs_is_damage(saved, capsys):
    """Where Orbax reads what is there without complaint."""
    files = [f for f in (saved / "3" / "digest").rglob("*") if f.is_file()]
    (file,) = (f for f in files if b"sha256" in f.read_bytes())
    said = file.read_text()
    digest = said.split('"sha256": "')[1][:64]
    file.write_text(said.replace(digest, "0" * 64))
    assert_is(reopened(saved), 2)
    assert "its digest differs" in capsys.readouterr().err


@pytest.mark.parametrize(
    "like",
    [
        {"a": np.zeros(2), "b": [np.zeros(1), np.zeros(1)]},
        tree(0) | {"c": np.zeros(1)},
        {f"other {name}": x for name, x in tree(0).items()},
    ],
)
def test_checkpoints_of_another_layout_are_refused_and_stay(saved, like):
    with pytest.raises(ValueError, match="hold other arrays than this code makes"):
        Checkpoints(saved, seconds=0).restore(like)
    assert_is(reopened(saved), 3)


@pytest.mark.parametrize("error", [MemoryError(), PermissionError("not now")])
def test_what_is_no_damage_leaves_checkpoints_alone(saved, monkeypatch, error):
    def fails(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_read", fails)
        with pytest.raises(type(error)):
            reopened(saved)
    assert_is(reopened(saved), 3)


def test_a_checkpoint_is_due_when_its_time_has_passed(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    checkpoints = Checkpoints(tmp_path / "run", seconds=10)
    assert Checkpoints(tmp_path / "run", seconds=0).due()
    for time in (109.0, 111.0, 112.0, 120.5, 121.5):
        clock[0] = time
        due = checkpoints.due()
        assert due == (time in (111.0, 121.5))
        if due:
            checkpoints.save(int(time), tree(1))
    checkpoints.close()
