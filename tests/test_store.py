"""Networks are trained once: whatever asks for them, whatever was killed, wherever they were trained."""

import concurrent.futures
import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import filelock
import jax
import numpy as np
import pytest

from experiments.harness import cli, reading, status, store
from experiments.harness.record import keep_networks
from experiments.harness.store import Network, Store
from experiments.networks import fig6, fig10, settings, table2, trainer
from nets import convolution, datasets, resnet, training
from ufm_jax import losses, streaming
from ufm_jax.riemannian import manifolds, transforms

ROOT = Path(__file__).parent.parent
RECIPE = training.Recipe(epochs=4, batch_size=15)
NETWORK = Network(
    setup=training.Setup("resnet18", "normalized", 10, 4, RECIPE),
    dataset="synthetic",
    samples_per_class=4,
    random_labels=False,
    data_seed=0,
    seed=7,
    tau=1.0,
    tested=False,
)
TINY = dataclasses.replace(NETWORK, setup=dataclasses.replace(NETWORK.setup, architecture="tiny"), tau=0.5)


@pytest.fixture
def tiny(monkeypatch):
    """A network of three convolutions at each temperature, trained for four epochs; it counts them."""
    monkeypatch.setitem(resnet.ARCHITECTURES, "tiny", (resnet.BasicBlock, (1,)))

    def train(out, *taus, stop=None, **changes):
        config = fig10.Config(
            out=out, dataset="synthetic", samples_per_class=4, checkpoint_seconds=0, **changes
        )
        setup = training.Setup("tiny", "normalized", 10, 4, RECIPE)
        needed = [settings.network(config, setup, 7, tau) for tau in taus]

        def counted(program):
            def call(data, state, seed, epoch):
                nonlocal trained
                with lock:
                    if stop is not None and trained >= stop:
                        raise KeyboardInterrupt
                    trained += 1
                assert int(seed) == 7
                calls.append(int(epoch))
                return program(data, state, seed, epoch)

            return call

        trained, lock = 0, threading.Lock()
        calls.clear()
        try:
            found = trainer.train(config, needed, lambda *_: None, around=counted)
        except (KeyboardInterrupt, trainer._Stopped):
            return None, trained
        return trainer.stacked(found, len(taus)), trained

    calls: list[int] = []
    train.epochs = calls
    return train


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def changed(value):
    """Another value of the same field."""
    other = {"normalized": "regularized", "resnet18": "resnet34", "global": "replica"}
    other |= {"float32": "bfloat16", "he": "pytorch", "synthetic": "digits"}
    return other[value] if isinstance(value, str) else not value if isinstance(value, bool) else value + 1


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Network)])
def test_every_field_decides_the_name(field):
    if field != "setup":
        others = [dataclasses.replace(NETWORK, **{field: changed(getattr(NETWORK, field))})]
    else:
        setup, recipe = NETWORK.setup, NETWORK.setup.recipe
        setups = [
            dataclasses.replace(setup, **{f.name: changed(getattr(setup, f.name))})
            for f in dataclasses.fields(setup)
            if f.name != "recipe"
        ]
        setups += [
            dataclasses.replace(
                setup, recipe=dataclasses.replace(recipe, **{f.name: changed(getattr(recipe, f.name))})
            )
            for f in dataclasses.fields(recipe)
        ]
        others = [dataclasses.replace(NETWORK, setup=setup) for setup in setups]
    names = {network.name for network in (NETWORK, *others)}
    assert len(names) == 1 + len(others)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-") for name in names)


def test_the_format_and_the_kind_of_device_decide_the_name(monkeypatch):
    names = {NETWORK.name}
    monkeypatch.setattr(store, "FORMAT", store.FORMAT + 1)
    names.add(NETWORK.name)
    monkeypatch.setattr(store.jax, "default_backend", lambda: "gpu")
    names.add(NETWORK.name)
    assert len(names) == 3


