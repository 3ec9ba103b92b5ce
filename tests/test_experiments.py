"""The command line as a person meets it, on runs small enough for a test."""

import concurrent.futures
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import ufm_jax as ufm
from experiments.feature_model import deep, fig9, minima
from experiments.harness import cli, record, results_page, writing
from experiments.harness.experiment import Claim, all_experiments
from experiments.landscape import landscape_conditions
from experiments.speed import bench_networks
from tests.shared.experiments import LANDSCAPE, SLOW, SMALL
from tests.shared.marks import few

ROOT = Path(__file__).parent.parent


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "experiments", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


def main(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in all_experiments()]
)
def test_every_experiment_writes_a_complete_result(name, tmp_path, capsys):
    code, out, _ = main(capsys, name, "--out", tmp_path, "--seed", 3, *SMALL[name])
    assert code == 0
    folder = tmp_path / name
    assert out.splitlines()[-1] == str(folder / f"{name}.png")
    has_table = all_experiments()[name].table is not None
    tables = {"table.md"} if has_table else set()
    expected = {f"{name}.png", f"{name}.pdf", "data.npz", "summary.json"} | tables
    assert {f.name for f in folder.iterdir()} == expected
    assert not has_table or (folder / "table.md").read_text() in out
    trains = all_experiments()[name].networks is not None
    assert {f.name for f in tmp_path.iterdir()} == {name} | ({"networks"} if trains else set())
    assert (folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / f"{name}.pdf").read_bytes()[:4] == b"%PDF"

    with np.load(folder / "data.npz", allow_pickle=False) as data:
        # From a saddle in another order of its classes nothing descends.
        left_out = {"saddle_escapes", "saddle_end_excess"}
        numbers = [data[k] for k in data if np.issubdtype(data[k].dtype, np.number) and k not in left_out]
        assert numbers
        assert not any(np.any(np.isnan(x)) for x in numbers)
    summary = json.loads((folder / "summary.json").read_text())
    expected = ["experiment", "scale", "config", "seed", "claims", "seconds", "versions", "device", "git"]
    assert list(summary) == expected + (["networks"] if trains else [])
    assert (summary["experiment"], summary["seed"], summary["scale"]) == (name, 3, "paper")
    if "--trials" in SMALL[name]:
        assert summary["config"]["trials"] == int(SMALL[name][SMALL[name].index("--trials") + 1])
    assert summary["versions"]["jax"]
    assert summary["seconds"] > 0
    for claim in summary["claims"]:
        assert set(claim) == {"claim", "holds", "measured"}
        assert isinstance(claim["holds"], bool)
        assert claim["claim"] in out
    assert ("FAILS" in out) == (not all(claim["holds"] for claim in summary["claims"]))


