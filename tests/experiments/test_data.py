"""Data: loaded, prepared from archives of the real layout, moved at random, streamed."""

import doctest
import functools
import gzip
import hashlib
import io
import itertools
import os
import shutil
import signal
import struct
import sys
import tarfile
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from experiments import archives, data, preparation, stream
from experiments.training import images

# --- loading ------------------------------------------------------------------------------


@pytest.fixture
def nothing_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SHARED", tmp_path / "shared")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


def written_by_tfds(root, info, splits):
    """What tensorflow-datasets' own builder writes: the model of what we write."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Any."""

        VERSION = info.version
        name = info.name

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=info.features)

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(it) for name, it in splits.items()}

        def _generate_examples(self, keyed):
            yield from keyed

    Builder(data_dir=root, file_format="array_record").download_and_prepare()


def one_colour(root, name="cifar10", version="3.0.2", held_out="test"):
    """20 images to train on and 10 more, each of one colour, which gives its label."""
    features = {
        "image": tfds.features.Image(shape=(32, 32, 3)),
        "label": tfds.features.ClassLabel(num_classes=10),
    }
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=name,
            version=tfds.core.Version(version),
            data_dir=str(root / name / version),
            module_name="",
        ),
        features=tfds.features.FeaturesDict(features),
    )

    def examples(count):
        for i in range(count):
            pixels = np.full((32, 32, 3), i, np.uint8)
            yield i, {"image": PIL.Image.fromarray(pixels), "label": i % 10}

    written_by_tfds(root, info, {"train": examples(20), held_out: examples(10)})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    one_colour(root)
    return root


def test_a_prepared_cifar10_is_read_without_tensorflow(prepared):
    loaded = data.load("auto", prepared)
    assert (loaded.name, loaded.num_classes) == ("cifar10", 10)
    assert loaded.train_images.shape == (20, 32, 32, 3)
    assert loaded.test_images.dtype == np.uint8 and loaded.test_labels.shape == (10,)
    np.testing.assert_array_equal(loaded.train_images[:, 0, 0, 0] % 10, loaded.train_labels)
    np.testing.assert_array_equal(np.sort(loaded.test_images[:, 5, 5, 2]), np.arange(10))
    assert "tensorflow" not in sys.modules


def test_more_images_than_are_decoded_at_once_are_all_there(tmp_path, monkeypatch):
    one_colour(tmp_path)
    monkeypatch.setattr(data, "DECODED_AT_ONCE", 7)  # not a divisor of 20
    loaded = data.load("cifar10", tmp_path)
    np.testing.assert_array_equal(np.sort(loaded.train_images[:, 0, 0, 0]), np.arange(20))


def test_auto_takes_cifar10_then_its_part_then_digits(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    monkeypatch.setattr(data, "SHARED", tmp_path)
    one_colour(tmp_path, "cifar10_20k", "1.0.0")
    assert data.load("auto").name == "cifar10"
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "empty"))
    assert data.load("auto").name == "cifar10_20k"
    monkeypatch.setattr(data, "SHARED", tmp_path / "empty")
    assert data.load("auto").name == "digits"


def test_the_users_copy_comes_before_the_shared_one(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "own"))
    monkeypatch.setattr(data, "SHARED", prepared)
    assert len(data.load("cifar10").train_labels) == 20
    one_colour(tmp_path / "own", held_out="validation")
    assert "validation" in data._builder("cifar10", None).info.splits


def test_validation_images_stand_in_for_test_images_without_labels(tmp_path):
    one_colour(tmp_path, "tiny_imagenet", "1.0.0", held_out="validation")
    assert data.load("tiny_imagenet", tmp_path).test_labels.shape == (10,)


def test_digits_are_split_the_same_way_every_time(nothing_prepared):
    first, second = data.load("auto"), data.load("digits")
    jax.tree.map(np.testing.assert_array_equal, first[1:], second[1:])
    assert first.train_images.shape == (1437, 8, 8, 1)
    assert first.train_images.dtype == np.uint8 and first.train_images.max() == 240
    assert len(first.test_labels) == 360
    assert set(first.test_labels.tolist()) == set(range(10))
    pixels = np.concatenate([first.train_images, first.test_images]).reshape(1797, -1)
    assert pixels.sum() == 15 * 561718  # all of them: the sum of scikit-learn's pixels
    assert_recipe_fits("digits", first.train_images, 5e-5)