def test_figures_share_what_is_the_same_network():
    """A name belongs to the network: not to the figure, the folder, or what else was asked for."""
    few = {"dataset": "cifar10", "width": 16, "samples_per_class": 100, "epochs": 200}
    sweep = set(fig10.needed(fig10.Config(**few, trials=1)))
    comparison = fig6.Config(**few, architecture=("resnet18",), tau=(1.0, 5.0, 7.0), trials=1)
    normalized = [network for network in fig6.needed(comparison) if network.tau is not None]
    assert len(normalized) == 3
    assert {network.tau for network in normalized if network in sweep} == {1.0, 5.0}
    # The regularized model has no temperature; and a second trial adds to the first.
    at_other_tau = dataclasses.replace(comparison, tau=(10.0,), trials=2, checkpoint_seconds=1)
    shared = set(fig6.needed(comparison)) & set(fig6.needed(at_other_tau))
    assert [network.tau for network in shared] == [None]
    # Table 2 measures the test set as well.
    assert not set(table2.needed(table2.Config(**few))) & set(fig6.needed(fig6.Config(**few)))


def test_networks_that_were_stopped_continue_and_finished_ones_stay(tiny, tmp_path):
    whole, trained = tiny(tmp_path / "whole", 0.5, 1.0, 5.0)
    assert trained == 12
    assert sorted(tiny.epochs) == sorted([0, 1, 2, 3] * 3)
    assert len(set(whole["nc1"][:, -1])) == 3  # The temperature makes a difference.
    assert tiny(tmp_path / "stopped", 1.0, 5.0, stop=6)[0] is None
    assert tiny(tmp_path / "stopped", 1.0, 5.0, stop=1)[0] is None
    found, trained = tiny(tmp_path / "stopped", 0.5, 1.0, 5.0)
    # Each of two threads may lose an epoch at each of the two stops.
    assert 12 - 7 <= trained <= 12 - 7 + 4
    assert_same(found, whole)
    assert_same(tiny(tmp_path / "stopped", 5.0, stop=0)[0], {k: v[2:] for k, v in whole.items()})
    assert [f.name for f in (tmp_path / "stopped" / "networks" / ".training").iterdir()] == []


