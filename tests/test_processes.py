"""The same numbers on two devices, on eight, and on two processes of four; and sweeps that outlive kills.

`make cluster-test` runs this file.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.harness import cli
from experiments.harness.processes import HEARTBEAT_SECONDS
from tests.shared.experiments import SMALL

ROOT = Path(__file__).parent.parent
UFM_FIGURES = ["fig3", "fig5", "fig5-lbfgs", "fig5-start", "fig7", "fig8", "fig9"]
UFM_FIGURES += ["fig11", "fig12", "fig13"]
# Trials enough for a stop in the middle.
SWEEP = ["fig9", "--tau", "0.5", "5", "--trials", "80", "--num_classes", "30", "--dim", "32"]


def environment(devices):
    """So many CPU devices."""
    return os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}


def start(out, arguments, devices=4, process=None, port=None):
    """A process of the command line on so many CPU devices."""
    shared = ["--coordinator", f"127.0.0.1:{port}", "--processes", 2, "--process", process]
    command = [sys.executable, "-m", "experiments", *arguments, "--out", out, *(shared if port else [])]
    return subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        env=environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(out, arguments):
    """Two processes of four devices each that share a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(out, arguments, process=i, port=port) for i in (0, 1)]


def finish(*processes):
    """Their outputs, once they have ended well."""
    ends = [process.communicate(timeout=900) for process in processes]
    for process, (_, err) in zip(processes, ends, strict=True):
        assert process.returncode == 0, err
    return [out for out, _ in ends]


def data(out, name="fig9"):
    return (out / name / "data.npz").read_bytes()


def kept(out):
    """The finished chunks of the sweep, and when each was written."""
    return {file.name: file.stat().st_mtime_ns for file in out.glob(".fig9-checkpoints/*/*.npz")}


def wait_for_chunks(out, count, *processes):
    while len(kept(out)) < count:
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The data of the sweep, run by one process on two devices without a stop."""
    out = tmp_path_factory.mktemp("whole")
    finish(start(out, SWEEP, devices=2))
    return data(out)


@pytest.mark.slow
def test_two_processes_of_four_devices_make_the_same_file(whole, tmp_path):
    first, second = finish(*start_two(tmp_path, SWEEP))
    assert data(tmp_path) == whole
    assert [f.name for f in tmp_path.iterdir()] == ["fig9"]
    assert first.splitlines()[-1] == str(tmp_path / "fig9" / "fig9.png")
    assert "fig9" not in second


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_where_one_process_dies_the_other_stops_and_the_sweep_continues(lost, whole, tmp_path):
    processes = start_two(tmp_path, SWEEP)
    wait_for_chunks(tmp_path, 2, *processes)
    processes[lost].send_signal(signal.SIGKILL)
    begun = time.monotonic()
    _, err = processes[1 - lost].communicate(timeout=300)
    assert time.monotonic() - begun < HEARTBEAT_SECONDS + 15
    assert processes[1 - lost].returncode in (1, -signal.SIGABRT)
    last = err.splitlines()[-1]
    assert last.startswith("error: a process of this run ended before the run did")
    assert last.endswith("given to every process again, continues from the last finished chunk.")
    processes[lost].communicate()

    before = kept(tmp_path)
    assert len(before) >= 2
    # Fewer devices go on where more of them stopped.
    process = start(tmp_path, SWEEP, devices=2)
    wait_for_chunks(tmp_path, len(before) + 1, process)
    assert before.items() <= kept(tmp_path).items()
    finish(process)
    assert data(tmp_path) == whole
    assert [f.name for f in tmp_path.iterdir()] == ["fig9"]


@pytest.mark.slow
def test_a_sweep_killed_ten_times_loses_nothing_but_the_current_chunk(whole, tmp_path):
    random = np.random.default_rng(0)
    before: dict = {}
    for kill in range(10):
        process = start(tmp_path, SWEEP, devices=2 + kill % 3)
        wait_for_chunks(tmp_path, len(before) + 1, process)
        time.sleep(random.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert before.items() <= kept(tmp_path).items()
        before = kept(tmp_path)
    process = start(tmp_path, SWEEP, devices=2)
    finish(process)
    assert data(tmp_path) == whole


# Runs every UFM figure, small, and leaves its data.
FIGURES = """
import sys, jax, numpy as np
from pathlib import Path
from experiments.harness import cli
from experiments.harness.experiment import all_experiments
from tests.test_processes import UFM_FIGURES
from tests.shared.experiments import SMALL
jax.config.update("jax_enable_x64", True)
assert jax.device_count() == int(sys.argv[2])
for name in UFM_FIGURES:
    experiment = all_experiments()[name]
    config = cli._parse(experiment, SMALL[name])
    np.savez(Path(sys.argv[1]) / f"{name}.npz", **experiment.run(config, lambda *state: None))
