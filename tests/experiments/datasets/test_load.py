"""Prepared data sets are found and loaded, or an error says how to get them."""

import io
import shutil
import sys

import jax
import numpy as np
import PIL.Image
import pytest

from experiments.datasets import archives, load
from experiments.training import images
from tests.experiments.datasets.made import one_colour


def test_a_prepared_cifar10_is_read_without_tensorflow(prepared):
    loaded = load.load("auto", prepared)
    assert (loaded.name, loaded.num_classes) == ("cifar10", 10)
    assert loaded.train_images.shape == (20, 32, 32, 3)
    assert loaded.test_images.dtype == np.uint8 and loaded.test_labels.shape == (10,)
    np.testing.assert_array_equal(loaded.train_images[:, 0, 0, 0] % 10, loaded.train_labels)
    np.testing.assert_array_equal(np.sort(loaded.test_images[:, 5, 5, 2]), np.arange(10))
    assert "tensorflow" not in sys.modules


def test_more_images_than_are_decoded_at_once_are_all_there(tmp_path, monkeypatch):
    one_colour(tmp_path)
    monkeypatch.setattr(load, "DECODED_AT_ONCE", 7)  # not a divisor of 20
    loaded = load.load("cifar10", tmp_path)
    np.testing.assert_array_equal(np.sort(loaded.train_images[:, 0, 0, 0]), np.arange(20))


def test_auto_takes_cifar10_then_its_part_then_digits(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    monkeypatch.setattr(load, "SHARED", tmp_path)
    one_colour(tmp_path, "cifar10_20k", "1.0.0")
    assert load.load("auto").name == "cifar10"
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "empty"))
    assert load.load("auto").name == "cifar10_20k"
    monkeypatch.setattr(load, "SHARED", tmp_path / "empty")
    assert load.load("auto").name == "digits"


def test_the_users_copy_comes_before_the_shared_one(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "own"))
    monkeypatch.setattr(load, "SHARED", prepared)
    assert len(load.load("cifar10").train_labels) == 20
    one_colour(tmp_path / "own", held_out="validation")
    assert "validation" in load._builder("cifar10", None).info.splits


def test_validation_images_stand_in_for_test_images_without_labels(tmp_path):
    one_colour(tmp_path, "tiny_imagenet", "1.0.0", held_out="validation")
    assert load.load("tiny_imagenet", tmp_path).test_labels.shape == (10,)


def test_digits_are_split_the_same_way_every_time(nothing_prepared):
    first, second = load.load("auto"), load.load("digits")
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
    not load.SHARED.exists(), reason="the repository came without prepared data sets"
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
    loaded = load.load(name, load.SHARED)
    assert (loaded.name, loaded.num_classes) == (name, classes)
    for pixels in (loaded.train_images, loaded.test_images):
        assert pixels.shape[1:] == (size, size, 3)
    for labels, count in zip((loaded.train_labels, loaded.test_labels), counts):
        np.testing.assert_array_equal(np.bincount(labels), np.full(classes, count))
    assert_recipe_fits(name, loaded.train_images, 0.01)  # it is that of the whole


@shared
def test_the_recipe_of_fashion_mnist_fits():
    examples = load.source("fashion_mnist", "train[:3000]", load.SHARED)
    pixels = [PIL.Image.open(io.BytesIO(example["image"])) for example in examples]
    assert_recipe_fits("fashion_mnist", np.stack(pixels)[..., None], 0.005)


@pytest.mark.parametrize("name", ["cifar10", "mnist", "tiny_imagenet", "imagenet2012"])
def test_a_missing_data_set_is_an_error_that_says_how_to_get_it(name, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load.load(name, tmp_path)
    message = str(error.value)
    assert message.startswith(f"no {name} as array_record in '{tmp_path}'; get ")
    assert all(file.name in message for file in archives.files(name)) and "http" in message
    assert f"prepare {name} --manual_dir FOLDER --data_dir {tmp_path}`" in message
    assert "\n" not in message


def test_a_missing_part_names_every_place_that_was_searched(nothing_prepared, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="no cifar10_20k .*name the --data-dir"
    ) as error:
        load.load("cifar10_20k")
    for place in ("tfds", "shared"):
        assert str(tmp_path / place) in str(error.value)


def test_auto_in_a_folder_means_cifar10(tmp_path):
    with pytest.raises(FileNotFoundError, match="no cifar10 as"):
        load.load("auto", tmp_path)


def test_a_copy_in_another_format_or_unfinished_is_passed_over(prepared, tmp_path):
    shutil.copytree(prepared / "cifar10" / "3.0.2", tmp_path / "cifar10" / "3.0.2")
    for unfinished in ("4.0.0.incompleteX", ".4.0.0.unfinished"):
        shutil.copytree(prepared / "cifar10" / "3.0.2", tmp_path / "cifar10" / unfinished)
    assert load._prepared("cifar10", tmp_path).name == "3.0.2"
    info = tmp_path / "cifar10" / "3.0.2" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    assert load._prepared("cifar10", tmp_path) is None


def test_a_source_leaves_images_encoded(prepared):
    examples = load.source("cifar10", "train[:5]", prepared)
    assert len(examples) == 5 and examples[0]["image"].startswith(b"\x89PNG")


# --- parts of data sets -------------------------------------------------------------------


def test_a_part_of_a_data_set_is_always_the_same():
    whole = load.load("digits")
    small, again = load.first(whole, 50, 20), load.first(whole, 50, 20)
    jax.tree.map(np.testing.assert_array_equal, small[2:], again[2:])
    assert small.name == "digits" and small.num_classes == 10
    assert (len(small.train_images), len(small.test_images)) == (50, 20)
    larger = load.first(whole, 60, 20)
    np.testing.assert_array_equal(larger.train_images[:50], small.train_images)
    # Each image with its own label.
    places = {image.tobytes(): i for i, image in enumerate(whole.train_images)}
    for image, label in zip(small.train_images, small.train_labels):
        assert whole.train_labels[places[image.tobytes()]] == label


def test_a_part_may_be_one_image_or_all_of_them():
    whole = load.load("digits")
    one = load.first(whole, 1, 1)
    assert len(one.train_labels) == len(one.test_labels) == 1
    count = len(whole.train_labels)
    shuffled = load.first(whole, count, None)
    assert shuffled.test_images is whole.test_images
    np.testing.assert_array_equal(
        np.sort(shuffled.train_labels), np.sort(whole.train_labels)
    )
    assert load.first(whole, None, None) == whole


@pytest.mark.parametrize("count", [0, -1, 361])
def test_a_part_that_there_is_not_is_refused(count):
    message = f"`test_images` is {count}; digits has 360"
    with pytest.raises(ValueError, match=message):
        load.first(load.load("digits"), 10, count)
    with pytest.raises(ValueError, match="`train_images` is 0"):
        load.first(load.load("digits"), 0, 10)
