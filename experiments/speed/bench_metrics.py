"""The speed of metrics: NC1 beside NumPy, all beside an epoch of training, and those of a vocabulary."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

import ufm_jax as ufm
from experiments.harness import tables
from experiments.harness.experiment import Claim, Data, Progress, check_fields, part
from experiments.harness.experiment import Config as BaseConfig
from experiments.speed import bench_networks
from experiments.speed.measuring import peak_memory, take_turns

TITLE = "speed of metrics: NC1 against NumPy, an epoch, a vocabulary"
DURATION = "4 min"


@dataclasses.dataclass(frozen=True)
class Config(BaseConfig):
    """A network's metrics after every epoch, and those of a language model."""

    num_classes: int = 4000
    """K of the features whose NC1 is timed beside NumPy's."""
    dim: int = 256
    """Their dimensions d."""
    samples_per_class: int = 3
    """Their samples of each class, n."""
    rounds: int = 5
    """Rounds in which both take turns; medians over the rounds are reported."""
    words: int = 5000
    """Classes of the vocabulary; 50000 takes many minutes."""
    samples_per_word: int = 10
    """Its float32 features of each class, in random order."""
    word_dim: int = 768
    """Dimensions of its features."""
    no_decisions: bool = False
    """Leave out what holds each of them against every class: NC4, accuracy and the directional CDNV."""


def check(config: Config) -> None:
    lowest = {"num_classes": 2, "words": 2}
    others = ("dim", "samples_per_class", "rounds", "samples_per_word", "word_dim")
    check_fields(config, lowest | dict.fromkeys(others, 1))


def run(config: Config, progress: Progress) -> Data:
    # First, so that the most memory in use is its own.
    vocabulary = _vocabulary(config, part(progress, 0, 3))
    return vocabulary | _nc1(config, part(progress, 1, 3)) | _epoch(config, part(progress, 2, 3))


