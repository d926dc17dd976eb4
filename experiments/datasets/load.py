"""Labelled images for the experiments: prepared data sets, or scikit-learn's digits.

Nothing is downloaded here. `python -m experiments datasets prepare` makes a prepared data
set from its standard archives.
"""

import contextlib
import functools
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import Int, UInt8

from experiments.datasets import archives
from experiments.harness.console import progress

Name = Literal[
    "auto",
    "cifar10",
    "cifar10_20k",
    "cifar100",
    "cifar100_10k",
    "digits",
    "fashion_mnist",
    "mnist",
    "tiny_imagenet",
    "tiny_imagenet_10k",
]

# Holds prepared parts of data sets, where the repository came with them.
SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared" / "tfds"

# Images are decoded by so many: faster than one by one, and the bar still moves.
DECODED_AT_ONCE = 500


class Data(NamedTuple):
    """Labelled images in two parts, all of one size.

    Attributes:
      name: what a result on them is reported as.
      num_classes: labels run from 0 to one less.
      train_images, test_images: height, width and channels, 0 to 255.
      train_labels, test_labels: an integer for each image.
    """

    name: str
    num_classes: int
    train_images: UInt8[np.ndarray, "train height width channels"]
    train_labels: Int[np.ndarray, " train"]
    test_images: UInt8[np.ndarray, "test height width channels"]
    test_labels: Int[np.ndarray, " test"]


def load(name: Name, data_dir: str | os.PathLike | None = None) -> Data:
    """Loads a data set that is already on this machine; it never downloads.

    - ``cifar10``, ``cifar100``, ``fashion_mnist``, ``mnist``, ``tiny_imagenet``: as
      tensorflow-datasets or `experiments.datasets.preparation` made them, as array_record.
    - ``cifar10_20k``, ``cifar100_10k``, ``tiny_imagenet_10k``: parts with as many training
      images, the first of each class; a result on one is not one on the whole.
    - ``digits``: scikit-learn's 1,797 handwritten digits of 8x8 pixels.
    - ``auto``: cifar10, cifar10_20k or digits, the first of these three that is found.

    The test part of Tiny ImageNet is its validation split: its test images have no labels.

    Args:
      name: the data set.
      data_dir: where prepared data sets lie. Default: first ``$TFDS_DATA_DIR``, which is
        ``~/tensorflow_datasets`` if not set, then ``../shared/tfds`` beside the repository.
        When given, "auto" means cifar10 from there.

    Returns:
      The `Data`, every image decoded.

    Raises:
      FileNotFoundError: if the data set is not there, in one line that says what to do.
      ValueError: if its images are not all of one size (`experiments.datasets.stream` is
        for those).
    """
    if name == "auto":
        name = "cifar10" if data_dir is not None else _first_found()
    return _digits() if name == "digits" else _decoded(name, _builder(name, data_dir))


@functools.lru_cache(maxsize=2)
def cached(name: Name, data_dir: str | os.PathLike | None = None) -> Data:
    """`load`, which keeps the last two data sets for the runs that come."""
    return load(name, data_dir)


def first(data: Data, train_images: int | None, test_images: int | None) -> Data:
    """A part of a data set: the first images after a shuffle that is always the same.

    Args:
      data: the whole.
      train_images, test_images: how many to keep of each part; None for all.

    Returns:
      The part. It keeps the name of the whole: say the numbers beside a result.

    Raises:
      ValueError: if there are not so many.
    """
    parts = []
    for kind, images, labels, count in (
        ("train_images", data.train_images, data.train_labels, train_images),
        ("test_images", data.test_images, data.test_labels, test_images),
    ):
        if count is not None:
            if not 0 < count <= len(labels):
                raise ValueError(f"`{kind}` is {count}; {data.name} has {len(labels)}.")
            chosen = np.random.default_rng(0).permutation(len(labels))[:count]
            images, labels = images[chosen], labels[chosen]
        parts += [images, labels]
    return Data(data.name, data.num_classes, *parts)


