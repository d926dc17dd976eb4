"""Images for the experiments: CIFAR-10 where it is at hand, else handwritten digits."""

import contextlib
import os
import pathlib
import re
from typing import Literal, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import Int, UInt8

from experiments.console import progress

Name = Literal["auto", "cifar10", "cifar10_20k", "digits"]

# Holds cifar10_20k, a prepared part of CIFAR-10, where the repository came with it.
SHARED = pathlib.Path(__file__).resolve().parents[1] / ".." / "shared" / "tfds"


class Data(NamedTuple):
    """Labelled images in two parts, all of one size.

    Attributes:
      name: what a result on them is reported as.
      num_classes: labels run from 0 to one less.
      train_images, test_images: height, width and channels, 0 to 255.
      train_labels, test_labels: one whole number an image.
    """

    name: str
    num_classes: int
    train_images: UInt8[np.ndarray, "train height width channels"]
    train_labels: Int[np.ndarray, " train"]
    test_images: UInt8[np.ndarray, "test height width channels"]
    test_labels: Int[np.ndarray, " test"]


def load(name: Name, data_dir: str | os.PathLike | None = None) -> Data:
    """Loads a data set that is already on this machine; it never downloads.

    - ``cifar10``: as tensorflow-datasets prepared it, in the array_record format.
    - ``cifar10_20k``: the first 2,000 training and 500 test images of each class of it.
    - ``digits``: scikit-learn's 1,797 handwritten digits of 8x8 pixels.
    - ``auto``: the first of these three that is found.

    Args:
      name: the data set.
      data_dir: where prepared data sets lie. Default: ``$TFDS_DATA_DIR``, else
        ``~/tensorflow_datasets``; for cifar10_20k, ``../shared/tfds`` beside the
        repository. When given, "auto" means cifar10 from there.

    Returns:
      The `Data`, every image decoded.

    Raises:
      FileNotFoundError: if the data set is not there, in one line that says what to do.
    """
    if name == "auto":
        name = "cifar10" if data_dir is not None else _first_found()
    if name == "digits":
        return _digits()
    root = pathlib.Path(data_dir if data_dir is not None else _default_dir(name))
    folder = _prepared(name, root.expanduser())
    if folder is None:
        raise FileNotFoundError(
            f"{os.fspath(root)!r} holds no {name} that tensorflow-datasets has prepared as "
            "array_record; name another --data-dir, or leave it out to use what is found."
        )
    return _decoded(name, folder)


def _first_found() -> str:
    for name in ("cifar10", "cifar10_20k"):
        if _prepared(name, _default_dir(name)) is not None:
            return name
    return "digits"


def _default_dir(name: str) -> pathlib.Path:
    if name == "cifar10_20k":
        return SHARED
    return pathlib.Path(
        os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    ).expanduser()


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


def _decoded(name: str, folder: pathlib.Path) -> Data:
    # From its folder, not by its name: a builder made by name could download.
    builder = tfds.builder_from_directory(folder)
    arrays = []
    for split in ("train", "test"):
        source = builder.as_data_source(split=split)
        images = np.empty((len(source), *builder.info.features["image"].shape), np.uint8)
        labels = np.empty(len(source), np.int32)
        with _quiet(), progress(f"decoding {name}, {split}", len(source), first="") as done:
            for i, example in enumerate(source):
                images[i], labels[i] = example["image"], example["label"]
                if i % 500 == 499:
                    done(500)
        arrays += [images, labels]
    return Data(name, builder.info.features["label"].num_classes, *arrays)


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