def assert_recipe_fits(name, pixels, tolerance):
    recipe, values = images.recipe(name), np.arange(256) / 255
    for channel, mean, std in zip(np.moveaxis(pixels, -1, 0), recipe.mean, recipe.std):
        shares = np.bincount(channel.ravel(), minlength=256) / channel.size
        measured = shares @ values
        assert abs(measured - mean) < tolerance
        assert abs(np.sqrt(shares @ (values - measured) ** 2) - std) < tolerance


shared = pytest.mark.skipif(
    not data.SHARED.exists(), reason="the repository came without prepared data sets"
)


@shared
@pytest.mark.parametrize(
    "name, size, classes, counts",
    [
        ("cifar10_20k", 32, 10, (2000, 500)),
        ("cifar100_10k", 32, 100, (100, 20)),
        ("tiny_imagenet_10k", 64, 200, (50, 10)),
    ],
)
def test_a_shared_part_is_loaded_whole_and_its_recipe_fits(name, size, classes, counts):
    loaded = data.load(name, data.SHARED)
    assert (loaded.name, loaded.num_classes) == (name, classes)
    for pixels in (loaded.train_images, loaded.test_images):
        assert pixels.shape[1:] == (size, size, 3)
    for labels, count in zip((loaded.train_labels, loaded.test_labels), counts):
        np.testing.assert_array_equal(np.bincount(labels), np.full(classes, count))
    assert_recipe_fits(name, loaded.train_images, 0.01)  # it is that of the whole


@shared
def test_the_recipe_of_fashion_mnist_fits():
    examples = data.source("fashion_mnist", "train[:3000]", data.SHARED)
    pixels = [PIL.Image.open(io.BytesIO(example["image"])) for example in examples]
    assert_recipe_fits("fashion_mnist", np.stack(pixels)[..., None], 0.005)


@pytest.mark.parametrize("name", ["cifar10", "mnist", "tiny_imagenet", "imagenet2012"])
def test_a_missing_data_set_is_an_error_that_says_how_to_get_it(name, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        data.load(name, tmp_path)
    message = str(error.value)
    assert message.startswith(f"no {name} as array_record in '{tmp_path}'; get ")
    assert all(file.name in message for file in archives.files(name)) and "http" in message
    assert f"prepare {name} --manual_dir FOLDER --data_dir {tmp_path}`" in message
    assert "\n" not in message


def test_a_missing_part_names_every_place_that_was_searched(nothing_prepared, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="no cifar10_20k .*name the --data-dir"
    ) as error:
        data.load("cifar10_20k")
    for place in ("tfds", "shared"):
        assert str(tmp_path / place) in str(error.value)


def test_auto_in_a_folder_means_cifar10(tmp_path):
    with pytest.raises(FileNotFoundError, match="no cifar10 as"):
        data.load("auto", tmp_path)


def test_a_copy_in_another_format_or_unfinished_is_passed_over(prepared, tmp_path):
    shutil.copytree(prepared / "cifar10" / "3.0.2", tmp_path / "cifar10" / "3.0.2")
    for unfinished in ("4.0.0.incompleteX", ".4.0.0.unfinished"):
        shutil.copytree(prepared / "cifar10" / "3.0.2", tmp_path / "cifar10" / unfinished)
    assert data._prepared("cifar10", tmp_path).name == "3.0.2"
    info = tmp_path / "cifar10" / "3.0.2" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    assert data._prepared("cifar10", tmp_path) is None


def test_a_source_leaves_images_encoded(prepared):
    examples = data.source("cifar10", "train[:5]", prepared)
    assert len(examples) == 5 and examples[0]["image"].startswith(b"\x89PNG")


# --- parts of data sets -------------------------------------------------------------------


def test_a_part_of_a_data_set_is_always_the_same():
    whole = data.load("digits")
    small, again = data.first(whole, 50, 20), data.first(whole, 50, 20)
    jax.tree.map(np.testing.assert_array_equal, small[2:], again[2:])
    assert small.name == "digits" and small.num_classes == 10
    assert (len(small.train_images), len(small.test_images)) == (50, 20)
    larger = data.first(whole, 60, 20)
    np.testing.assert_array_equal(larger.train_images[:50], small.train_images)
    # Each image with its own label.
    places = {image.tobytes(): i for i, image in enumerate(whole.train_images)}
    for image, label in zip(small.train_images, small.train_labels):
        assert whole.train_labels[places[image.tobytes()]] == label


def test_a_part_may_be_one_image_or_all_of_them():
    whole = data.load("digits")
    one = data.first(whole, 1, 1)
    assert len(one.train_labels) == len(one.test_labels) == 1
    count = len(whole.train_labels)
    shuffled = data.first(whole, count, None)
    assert shuffled.test_images is whole.test_images
    np.testing.assert_array_equal(
        np.sort(shuffled.train_labels), np.sort(whole.train_labels)
    )
    assert data.first(whole, None, None) == whole


@pytest.mark.parametrize("count", [0, -1, 361])
def test_a_part_that_there_is_not_is_refused(count):
    message = f"`test_images` is {count}; digits has 360"
    with pytest.raises(ValueError, match=message):
        data.first(data.load("digits"), 10, count)
    with pytest.raises(ValueError, match="`train_images` is 0"):
        data.first(data.load("digits"), 0, 10)


# --- archives of the real layout ----------------------------------------------------------


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(pixels, format="jpeg", mode=None):
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).convert(mode).save(buffer, format=format)
    return buffer.getvalue()


