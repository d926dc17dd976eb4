"""The standard archives of the data sets, read without TensorFlow.

tensorflow-datasets knows these data sets, all but Tiny ImageNet, and needs TensorFlow to
read their archives. What its builders make of them is made here: the same keys, features,
ids and pixels.
"""

import contextlib
import gzip
import io
import os
import pathlib
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

Name = Literal[
    "cifar10", "cifar100", "fashion_mnist", "imagenet2012", "mnist", "tiny_imagenet"
]


class File(NamedTuple):
    """An archive to get.

    Attributes:
      name: what it must be called.
      url: where it comes from.
      checksum: an algorithm of `hashlib`, a colon and the digest.
    """

    name: str
    url: str
    checksum: str


class Split(NamedTuple):
    """The examples of one split.

    Attributes:
      keys: a name or number for each, by which tensorflow-datasets orders them.
      size: bytes of all images before they are written.
      example: the features of the example at a place.
    """

    keys: Sequence[str | int]
    size: int
    example: Callable[[int], dict[str, Any]]


# Takes the folder with the archives and the features, whose label names it sets.
Reader = Callable[
    [pathlib.Path, tfds.features.FeaturesDict],
    contextlib.AbstractContextManager[dict[str, Split]],
]


def files(name: Name) -> tuple[File, ...]:
    """The archives of a data set, with the checksums that tensorflow-datasets expects."""
    if name == "tiny_imagenet":
        # tensorflow-datasets has no Tiny ImageNet; this is the checksum in common use.
        checksum = "md5:90528d7ca1a48142e341f4ef8d21d0de"
        url = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
        return (File("tiny-imagenet-200.zip", url, checksum),)
    return tuple(
        File(url.rsplit("/", 1)[1], url, f"sha256:{about.checksum}")
        for url, about in sorted(tfds.builder_cls(name).url_infos.items())
    )


def where(name: Name) -> str:
    """The archives of a data set and where to get them, in words."""
    wanted = files(name)
    names = ", ".join(file.name for file in wanted)
    if name == "imagenet2012":  # its addresses are given to those who register
        return f"{names} from https://image-net.org/download-images"
    folder, last = wanted[0].url.rsplit("/", 1)
    return f"{names} from {folder}/{last if len(wanted) == 1 else ''}"


def info(name: Name, data_dir: str | os.PathLike) -> tfds.core.DatasetInfo:
    """What describes a data set to tensorflow-datasets, its splits not yet known.

    Args:
      name: the data set.
      data_dir: where prepared data sets lie; ``info.data_dir`` is the folder in it.
    """
    if name == "tiny_imagenet":
        return _tiny_imagenet_info(pathlib.Path(data_dir))
    builder = tfds.builder(name, data_dir=data_dir)
    # Afresh: the builder's own may have been read from an earlier copy.
    return tfds.core.DatasetInfo(
        builder=builder,
        description=builder.info.description,
        features=builder.info.features,
        supervised_keys=builder.info.supervised_keys,
        homepage=builder.info.homepage,
        citation=builder.info.citation,
    )


def opened(
    name: Name, folder: pathlib.Path, features: tfds.features.FeaturesDict
) -> contextlib.AbstractContextManager[dict[str, Split]]:
    """The splits of a data set, readable while its archives are open.

    Args:
      name: the data set.
      folder: holds its archives.
      features: of `info`; they are given the names of the labels.
    """
    return _READERS[name](folder, features)


def _cifar(archive: str, train: Sequence[str], test: str, labels: dict[str, str]) -> Reader:
    """The archive of the binary version: a record is the labels, then the pixels."""

    @contextlib.contextmanager
    def read(folder, features):
        with tarfile.open(folder / archive, "r:gz") as tar:
            members = {
                os.path.basename(member.name): tar.extractfile(member).read()
                for member in tar
                if member.isfile()
            }
        for label, names in labels.items():
            features[label].names = members[names].decode().split()
        yield {
            "train": split("train", b"".join(members[name] for name in train)),
            "test": split("test", members[test]),
        }

    def split(name, data):
        records = np.frombuffer(data, np.uint8).reshape(-1, len(labels) + 3 * 32 * 32)

        def example(i):
            pixels = records[i, len(labels) :].reshape(3, 32, 32).transpose(1, 2, 0)
            return {
                "id": f"{name}_{i:05d}",
                "image": PIL.Image.fromarray(np.ascontiguousarray(pixels)),
                **{label: int(records[i, at]) for at, label in enumerate(labels)},
            }

        return Split(range(len(records)), len(data), example)

    return read


