"""Data sets prepared from archives of the real layout are those of tensorflow-datasets."""

import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments.datasets import archives, preparation
from experiments.datasets.load import load, source
from tests.experiments.datasets.made import (
    ARCHIVES,
    checksums,
    cifar10,
    contents,
    imagenet2012,
    mnist,
    one_colour,
    prepared_from,
    written_by_tfds,
)


def comparable(example):
    """Bytes and numbers, which sort and compare."""
    return sorted(
        (key, value.tobytes() if isinstance(value, np.ndarray) else value)
        for key, value in example.items()
    )


@pytest.mark.parametrize("shard_bytes", [preparation.SHARD_BYTES, 20_000])
@pytest.mark.parametrize("name", ARCHIVES)
def test_tensorflow_datasets_reads_what_was_prepared(name, shard_bytes, manual, tmp_path):
    expected = ARCHIVES[name](manual)
    folder = prepared_from(manual, tmp_path / "tfds", name, shard_bytes=shard_bytes)
    assert folder.parent == tmp_path / "tfds" / name
    for split, examples in expected.items():
        source = tfds.data_source(name, split=split, data_dir=tmp_path / "tfds")
        got = sorted(comparable(example) for example in source)
        assert got == sorted(comparable(example) for example in examples)
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("name", sorted(set(ARCHIVES) - {"imagenet2012"}))
def test_what_was_prepared_is_loaded(name, manual, tmp_path):
    expected = ARCHIVES[name](manual)
    prepared_from(manual, tmp_path, name)
    loaded = load(name, tmp_path)
    for (_, examples), pixels, labels in zip(
        expected.items(),
        (loaded.train_images, loaded.test_images),
        (loaded.train_labels, loaded.test_labels),
    ):
        got = sorted((image.tobytes(), label) for image, label in zip(pixels, labels))
        assert got == sorted((e["image"].tobytes(), e["label"]) for e in examples)


def records(folder):
    builder = tfds.builder_from_directory(folder)
    return {
        split: builder.as_data_source(split=split).data_source.__getitems__(
            range(info.num_examples)
        )
        for split, info in builder.info.splits.items()
    }


@pytest.mark.parametrize("name", ARCHIVES)
def test_every_byte_and_the_order_are_those_of_tensorflow_datasets(name, manual, tmp_path):
    ARCHIVES[name](manual)
    ours = prepared_from(manual, tmp_path / "ours", name, shard_bytes=20_000)
    info = archives.info(name, tmp_path / "theirs")
    with archives.opened(name, manual, info.features) as splits:
        keyed = {
            split: [(key, examples.example(i)) for i, key in enumerate(examples.keys)]
            for split, examples in splits.items()
        }
    written_by_tfds(tmp_path / "theirs", info, keyed)
    theirs = tmp_path / "theirs" / ours.relative_to(tmp_path / "ours")
    assert records(ours) == records(theirs)
    for file in {path.name for path in theirs.glob("*.txt")} | {"features.json"}:
        assert (ours / file).read_text() == (theirs / file).read_text()


def test_images_of_imagenet_are_kept_byte_for_byte(manual, tmp_path):
    imagenet2012(manual)
    prepared_from(manual, tmp_path, "imagenet2012")
    train = (manual / "ILSVRC2012_img_train.tar").read_bytes()
    examples = source("imagenet2012", "train", tmp_path)
    changed = [
        example["file_name"] for example in examples if example["image"] not in train
    ]
    assert changed == [b"n01440764_2.JPEG"]  # the one in the colours of print
    with pytest.raises(ValueError, match="of many sizes; experiments.datasets.stream"):
        load("imagenet2012", tmp_path)


def test_labels_are_named(manual, tmp_path):
    for name, label in (("cifar10", "label"), ("cifar100", "coarse_label")):
        ARCHIVES[name](manual)
        info = tfds.builder_from_directory(prepared_from(manual, tmp_path, name)).info
        assert info.features[label].names[3] == f"{label}_3"


# --- preparing ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_with_another_checksum_is_refused(name, manual, tmp_path):
    ARCHIVES[name](manual)
    with pytest.raises(ValueError, match="checksum is .* and should be") as error:
        preparation.prepare(name, manual, tmp_path / "tfds")
    wanted = archives.files(name)
    assert any(file.name in str(error.value) for file in wanted)
    assert any(file.checksum in str(error.value) for file in wanted)
    assert not (tmp_path / "tfds").exists()


