"""Chunks in files survive what happens to processes and disks."""

import jax.numpy as jnp
import numpy as np
import pytest

import ufm_jax as ufm
from experiments.feature_model import fig9
from experiments.harness import chunks, writing
from experiments.harness.chunks import ChunkFolder

CHUNK = {"trials": np.arange(3), "output['nc1']": np.linspace(0, 1, 6).reshape(3, 2)}


@pytest.fixture
def store(tmp_path):
    made = ChunkFolder(tmp_path / "sweep")
    assert list(made) == []
    made["0-2"] = CHUNK
    made["3-5"] = CHUNK
    return made


def test_a_chunk_is_found_again_as_it_was(store, tmp_path):
    again = ChunkFolder(tmp_path / "sweep")
    assert list(again) == ["0-2", "3-5"]
    np.testing.assert_equal(again["0-2"], CHUNK)
    del again["0-2"]
    assert list(store) == ["3-5"]
    with pytest.raises(KeyError):
        del store["0-2"]
    assert list(chunks.part(store, "other")) == []
    assert chunks.part(None, "other") is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "another array"])
def test_a_damaged_file_counts_as_missing_and_is_named(store, damage, tmp_path, capsys):
    file = tmp_path / "sweep" / "0-2.npz"
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    if damage == "flipped":
        content[content.index(np.float64(0.2).tobytes()) + 3] ^= 0x10
    if damage == "empty":
        content = bytearray()
    if damage == "another array":
        content[:] = b"\x93NUMPY" + content[6:]
    file.write_bytes(content)
    assert store.get("0-2") is None
    assert "0-2.npz is damaged" in capsys.readouterr().err
    assert list(store) == ["3-5"]


def test_a_chunk_half_written_is_no_chunk(store, tmp_path, monkeypatch):
    def killed(_):  # Its content is on its way to the disk.
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        store["6-8"] = CHUNK
    assert sorted(f.name for f in (tmp_path / "sweep").iterdir()) == ["0-2.npz", "3-5.npz"]


@pytest.mark.parametrize("what", ["code", "jax", "device", "config"])
def test_what_another_version_has_begun_is_not_gone_on_with(what, monkeypatch, tmp_path):
    config = fig9.Config(out=tmp_path)
    before = writing.run_folder(config, "fig9")
    if what == "code":
        monkeypatch.setattr(writing, "_code_digest", lambda: "another")
    elif what == "jax":
        monkeypatch.setattr(writing.jax, "__version__", "0.99")
    elif what == "device":
        monkeypatch.setattr(writing.jax, "default_backend", lambda: "tpu")
    else:
        config = fig9.Config(out=tmp_path, tau=(2.0,))
    assert writing.run_folder(config, "fig9") != before


def test_a_chunk_that_cannot_be_opened_is_not_lost(store, monkeypatch):
    def refuse(*_):
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.open", refuse)
        with pytest.raises(OSError, match="Too many"):
            store["0-2"]
    np.testing.assert_equal(store["0-2"], CHUNK)


def test_a_failed_write_leaves_nothing(store, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    before = sorted(f.name for f in (tmp_path / "sweep").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", refuse)
        with pytest.raises(OSError, match="No space"):
            store["6-8"] = CHUNK
    assert sorted(f.name for f in (tmp_path / "sweep").iterdir()) == before


def test_types_that_numpy_does_not_know_are_found_again(tmp_path):
    inputs = jnp.arange(6, dtype=jnp.bfloat16)
    first = ufm.trials.run(square, inputs, store=ChunkFolder(tmp_path))
    again = ufm.trials.run(square, inputs, store=ChunkFolder(tmp_path))
    assert again.dtype == jnp.bfloat16
    np.testing.assert_array_equal(again, first)


def test_a_finished_run_leaves_what_others_continue_from(tmp_path):
    configs = [fig9.Config(out=tmp_path, steps=steps) for steps in (3, 4)]
    for config in configs:
        chunks.of_run("fig9", config)["0-2"] = CHUNK
    writing.remove_run_folder(configs[0], "fig9")
    assert [list(chunks.of_run("fig9", config)) for config in configs] == [[], ["0-2"]]
    writing.remove_run_folder(configs[1], "fig9")
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_recomputes_a_damaged_chunk(tmp_path, capsys):
    store = ChunkFolder(tmp_path)
    inputs = np.arange(20.0)
    ufm.trials.run(square, inputs, store=store)
    (tmp_path / "4-5.npz").write_bytes(b"rubbish")
    np.testing.assert_array_equal(ufm.trials.run(square, inputs, store=store), inputs**2)
    assert "4-5.npz is damaged" in capsys.readouterr().err
    assert "4-5" in store


def square(x):
    return x**2


def test_another_config_has_another_store(tmp_path):
    def folder(**fields):
        return chunks.of_run("fig9", fig9.Config(out=tmp_path, **fields)).path

    assert folder() == folder(quiet=True) == folder(coordinator="127.0.0.1:1", processes=2)
    assert folder() != folder(steps=3)
    assert folder() != folder(dtype="float32")
    assert folder().parent == tmp_path / ".fig9-checkpoints"