def _vocabulary(config: Config, progress: Progress) -> Data:
    """Seconds of all metrics of many classes, and the most memory of the process until then, in bytes."""
    rng = np.random.default_rng(config.seed)
    W = rng.normal(size=(config.words, config.word_dim)).astype(np.float32)
    labels = rng.permutation(np.repeat(np.arange(config.words), config.samples_per_word))
    features = np.empty((len(labels), config.word_dim), np.float32)
    parts = np.array_split(np.arange(len(labels)), max(1, len(labels) // 2048))
    for rows in parts:
        features[rows] = W[labels[rows]] + rng.normal(size=(len(rows), config.word_dim))
    done = 0

    def said(note: str) -> None:
        nonlocal done
        done += 1
        progress(done, 2 * len(parts) + 1, note)

    def batches() -> Any:
        return ((features[rows], labels[rows]) for rows in parts)

    start = time.perf_counter()
    found = ufm.streaming.measure_batches(
        batches, config.words, W, dtype=np.float32, decisions=not config.no_decisions, progress=said
    )
    return {
        "vocabulary_seconds": np.array(time.perf_counter() - start),
        "vocabulary_bytes": np.array(peak_memory()),
        "vocabulary_features_bytes": np.array(features.nbytes),
        "vocabulary_nc1": np.array(found.nc1),
    }


def _nc1(config: Config, progress: Progress) -> Data:
    """Seconds of NC1 in float64, and with NumPy's d x d pseudo-inverse, (rounds,) each."""
    rng = np.random.default_rng(config.seed)
    means = rng.normal(size=(config.num_classes, config.dim))
    labels = np.repeat(np.arange(config.num_classes), config.samples_per_class)
    features = means[labels] + 0.1 * rng.normal(size=(len(labels), config.dim))
    values = {}

    def ours(index: int) -> None:
        with jax.enable_x64(True):
            values["ours"] = float(ufm.metrics.nc1(features, labels, config.num_classes))

    def numpy(index: int) -> None:
        values["numpy"] = nc1_of_numpy(features, labels, config.num_classes)

    taken = take_turns({"ours": ours, "numpy": numpy}, config.rounds, progress)["later"]
    return {
        "nc1_seconds": taken["ours"],
        "nc1_numpy_seconds": taken["numpy"],
        "nc1_values": np.array([values["ours"], values["numpy"]]),
    }


def nc1_of_numpy(features: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
    """trace(Sigma_W Sigma_B^+) / K of classes of equal size, as one writes it with NumPy."""
    sums = np.zeros((num_classes, features.shape[1]))
    np.add.at(sums, labels, features)
    means = sums / np.bincount(labels)[:, None]
    centred, apart = means - means.mean(0), features - means[labels]
    between, within = centred.T @ centred / num_classes, apart.T @ apart / len(apart)
    return float(np.sum(within * np.linalg.pinv(between, hermitian=True)) / num_classes)


def _epoch(config: Config, progress: Progress) -> Data:
    """Seconds of an epoch of the paper's ResNet-18, and of all metrics of its features, (rounds,) each."""
    training = bench_networks.Config(seed=config.seed)
    images, labels = bench_networks.random_samples(training)
    rng, count = np.random.default_rng(config.seed), len(labels)
    W = rng.normal(size=(10, 512)).astype(np.float32)
    features = (W[labels] + rng.normal(size=(count, 512))).astype(np.float32)
    batches = [(features[rows], labels[rows]) for rows in np.array_split(np.arange(count), training.steps)]
    programs = {
        "epoch": bench_networks.our_epoch(training, images, labels),
        "metrics": lambda index: ufm.streaming.measure_batches(batches, 10, W),
    }
    taken = take_turns(programs, config.rounds, progress)["later"]
    return {f"{name}_seconds": taken[name] for name in programs}


def claims(config: Config, data: Data) -> list[Claim]:
    nc1 = float(np.median(data["nc1_seconds"]) / np.median(data["nc1_numpy_seconds"]))
    share = float(np.median(data["metrics_seconds"]) / np.median(data["epoch_seconds"]))
    used, held = float(data["vocabulary_bytes"]), float(data["vocabulary_features_bytes"])
    sizes = f"K = {config.num_classes}, d = {config.dim}, n = {config.samples_per_class}"
    return [
        Claim(
            f"NC1 takes at most 1.5 times as long as with NumPy's d x d pseudo-inverse ({sizes})",
            nc1 <= 1.5,
            f"{nc1:.2f}",
        ),
        Claim(
            "all metrics take at most 5% of an epoch of ResNet-18 (K = 10, d = 512)",
            share <= 0.05,
            f"{share:.2%}",
        ),
        Claim(
            f"all metrics{_without(config)} of {config.words} classes fit in 4 GiB beside the features",
            used - held <= 4 * 2**30,
            f"{(used - held) / 2**30:.1f} GiB beside {held / 2**30:.1f} GiB",
        ),
    ]


def _without(config: Config) -> str:
    return " without decisions" if config.no_decisions else ""


def table(config: Config, data: Data) -> str:
    """What was measured, in Markdown."""
    seconds = {name: float(np.median(data[f"{name}_seconds"])) for name in ("nc1", "nc1_numpy")}
    vocabulary = float(data["vocabulary_seconds"])
    epoch, metrics = (1e3 * float(np.median(data[f"{x}_seconds"])) for x in ("epoch", "metrics"))
    samples = config.words * config.samples_per_word
    everything = f"K = {config.words}, d = {config.word_dim}, N = {samples}, float32{_without(config)}"
    return tables.table(
        ["what", "time"],
        [
            [f"NC1, K = {config.num_classes}, d = {config.dim}, float64", f"{seconds['nc1']:.2f} s"],
            ["the same with NumPy", f"{seconds['nc1_numpy']:.2f} s"],
            ["an epoch of 1024 images, ResNet-18", f"{epoch:.0f} ms"],
            ["all metrics of their features, float64", f"{metrics:.0f} ms"],
            [f"all metrics of {everything}", f"{vocabulary:.0f} s"],
        ],
    )


def plot(config: Config, data: Data) -> Figure:
    figure = Figure(figsize=(5.5, 2.8))
    axes = figure.subplots()
    names = {
        "nc1": f"NC1 of {config.num_classes} classes",
        "nc1_numpy": "the same with NumPy",
        "metrics": "all metrics of 1024 samples",
        "epoch": "an epoch of them, ResNet-18",
        "vocabulary": f"all metrics{_without(config)} of {config.words} classes",
    }
    values = [float(np.median(data[f"{name}_seconds"])) for name in names]
    bars = axes.barh(list(names.values()), values, color=["C0", "C1", "C0", "C1", "C0"])
    axes.bar_label(bars, [f"{value:.2g}" for value in values], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set(xlabel="seconds", xscale="log")
    return figure