def tarred(members, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def cifar(folder, archive, root, labels, parts):
    """Writes the archive of the binary version; returns what should be read from it.

    Args:
      labels: for each byte before the pixels: feature, file of names, number of names.
      parts: for each split, its files and the images in each.
    """
    members, expected = {f"{root}/": b""}, {}
    for seed, (split, (names, count)) in enumerate(parts.items()):
        total = count * len(names)
        pixels = noise(seed, total, 32, 32, 3)
        values = [np.arange(total) * (at + 3) % n for at, (_, _, n) in enumerate(labels)]
        rows = np.concatenate(
            [np.stack(values, 1), pixels.transpose(0, 3, 1, 2).reshape(total, -1)], axis=1
        )
        for name, part in zip(names, np.split(rows.astype(np.uint8), len(names))):
            members[f"{root}/{name}"] = part.tobytes()
        expected[split] = [
            {"id": f"{split}_{i:05d}".encode(), "image": pixels[i]}
            | {feature: values[at][i] for at, (feature, _, _) in enumerate(labels)}
            for i in range(total)
        ]
    for feature, file, count in labels:
        names = "\n".join(f"{feature}_{i}" for i in range(count))
        members[f"{root}/{file}"] = f"{names}\n\n".encode()
    del members[f"{root}/"]
    (folder / archive).write_bytes(tarred(members, "w:gz"))
    return expected


def cifar10(folder):
    return cifar(
        folder,
        "cifar-10-binary.tar.gz",
        "cifar-10-batches-bin",
        [("label", "batches.meta.txt", 10)],
        {
            "train": ([f"data_batch_{i}.bin" for i in range(1, 6)], 4),
            "test": (["test_batch.bin"], 7),
        },
    )


def cifar100(folder):
    return cifar(
        folder,
        "cifar-100-binary.tar.gz",
        "cifar-100-binary",
        [
            ("coarse_label", "coarse_label_names.txt", 20),
            ("label", "fine_label_names.txt", 100),
        ],
        {"train": (["train.bin"], 20), "test": (["test.bin"], 7)},
    )


def mnist(folder):
    expected = {}
    for seed, (split, prefix) in enumerate([("train", "train"), ("test", "t10k")]):
        pixels, labels = noise(seed, 12, 28, 28), np.arange(12, dtype=np.uint8) % 10
        contents = {
            f"{prefix}-images-idx3-ubyte.gz": struct.pack(">4i", 0x803, 12, 28, 28)
            + pixels.tobytes(),
            f"{prefix}-labels-idx1-ubyte.gz": struct.pack(">2i", 0x801, 12)
            + labels.tobytes(),
        }
        for name, content in contents.items():
            (folder / name).write_bytes(gzip.compress(content))
        expected[split] = [
            {"image": pixels[i, ..., None], "label": labels[i]} for i in range(12)
        ]
    return expected


def tiny_imagenet(folder):
    names = [f"n{(7919 * i) % 10**6:08d}" for i in range(200)]  # not in order
    root = "tiny-imagenet-200"
    members = {
        f"{root}/wnids.txt": "\n".join(names),
        f"{root}/words.txt": "",
        f"{root}/train/": "",
        f"{root}/val/images/": "",
        f"{root}/test/images/test_0.JPEG": encoded(noise(9, 64, 64, 3)),
    }
    expected, annotations = {"train": [], "validation": []}, ""
    for i, name in enumerate(names[:4]):
        members[f"{root}/train/{name}/{name}_boxes.txt"] = ""
        for j in range(3):
            image = encoded(noise(10 * i + j, 64, 64, 3))
            members[f"{root}/train/{name}/images/{name}_{j}.JPEG"] = image
            expected["train"].append({"image": image, "label": name})
        image = encoded(noise(100 + i, 64, 64, 3), mode="L" if i == 2 else "RGB")
        members[f"{root}/val/images/val_{i}.JPEG"] = image
        annotations += f"val_{i}.JPEG\t{name}\t0\t32\t44\t62\n"
        expected["validation"].append({"image": image, "label": name})
    members[f"{root}/val/val_annotations.txt"] = annotations
    with zipfile.ZipFile(folder / f"{root}.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    for example in expected["train"] + expected["validation"]:
        pixels = np.asarray(PIL.Image.open(io.BytesIO(example["image"])).convert("RGB"))
        example |= {"image": pixels, "label": sorted(names).index(example["label"])}
    return expected


def imagenet2012(folder):
    features = archives.info("imagenet2012", folder).features
    expected, classes = {"train": [], "validation": []}, {}
    for label in (3, 0, 999):
        wnid = features["label"].names[label]
        inside = {}
        for j in range(4):
            printed = (label, j) == (0, 2)
            image = encoded(
                noise(label + j, 40 + j, 50, 3), mode="CMYK" if printed else None
            )
            inside[f"{wnid}_{j}.JPEG"] = image
            example = {"file_name": f"{wnid}_{j}.JPEG".encode(), "label": label}
            expected["train"].append({"image": image, **example})
        classes[f"{wnid}.tar"] = tarred(inside)
    # The first three of the 50,000 and their labels; in the archive they have no order.
    held_out = {}
    for number, wnid in ((2, "n09193705"), (1, "n01751748"), (3, "n02105855")):
        label = features["label"].names.index(wnid)
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        held_out[name] = encoded(noise(number, 30, 20, 3))
        example = {"file_name": name.encode(), "label": label}
        expected["validation"].append({"image": held_out[name], **example})
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tarred(classes))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tarred(held_out))
    for example in expected["train"] + expected["validation"]:
        picture = PIL.Image.open(io.BytesIO(example["image"])).convert("RGB")
        example["image"] = np.asarray(picture)
    return expected