def test_every_archive_is_checked(manual, tmp_path):
    mnist(manual)
    for name in checksums(manual):
        wrong = checksums(manual) | {name: "md5:0"}
        with pytest.raises(ValueError, match=name):
            preparation.prepare("mnist", manual, tmp_path / "tfds", checksums=wrong)


def test_the_checksums_are_those_that_are_published():
    known = {file.name: file.checksum for name in ARCHIVES for file in archives.files(name)}
    assert known["cifar-10-binary.tar.gz"].startswith("sha256:c4a38c50a1bc5f3a")
    assert known["tiny-imagenet-200.zip"] == "md5:90528d7ca1a48142e341f4ef8d21d0de"
    assert known["ILSVRC2012_img_val.tar"].startswith("sha256:c7e06a6c0baccf06")


def test_a_missing_archive_is_an_error_that_says_where_to_get_it(manual, tmp_path):
    mnist(manual)
    (manual / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError) as error:
        preparation.prepare("mnist", manual, tmp_path / "tfds")
    lacks, get = str(error.value).split("; get ")
    assert lacks == f"'{manual}' lacks t10k-labels-idx1-ubyte.gz"
    assert "https://storage.googleapis.com/cvdf-datasets/mnist/ " in get
    assert not (tmp_path / "tfds").exists()


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("after", [0, 13, 20, 25])  # of 20 and 7
def test_an_interrupted_preparation_leaves_nothing(after, manual, tmp_path, stopped_after):
    cifar10(manual)
    stopped_after(after, interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepared_from(manual, tmp_path / "tfds")
    assert contents(tmp_path / "tfds") == []


def test_an_interruption_does_not_touch_another_version(manual, tmp_path, stopped_after):
    one_colour(tmp_path / "tfds", version="2.0.0")
    before = contents(tmp_path / "tfds")
    cifar10(manual)
    stopped_after(13, interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepared_from(manual, tmp_path / "tfds")
    assert contents(tmp_path / "tfds") == before


def test_a_large_data_set_goes_on_where_it_was(manual, tmp_path, stopped_after, capsys):
    cifar10(manual)
    whole = prepared_from(manual, tmp_path / "whole", shard_bytes=20_000)
    seen = stopped_after(13, interrupt)  # 20 images in 4 shards: in the third
    with pytest.raises(KeyboardInterrupt):
        prepared_from(manual, tmp_path / "tfds", shard_bytes=20_000)
    assert "2 of 6 shards are kept in" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError):
        load("cifar10", tmp_path / "tfds")
    unfinished = tmp_path / "tfds" / "cifar10" / ".3.0.2.unfinished"
    shards = [f"cifar10-train.array_record-0000{i}-of-00004" for i in (0, 1)]
    assert contents(unfinished) == shards

    # As a killed attempt leaves it, or one that cut the data set otherwise.
    for junk in ("cifar10-train.array_record-00002-of-00004.unfinished", "x-of-00009"):
        (unfinished / junk).write_text("half")
    stopped_after(1000, interrupt)
    folder = prepared_from(manual, tmp_path / "tfds", shard_bytes=20_000)
    assert len(seen) == 13 + 10 + 7
    assert contents(folder) == contents(whole) and records(folder) == records(whole)
    assert contents(tmp_path / "tfds" / "cifar10")[0] == "3.0.2"


def test_a_small_data_set_begins_anew_after_a_killed_attempt(manual, tmp_path):
    cifar10(manual)
    unfinished = tmp_path / "tfds" / "cifar10" / ".3.0.2.unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "cifar10-train.array_record-00000-of-00001").write_text("half")
    prepared_from(manual, tmp_path / "tfds")
    assert len(load("cifar10", tmp_path / "tfds").train_labels) == 20
    assert not unfinished.exists()


def test_what_is_there_is_not_made_again(prepared, tmp_path):
    before = contents(prepared)
    folder = preparation.prepare("cifar10", tmp_path / "none", prepared)
    assert folder == prepared / "cifar10" / "3.0.2" and contents(prepared) == before


def test_a_copy_that_needs_tensorflow_is_left_alone(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "tfds")
    info = tmp_path / "tfds" / "cifar10" / "3.0.2" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(FileExistsError, match="as tfrecord, which needs TensorFlow"):
        preparation.prepare("cifar10", tmp_path, tmp_path / "tfds")
