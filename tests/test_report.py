"""The results page and the record say what the runs' files hold, and bear files that are damaged."""

import dataclasses
import html.parser
import json
import re
import shlex
import shutil
import typing
import zipfile
from pathlib import Path
from urllib.parse import unquote

import jax
import numpy as np
import PIL.Image
import pytest
from matplotlib.figure import Figure

from experiments.harness import cli, reading, record, results_page, writing
from experiments.harness.experiment import Claim, all_experiments
from experiments.networks import table2

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
CLAIMS = [Claim("a < b & c | d", np.bool_(True), "0.25"), Claim("<script>x</script>", False, "*7* of $9")]


def make_run(out, name, claims=CLAIMS, scale="", **fields):
    out.mkdir(exist_ok=True)
    experiment = all_experiments()[name]
    config = dataclasses.replace(experiment.config.at_scale(scale), out=out, **fields)
    figure = Figure(figsize=(2, 1))
    quick = dataclasses.replace(
        experiment, table=experiment.table and (lambda *_: "| a |\n| --- |\n| <b> |")
    )
    writing.write(quick, config, {"x": np.zeros(2)}, claims, figure, 127.4)
    return out / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs as people leave them: whole, of older code, damaged; and things that are no runs."""
    out = tmp_path_factory.mktemp("with space") / "results"
    whole = make_run(out, "fig9", tau=(0.5, 5.0), seed=3)
    make_run(out / "released", "table2", [Claim("c", True, "1")], scale="paper", variant="released")
    summary = json.loads((whole / "summary.json").read_text())
    assert [claim["holds"] for claim in summary["claims"]] == [True, False]
    older = summary | {"experiment": "fig5", "config": {"steps": 200, "momentum": 0.9}}
    for name, text in {
        "fig3": json.dumps(
            {
                "experiment": "fig3",
                "config": {"scale": "paper"},
                "claims": [{"claim": "k", "holds": "False"}],
            }
        ),
        "fig13": '{"experiment": "fig13"}',
        "fig5": json.dumps(older),
        "fig7": '{"experiment": ',
        "fig8": json.dumps(summary | {"experiment": "fig99"}),
        "fig10": json.dumps(summary | {"networks": {"made_by": ["me"]}}),
        "fig11": json.dumps(summary | {"claims": [3]}),
        "fig12": "[]",
    }.items():
        (out / name).mkdir()
        (out / name / "summary.json").write_text(text)
    shutil.copy(whole / "fig9.png", out / "fig3" / "fig3.png")
    (out / "fig5" / "fig5.png").write_bytes(b"no picture")
    (out / "notes").mkdir()
    (out / ".fig10-checkpoints").mkdir()
    (out / "fig13.txt").write_text("a file")
    return out


class Page(html.parser.HTMLParser):
    """Checks that elements are closed in order, and collects attributes and text."""

    VOID: typing.ClassVar = {"meta", "img", "br", "link", "hr"}

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.pieces = [], [], []
        self.feed(text)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.pieces.append(data)


@pytest.fixture(scope="module")
def page(folder):
    return Page(results_page.build(folder))


def test_the_page_shows_every_run_and_what_its_files_hold(page):
    for sentence in (
        "✓ holds a < b & c | d Measured: 0.25",
        "✗ fails <script>x</script> Measured: *7* of $9",
        f"fig9 {all_experiments()['fig9'].title} ✗ 1 of 2 hold paper, fields changed 2 min 7 s",
        "✓ holds paper, as the released code",
        "python -m experiments fig9 --seed 3 --tau 0.5 5.0 --out",
        "python -m experiments table2 --scale paper --variant released --out",
        "samples_per_class 5 Samples of each class, n.",
        f"jax {jax.__version__}",
        "a <b>",
        "It was made by other code, which also had: momentum.",
        "The picture of this run is missing or damaged.",
        "✗ fails k",
    ):
        assert sentence in page.text, sentence


def test_the_page_says_what_it_leaves_out_and_what_is_missing(page):
    for sentence in (
        "fig7 is left out: its summary.json or table.md is damaged.",
        "fig8 is left out: its experiment, 'fig99', is not one of this version.",
        "fig10 is left out: 'made_by' in its summary is damaged.",
        "fig11 is left out: 'claims' in its summary is damaged.",
        "fig12 is left out: its summary is not a summary of a run.",
        "notes is left out: it has no summary.json.",
        "python -m experiments fig10 --scale paper",
        "python -m experiments fig6 --scale paper --variant released --out results/released",
    ):
        assert sentence in page.text, sentence
    assert "fig10-checkpoints" not in page.text
    not_run = page.text[page.text.rindex("Not run yet") :]
    assert "fig10: " in not_run
    assert "fig9: " not in not_run


def test_the_page_needs_nothing_from_elsewhere(folder, page):
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.elements}
    targets = {a["id"] for _, a in page.elements if "id" in a}
    assert len(targets) == sum("id" in a for _, a in page.elements)
    for tag, attributes in page.elements:
        address = attributes.get("src" if tag == "img" else "href")
        if address is None:
            continue
        if address.startswith("#"):
            assert address[1:] in targets
        elif tag == "img" or not address.startswith("https://arxiv.org/"):
            assert (folder / unquote(address)).is_file(), address
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(images) == 3
    assert all(len(image["alt"]) > 30 and image["width"] == "400" for image in images)


def test_the_page_is_the_same_every_time_and_replaces_the_last_one_whole(folder, monkeypatch, capsys):
    assert results_page.main(["--results", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'index.html'}\n"
    first = (folder / "index.html").read_bytes()
    assert first == results_page.build(folder).encode()
    monkeypatch.setattr(results_page, "build", lambda _: "other")
    monkeypatch.setattr(Path, "replace", lambda *_: 1 / 0)
    before = sorted(folder.iterdir())
    with pytest.raises(ZeroDivisionError):
        results_page.write(folder)
    assert (folder / "index.html").read_bytes() == first
    assert sorted(folder.iterdir()) == before


def test_an_empty_folder_makes_a_page_and_none_an_error(tmp_path, capsys):
    assert "There are none yet" in results_page.build(tmp_path)
    assert results_page.main(["--results", str(tmp_path / "none")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: there is no folder '{tmp_path / 'none'}'; `make fig9` makes one.\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--result", "x"], r"has no field --result: did you mean --results\?"),
        (["x"], "unexpected 'x': fields are given as --field value"),
        (["--results"], "--results needs a value"),
    ],
)
@pytest.mark.parametrize("command", ["report", "record"])
def test_bad_arguments_of_both_pages_are_one_sentence(command, arguments, sentence, capsys):
    assert cli.main([command, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"error: .*{sentence}.*\n", err)


def other(value, kind):
    """A value that `value` is not, of the same type."""
    if isinstance(value, tuple):
        (of_values, _) = typing.get_args(kind)
        return (other(value[0], of_values), *value) if value else (of_values(3), of_values(5))
    if isinstance(value, Path):
        return value / "it's elsewhere"
    choices = [choice for choice in typing.get_args(kind) if choice != value]
    if isinstance(value, str) or choices:
        return choices[0] if choices else f"{value}another"
    return not value if isinstance(value, bool) else value + 3 if isinstance(value, int) else value / 3


@pytest.mark.parametrize("name", all_experiments())
def test_the_command_of_a_run_gives_its_config(name):
    experiment = all_experiments()[name]
    kinds = typing.get_type_hints(experiment.config)
    for scale in typing.get_args(kinds["scale"]):
        default = experiment.config.at_scale(scale)
        fields = {f.name: getattr(default, f.name) for f in dataclasses.fields(default)}
        others = {n: other(v, kinds[n]) for n, v in fields.items() if n not in ("scale", "quiet")}
        one_by_one = [dataclasses.replace(default, **{n: v}) for n, v in list(others.items())[:4]]
        for config in [default, dataclasses.replace(default, **others), *one_by_one]:
            kept = json.loads(json.dumps(dataclasses.asdict(config), default=str))
            words = shlex.split(reading.command(experiment, kept))
            assert words[:4] == ["python", "-m", "experiments", name]
            assert cli._parse(experiment, words[4:]) == config
    assert reading.command(experiment, {"gone": 1, "quiet": True}) == f"python -m experiments {name}"


def test_times_and_machines_are_for_people():
    times = [0.04, 8.44, 46.6, 347, 3599.4, 7400]
    said = ["0.0 s", "8.4 s", "47 s", "5 min 47 s", "59 min 59 s", "2 h 3 min"]
    assert [reading.duration(t) for t in times] == said
    experiment = all_experiments()["fig9"]
    for device, words in [
        ({"platform": "cpu", "kind": "cpu", "count": 2, "processor": "A B"}, "2 CPU cores, A B"),
        ({"platform": "cpu", "kind": "cpu", "count": 1}, "1 CPU core"),
        ({"platform": "gpu", "kind": "NVIDIA H100", "count": 1, "processor": "A B"}, "NVIDIA H100"),
        ({"platform": "tpu", "kind": "TPU v4", "count": 8}, "8 x TPU v4"),
        ({}, "unknown device"),
    ]:
        assert reading.Run("fig9", experiment, {"device": device}).hardware == words


def _cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_table_2_has_the_papers_numbers_beside_ours_at_the_papers_size_alone():
    names = ["regularized_resnet18", "normalized_resnet18", "regularized_resnet50", "normalized_resnet50"]
    data = {f"test_accuracy_{name}": np.full((2, 3), 0.5 + 0.01 * i) for i, name in enumerate(names)}
    data |= {f"test_nc1_{name}": np.full((2, 3), 2.0 + i) for i, name in enumerate(names)}
    paper = table2.Config.at_scale("paper")
    assert _cells(table2.table(paper, data)) == [
        ["ResNet-18, regularized", "50.0%", "2.000", "55.3%", "3.838"],
        ["ResNet-18, normalized", "51.0%", "3.000", "58.6%", "3.143"],
        ["ResNet-50, regularized", "52.0%", "4.000", "48.9%", "4.486"],
        ["ResNet-50, normalized", "53.0%", "5.000", "56.4%", "3.127"],
    ]
    for small in [
        table2.Config(),
        dataclasses.replace(paper, width=4),
        dataclasses.replace(paper, epochs=2),
        dataclasses.replace(paper, tau=10.0),
        dataclasses.replace(paper, batch_size=512),
        dataclasses.replace(paper, precision="bfloat16"),
    ]:
        assert _cells(table2.table(small, data))[0] == ["ResNet-18, regularized", "50.0%", "2.000"]
        assert not any("paper:" in claim.measured for claim in table2.claims(small, data))


def test_the_committed_document_is_what_the_committed_record_makes():
    assert record.document(DOCS) == (DOCS / "results.md").read_text(), "run `make record`"


def test_the_committed_pictures_are_small():
    recorded = record.recorded(DOCS)
    assert recorded
    pictures = {DOCS / "record" / f"{run.place}.png" for run in recorded}
    assert pictures == set((DOCS / "record").rglob("*.png"))
    for picture in pictures:
        assert picture.stat().st_size < record.MOST_BYTES
        with PIL.Image.open(picture) as image:
            assert image.width == record.WIDTH


def test_remarks_are_on_experiments_and_scales_that_exist():
    for place, by_scale in record.remarks(DOCS).items():
        experiment = all_experiments()[place.split("/")[-1]]
        scales = typing.get_args(typing.get_type_hints(experiment.config)["scale"])
        for scale, remark in by_scale.items():
            assert scale in scales
            assert set(remark) == {"remark", "fails"}


@pytest.fixture
def docs(tmp_path):
    (tmp_path / "docs" / "record").mkdir(parents=True)
    (tmp_path / "docs" / "record" / "remarks.toml").write_text(
        '[fig9.paper]\nfails = ["script"]\nremark = "As said."\n[fig3.paper]\nfails = []\nremark = "Old."\n'
    )
    return tmp_path / "docs"


def test_the_record_keeps_networks_that_are_not_made_again_in_minutes(folder, docs, capsys):
    kept = next((ROOT / "docs" / "record" / "networks").glob("cifar10-*.npz"))
    (folder / "networks").mkdir()
    shutil.copy(kept, folder / "networks" / kept.name)
    digits = folder / "networks" / "digits.npz"
    with zipfile.ZipFile(kept) as source, zipfile.ZipFile(digits, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "network.json":
                content = content.replace(b'"cifar10"', b'"digits"')
            target.writestr(name, content)
    assert record.main(["--results", str(folder), "--docs", str(docs)]) == 0
    assert [file.name for file in (docs / "record" / "networks").iterdir()] == [kept.name]
    assert (docs / "record" / "networks" / kept.name).read_bytes() == kept.read_bytes()
    # Of another training it would stand for numbers that the pages do not have.
    with zipfile.ZipFile(folder / "networks" / kept.name, "a") as other:
        other.writestr("more", b"")
    assert record.main(["--results", str(folder), "--docs", str(docs)]) == 0
    assert f"{kept.name} is left out: the record has this network" in capsys.readouterr().out
    assert (docs / "record" / "networks" / kept.name).read_bytes() == kept.read_bytes()
    shutil.rmtree(folder / "networks")


def test_the_record_keeps_what_the_runs_came_to(folder, docs, capsys):
    assert record.main(["--results", str(folder), "--docs", str(docs)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == str(docs / "results.md")
    assert "fig5 is left out: its picture is missing or damaged." in said
    assert "fig3: its remark was written for other verdicts; see record/remarks.toml." in said
    assert [run.place for run in record.recorded(docs)] == ["fig3", "fig9", "released/table2"]
    text = (docs / "results.md").read_text()
    for words in (
        "| holds | a \\< b & c \\| d | 0.25 |",
        "| **fails** | \\<script>x\\</script> | \\*7\\* of \\$9 |",
        "| [released/table2](#releasedtable2) | ",
        "As said.\n",
        "Old.\n\n*This remark was written for a run in which other claims failed.*",
        "`python -m experiments fig9 --seed 3 --tau 0.5 5.0` took 2 min 7 s on ",
        "`python -m experiments table2 --scale paper --variant released --out results/released` took",
        "| fig10 | `python -m experiments fig10 --scale paper` | not known |",
        "| a |\n| --- |\n| <b> |\n",
    ):
        assert words in text, words
    assert text.count("*This remark was written") == 1
    kept = "".join(file.read_text() for file in docs.rglob("*.json"))
    assert str(folder.parent) not in kept + text

    # Runs that are no longer in the results stay in the record, and numbers come from nowhere else.
    file = docs / "record" / "fig9.json"
    file.write_text(file.read_text().replace("0.25", "0.75"))
    assert record.main(["--results", str(docs / "none"), "--docs", str(docs)]) == 0
    assert (docs / "results.md").read_text() == text.replace("| 0.25 |", "| 0.75 |")


def test_a_record_that_cannot_be_made_is_one_sentence(docs, capsys):
    before = sorted(docs.rglob("*"))
    assert record.main(["--docs", str(docs / "none")]) == 2
    (docs / "record" / "fig9.json").write_text("{}")
    assert record.main(["--results", str(docs / "none"), "--docs", str(docs)]) == 2
    (docs / "record" / "fig9.json").write_text("[1]")
    assert record.main(["--results", str(docs / "none"), "--docs", str(docs)]) == 2
    (docs / "record" / "fig9.json").unlink()
    shutil.copy(docs / "record" / "remarks.toml", docs / "record" / "copy")
    (docs / "record" / "remarks.toml").write_text("remark =")
    assert record.main(["--results", str(docs / "none"), "--docs", str(docs)]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 4
    assert all(line.startswith("error: ") for line in err)
    (docs / "record" / "copy").unlink()
    assert sorted(docs.rglob("*")) == before