ARCHIVES = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "fashion_mnist": mnist,
    "imagenet2012": imagenet2012,
    "mnist": mnist,
    "tiny_imagenet": tiny_imagenet,
}


def checksums(folder):
    return {
        path.name: f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in folder.iterdir()
    }


@pytest.fixture
def manual(tmp_path):
    folder = tmp_path / "manual"
    folder.mkdir()
    return folder


def prepared_from(manual, root, name="cifar10", **settings):
    return preparation.prepare(name, manual, root, checksums=checksums(manual), **settings)


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
    loaded = data.load(name, tmp_path)
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
    examples = data.source("imagenet2012", "train", tmp_path)
    changed = [
        example["file_name"] for example in examples if example["image"] not in train
    ]
    assert changed == [b"n01440764_2.JPEG"]  # the one in the colours of print
    with pytest.raises(ValueError, match="of many sizes; experiments.stream"):
        data.load("imagenet2012", tmp_path)


def test_labels_are_named(manual, tmp_path):
    for name, label in (("cifar10", "label"), ("cifar100", "coarse_label")):
        ARCHIVES[name](manual)
        info = tfds.builder_from_directory(prepared_from(manual, tmp_path, name)).info
        assert info.features[label].names[3] == f"{label}_3"


# --- preparing ----------------------------------------------------------------------------