def test_the_small_runs_are_those_of_all_experiments():
    assert set(SMALL) == set(all_experiments())
    assert set(SLOW) < set(SMALL)
    assert len(set(SLOW)) == len(SLOW)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The results of figure 9 from seed 1."""
    out = tmp_path_factory.mktemp("finished")
    assert cli.main(["fig9", "--out", str(out), "--seed", "1", "--quiet", *SMALL["fig9"]]) == 0
    return out


def test_the_same_seed_gives_the_same_file_and_another_seed_replaces_it_by_another(
    finished, tmp_path, capsys
):
    def arguments(folder, seed):
        return ["fig9", "--out", tmp_path / folder, "--seed", seed, "--quiet", *SMALL["fig9"]]

    def data(folder):
        return (tmp_path / folder / "fig9" / "data.npz").read_bytes()

    elsewhere = command(*arguments("a", 1))
    assert elsewhere.returncode == 0, elsewhere.stderr
    # Quiet means: the path of the picture and nothing else.
    assert elsewhere.stdout == f"{tmp_path / 'a' / 'fig9' / 'fig9.png'}\n"
    assert elsewhere.stderr == ""
    shutil.copytree(finished, tmp_path / "b")
    assert data("b") == data("a")
    main(capsys, *arguments("b", 2))
    assert data("b") != data("a")
    assert json.loads((tmp_path / "b" / "fig9" / "summary.json").read_text())["seed"] == 2
    assert [f.name for f in (tmp_path / "b").iterdir()] == ["fig9"]


def test_fig9_data_has_the_documented_names_and_shapes(finished):
    with np.load(finished / "fig9" / "data.npz") as data:
        for name in ("nc1", "nc2", "nc3", "accuracy", "loss"):
            assert data[name].shape == (2, 3, 13)
            assert data[name].dtype == np.float64
        np.testing.assert_array_equal(data["tau"], [0.5, 5])
        np.testing.assert_array_equal(data["step"], np.arange(13))
        assert np.all(np.diff(data["loss"], axis=-1) <= 0)


@pytest.mark.slow
def test_fig3_finds_the_minimum_of_theorem_1(tmp_path, capsys):
    _, out, _ = main(capsys, "fig3", "--out", tmp_path, *SMALL["fig3"])
    assert "FAILS" not in out
    with np.load(tmp_path / "fig3" / "data.npz") as data:
        expected = [ufm.theory.cross_entropy_minimum(k, 1.0) for k in (2, 4)]
        np.testing.assert_allclose(
            data["value_by_num_classes"], np.array(expected)[:, None] * [1, 1], atol=1e-12
        )


def test_claims_judge_the_data():
    """A run that does not do what the paper says is reported as such."""
    config = fig9.Config(tau=(1.0, 5.0), trials=2, steps=4)
    good = {name: np.zeros((2, 2, 5)) for name in ("nc1", "nc2", "nc3")}
    good |= {
        "tau": np.array([1.0, 5.0]),
        "accuracy": np.ones((2, 2, 5)),
        "gradient_norm": np.zeros((2, 2)),
    }
    verdicts = {c.claim: c.holds for c in fig9.claims(config, good)}
    assert sum(verdicts.values()) == 5  # Without a stuck temperature the last claim fails.
    stuck = good | {"nc2": np.where(good["tau"][:, None, None] == 1, 0.5, good["nc2"])}
    assert [c.holds for c in fig9.claims(config, stuck)] == [True] * 6
    moves = stuck | {"gradient_norm": np.full((2, 2), 1e-8)}
    assert [c.holds for c in fig9.claims(config, moves)] == [True] * 5 + [False]

    never = good | {"accuracy": good["accuracy"] * 0.9}
    assert [c.holds for c in fig9.claims(config, never)][:2] == [False, False]

    wrong = good | {"accuracy": good["accuracy"] * 0.9, "nc1": good["nc1"] + 1}
    wrong["nc2"] = np.where(wrong["tau"][:, None, None] == 5, 1.0, 0.5) * np.ones((2, 2, 5))
    claims = [c.holds for c in fig9.claims(config, wrong)]
    assert claims[0] is False
    assert claims[2] is False
    assert claims[3] is False

    gap = {
        f"{name}_by_{sweep}": np.zeros((1, 1)) for name in ("value",) for sweep in ("num_classes", "tau")
    }
    theory = {f"minimum_by_{sweep}": np.array([1e-7]) for sweep in ("num_classes", "tau")}
    data = gap | theory | {"num_classes": np.array([3]), "tau": np.array([1.0])}
    found = {
        f"{name}_by_{sweep}": np.ones((1, 1))
        for name in ("nc1", "nc2", "nc3")
        for sweep in ("num_classes", "tau")
    }
    small = minima.Config(num_classes=(3,), tau=(1.0,))
    assert not any(c.holds for c in all_experiments()["fig3"].claims(small, data | found))
    nothing = {name: np.full_like(values, np.nan) for name, values in found.items()}
    assert not any(c.holds for c in all_experiments()["fig3"].claims(small, data | nothing))


def test_the_share_outside_the_program_is_that_of_epochs(monkeypatch):
    """Each of five epochs but the first: a tenth of a second in the program, two tenths outside."""
    clock = [0.0]

    def passes(seconds):
        clock[0] += seconds

    def train(config, networks, progress, *, around):
        progress(0, 5)
        passes(0.5)  # Data and compilation.
        for epoch in range(5):
            around(lambda: passes(0.1))()
            passes(0.2)
            progress(epoch + 1, 5)

    monkeypatch.setattr(bench_networks.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(bench_networks.trainer, "train", train)
    found = bench_networks._outside(bench_networks.Config(epochs=5), lambda *_: None)
    assert found["epochs_seconds"] == pytest.approx(1.2)
    assert found["epochs_compiled_seconds"] == pytest.approx(0.4)


def test_the_last_scale_counts(tmp_path, capsys):
    """Defaults of the other fields included."""
    twice = ["networks-status", "fig6", "--scale", "paper", "--out", str(tmp_path)]
    assert cli.main([*twice, "--scale", "laptop"]) == 0
    assert "width 64" not in capsys.readouterr().out
    assert cli.main([*twice, "--scale", "laptop", "--scale=paper"]) == 0
    assert "width 64" in capsys.readouterr().out


def test_nothing_is_claimed_of_what_was_not_run():
    value = np.zeros((1, 2, 1, 2))
    data = {"value": value, "minimum": np.zeros((1, 1)), "rank": value + 3, "nc1": value[..., None]}
    told = {
        depth: [
            c.claim
            for c in deep.claims(deep.Config(factors=(depth,)), data | {"factors": np.array([depth])})
        ]
        for depth in (3, 6)
    }
    assert ["three factors" in claim for claim in told[3]] == [False, True, False]
    assert ["more factors" in claim for claim in told[6]] == [False, True, False]


@pytest.mark.parametrize(("below", "rank", "holds"), [(1e-2, 3, True), (1e-2, 10, False), (0, 3, False)])
def test_a_point_of_lower_rank_has_one(below, rank, holds):
    value = np.zeros((1, 2, 1, 1)) - below
    data = {"value": value, "minimum": np.zeros((1, 1)), "rank": np.full((1, 2, 1, 1), rank)}
    data |= {"nc1": value[..., None], "factors": np.array([6])}
    claims = deep.claims(deep.Config(factors=(6,), num_classes=10), data)
    assert [c.holds for c in claims if "lower rank" in c.claim] == [holds]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fig99"], "unknown experiment 'fig99': did you mean fig9? It must be one of fig3, fig4, "),
        (["nonsense"], "unknown experiment 'nonsense': it must be one of fig3"),
        (["FIG9"], "unknown experiment 'FIG9': did you mean fig9? "),
        (["--tau", "1"], "the name of an experiment comes first, before --tau."),
        (["fig9", "--trails", "3"], "fig9 has no field --trails: did you mean --trials?"),
        (["fig9", "--Tau=3"], "fig9 has no field --Tau: did you mean --tau?"),
        (["fig9", "--zzzz", "3"], "fig9 has no field --zzzz: --help lists the fields."),
        (["fig9", "tau=3"], "unexpected 'tau=3': fields are given as --field value, several"),
        (["fig9", "fig10"], "unexpected 'fig10': fields are given as --field value, several"),
        (["fig9", "--trials", "many"], "--trials takes one integer, but got 'many'."),
        (["fig9", "--trials", "10", "20"], "--trials takes one integer, but got also '20'."),
        (["fig9", "--num-classes", "3", "4"], "--num-classes takes one integer, but got also '4'."),
        (["fig9", "--quiet", "true"], "--quiet takes no value, but got also 'true'."),
        (["fig9", "--quiet=false", "--seed", "1"], "--quiet takes no value, but got also 'false'."),
        (["fig11", "--at_tau", "-1"], "at_tau must be positive and finite, but is -1.0."),
        (["fig11", "--at_num_classes", "1"], "at_num_classes must be finite and at least 2, but is 1."),
        (["networks-status", "fig6", "--trials", "-1"], "trials must be finite and at least 1, but is -1."),
        (["networks-status", "fig10", "--width", "0"], "width must be finite and at least 1, but is 0."),
        (["networks-status", "fig4", "--epochs", "0"], "epochs must be finite and at least 1, but is 0."),
        (["fig9", "--tau", "0.5,1"], "--tau takes numbers with spaces between, but got '0.5,1'."),
        (["fig4", "--width", "4", "x"], "--width takes integers with spaces between, but got '4', 'x'."),
        (["fig9", "--steps"], "--steps needs a value."),
        (["fig9", "--scale", "laptop"], "--scale must be paper, but is 'laptop'."),
        (["fig9", "--dtype", "bfloat16"], "--dtype must be one of float32, float64, but is 'bfloat16'."),
        (["fig9", "--num_classes", "1"], "num_classes must be finite and at least 2, but is 1."),
        (
            ["fig9", "--samples_per_class", "0"],
            "samples_per_class must be finite and at least 1, but is 0.",
        ),
        (["fig9", "--tau", "1", "0"], "tau must be positive and finite, but is (1.0, 0.0)."),
        (["fig9", "--tau", "nan"], "tau must be positive and finite"),
        (["fig9", "--tau"], "tau needs at least one value."),
        (["fig9", "--trials", "0"], "trials must be finite and at least 1, but is 0."),
        (["fig9", "--steps", "0"], "steps must be finite and at least 1, but is 0."),
        (["fig9", "--dim", "8"], "dim must be at least num_classes - 1 = 9, the fewest dimensions"),
        (["fig3", "--dim", "14"], "dim must be at least num_classes - 1 = 15"),
        (["fig3", "--at_tau", "-1"], "tau must be positive and finite"),
        (["fig9", "--out", "/proc/nowhere"], "cannot write results into '/proc/nowhere'"),
        (["fig12", "--alpha", "2"], "alpha must lie between 0 and 1, but is 2.0."),
        (["fig11", "--gamma", "-1"], "gamma must be finite and at least 0, but is -1.0."),
        (
            ["fig13", "--samples_per_class", "1"],
            "samples_per_class must be finite and at least 2, but is 1.",
        ),
        (["fig3", "--tolerance", "-1"], "tolerance must be finite and at least 0, but is -1.0."),
        (["fig5", "--start_scale", "0"], "start_scale must be positive and finite, but is 0.0."),
        (["fig9", "--seed", "9" * 20], "seed must lie between 0 and 4294967295, but is 9999"),
        (["landscape", "--dtype", "float32"], "dtype must be float64, in which gradients reach 1e-12"),
        (["landscape", "--dim", "4"], "need one value for each problem, but have 9, 9, 1, 9."),
        (
            ["landscape", *LANDSCAPE[:4], "--dim", "3", "--imbalance", "0", "--num_classes", "4"],
            "dim at least num_classes, but they are 3 and 4.",
        ),
        (["landscape-window", "--dim", "4"], "needs dim larger than num_classes, but they are 4 and 4."),
        (["landscape-conditions", "--dim", "2"], "one value for each problem, but have 12, 1."),
        (["softmax-codes", "--dim", "2"], "one value for each problem, but have 18, 1."),
        (["softmax-codes", "--num_classes", "9", "--dim", "4"], "not for num_classes 9 at dim 4."),
        (["softmax-codes", "--dtype", "float32"], "dtype must be float64, in which angles settle to 1e-8"),
        (["focal-map", "--gamma", "-1"], "gamma must be finite and at least 0"),
        (
            ["large", "--num_classes", "3", "--samples_per_class", "1"],
            "3 samples do not divide by 2 devices",
        ),
        (["fig9", "--seed", "-1"], "seed must lie between 0 and 4294967295, but is -1."),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    if "--out" not in arguments:
        arguments = [*arguments, "--out", tmp_path] if len(arguments) > 1 else arguments
    code, out, err = main(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_results_folder_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "results").write_text("not a folder")
    code, _, err = main(capsys, "fig9", "--out", tmp_path / "results")
    assert code == 2
    assert "cannot write results into" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("columns", [80, 200])
def test_without_arguments_the_experiments_are_listed(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = main(capsys)
    assert code == 0
    assert max(map(len, out.splitlines())) <= columns
    words = " ".join(out.split())
    for name, experiment in all_experiments().items():
        assert f" {name} {experiment.duration} {experiment.title}" in words
    assert main(capsys, "--help") == (0, out, "")
    assert "130 interrupted" in words


def test_help_names_every_field_with_its_default_and_meaning():
    text = " ".join(command("fig9", "--help").stdout.split())
    for field in (
        "tau",
        "num_classes",
        "samples_per_class",
        "dim",
        "trials",
        "steps",
        "seed",
        "dtype",
        "out",
    ):
        assert f"--{field}" in text
    assert "Iterations of gradient descent. (default: 200)" in text


def test_experiments_are_in_the_order_of_the_paper():
    numbers = [int("".join(filter(str.isdigit, name)) or 0) for name in all_experiments() if "fig" in name]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("stop", few(1, signal.SIGINT, signal.SIGKILL))
def test_an_interrupted_run_leaves_no_result_but_what_it_continues_from(stop, tmp_path):
    # Where tests run in the background, they ignore it, and what they start would, too.
    own = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", "fig9", "--out", str(tmp_path), "--trials", "500"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, own)
    assert process.stderr is not None
    begun = ""
    while "fig9:" not in begun:
        begun += (one := process.stderr.read(1))
        assert one, f"it has ended: {begun}"
    time.sleep(1)
    process.send_signal(stop)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if stop == signal.SIGINT else -signal.SIGKILL)
    # Whether a first chunk was finished depends on the machine.
    kept = [f.name for f in tmp_path.iterdir()]
    assert kept in ([], [".fig9-checkpoints"])
    if stop == signal.SIGINT:
        said, command_line = err.splitlines()[-1].split(": ", 2)[1:]
        assert said == (
            "to continue from the last checkpoint" if kept else "nothing was written; to start again"
        )
        # What it says to type is what was typed.
        assert shlex.split(command_line)[1:] == ["-m", "experiments", *map(str, process.args[3:])]


def test_an_interrupted_run_with_checkpoints_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupted)
    writing.run_folder(fig9.Config(out=tmp_path / "my results"), "fig9").mkdir(parents=True)
    code, out, err = main(capsys, "fig9", "--out", tmp_path / "my results")
    assert (code, out) == (130, "")
    assert err.startswith("\ninterrupted: to continue from the last checkpoint: ")
    assert err.endswith(f"-m experiments fig9 --out '{tmp_path}/my results'\n")


def test_runs_that_end_together_leave_one_whole_result(tmp_path):
    def write(value):
        for _ in range(20):
            with writing._replacing(tmp_path / "fig9") as folder:
                for name in ("a", "b"):
                    (folder / name).write_text(value)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        for run in [pool.submit(write, value) for value in "1234"]:
            run.result()
    assert [file.name for file in tmp_path.iterdir()] == ["fig9"]
    assert (tmp_path / "fig9" / "a").read_text() == (tmp_path / "fig9" / "b").read_text()


def test_an_interrupt_between_the_two_renames_keeps_the_earlier_result(tmp_path, monkeypatch):
    with writing._replacing(tmp_path / "fig9") as folder:
        (folder / "which").write_text("earlier")
    rename = Path.rename

    def interrupted(self, target):
        if Path(target) == tmp_path / "fig9" and self.name.startswith(".fig9-"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), writing._replacing(tmp_path / "fig9") as folder:
        (folder / "which").write_text("later")
    assert (tmp_path / "fig9" / "which").read_text() == "earlier"


@pytest.mark.parametrize("what", ["a file", "a link", "other files", "networks"])
def test_what_is_no_result_is_not_replaced(what, tmp_path, capsys):
    reason = "it is a file, or a link to nothing"
    if what == "a file":
        (tmp_path / "fig9").write_text("my notes")
    elif what == "a link":
        (tmp_path / "fig9").symlink_to(tmp_path / "nowhere")
    else:
        name = "thesis.tex" if what == "other files" else "networks"
        (tmp_path / "fig9" / name).mkdir(parents=True)
        (tmp_path / "fig9" / "summary.json").write_text("{}")
        reason = f"it holds '{name}', which no run writes there"
    code, out, err = main(capsys, "fig9", "--out", tmp_path, *SMALL["fig9"])
    assert (code, out) == (2, "")
    assert err == (f"error: cannot write results into '{tmp_path}/fig9': {reason}.\n")
    assert [file.name for file in tmp_path.iterdir()] == ["fig9"]
    assert what in ("a file", "a link") or (tmp_path / "fig9" / name).exists()


def test_a_reader_who_has_read_enough_is_no_failure():
    reading, writing_end = os.pipe()
    os.close(reading)
    for arguments in ([], ["fig9", "--help"]):
        ended = subprocess.run(
            [sys.executable, "-m", "experiments", *arguments],
            cwd=ROOT,
            stdout=writing_end,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
        )
        assert (ended.returncode, ended.stderr) == (0, "")
    os.close(writing_end)


def test_what_a_shell_sends_to_the_background_is_not_interrupted(monkeypatch):
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with cli._remembered_interrupt() as check:
            signal.raise_signal(signal.SIGINT)
            check()
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_failure_while_writing_keeps_the_earlier_result(finished, tmp_path, monkeypatch):
    arguments = ["fig9", "--out", tmp_path, "--quiet", *SMALL["fig9"]]
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    before = (tmp_path / "fig9" / "summary.json").read_text()
    monkeypatch.setattr(writing, "_summary", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main([str(a) for a in arguments])
    assert (tmp_path / "fig9" / "summary.json").read_text() == before
    # The trials themselves were finished, and are kept for the next try.
    assert {f.name for f in tmp_path.iterdir()} == {"fig9", ".fig9-checkpoints"}


def test_claims_are_printed_with_a_verdict_each():
    table = cli.claims_table([Claim("water is wet", True, "0.9"), Claim("pigs fly", False, "0 m")])
    assert table.splitlines() == [
        "holds  water is wet",
        "       measured: 0.9",
        "FAILS  pigs fly",
        "       measured: 0 m",
    ]


@pytest.mark.slow
def test_float32_runs_in_float32(tmp_path):
    done = command(
        "fig9", "--dtype", "float32", "--out", tmp_path, "--quiet", *SMALL["fig9"], env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "fig9" / "data.npz") as data:
        assert data["nc1"].dtype == data["tau"].dtype == np.float32


def test_a_tilde_is_the_home_folder_wherever_a_path_is_taken(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name, experiment in cli.all_experiments().items():
        assert cli._parse(experiment, ["--out", "~/x"]).out == tmp_path / "x", name
    assert main(capsys, "fig9", "--out", "~/x", "--quiet", *SMALL["fig9"])[:2] == (
        0,
        f"{tmp_path}/x/fig9/fig9.png\n",
    )
    assert results_page.main(["--results", "~/x"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/x/index.html\n"
    assert record.main(["--docs", "~/docs"]) == 2
    assert f"there is no '{tmp_path}/docs/record/remarks.toml'" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]
    code, _, err = main(capsys, "fig9", "--out", "~nobody-of-this-name/x")
    assert code == 2
    assert err == "error: the home folder in '~nobody-of-this-name/x' is not known.\n"


@pytest.mark.slow
def test_focal_losses_of_small_gamma_end_at_collapse(tmp_path, capsys):
    """At large temperatures p rounds to 1 there, where the derivatives of the focal loss were NaN."""
    fields = ["--gamma", 0.5, "--num_classes", 3, "--trials", 2, "--tau", 1, 20, 60]
    code, out, _ = main(capsys, "fig11", "--out", tmp_path, *fields)
    assert code == 0
    assert "FAILS" not in out


def test_no_spurious_minimum_is_found_only_where_trials_end_at_the_best_value():
    config = landscape_conditions.Config(num_classes=(3,), dim=(3,), tau=(1.0, 40.0), trials=2)
    best = np.array([[0.4, 1e-26]])
    data = {"num_classes": np.array([3]), "dim": np.array([3]), "best": best}
    data |= {"cost": best[..., None] + np.array([[[0, 0], [0, 2e-15]]])}
    data |= {"is_minimum": np.array([[[True, True], [False, False]]])}
    data |= {"is_spurious": np.zeros((1, 2, 2), bool)}

    def holds(**other):
        (claim,) = landscape_conditions.claims(config, data | other)
        return claim.holds

    assert holds()
    assert not holds(cost=data["cost"] + np.array([[[0, 0], [0, 0.1]]]))
    assert not holds(cost=np.full((1, 2, 2), np.nan))
