"""A data set written for tensorflow-datasets, without TensorFlow, from its archives."""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import tensorflow_datasets as tfds

from experiments.datasets import archives
from experiments.harness.console import progress, say

# A data set of more bytes is written in several shards, which a second attempt need not
# write again: ImageNet in about 550.
SHARD_BYTES = 256 << 20


class Shard(NamedTuple):
    """A file of a data set.

    Attributes:
      path: where it lies when it is finished.
      places: of its examples in the split, in order.
    """

    path: pathlib.Path
    places: Sequence[int]


def prepare(
    name: archives.Name,
    manual_dir: str | os.PathLike,
    data_dir: str | os.PathLike,
    *,
    checksums: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> pathlib.Path:
    """Writes a data set so that ``tfds.data_source(name, data_dir=...)`` reads it.

    The examples come in the order that tensorflow-datasets gives them. The data set appears
    under its name when it is whole, in one step. An attempt that ends early leaves nothing,
    or, of a data set of several shards, the finished ones in a hidden folder: the next
    attempt goes on from there. One attempt at a time, please.

    Args:
      name: the data set.
      manual_dir: the folder with its archives, under their usual names.
      data_dir: where prepared data sets lie.
      checksums: for each archive, instead of those of the real one: an algorithm of
        `hashlib`, a colon and the digest.
      shard_bytes: roughly the largest size of one file.

    Returns:
      The folder of the data set. If it is there already, nothing else is done.

    Raises:
      FileNotFoundError: if an archive is not there, in one line that says where to get it.
      FileExistsError: if the data set is there in a format that needs TensorFlow.
      ValueError: if an archive has another checksum.
    """
    manual_dir = pathlib.Path(manual_dir).expanduser()
    info = archives.info(name, pathlib.Path(data_dir).expanduser())
    folder = pathlib.Path(info.data_dir)
    if folder.exists():
        return _already_there(folder)
    _check(name, manual_dir, checksums)
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD, override=True)
    # Hidden, and no version's name: nothing takes it for a data set.
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    with archives.opened(name, manual_dir, info.features) as splits:
        plan = {
            split: _shards(info, unfinished, split, examples, shard_bytes)
            for split, examples in splits.items()
        }
        with _left_tidy(unfinished, list(plan.values())):
            for split, shards in plan.items():
                _write(info, split, splits[split], shards)
            infos = [
                _split_info(info, unfinished, split, shards)
                for split, shards in plan.items()
            ]
            info.set_splits(tfds.core.SplitDict(infos))
            info.write_to_directory(unfinished)
            unfinished.rename(folder)
    counts = [f"{len(split.keys):,} {part}" for part, split in splits.items()]
    say(f"{name}: {' and '.join(counts)} images in {folder}")
    return folder


def _already_there(folder: pathlib.Path) -> pathlib.Path:
    found = tfds.builder_from_directory(folder).info.file_format
    if found is not tfds.core.FileFormat.ARRAY_RECORD:
        raise FileExistsError(
            f"{os.fspath(folder)!r} holds the data set as {found.value}, which needs "
            "TensorFlow to be read; name another --data_dir."
        )
    say(f"{folder} is there already")
    return folder


def _check(
    name: archives.Name, folder: pathlib.Path, checksums: Mapping[str, str] | None
) -> None:
    """Raises unless every archive is there with its checksum."""
    wanted = {file.name: file.checksum for file in archives.files(name)} | dict(
        checksums or {}
    )
    missing = [file for file in wanted if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{os.fspath(folder)!r} lacks {', '.join(missing)}; get "
            f"{archives.where(name)} (`curl -C - -O` goes on with an interrupted download)."
        )
    for file, checksum in wanted.items():
        algorithm = checksum.split(":")[0]
        found = f"{algorithm}:{_digest(folder / file, algorithm)}"
        if found != checksum:
            raise ValueError(
                f"{os.fspath(folder / file)!r} is not the archive of {name}, or not all of "
                f"it: its checksum is {found} and should be {checksum}."
            )


def _digest(path: pathlib.Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm)
    mebibytes = path.stat().st_size >> 20
    with (
        open(path, "rb") as file,
        progress(f"checking {path.name} (MiB)", mebibytes, first="") as done,
    ):
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            done(1)
    return digest.hexdigest()


def _shards(
    info: tfds.core.DatasetInfo,
    folder: pathlib.Path,
    split: str,
    examples: archives.Split,
    shard_bytes: int,
) -> list[Shard]:
    """The files of a split, the examples dealt out in the order of tensorflow-datasets."""

    def rank(place: int) -> bytes:
        return hashlib.md5(f"{split}{examples.keys[place]}".encode()).digest()

    count = len(examples.keys)
    order = sorted(range(count), key=rank)
    shards = min(count, max(1, -(-examples.size // shard_bytes)))
    template = _template(info, folder, split)
    return [
        Shard(
            pathlib.Path(template.sharded_filepath(shard_index=i, num_shards=shards)),
            order[count * i // shards : count * (i + 1) // shards],
        )
        for i in range(shards)
    ]


def _template(
    info: tfds.core.DatasetInfo, folder: pathlib.Path, split: str
) -> tfds.core.ShardedFileTemplate:
    return tfds.core.ShardedFileTemplate(
        data_dir=tfds.core.Path(folder),
        dataset_name=info.name,
        split=split,
        filetype_suffix="array_record",
    )


@contextlib.contextmanager
def _left_tidy(folder: pathlib.Path, splits: Sequence[Sequence[Shard]]) -> Iterator[None]:
    """Leaves nothing of an unfinished data set, or its finished shards only."""
    shards = [shard for split in splits for shard in split]
    lasting = {shard.path for shard in shards} if len(shards) > len(splits) else set()

    def tidied() -> int:
        """Removes all but the finished shards; the number of these."""
        for path in set(folder.iterdir()) - lasting:
            path.unlink()
        return len(list(folder.iterdir()))

    folder.mkdir(parents=True, exist_ok=True)
    tidied()  # an earlier attempt may have been killed
    try:
        yield
    except BaseException:  # an interruption too
        if finished := tidied():
            say(
                f"unfinished: {finished} of {len(shards)} shards are kept in {folder}, and "
                "the same command goes on from there"
            )
        else:
            folder.rmdir()
            with contextlib.suppress(OSError):  # other versions of the data set
                folder.parent.rmdir()
        raise


def _write(
    info: tfds.core.DatasetInfo,
    split: str,
    examples: archives.Split,
    shards: Sequence[Shard],
) -> None:
    """Writes the shards that an earlier attempt has not."""
    writer = tfds.core.ExampleWriter(info.file_format)
    with progress(f"writing {info.name}, {split}", len(examples.keys), first="") as done:
        for path, places in shards:
            if path.exists():
                done(len(places))
                continue

            def serialized(places=places):
                for place in places:
                    yield place, info.features.serialize_example(examples.example(place))
                    done(1)

            unfinished = path.with_name(path.name + ".unfinished")
            writer.write(unfinished, serialized())
            unfinished.rename(path)


def _split_info(
    info: tfds.core.DatasetInfo,
    folder: pathlib.Path,
    split: str,
    shards: Sequence[Shard],
) -> tfds.core.SplitInfo:
    return tfds.core.SplitInfo(
        name=split,
        shard_lengths=[len(shard.places) for shard in shards],
        num_bytes=sum(shard.path.stat().st_size for shard in shards),
        filename_template=_template(info, folder, split),
    )