@contextlib.contextmanager
def _mnist(folder, features):
    """Four files, each an array after a head that gives its shape."""
    del features

    def array(name):
        with gzip.open(folder / name) as file:
            data = file.read()
        axes = data[3]
        shape = np.frombuffer(data, ">u4", axes, offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)

    def split(prefix):
        images = array(f"{prefix}-images-idx3-ubyte.gz")
        labels = array(f"{prefix}-labels-idx1-ubyte.gz")

        def example(i):
            return {"image": PIL.Image.fromarray(images[i]), "label": int(labels[i])}

        return Split(range(len(labels)), images.nbytes, example)

    yield {"train": split("train"), "test": split("t10k")}


def _tiny_imagenet_info(data_dir: pathlib.Path) -> tfds.core.DatasetInfo:
    version = tfds.core.Version("1.0.0")
    builder = tfds.core.DatasetIdentity(
        name="tiny_imagenet",
        version=version,
        data_dir=os.fspath(data_dir / "tiny_imagenet" / str(version)),
        module_name=__name__,
    )
    features = {
        "image": tfds.features.Image(shape=(64, 64, 3), encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(num_classes=200),
    }
    return tfds.core.DatasetInfo(
        builder=builder,
        description="Tiny ImageNet: 200 classes of ImageNet at 64x64 pixels, 500 training "
        "and 50 validation images of each.",
        features=tfds.features.FeaturesDict(features),
        supervised_keys=("image", "label"),
        homepage="http://cs231n.stanford.edu/",
    )


@contextlib.contextmanager
def _tiny_imagenet(folder, features):
    """Labels are numbered in the order of their WordNet names; test images have none."""
    root = "tiny-imagenet-200"
    with zipfile.ZipFile(folder / f"{root}.zip") as archive:
        features["label"].names = sorted(archive.read(f"{root}/wnids.txt").decode().split())
        lines = archive.read(f"{root}/val/val_annotations.txt").decode().splitlines()
        label_of = dict(line.split("\t")[:2] for line in lines)
        parts = {"train": ([], []), "validation": ([], [])}
        for path in archive.namelist():
            match path.split("/")[1:]:
                case ["train", label, "images", image] if image:
                    images, labels = parts["train"]
                case ["val", "images", image] if image:
                    (images, labels), label = parts["validation"], label_of[image]
                case _:
                    continue
            images.append(path)
            labels.append(label)

        def split(images, labels):
            def example(i):
                return {"image": archive.read(images[i]), "label": labels[i]}

            size = sum(archive.getinfo(path).file_size for path in images)
            return Split([os.path.basename(path) for path in images], size, example)

        yield {name: split(*part) for name, part in parts.items()}


@contextlib.contextmanager
def _imagenet2012(folder, features):
    """An archive of one archive a class, and one of the validation images.

    Nothing is unpacked and nothing but the places of the images is kept in memory.
    """
    del features
    names = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    validation_labels = names.read_text().split()  # in the order of the images' numbers

    def split(file, images):
        keys, labels, offsets, sizes = zip(*images)

        def example(i):
            file.seek(offsets[i])
            image = _without_cmyk(file.read(sizes[i]))
            return {"file_name": keys[i], "image": image, "label": labels[i]}

        return Split(keys, sum(sizes), example)

    def train(file):
        for archive, start, _ in list(_members(file)):
            label = archive.removesuffix(".tar")
            for image, offset, size in _members(file, start):
                yield image, label, offset, size

    def validation(file):
        for image, offset, size in _members(file):
            number = int(image.removesuffix(".JPEG").rsplit("_", 1)[1])
            yield image, validation_labels[number - 1], offset, size

    with (
        open(folder / "ILSVRC2012_img_train.tar", "rb") as train_file,
        open(folder / "ILSVRC2012_img_val.tar", "rb") as validation_file,
    ):
        yield {
            "train": split(train_file, train(train_file)),
            "validation": split(validation_file, validation(validation_file)),
        }


def _members(file: io.BufferedReader, start: int = 0) -> Iterator[tuple[str, int, int]]:
    """Name, offset in the file and size of all that a plain tar archive in it holds."""
    file.seek(start)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.isfile():
                yield os.path.basename(member.name), member.offset_data, member.size


def _without_cmyk(image: bytes) -> bytes:
    """The image as it is; if its colours are those of print, in RGB without further loss.

    A departure from tensorflow-datasets, which writes these 22 images of ImageNet as JPEG.
    """
    with PIL.Image.open(io.BytesIO(image)) as picture:
        if picture.mode != "CMYK":
            return image
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, format="png")
        return buffer.getvalue()


_READERS: dict[str, Reader] = {
    "cifar10": _cifar(
        "cifar-10-binary.tar.gz",
        train=[f"data_batch_{i}.bin" for i in range(1, 6)],
        test="test_batch.bin",
        labels={"label": "batches.meta.txt"},
    ),
    "cifar100": _cifar(
        "cifar-100-binary.tar.gz",
        train=["train.bin"],
        test="test.bin",
        labels={"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
    ),
    "fashion_mnist": _mnist,
    "imagenet2012": _imagenet2012,
    "mnist": _mnist,
    "tiny_imagenet": _tiny_imagenet,
}