"""


@pytest.mark.slow
def test_eight_devices_and_one_make_the_same_data_of_every_figure(tmp_path):
    for devices in (1, 8):
        (tmp_path / str(devices)).mkdir()
        subprocess.run(
            [sys.executable, "-c", FIGURES, tmp_path / str(devices), str(devices)],
            cwd=ROOT,
            env=environment(devices),
            check=True,
        )
    for name in UFM_FIGURES:
        one, eight = (np.load(tmp_path / str(devices) / f"{name}.npz") for devices in (1, 8))
        assert set(one) == set(eight)
        for array in one:
            np.testing.assert_allclose(
                eight[array], one[array], rtol=1e-12, atol=1e-12, err_msg=f"{name} {array}"
            )


# Ten thousand trials that each need a MiB while they run, ten GiB in all, and return little.
MEMORY = """
import resource, jax, jax.numpy as jnp, ufm_jax as ufm
MIB = 2**20
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def trial(x):
    matrix = jnp.sin(x * jnp.arange(MIB // 4, dtype=jnp.float32)).reshape(1024, 256)
    return matrix[:8] @ (matrix.T @ matrix[:, :4])
budget = 128 * MIB
inputs = jnp.arange(10000, dtype=jnp.float32)
batch_size = budget // ufm.trials._bytes_of_a_trial(trial, inputs[0])
assert batch_size > 100
before = peak()
for size in (1, batch_size):
    ufm.trials.run(trial, inputs, batch_size=size, devices=jax.devices()[:1])
    print((peak() - before) / MIB)
"""


@pytest.mark.slow
def test_ten_thousand_trials_stay_within_their_memory():
    out = subprocess.check_output([sys.executable, "-c", MEMORY], cwd=ROOT, text=True)
    one_by_one, batched = map(float, out.split())
    compiling = 96
    assert one_by_one < compiling
    assert batched < 128 + compiling


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--coordinator", "here"],
            "coordinator must be host:port, with a port from 1 to 65535, or auto, but is 'here'.",
        ),
        *(
            (
                ["--coordinator", wrong],
                f"coordinator must be host:port, with a port from 1 to 65535, or auto, but is '{wrong}'.",
            )
            for wrong in (
                "localhost:99999",
                "localhost:0",
                "localhost:65536",
                "localhost:\u00b2",
                ":1",
                "localhost:-1",
            )
        ),
        (["--processes", "2"], "processes and process need a coordinator, as host:port."),
        (
            ["--coordinator", "127.0.0.1:1", "--processes", "2", "--process", "2"],
            "process must lie between 0 and processes - 1 = 1, but is 2.",
        ),
    ],
)
def test_bad_processes_are_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    assert cli.main(["fig9", *arguments, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_on_a_tpu_the_default_is_float32_and_float64_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("jax.default_backend", lambda: "tpu")
    before = jax.config.jax_enable_x64
    try:
        jax.config.update("jax_enable_x64", True)
        config = cli._with_dtype_of_device(cli.all_experiments()["fig9"].config(), SMALL["fig9"])
        assert config.dtype == "float32"
        assert not jax.config.jax_enable_x64
    finally:
        jax.config.update("jax_enable_x64", before)
    assert cli.main(["fig9", "--dtype", "float64", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: dtype must be float32 on a TPU, which has no float64.\n"
