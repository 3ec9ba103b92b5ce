"""Image data sets as uint8 arrays: digits, CIFAR-10, CIFAR-100, and a synthetic one for tests."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tqdm

Name = Literal["digits", "cifar10", "cifar100", "synthetic"]
Part = Literal["train", "test"]


class Split(NamedTuple):
    """Images uint8 (N, H, W, C) with their classes int32 (N,)."""

    images: np.ndarray
    labels: np.ndarray


def num_classes(name: Name) -> int:
    """The classes of a data set, K."""
    return _SOURCES[name].num_classes


def load(name: Name, part: Part) -> Split:
    """Reads one part of a data set.

    "digits" comes with scikit-learn, 8x8x1, every fifth image in "test"; "cifar10" and "cifar100" are read
    through TFDS, 32x32x3, from `TFDS_DATA_DIR` or TFDS's own folder. They need the package array_record.

    Raises:
        ValueError: the data set or what reads it is missing or damaged; the message says how to get it.
    """
    return _SOURCES[name].load(name, part)


def digest(name: Name, part: Part) -> str:
    """A few letters that stand for the images and labels of one part of a data set, as they are here."""
    hasher = hashlib.sha256()
    for array in load(name, part):
        hasher.update(np.ascontiguousarray(array).data)
    return hasher.hexdigest()[:12]


def first_of_each_class(split: Split, samples_per_class: int | None, seed: int) -> Split:
    """The first n samples of each class, in an order drawn from `seed`; all samples if n is None.

    Raises:
        ValueError: a class has fewer than n samples.
    """
    if samples_per_class is None:
        return split
    classes, counts = np.unique(split.labels, return_counts=True)
    if counts.min() < samples_per_class:
        raise ValueError(
            f"samples_per_class must be at most {counts.min()} here, the size of class "
            f"{classes[counts.argmin()]}, but is {samples_per_class}."
        )
    order = np.random.default_rng(seed).permutation(len(split.labels))
    chosen = [order[split.labels[order] == c][:samples_per_class] for c in classes]
    return Split(*(x[np.concatenate(chosen)] for x in split))


def random_labels(split: Split, seed: int) -> Split:
    """The same images with their labels permuted at random, so that every class keeps its size."""
    return Split(split.images, np.random.default_rng(seed).permutation(split.labels))


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, (C,), of pixels scaled to [0, 1].

    A channel that never varies has deviation 1, so that dividing by it is harmless.
    """
    # A histogram is exact and needs no floating copy of the images.
    values = np.arange(256) / 255
    counts = [np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[-1])]
    mean = np.array([np.average(values, weights=n) for n in counts])
    variance = np.array(
        [np.average((values - m) ** 2, weights=n) for m, n in zip(mean, counts, strict=True)]
    )
    return mean.astype(np.float32), np.where(variance > 1e-12, np.sqrt(variance), 1).astype(np.float32)


def _digits(name: Name, part: Part) -> Split:
    import sklearn.datasets  # Takes a second that the other experiments need not wait.

    digits = sklearn.datasets.load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    in_test = np.arange(len(images)) % 5 == 4
    chosen = in_test if part == "test" else ~in_test
    return Split(images[chosen], digits.target[chosen].astype(np.int32))


def _synthetic(name: Name, part: Part) -> Split:
    """Ten noisy patterns of 8x8x3."""
    generator = np.random.default_rng(0 if part == "train" else 1)
    patterns = np.random.default_rng(2).integers(40, 216, (10, 8, 8, 3))
    labels = np.repeat(np.arange(10, dtype=np.int32), 30 if part == "train" else 10)
    noise = generator.normal(0, 30, (len(labels), 8, 8, 3))
    return Split(np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8), labels)


def _cifar(name: Name, part: Part) -> Split:
    where = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        # Only CIFAR needs these, and not every platform has them.
        import array_record.python.array_record_module  # noqa: F401
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(
            f"{name} is read by the packages tensorflow_datasets and array_record, of which one cannot be "
            f"imported here ({error}): `pip install -e '.[data]'` in the clone where they exist, "
            "as on Linux and on Macs with Apple's processors; --dataset digits needs neither."
        ) from None
    try:
        # TFDS itself looks at the variable only once, and leaves a `~` in it.
        folder = where if "://" in where else Path(where).expanduser().absolute()
        builder = tfds.builder(name, data_dir=folder)
        kept = _cache() / f"{name}-{part}-{_digest(builder.info.splits[part].filepaths)}.npz"
        return _read(kept) or _keep(kept, _decode(builder.as_data_source(split=part), name, part))
    except Exception as error:  # TFDS and its readers raise whatever they meet.
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else repr(error)
        raise ValueError(
            f"cannot read {name} through TFDS from {where} ({reason[:160]}): let TFDS_DATA_DIR name a "
            "folder that holds it as array_record, or make one with `pip install tensorflow` and "
            f"`python -c \"import tensorflow_datasets as tfds; tfds.data_source('{name}')\"`."
        ) from error


def _decode(source, name: Name, part: Part) -> Split:
    images, labels = [], []
    for example in tqdm.tqdm(source, desc=f"decoding {name}, {part}", leave=False, mininterval=1):
        images.append(example["image"])
        labels.append(example["label"])
    return Split(np.stack(images).astype(np.uint8), np.array(labels, np.int32))


def _digest(files: Iterable[Path]) -> str:
    """Of what the files hold, wherever they lie."""
    hasher = hashlib.sha256()
    for path in files:
        hasher.update(hashlib.sha256(path.read_bytes()).digest())
    return hasher.hexdigest()[:12]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ufm-jax"


def _read(kept: Path) -> Split | None:
    """What an earlier run decoded; None if it did not, or the file is damaged."""
    try:
        with open(kept, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return Split(arrays["images"], arrays["labels"])
    except Exception:  # Whatever is wrong with it, decoding again puts it right.
        return None


def _keep(kept: Path, split: Split) -> Split:
    """Writes the decoded arrays for later runs, complete or not at all; where it cannot, it does not."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            file = Path(folder, kept.name)
            np.savez(file, images=split.images, labels=split.labels)
            file.replace(kept)
    except OSError:
        pass
    return split


class _Source(NamedTuple):
    num_classes: int
    load: Callable[[Name, Part], Split]


_SOURCES: dict[str, _Source] = {
    "digits": _Source(10, _digits),
    "cifar10": _Source(10, _cifar),
    "cifar100": _Source(100, _cifar),
    "synthetic": _Source(10, _synthetic),
}