def test_folders_brought_together_are_one_run(tiny, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    whole, _ = tiny(tmp_path / "whole", 0.5, 1.0, 5.0)
    tiny(one, 0.5, 5.0)
    tiny(other, 1.0, 5.0)
    shutil.copytree(other / "networks", one / "networks", dirs_exist_ok=True)
    found, trained = tiny(one, 0.5, 1.0, 5.0)
    assert trained == 0
    assert_same(found, whole)


def test_runs_that_share_a_folder_share_the_networks(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "_PAUSE", 0.01)
    whole, _ = tiny(tmp_path / "whole", 0.5, 1.0, 5.0)
    with concurrent.futures.ThreadPoolExecutor(3) as runs:
        taus = [(0.5, 1.0, 5.0), (1.0, 5.0, 0.5), (5.0, 0.5, 1.0)]
        results = [run.result() for run in [runs.submit(tiny, tmp_path / "shared", *t) for t in taus]]
    assert sum(trained for _, trained in results) == 3 * RECIPE.epochs
    for order, (found, _) in zip([(0, 1, 2), (1, 2, 0), (2, 0, 1)], results, strict=True):
        assert_same(found, {name: values[list(order)] for name, values in whole.items()})
    assert [f.name for f in (tmp_path / "shared" / "networks" / ".training").iterdir()] == []


def test_a_network_that_another_run_trains_is_left_to_it(tiny, tmp_path, monkeypatch):
    """The others are trained meanwhile; and where that run dies, this one goes on."""
    monkeypatch.setattr(trainer, "_PAUSE", 0.01)
    networks = tmp_path / "networks"
    assert tiny(tmp_path, 1.0, stop=2) == (None, 2)
    held = next((networks / ".training").glob("*.json")).with_suffix(".lock")
    other = (
        "import filelock, sys; x = filelock.FileLock(sys.argv[1]); x.acquire(); print(flush=True); input()"
    )
    with (
        subprocess.Popen(
            [sys.executable, "-c", other, held], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process,
        concurrent.futures.ThreadPoolExecutor(1) as run,
    ):
        process.stdout.read(1)
        waiting = run.submit(tiny, tmp_path, 1.0, 5.0)
        deadline = time.monotonic() + 300
        try:
            while not list(networks.glob("*tau-5-*.npz")):
                assert not waiting.done()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert not waiting.done()
            assert not list(networks.glob("*tau-1-*.npz"))
        finally:
            process.kill()  # Else `run` would wait for ever.
        found, trained = waiting.result()
    assert trained in (4 + 2, 4 + 3)  # The checkpoint after the second epoch may have come too late.
    assert_same(found, tiny(tmp_path / "whole", 1.0, 5.0)[0])


def test_without_locks_in_the_file_system_networks_are_trained(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(filelock.FileLock, "acquire", raising(OSError(errno.ENOLCK, "no locks")))
    assert tiny(tmp_path, 1.0)[1] == RECIPE.epochs


def raising(error):
    def call(*_, **__):
        raise error

    return call


DAMAGES = ["truncated", "flipped", "flipped at the end", "empty", "of another network", "shorter"]


def _network(record):
    fields = {f.name: record["network"][f.name] for f in dataclasses.fields(Network)}
    recipe = training.Recipe(**fields["setup"].pop("recipe"))
    return Network(**fields | {"setup": training.Setup(**fields["setup"], recipe=recipe)})


def test_recorded_networks_keep_their_names():
    """Later fields are no part of a network that was trained before them."""
    folder = Path(__file__).parent.parent / "docs" / "record"
    names = {file.stem for file in (folder / "networks").glob("*.npz")}
    assert {_network(record).name for record in Store(folder).records()} == names
    assert names


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_told_and_its_network_trained_again(tiny, tmp_path, damage, capsys):
    whole, _ = tiny(tmp_path, 0.5, 1.0)
    files = sorted((tmp_path / "networks").glob("*.npz"))
    content = bytearray(files[0].read_bytes())
    if damage == "flipped":
        # Among the numbers of an array: not every byte of an archive's headers means something.
        content[content.index(b"NUMPY") + 130] ^= 0x55
    if damage == "flipped at the end":  # Where the directory begins: zipfile then looks before the file.
        content[-4] ^= 0x55
    if damage == "shorter":
        (network,) = [n for n in (Store(tmp_path).records()) if n["network"]["tau"] == 0.5]
        with np.load(files[0]) as arrays:
            history = {name: arrays[name][:-1] for name in arrays.files if name != "network.json"}
        Store(tmp_path).finish(_network(network), network, history)
        content = files[0].read_bytes()
    wanted = {"truncated": content[:-50], "empty": b"", "of another network": files[1].read_bytes()}
    files[0].write_bytes(wanted.get(damage, content))
    capsys.readouterr()
    found, trained = tiny(tmp_path, 0.5, 1.0)
    said = capsys.readouterr().err.strip().splitlines()
    assert trained == 4
    assert len(said) == 1
    assert said[0].startswith(f"'{files[0]}' is damaged (")
    assert said[0].endswith("): the network is trained again.")
    assert_same(found, whole)
    assert tiny(tmp_path, 0.5, 1.0)[1] == 0


def test_a_damaged_record_of_a_network_in_training_starts_it_again(tiny, tmp_path, capsys):
    whole, _ = tiny(tmp_path / "whole", 1.0)
    tiny(tmp_path, 1.0, stop=2)
    (record,) = (tmp_path / "networks" / ".training").glob("*.json")
    record.write_text(record.read_text()[:-20])
    capsys.readouterr()
    found, trained = tiny(tmp_path, 1.0)
    assert (
        capsys.readouterr().err.strip() == f"'{record}' is damaged: the network is trained from its start."
    )
    assert trained == 4
    assert_same(found, whole)


@pytest.mark.parametrize("damage", ["flipped", "another format"])
def test_a_damaged_file_is_no_network_for_those_that_list_them(damage, tmp_path):
    shutil.copytree(ROOT / "docs" / "record" / "networks", tmp_path / "networks")
    file, *others = sorted((tmp_path / "networks").glob("*.npz"))
    if damage == "flipped":
        content = bytearray(file.read_bytes())
        content[content.index(b"NUMPY") + 130] ^= 0x55
        file.write_bytes(content)
    else:
        with zipfile.ZipFile(file, "w") as archive:
            record = {"network": {}, "epochs": 1, "seconds": 1.0, "made_by": []}
            archive.writestr("network.json", json.dumps(record))
    assert len(Store(tmp_path).records()) == len(others)
    assert keep_networks(tmp_path, tmp_path / "docs") == []
    kept = (tmp_path / "docs" / "record" / "networks").iterdir()
    assert {x.name for x in kept} == {x.name for x in others}


def test_words_do_not_change_the_code():
    source = (ROOT / "nets" / "training.py").read_text()
    code = store.without_words(source)
    reworded = source.replace('"""', '"""Indeed. ', 1).replace("    # ", "    # Oh: ")
    assert reworded != source
    assert store.without_words(reworded) == code
    # Versions of Python write quotes within quotes in different ways.
    assert not set("#'\"\\") & set(code)
    faster = source.replace("learning_rate: float = 0.05", "learning_rate: float = 0.1")
    assert store.without_words(faster) != code
    assert len({file.resolve() for file in store._DECIDING}) == len(store._DECIDING) > 10


@pytest.mark.parametrize("state", ["finished", "in training"])
def test_networks_of_other_code_are_refused_unless_asked_for(tiny, tmp_path, state, capsys):
    whole, _ = tiny(tmp_path / "whole", 0.5)
    tiny(tmp_path, 0.5, stop=None if state == "finished" else 2)
    config = fig10.Config(out=tmp_path)
    store.check_kept(config.out, [TINY], reuse=False)
    assert capsys.readouterr().err == ""

    kept = Store(tmp_path)
    record = kept.record(TINY)
    record["made_by"] = [record["made_by"][0] | {"code": "of others", "jax": "0.99"}]
    if state == "finished":
        kept.finish(TINY, record, kept.history(TINY))
    else:
        kept.note(TINY, record)
    words = r"^1 of 1 networks in .* were trained by JAX 0.99 \(here .*\), code of commit \w{7}"
    with pytest.raises(ValueError, match=words) as told:
        store.check_kept(config.out, [TINY], reuse=False)
    assert "--reuse takes them as they are" in str(told.value)
    store.check_kept(config.out, [TINY], reuse=True)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].endswith("taken as they are (--reuse).")
    with pytest.raises(store.OthersError, match=words):  # Also from Python.
        tiny(tmp_path, 0.5)
    if state == "in training":  # A run that does not come to an epoch leaves it to its maker.
        assert tiny(tmp_path, 0.5, reuse=True, stop=0)[0] is None
        assert kept.record(TINY) == record
    found, trained = tiny(tmp_path, 0.5, reuse=True)
    assert trained == (0 if state == "finished" else 2)
    assert_same(found, whole)
    makers = [maker["jax"] for maker in kept.record(TINY)["made_by"]]
    assert makers == (["0.99"] if state == "finished" else ["0.99", jax.__version__])


def test_a_network_begun_by_other_code_without_an_epoch_is_nobodys(tiny, tmp_path):
    whole, _ = tiny(tmp_path / "whole", 0.5)
    tiny(tmp_path, 0.5, stop=2)
    kept = Store(tmp_path)
    record = kept.record(TINY)
    record |= {"epochs": 0, "made_by": [record["made_by"][0] | {"code": "of others"}]}
    kept.note(TINY, record)
    store.check_kept(tmp_path, [TINY], reuse=False)
    found, trained = tiny(tmp_path, 0.5)
    assert trained == 4
    assert_same(found, whole)
    assert [maker["code"] for maker in kept.record(TINY)["made_by"]] == [store.code_digest()]


def test_a_network_whose_checkpoints_are_gone_is_begun_anew(tiny, tmp_path):
    """What others made of it counts no more: neither they nor their time nor their data."""
    tiny(tmp_path, 0.5, stop=2)
    kept = Store(tmp_path)
    record = kept.record(TINY)
    digest = record["data"]
    others = {"made_by": [record["made_by"][0] | {"code": "of others"}], "data": "theirs", "seconds": 1e6}
    kept.note(TINY, record | others)
    shutil.rmtree(kept._checkpoints(TINY))
    _, trained = tiny(tmp_path, 0.5, reuse=True)
    assert trained == 4
    found = kept.record(TINY)
    assert (found["data"], found["made_by"]) == (digest, [store.origin()])
    assert found["seconds"] < 1e6


def test_a_network_that_went_on_with_other_data_names_both(tiny, tmp_path):
    tiny(tmp_path, 0.5, stop=2)
    kept = Store(tmp_path)
    record = kept.record(TINY)
    digest = record["data"]
    kept.note(TINY, record | {"data": "theirs"})
    assert tiny(tmp_path, 0.5, reuse=True)[1] == 2
    assert kept.record(TINY)["data"] == f"theirs {digest}"
    with pytest.raises(store.OthersError, match="by other data"):
        store.check_kept(tmp_path, [TINY], reuse=False)


def test_all_that_decides_a_network_counts_as_code(monkeypatch, tmp_path):
    """What draws the data, the network, its loss, its optimizer, and the metrics."""
    metrics_of = [training.ufm.metrics.collapse, training.ufm.metrics.passes]
    for module in (
        training,
        datasets,
        resnet,
        convolution,
        losses,
        streaming,
        manifolds,
        transforms,
        *metrics_of,
    ):
        assert Path(module.__file__) in store._DECIDING, module
    digest = store.code_digest()
    file = tmp_path / "losses.py"
    file.write_text(Path(losses.__file__).read_text() + "\nMORE = 1\n")
    others = [file if x == Path(losses.__file__) else x for x in store._DECIDING]
    monkeypatch.setattr(store, "_DECIDING", others)
    store.code_digest.cache_clear()
    try:
        assert store.code_digest() != digest
    finally:
        store.code_digest.cache_clear()


def test_networks_of_another_test_set_are_refused(tmp_path, monkeypatch):
    network = dataclasses.replace(NETWORK, dataset="digits", tested=True)
    kept = Store(tmp_path)
    kept.checkpoints(network, 0).close()
    record = kept.begin(network, anew=True)
    kept.note(network, record | {"epochs": 1})
    store.check_kept(tmp_path, [network], reuse=False)
    own = datasets._SOURCES["digits"].load

    def other(name, part):
        split = own(name, part)
        return split._replace(images=split.images[:, ::-1]) if part == "test" else split

    monkeypatch.setitem(datasets._SOURCES, "digits", datasets._Source(10, other))
    with pytest.raises(store.OthersError, match="by other data of the name digits"):
        store.check_kept(tmp_path, [network], reuse=False)
    store.check_kept(tmp_path, [dataclasses.replace(network, tested=False)], reuse=False)


def test_networks_of_other_data_of_the_same_name_are_refused(tiny, tmp_path, monkeypatch):
    tiny(tmp_path, 0.5)
    config = fig10.Config(out=tmp_path)
    store.check_kept(config.out, [TINY], reuse=False)
    own = datasets._SOURCES[TINY.dataset].load
    turned = lambda *arguments: own(*arguments)._replace(images=own(*arguments).images[:, ::-1])  # noqa: E731
    monkeypatch.setitem(datasets._SOURCES, TINY.dataset, datasets._Source(10, turned))
    with pytest.raises(ValueError, match=f"by other data of the name {TINY.dataset}: --reuse takes them"):
        store.check_kept(config.out, [TINY], reuse=False)


def test_the_command_line_refuses_them_in_one_sentence(tmp_path, capsys):
    arguments = ["fig10", "--out", str(tmp_path), "--tau", "1", "--trials", "1", "--dataset", "synthetic"]
    arguments += ["--samples_per_class", "4", "--epochs", "1"]
    config = fig10.Config(out=tmp_path, tau=(1.0,), dataset="synthetic", samples_per_class=4, epochs=1)
    (needed,) = fig10.needed(config)
    makers = [store.origin() | {"code": "of others"}]
    record = {"network": needed.identity, "epochs": 1, "seconds": 2.0, "made_by": makers}
    folder = Store(tmp_path).folder
    folder.mkdir()
    Store(tmp_path).finish(needed, record, {name: np.ones(1) for name in ("accuracy", "nc1", "nc2", "nc3")})
    before = {file: file.read_bytes() for file in folder.glob("*.npz")}
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: 1 of 1 networks in")
    assert len(captured.err.splitlines()) == 1
    assert {file: file.read_bytes() for file in folder.glob("*.npz")} == before
    assert cli.main([*arguments, "--reuse"]) == 0
    assert "taken as they are (--reuse).\n" in capsys.readouterr().err
    found, skipped = reading.read(tmp_path)
    assert skipped == []
    assert found[0].summary["networks"]["seconds"] == 2.0


def test_status_tells_finished_from_begun_from_missing(tiny, tmp_path):
    tiny(tmp_path, 0.5)
    tiny(tmp_path, 1.0, stop=2)
    setup = training.Setup("tiny", "normalized", 10, 4, RECIPE)
    config = fig10.Config(out=tmp_path, dataset="synthetic", samples_per_class=4)
    wider = dataclasses.replace(setup, width=5)
    needed = [settings.network(config, setup, 7, tau) for tau in (0.5, 1.0, 5.0)]
    needed.append(settings.network(config, wider, 7, 1.0))
    found = status.of_networks(tmp_path, needed)
    assert [progress.state for progress in found] == ["finished", "in training", "missing", "missing"]
    assert [progress.epochs for progress in found] == [4, 2, 0, 0]
    done, begun, missing, unknown = found
    assert done.left == 0
    assert begun.left == pytest.approx(2 * begun.seconds)
    assert missing.seconds == pytest.approx((done.seconds + begun.seconds) / 2)
    assert missing.left == pytest.approx(4 * missing.seconds)
    assert unknown.seconds is unknown.left is None
    lines = status.text("fig10", tmp_path, needed).splitlines()
    assert lines[0].startswith(f"fig10: 1 of 4 networks finished in '{tmp_path}/networks', about ")
    assert lines[0].endswith(" left, 1 of a kind that was not timed yet")
    assert [line.split("  ")[1] for line in lines[1:]] == [progress.state for progress in found]


def test_networks_status_on_the_command_line(tmp_path, capsys):
    assert cli.main(["networks-status", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if not line.startswith(" ")] == [
        "fig4",
        "fig6",
        "fig10",
        "table2",
    ]
    taus = ["--scale", "paper", "--architecture", "resnet18", "--tau", "1", "10"]
    assert cli.main(["networks-status", "fig6", *taus, "--out", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 3
    assert list(tmp_path.iterdir()) == []
    for arguments, words in [
        (["fig9"], "takes one of fig4, fig6, fig10, table2"),
        (["--bad", "1"], "no field --bad"),
        (["fig6", "--out", __file__], "test_store.py/networks"),
    ]:
        assert cli.main(["networks-status", *arguments]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.slow
def test_killed_in_the_middle_of_two_networks(tmp_path):
    """Kill -9 in each of two, a temperature more, other code: nothing is trained twice."""
    clone = tmp_path / "clone"
    ignored = shutil.ignore_patterns(".*", "results", "__pycache__")
    shutil.copytree(ROOT, clone, ignore=ignored)

    def start(folder, *taus, more=()):
        sizes = "--dataset synthetic --samples_per_class 5 --width 4 --epochs 40 --batch_size 32"
        arguments = ["fig10", "--out", tmp_path / folder, "--checkpoint_seconds", "0", *sizes.split()]
        return subprocess.Popen(
            [sys.executable, "-m", "experiments", *map(str, [*arguments, *more, "--tau", *taus])],
            cwd=clone,
            # One network at a time.
            env=os.environ
            | {"PYTHONPATH": str(clone), "XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def epochs_kept(tau):
        folders = (tmp_path / "killed" / "networks" / ".training").glob(f"*tau-{tau}-*/*")
        return max((int(f.name) for f in folders if f.name.isdigit()), default=0)

    def finished():
        files = (tmp_path / "killed" / "networks").glob("*.npz")
        return {file.name: file.stat().st_mtime_ns for file in files}

    whole = start("whole", 0.5, 1, 5)
    _, err = whole.communicate(timeout=1800)
    assert whole.returncode == 0, err
    for tau in (1, 5):
        process = start("killed", 1, 5)
        while process.poll() is None and epochs_kept(tau) < 7:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
    before = finished()
    assert len(before) == 1

    code = clone / "nets" / "resnet.py"
    code.write_text(code.read_text().replace('"""Residual networks', '"""Indeed: residual networks', 1))
    words_only = start("killed", 0.5, 1, 5, more=["--epochs", "1"])
    assert words_only.communicate(timeout=1800)[1].count("error") == 0
    kept = epochs_kept(5)
    assert 7 <= kept < 40
    code.write_text(code.read_text() + "\nNOTHING = 0\n")
    refused = start("killed", 0.5, 1, 5)
    _, err = refused.communicate(timeout=600)
    assert refused.returncode == 2
    assert err.startswith("error: 2 of 3 networks in ")
    assert (finished().keys() >= before.keys(), epochs_kept(5)) == (True, kept)

    last = start("killed", 0.5, 1, 5, more=["--reuse"])
    _, err = last.communicate(timeout=1800)
    assert last.returncode == 0, err
    assert before.items() <= finished().items()
    expected = (tmp_path / "whole" / "fig10" / "data.npz").read_bytes()
    assert (tmp_path / "killed" / "fig10" / "data.npz").read_bytes() == expected
