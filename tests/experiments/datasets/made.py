"""Data sets as others make them: archives of the real layout, and tfds folders."""

import gzip
import hashlib
import io
import struct
import tarfile
import zipfile

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from experiments.datasets import archives, preparation


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


def contents(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def prepared_from(manual, root, name="cifar10", **settings):
    return preparation.prepare(name, manual, root, checksums=checksums(manual), **settings)
