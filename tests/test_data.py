"""Data sets: what the loaders return, how samples are drawn, and what a missing or damaged set says."""

import numpy as np
import pytest

from experiments import data


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(("name", "shape"), [("digits", (8, 8, 1)), ("synthetic", (8, 8, 3))])
def test_loaders_return_bytes(name, shape, part):
    split = data.load(name, part)
    assert split.images.dtype == np.uint8
    assert split.images.shape == (len(split.labels), *shape)
    assert split.labels.dtype == np.int32
    np.testing.assert_array_equal(np.unique(split.labels), np.arange(data.num_classes(name)))


def test_digits_are_all_there_once():
    train, test = data.load("digits", "train"), data.load("digits", "test")
    assert len(train.labels) + len(test.labels) == 1797
    assert train.images.max() == 255
    assert np.bincount(train.labels).min() >= 100


def test_the_first_of_each_class_are_drawn_by_the_seed():
    split = data.load("digits", "train")
    few = data.first_of_each_class(split, 7, seed=3)
    np.testing.assert_array_equal(np.bincount(few.labels), 7)
    again = data.first_of_each_class(split, 7, seed=3)
    other = data.first_of_each_class(split, 7, seed=4)
    np.testing.assert_array_equal(few.images, again.images)
    assert not np.array_equal(few.images, other.images)
    # The first n are among the first n + 1.
    more = {image.tobytes() for image in data.first_of_each_class(split, 8, seed=3).images}
    assert all(image.tobytes() in more for image in few.images)
    assert data.first_of_each_class(split, None, seed=3) is split
    with pytest.raises(ValueError, match="samples_per_class must be at most 1"):
        data.first_of_each_class(split, 500, seed=0)


def test_random_labels_keep_the_classes_balanced():
    split = data.first_of_each_class(data.load("synthetic", "train"), 20, 0)
    dealt = data.random_labels(split, 5)
    np.testing.assert_array_equal(np.bincount(dealt.labels), 20)
    assert np.mean(dealt.labels == split.labels) < 0.3
    np.testing.assert_array_equal(dealt.labels, data.random_labels(split, 5).labels)
    assert dealt.images is split.images


def test_channel_statistics_are_those_of_the_pixels():
    images = data.load("synthetic", "train").images.copy()
    images[..., 2] = 7
    mean, deviation = data.channel_statistics(images)
    scaled = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(deviation[:2], scaled.std((0, 1, 2))[:2], rtol=1e-6)
    assert deviation[2] == 1


def test_a_missing_data_set_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(
        ValueError, match=r"cannot read cifar10 through TFDS from .* let TFDS_DATA_DIR name"
    ) as e:
        data.load("cifar10", "train")
    assert "\n" not in str(e.value)
    assert str(tmp_path) in str(e.value)
    assert "let TFDS_DATA_DIR name a folder that holds it" in str(e.value)


def test_decoded_arrays_are_kept_and_a_damaged_copy_is_made_anew(tmp_path):
    split, kept = data.load("synthetic", "test"), tmp_path / "folder" / "kept.npz"
    assert data._read(kept) is None
    data._keep(kept, split)
    assert [f.name for f in kept.parent.iterdir()] == ["kept.npz"]
    for a, b in zip(data._read(kept), split, strict=True):
        np.testing.assert_array_equal(a, b)
    kept.write_bytes(kept.read_bytes()[:-2000])
    assert data._read(kept) is None