def source(
    name: str, split: str, data_dir: str | os.PathLike | None = None
) -> Sequence[dict[str, Any]]:
    """The examples of a prepared data set, read when asked for, their images still encoded.

    Args:
      name: the data set, such as imagenet2012.
      split: such as train or validation, or a part of one, as train[:10%].
      data_dir: as for `load`.

    Returns:
      What has a length and is indexed; the ``image`` of an example is bytes.

    Raises:
      FileNotFoundError: as `load`.
    """
    decoders = {"image": tfds.decode.SkipDecoding()}
    return _builder(name, data_dir).as_data_source(split=split, decoders=decoders)


def _first_found() -> str:
    for name in ("cifar10", "cifar10_20k"):
        if any(_prepared(name, root) is not None for root in roots(None)):
            return name
    return "digits"


def roots(data_dir: str | os.PathLike | None) -> list[pathlib.Path]:
    """The folders to look in."""
    if data_dir is not None:
        return [pathlib.Path(data_dir).expanduser()]
    own = pathlib.Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
    return [own.expanduser(), SHARED]


def _builder(name: str, data_dir: str | os.PathLike | None) -> tfds.core.DatasetBuilder:
    for root in roots(data_dir):
        if (folder := _prepared(name, root)) is not None:
            # From its folder, not by its name: a builder made by name could download.
            return tfds.builder_from_directory(folder)
    places = " or ".join(repr(os.fspath(root)) for root in roots(data_dir))
    if name in get_args(archives.Name):
        there = "" if data_dir is None else f" --data_dir {os.fspath(data_dir)}"
        advice = (
            f"get {archives.where(name)} into a folder and run `python -m "
            f"experiments.datasets prepare {name} --manual_dir FOLDER{there}`, or name "
            "another --data-dir"
        )
    else:
        advice = "name the --data-dir that holds it, or choose another data set"
    raise FileNotFoundError(f"no {name} as array_record in {places}; {advice}.")


def _prepared(name: str, root: pathlib.Path) -> pathlib.Path | None:
    """The folder of the newest version that can be read without TensorFlow, if any."""
    found = {
        tuple(map(int, info.parent.name.split("."))): info.parent
        for info in root.glob(f"{name}/*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)
        and tfds.builder_from_directory(info.parent).info.file_format
        is tfds.core.FileFormat.ARRAY_RECORD
    }
    return found[max(found)] if found else None


def _decoded(name: str, builder: tfds.core.DatasetBuilder) -> Data:
    features = builder.info.features
    if None in features["image"].shape:
        raise ValueError(
            f"the images of {name} are of many sizes; experiments.datasets.stream reads "
            "them."
        )
    arrays = []
    for split in ("train", "test" if "test" in builder.info.splits else "validation"):
        examples = builder.as_data_source(split=split)
        images = np.empty((len(examples), *features["image"].shape), np.uint8)
        labels = np.empty(len(examples), np.int32)
        with (
            _quiet(),
            progress(f"decoding {name}, {split}", len(examples), first="") as done,
        ):
            for start in range(0, len(examples), DECODED_AT_ONCE):
                places = range(start, min(start + DECODED_AT_ONCE, len(examples)))
                for i, example in zip(places, examples.__getitems__(places)):
                    images[i], labels[i] = example["image"], example["label"]
                done(len(places))
        arrays += [images, labels]
    return Data(name, features["label"].num_classes, *arrays)


@contextlib.contextmanager
def _quiet():
    """Silences the advice to install OpenCV, which is no concern of the reader's."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _digits() -> Data:
    from sklearn.datasets import load_digits  # here, as it takes seconds to import

    digits = load_digits()
    shuffled = np.random.default_rng(0).permutation(len(digits.target))
    images = (digits.images * 15).astype(np.uint8)[shuffled, ..., None]  # 0..16 to 0..240
    labels = digits.target.astype(np.int32)[shuffled]
    return Data("digits", 10, images[360:], labels[360:], images[:360], labels[:360])
