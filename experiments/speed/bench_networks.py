"""The speed of training networks: a step beside PyTorch's, and what an epoch spends outside its program."""

import dataclasses
import functools
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.harness.experiment import Claim, Data, Progress, check_fields, part
from experiments.harness.experiment import Config as BaseConfig
from experiments.networks import settings, trainer
from experiments.speed.measuring import take_turns
from nets import datasets, training

TITLE = "speed of training: against PyTorch, and outside compiled code"
DURATION = "3 min"

_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Config(BaseConfig):
    """The paper's ResNet-18 beside PyTorch's, and an epoch of figure 10 on a laptop."""

    width: int = 64
    """Channels of the first stage of the network that is timed beside PyTorch's."""
    image_size: int = 32
    """Height and width of its images."""
    batch_size: int = 128
    """Samples of a step."""
    steps: int = 8
    """Steps of the epoch that is timed; its memory is claimed once for all of them."""
    rounds: int = 5
    """Rounds in which both take turns; medians over the rounds are reported."""
    epochs: int = 100
    """Epochs on digits, as figure 10's; after the first, the share outside their program is measured."""


def check(config: Config) -> None:
    lowest = dict.fromkeys(("width", "image_size", "steps", "rounds"), 1) | {"batch_size": 2, "epochs": 2}
    check_fields(config, lowest)


def run(config: Config, progress: Progress) -> Data:
    return _steps(config, part(progress, 0, 2)) | _outside(config, part(progress, 1, 2))


def _steps(config: Config, progress: Progress) -> Data:
    """Seconds of a step of ours and of PyTorch's, in turns, (rounds,) each."""
    images, labels = random_samples(config)
    programs = {"seconds": our_epoch(config, images, labels)}
    if importlib.util.find_spec("torch") is not None:
        programs["pytorch_seconds"] = _pytorch_epoch(config, images, labels)
    taken = take_turns(programs, config.rounds, progress)["later"]
    return {name: taken.get(name, np.empty(0)) / config.steps for name in ("seconds", "pytorch_seconds")}


def random_samples(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of an epoch."""
    rng = np.random.default_rng(config.seed)
    count, size = config.steps * config.batch_size, config.image_size
    images = rng.integers(0, 256, (count, size, size, 3), np.uint8)
    return images, rng.integers(0, _CLASSES, count).astype(np.int32)


def our_epoch(config: Config, images: np.ndarray, labels: np.ndarray) -> Callable[[int], None]:
    recipe = training.Recipe(batch_size=config.batch_size)
    setup = training.Setup("resnet18", "normalized", _CLASSES, config.width, recipe)
    split = datasets.Split(images, labels)
    data = training.samples(split, split)

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(state: Any) -> Any:
        return training.train_epoch(setup, data, state, config.seed, 0)[0]

    state = training.init(setup, data, config.seed, 1.0)

    def program(index: int) -> None:
        nonlocal state
        state = jax.block_until_ready(epoch(state))

    return program


def _pytorch_epoch(config: Config, images: np.ndarray, labels: np.ndarray) -> Callable[[int], None]:
    """The same with PyTorch at its best: channels last, as many threads, all float32."""
    import torch

    from experiments.speed.peers.pytorch_networks import torch_resnet

    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    network = torch_resnet("resnet18", _CLASSES, config.width, 3, False)
    network = network.to(device, memory_format=torch.channels_last).train()
    sgd = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    mean, deviation = (
        torch.tensor(x, dtype=torch.float32, device=device).reshape(3, 1, 1)
        for x in datasets.channel_statistics(images)
    )
    batches = [
        torch.tensor(x, device=device).split(config.batch_size)
        for x in (images.transpose(0, 3, 1, 2), labels.astype(np.int64))
    ]

    def program(index: int) -> None:
        for x, y in zip(*batches, strict=True):
            x = (x.to(memory_format=torch.channels_last).float() / 255 - mean) / deviation
            features = torch.nn.functional.normalize(network(x)[1])
            loss = torch.nn.functional.cross_entropy(network.classifier(features), y)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            with torch.no_grad():
                W = network.classifier.weight
                W.copy_(torch.nn.functional.normalize(W))
        if device == "cuda":
            torch.cuda.synchronize()

    return program


def _outside(config: Config, progress: Progress) -> Data:
    """Seconds of the epochs of a run after its first one, and those of them in its compiled program."""
    inside = 0.0
    marks: list[tuple[float, float]] = []

    def timed(program: Callable) -> Callable:
        def call(*arguments: Any) -> Any:
            nonlocal inside
            start = time.perf_counter()
            result = jax.block_until_ready(program(*arguments))
            inside += time.perf_counter() - start
            return result

        return call

    def recorded(done: float, total: float, note: str = "") -> None:
        progress(done, total, note)
        if done >= 1:  # Before the first epoch there are data and compilation.
            marks.append((time.perf_counter(), inside))

    with tempfile.TemporaryDirectory() as folder:
        run = settings.NetworkConfig(out=Path(folder), seed=config.seed, quiet=True, epochs=config.epochs)
        setup = training.Setup("resnet18", "normalized", _CLASSES, 16, run.recipe)
        network = settings.network(run, setup, config.seed, 1.0)
        trainer.train(run, [network], recorded, around=timed)
        end = time.perf_counter()
    return {
        "epochs_seconds": np.array(end - marks[0][0]),
        "epochs_compiled_seconds": np.array(inside - marks[0][1]),
    }


def ratio(data: Data) -> float:
    """Our time of a step over PyTorch's, by medians; NaN where PyTorch is absent."""
    if data["pytorch_seconds"].size == 0:
        return np.nan
    return float(np.median(data["seconds"]) / np.median(data["pytorch_seconds"]))


def outside_share(data: Data) -> float:
    return 1 - float(data["epochs_compiled_seconds"] / data["epochs_seconds"])


def claims(config: Config, data: Data) -> list[Claim]:
    side = config.image_size
    size = f"ResNet-18, width {config.width}, batch {config.batch_size}, {side}x{side}"
    found = []
    if data["pytorch_seconds"].size:
        most, text = (1.2, "at most 1.2") if jax.default_backend() == "cpu" else (1 / 1.3, "at most 1/1.3")
        found.append(
            Claim(
                f"a training step takes {text} of PyTorch's time ({size}, float32)",
                ratio(data) <= most,
                f"{ratio(data):.2f}",
            )
        )
    share = outside_share(data)
    found.append(
        Claim("an epoch spends at most 5% outside compiled code", share <= 0.05, f"{share:.1%} (digits)")
    )
    return found


def table(config: Config, data: Data) -> str:
    """Seconds of a step in Markdown, or why PyTorch's are missing."""
    ours = f"{np.median(data['seconds']):.3f} s a step, medians of {config.rounds} rounds in turns"
    if data["pytorch_seconds"].size == 0:
        return f"Ours {ours}. PyTorch is not installed, and so not compared (pip install -e '.[bench]')."
    return f"Ours {ours}; PyTorch {np.median(data['pytorch_seconds']):.3f} s; ratio {ratio(data):.2f}."


def plot(config: Config, data: Data) -> Figure:
    figure = Figure(figsize=(5, 3))
    axes = figure.subplots()
    for name, label in {"seconds": "ufm-jax", "pytorch_seconds": "PyTorch"}.items():
        if data[name].size:
            rounds = np.arange(1, config.rounds + 1)
            axes.plot(rounds, data[name], marker="o", markersize=4, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="round", ylabel="seconds a step", ylim=(0, None))
    axes.legend()
    return figure