def contents(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


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


@pytest.fixture
def stopped_after(monkeypatch):
    """Makes the reading of examples stop; ``seen`` holds the places read."""
    seen = []
    opened = archives.opened

    def stop(count, how):
        limit = len(seen) + count

        def limited(examples):
            def example(i):
                if len(seen) == limit:
                    how()
                seen.append(i)
                return examples.example(i)

            return examples._replace(example=example)

        class Opened:
            def __init__(self, *args):
                self.splits = opened(*args)

            def __enter__(self):
                return {k: limited(v) for k, v in self.splits.__enter__().items()}

            def __exit__(self, *error):
                return self.splits.__exit__(*error)

        monkeypatch.setattr(archives, "opened", Opened)
        return seen

    return stop


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
        data.load("cifar10", tmp_path / "tfds")
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
    assert len(data.load("cifar10", tmp_path / "tfds").train_labels) == 20
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


# --- the command line ---------------------------------------------------------------------


@pytest.fixture
def any_archive(manual, monkeypatch):
    checked = preparation.prepare

    def unchecked(*args):
        return checked(*args, checksums=checksums(manual))

    monkeypatch.setattr(preparation, "prepare", unchecked)


def test_the_command_prepares(manual, tmp_path, any_archive, capsys):
    cifar10(manual)
    folders = ["--manual_dir", str(manual), "--data_dir", str(tmp_path / "tfds")]
    data.main(["prepare", "cifar10", *folders])
    assert "cifar10: 20 train and 7 test images in" in capsys.readouterr().out
    assert data.load("cifar10", tmp_path / "tfds").num_classes == 10


def test_the_command_looks_where_tensorflow_datasets_does(nothing_prepared, tmp_path):
    with pytest.raises(SystemExit) as error:
        data.main(["prepare", "cifar10"])
    folder = tmp_path / "tfds" / "downloads" / "manual"
    message = str(error.value.code)
    assert message.startswith(f"error: '{folder}' lacks cifar-10-binary.tar.gz; get ")
    assert "\n" not in message


def test_a_request_to_end_leaves_nothing(manual, tmp_path, any_archive, stopped_after):
    cifar10(manual)
    stopped_after(13, lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    folders = ["--manual_dir", str(manual), "--data_dir", str(tmp_path / "tfds")]
    with pytest.raises(SystemExit, match="interrupted"):
        data.main(["prepare", "cifar10", *folders])
    assert contents(tmp_path / "tfds") == []
    assert signal.getsignal(signal.SIGTERM) is before


# --- images -------------------------------------------------------------------------------

CIFAR = images.recipe("cifar10")


def all_moves(image, padding):
    """Every result that the definition allows, in Python."""
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    height, width, _ = image.shape
    for top, left in itertools.product(range(2 * padding + 1), repeat=2):
        cut = padded[top : top + height, left : left + width]
        yield top, left, False, cut
        yield top, left, True, cut[:, ::-1]


def moves_of(image, results, padding=4):
    """Which move made each result."""
    named = {cut.tobytes(): move for *move, cut in all_moves(image, padding)}
    assert len(named) == 2 * (2 * padding + 1) ** 2
    return np.array([named[np.asarray(result).tobytes()] for result in results])


def test_augmentation_draws_every_move_equally_often():
    image = noise(0, 10, 12, 3)
    count = 162 * 60
    repeated = jnp.broadcast_to(image, (count, *image.shape))
    moves = moves_of(image, images.augment(CIFAR, repeated, 0, 1, jnp.arange(count)))
    joint = np.bincount(np.ravel_multi_index(moves.T, (9, 9, 2)), minlength=162)
    # Chi squared with 161 degrees of freedom: 230 is the 99.97th percentile.
    assert ((joint - 60) ** 2 / 60).sum() < 230


def test_augmentation_depends_on_the_image_and_not_on_its_batch():
    pixels = jnp.asarray(noise(0, 8, 6, 6, 3))
    whole = images.augment(CIFAR, pixels, 3, 2, jnp.arange(8))
    some = jnp.array([5, 2, 7])
    np.testing.assert_array_equal(
        images.augment(CIFAR, pixels[some], 3, 2, some), whole[some]
    )
    for i in range(8):
        alone = images.augment(CIFAR, pixels[i : i + 1], 3, 2, jnp.array([i]))
        np.testing.assert_array_equal(alone[0], whole[i])


def test_seed_epoch_and_index_are_mixed_and_not_added():
    image = noise(0, 9, 9, 1)
    repeated = jnp.broadcast_to(image, (200, *image.shape))
    draws = {
        (seed, epoch): moves_of(
            image, images.augment(CIFAR, repeated, seed, epoch, jnp.arange(200))
        )
        for seed, epoch in itertools.product(range(3), repeat=2)
    }
    for one, two in itertools.combinations(draws.values(), 2):
        for shift in (-1, 0, 1):  # the same numbers, perhaps one image further
            same = np.all(one[1:-1] == two[1 + shift : 199 + shift], axis=1)
            assert same.mean() < 0.05  # 1 in 162 by chance


def test_a_recipe_without_moves_leaves_images_alone():
    pixels = jnp.asarray(noise(0, 5, 28, 28, 1))
    for name in ("mnist", "fashion_mnist", "digits"):
        moved = images.augment(images.recipe(name), pixels, 0, 1, jnp.arange(5))
        np.testing.assert_array_equal(moved, pixels)


def test_normalising_is_the_formula():
    pixels = noise(0, 4, 5, 6, 3)
    got = images.normalise(CIFAR, jnp.asarray(pixels))
    want = (pixels / 255 - np.array(CIFAR.mean)) / np.array(CIFAR.std)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_batch_is_taken_augmented_and_scaled():
    pixels, index = jnp.asarray(noise(0, 9, 6, 6, 3)), jnp.array([4, 0, 8])
    moved = images.augment(CIFAR, pixels[index], 1, 2, index)
    got = images.batch(CIFAR, pixels, 1, 2, index)
    np.testing.assert_allclose(got, images.normalise(CIFAR, moved), rtol=1e-6)


def test_one_compilation_serves_every_seed_epoch_and_batch():
    pixels = jnp.asarray(noise(0, 9, 6, 6, 3))
    images.batch(CIFAR, pixels, 0, 1, jnp.arange(4))
    before = images.batch._cache_size()
    for seed, epoch in ((1, 1), (0, 7)):
        images.batch(CIFAR, pixels, seed, epoch, jnp.arange(4) + epoch % 3)
    assert images.batch._cache_size() == before


def test_the_order_is_a_permutation_of_its_own_for_each_seed_and_epoch():
    orders = [images.order(seed, epoch, 50) for seed in (0, 1) for epoch in (1, 2)]
    assert len({tuple(order.tolist()) for order in orders}) == 4
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
    np.testing.assert_array_equal(images.order(0, 1, 50), orders[0])


def test_the_keys_of_images_are_not_those_of_the_order():
    key = images._epoch_key(3, 5)
    of_order = jax.random.key_data(jax.random.split(key)).tolist()
    of_images = jax.random.fold_in(key, images._MOVES)
    assert jax.random.key_data(of_images).tolist() not in of_order


def test_a_part_has_the_recipe_of_the_whole_and_others_have_none():
    assert images.recipe("tiny_imagenet_10k") == images.recipe("tiny_imagenet")
    assert images.recipe("cifar100_10k").padding == 4
    with pytest.raises(ValueError, match="`name` is 'svhn'.*cifar100_10k"):
        images.recipe("svhn")
    assert doctest.testmod(images) == (0, 1)


# --- streams ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def examples():
    """Images of many sizes and modes, each with a label of its own."""
    pytest.importorskip("grain")
    modes = ["RGB", "L", "RGB", "CMYK"]
    return [
        {"image": encoded(noise(i, 30 + i, 50 - i, 3), mode=modes[i % 4]), "label": i}
        for i in range(22)
    ]


def collected(dataset):
    return [(np.array(pixels), np.array(labels)) for pixels, labels in dataset]


def by_label(batches):
    return {
        int(label): image.tobytes()
        for pixels, labels in batches
        for image, label in zip(pixels, labels)
    }


def test_an_epoch_of_a_stream_has_whole_batches_of_different_images(examples):
    batches = collected(stream.training(examples, 0, epochs=2, batch=5, size=16))
    assert len(batches) == 2 * 4
    for pixels, labels in batches:
        assert pixels.shape == (5, 16, 16, 3) and pixels.dtype == np.uint8
        assert labels.dtype == np.int32
    first, second = (
        np.concatenate([y for _, y in part]) for part in (batches[:4], batches[4:])
    )
    assert len(set(first)) == len(set(second)) == 20 and first.tolist() != second.tolist()


def test_what_a_stream_does_to_an_image_depends_on_seed_epoch_and_index(examples):
    def epoch(seed, number, batch, used=examples):
        batches = collected(stream.training(used, seed, epochs=2, batch=batch, size=16))
        half = len(batches) // 2
        return by_label(batches[:half] if number == 1 else batches[half:])

    one = epoch(0, 1, batch=2)
    assert len(one) == 22
    other_batch = epoch(0, 1, batch=11)
    assert one == other_batch
    assert epoch(0, 1, batch=2, used=examples[:18]).items() < one.items()
    for other in (epoch(1, 1, batch=2), epoch(0, 2, batch=2)):
        assert not any(one[label] == other[label] for label in one)


def test_workers_change_nothing_and_a_state_restores_the_place(examples):
    def new(workers):
        return stream.training(examples, 0, epochs=2, batch=5, size=16, workers=workers)

    alone = collected(new(0))
    jax.tree.map(np.testing.assert_array_equal, collected(new(2)), alone)
    iterator = iter(new(0))
    next(iterator)
    state = iterator.get_state()
    again = iter(new(0))
    again.set_state(state)
    jax.tree.map(np.testing.assert_array_equal, tuple(next(again)), alone[1])


def test_held_out_images_come_once_in_order(examples):
    batches = collected(stream.held_out(examples, batch=8, size=16))
    assert [pixels.shape for pixels, _ in batches] == [(8, 16, 16, 3)] * 3
    labels = np.concatenate([y for _, y in batches])
    np.testing.assert_array_equal(labels, [*range(22), -1, -1])


def test_hosts_share_the_batches_of_a_stream(examples):
    def of(make, part):
        return collected(make(examples, batch=8, size=16, part=part))

    training = functools.partial(stream.training, seed=0, epochs=2)
    for make in (training, stream.held_out):
        whole, first, second = (of(make, part) for part in ((0, 1), (0, 2), (1, 2)))
        assert len(whole) == len(first) == len(second) > 1
        for batch, left, right in zip(whole, first, second):
            together = map(np.concatenate, zip(left, right))
            jax.tree.map(np.testing.assert_array_equal, batch, tuple(together))
        with pytest.raises(ValueError, match="`batch` is 8, which 3 hosts"):
            of(make, (0, 3))


def test_a_held_out_image_is_cut_in_the_middle():
    pytest.importorskip("grain")
    pixels = noise(0, 256, 300, 3)
    example = {"image": encoded(pixels, "png"), "label": 0}
    ((got, _),) = stream.held_out([example], batch=1)
    np.testing.assert_array_equal(got[0], pixels[16:240, 38:262])


def test_a_random_box_keeps_to_its_limits_and_reaches_them():
    draw = np.random.default_rng(0)
    boxes = np.array([stream.random_box(draw, 400, 300) for _ in range(4000)])
    left, top, right, bottom = boxes.T
    assert left.min() == top.min() == 0 and right.max() == 400 and bottom.max() == 300
    area, aspect = (
        (right - left) * (bottom - top) / 120_000,
        (right - left) / (bottom - top),
    )
    assert 0.19 < area.min() < 0.22 and 0.9 < area.max() <= 1
    assert 0.74 < aspect.min() < 0.78 and 1.28 < aspect.max() < 1.35
    # A box of less than half the area fits with any aspect: these are drawn evenly.
    small = area < 0.5
    assert abs(area[small].mean() - 0.35) < 0.01
    assert abs(np.log(aspect[small]).mean()) < 0.01
    for start, room in ((left, 400 - (right - left)), (top, 300 - (bottom - top))):
        assert abs(((start + 0.5) / (room + 1)).mean() - 0.5) < 0.02


def test_a_box_in_a_very_long_image_is_the_largest_in_the_middle():
    draw = np.random.default_rng(0)
    assert stream.random_box(draw, 1000, 30) == (480, 0, 520, 30)
    assert stream.random_box(draw, 30, 1000) == (0, 480, 30, 520)


def test_half_of_a_streams_images_are_mirrored(monkeypatch):
    monkeypatch.setattr(
        stream, "random_box", lambda draw, width, height: (0, 0, width, height)
    )
    pixels = noise(0, 8, 8, 3)
    source = [{"image": encoded(pixels, "png"), "label": 0}]
    mirrored = 0
    for epoch in range(200):
        image, _ = stream._training_example(source, 0, 1, 8, epoch)
        if not np.array_equal(image, pixels):
            np.testing.assert_array_equal(image, pixels[:, ::-1])
            mirrored += 1
    assert 75 < mirrored < 125


def test_a_stream_without_grain_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match="pip install 'grain"):
        stream.held_out([], batch=1)


def test_a_batch_larger_than_the_data_is_refused(examples):
    with pytest.raises(ValueError, match="`batch` is 23, more than the 22 examples"):
        stream.training(examples, 0, epochs=1, batch=23)
