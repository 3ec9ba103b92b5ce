"""Data sets: what the loaders return, how samples are drawn, and what a missing or damaged set says."""

import builtins
import json

import numpy as np
import pytest
import sklearn.datasets

from nets import datasets


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(("name", "shape"), [("digits", (8, 8, 1)), ("synthetic", (8, 8, 3))])
def test_loaders_return_bytes(name, shape, part):
    split = datasets.load(name, part)
    assert split.images.dtype == np.uint8
    assert split.images.shape == (len(split.labels), *shape)
    assert split.labels.dtype == np.int32
    np.testing.assert_array_equal(np.unique(split.labels), np.arange(datasets.num_classes(name)))


def test_digits_are_all_there_once():
    train, test = datasets.load("digits", "train"), datasets.load("digits", "test")
    assert len(train.labels) + len(test.labels) == 1797
    ours = np.concatenate([train.images, test.images])[..., 0]
    theirs = np.round(sklearn.datasets.load_digits().images * (255 / 16)).astype(np.uint8)
    assert sorted(x.tobytes() for x in ours) == sorted(x.tobytes() for x in theirs)
    assert np.bincount(train.labels).min() >= 100


def test_the_first_of_each_class_are_drawn_by_the_seed():
    split = datasets.load("digits", "train")
    few = datasets.first_of_each_class(split, 7, seed=3)
    np.testing.assert_array_equal(np.bincount(few.labels), 7)
    again = datasets.first_of_each_class(split, 7, seed=3)
    other = datasets.first_of_each_class(split, 7, seed=4)
    np.testing.assert_array_equal(few.images, again.images)
    assert not np.array_equal(few.images, other.images)
    # The first n are among the first n + 1.
    more = {image.tobytes() for image in datasets.first_of_each_class(split, 8, seed=3).images}
    assert all(image.tobytes() in more for image in few.images)
    assert datasets.first_of_each_class(split, None, seed=3) is split
    with pytest.raises(ValueError, match="samples_per_class must be at most 1"):
        datasets.first_of_each_class(split, 500, seed=0)


def test_random_labels_keep_the_classes_balanced():
    split = datasets.first_of_each_class(datasets.load("synthetic", "train"), 20, 0)
    dealt = datasets.random_labels(split, 5)
    np.testing.assert_array_equal(np.bincount(dealt.labels), 20)
    assert np.mean(dealt.labels == split.labels) < 0.3
    np.testing.assert_array_equal(dealt.labels, datasets.random_labels(split, 5).labels)
    assert dealt.images is split.images


def test_channel_statistics_are_those_of_the_pixels():
    images = datasets.load("synthetic", "train").images.copy()
    images[..., 2] = 7
    mean, deviation = datasets.channel_statistics(images)
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
        datasets.load("cifar10", "train")
    assert "\n" not in str(e.value)
    assert str(tmp_path) in str(e.value)
    assert "let TFDS_DATA_DIR name a folder that holds it" in str(e.value)


def test_decoded_arrays_are_kept_and_a_damaged_copy_is_made_anew(tmp_path):
    split, kept = datasets.load("synthetic", "test"), tmp_path / "folder" / "kept.npz"
    assert datasets._read(kept) is None
    datasets._keep(kept, split)
    assert [f.name for f in kept.parent.iterdir()] == ["kept.npz"]
    for a, b in zip(datasets._read(kept), split, strict=True):
        np.testing.assert_array_equal(a, b)
    kept.write_bytes(kept.read_bytes()[:-2000])
    assert datasets._read(kept) is None


def write_cifar(folder, images, labels):
    """CIFAR-10 of these images as TFDS has it on disk, in array_record."""
    module = pytest.importorskip("array_record.python.array_record_module")
    import io

    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    place = folder / "cifar10" / "3.0.2"
    place.mkdir(parents=True)
    part = "tensorflow_datasets.core.features"
    features = {
        "image": {
            "pythonClassName": f"{part}.image_feature.Image",
            "image": {"shape": {"dimensions": ["32", "32", "3"]}, "dtype": "uint8"},
        },
        "label": {
            "pythonClassName": f"{part}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": "10"},
        },
    }
    splits = []
    for split in ("train", "test"):
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        lengths = {"filepathTemplate": template, "name": split, "shardLengths": [str(len(labels))]}
        splits.append(lengths | {"numBytes": "1"})
        writer = module.ArrayRecordWriter(
            str(place / f"cifar10-{split}.array_record-00000-of-00001"), "group_size:1"
        )
        for image, label in zip(images, labels, strict=True):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(png.getvalue())
            example.features.feature["label"].int64_list.value.append(label)
            writer.write(example.SerializeToString())
        writer.close()
    info = {"name": "cifar10", "version": "3.0.2", "fileFormat": "array_record", "splits": splits}
    (place / "dataset_info.json").write_text(json.dumps(info))
    tree = {"pythonClassName": f"{part}.features_dict.FeaturesDict", "featuresDict": {"features": features}}
    (place / "features.json").write_text(json.dumps(tree))


def test_two_folders_of_the_same_relative_name_are_two_data_sets(tmp_path, monkeypatch):
    """The same variable, the same name and count, in two working folders; and what was decoded is kept."""
    generator = np.random.default_rng(0)
    labels = generator.permutation(10)
    monkeypatch.setenv("TFDS_DATA_DIR", "tf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = {}
    for name in "AB":
        kept[name] = generator.integers(0, 256, (10, 32, 32, 3), np.uint8)
        write_cifar(tmp_path / name / "tf", kept[name], labels)
    monkeypatch.setattr(datasets, "_decode", counted := Counted(datasets._decode))
    for name in "ABAB":
        monkeypatch.chdir(tmp_path / name)
        split = datasets.load("cifar10", "train")
        np.testing.assert_array_equal(split.images, kept[name])
        np.testing.assert_array_equal(split.labels, labels)
    assert counted.calls == 2
    # The same data elsewhere need not be decoded again, and a `~` is the home folder.
    write_cifar(tmp_path / "home" / "tf", kept["A"], labels)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TFDS_DATA_DIR", "~/tf")
    np.testing.assert_array_equal(datasets.load("cifar10", "train").images, kept["A"])
    assert counted.calls == 2


class Counted:
    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *arguments):
        self.calls += 1
        return self.function(*arguments)


@pytest.mark.parametrize("missing", ["array_record", "tensorflow_datasets"])
def test_without_what_reads_cifar_the_message_is_one_sentence(missing, monkeypatch):
    real = builtins.__import__

    def importing(name, *arguments, **keywords):
        if name.split(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named '{missing}'")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(ValueError, match=f"cifar10 is read by .*No module named '{missing}'") as error:
        datasets.load("cifar10", "train")
    assert "\n" not in str(error.value)
    assert len(datasets.load("digits", "test").labels) > 0
