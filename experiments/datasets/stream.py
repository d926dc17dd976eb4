"""Batches of images that are too many and too large for memory, decoded by grain's workers.

  examples = source("imagenet2012", "train")
  for images, labels in stream.training(examples, seed, epochs=90, batch=256, workers=16):
      x = normalise(recipe("imagenet2012"), images)

The iterators can be saved and restored with a checkpoint: ``get_state`` and ``set_state``.
"""

import functools
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
from absl import flags

# What random numbers are for. They are seeded by lists, whose numbers are mixed and not
# added; without these, image 0 would draw the numbers of the order: [2, 1] is [2, 1, 0].
_ORDER, _IMAGE = 1, 2

Examples = Sequence[dict[str, Any]]
Example = tuple[np.ndarray, np.int32]

# Of the area of an image and as width over height, the limits between which a random cut
# is drawn; the paper's code has these.
AREA, ASPECT = (0.2, 1.0), (3 / 4, 4 / 3)

# The share of the shorter side that is cut out of the middle of a held-out image: 224 of
# 256 pixels.
MIDDLE = 224 / 256

# Batches that a process decodes at once, a thread for each.
READ_AHEAD = 4


def training(
    examples: Examples,
    seed: int,
    *,
    epochs: int,
    batch: int,
    size: int = 224,
    workers: int = 0,
    part: tuple[int, int] = (0, 1),
):
    """Training images of all epochs: shuffled, cut out at random, resized and mirrored.

    The order of an epoch is a function of the seed and the epoch; what happens to an image
    one of the seed, the epoch and its index; neither depends on the workers. What does not
    fill the last batch of an epoch is left out.

    A departure from the paper's code, which changes the colours at random too.

    Args:
      examples: a split, from `experiments.datasets.load.source`.
      seed: of the training.
      epochs: how many, counted from 1.
      batch: images in a batch.
      size: height and width of the images returned.
      workers: processes that decode; 0 for threads of this one.
      part: ``(i, n)``: only the i-th of n equal parts of every batch, counted from 0, for
        the i-th of n hosts.

    Returns:
      An iterable of pairs: uint8 images of shape ``[batch / n, size, size, 3]``, int32
      labels.

    Raises:
      ImportError: if grain is not installed.
      ValueError: if one batch is more than the examples, or has no n equal parts.
    """
    if batch > len(examples):
        raise ValueError(f"`batch` is {batch}, more than the {len(examples)} examples.")
    own = _share(batch, part)
    used = len(examples) // batch * batch  # in each epoch
    example = functools.partial(_training_example, examples, seed, used, size)
    mine = functools.partial(_part_of_batch, example, batch, own, part[0])
    return _batches(mine, epochs * used // part[1], own, workers)


def held_out(
    examples: Examples,
    *,
    batch: int,
    size: int = 224,
    workers: int = 0,
    part: tuple[int, int] = (0, 1),
):
    """Every image once, in order: its middle, resized.

    Args:
      examples: a split, from `experiments.datasets.load.source`.
      batch: images in a batch. What is missing to fill the last one are images of zeros,
        of label -1.
      size: height and width of the images returned.
      workers: processes that decode; 0 for threads of this one.
      part: as for `training`.

    Returns:
      An iterable of pairs: uint8 images of shape ``[batch / n, size, size, 3]``, int32
      labels.

    Raises:
      ImportError: if grain is not installed.
      ValueError: if a batch has no n equal parts.
    """
    own = _share(batch, part)
    example = functools.partial(_held_out_example, examples, size)
    mine = functools.partial(_part_of_batch, example, batch, own, part[0])
    return _batches(mine, -(-len(examples) // batch) * own, own, workers)


def _share(batch: int, part: tuple[int, int]) -> int:
    if batch % part[1]:
        raise ValueError(f"`batch` is {batch}, which {part[1]} hosts cannot share evenly.")
    return batch // part[1]


def _part_of_batch(example, batch: int, own: int, host: int, place: int) -> Example:
    """The example at a place among those of a host, of whose batches each is a share."""
    number, within = divmod(place, own)
    return example(number * batch + host * own + within)


def _batches(example, count: int, batch: int, workers: int):
    try:
        import grain  # here, as it is an extra
    except ImportError:
        raise ImportError(
            "streams of images need grain: pip install 'grain>=0.2.13,<1'."
        ) from None
    # In batches before the work is shared out, so that no batch depends on the workers.
    dataset = grain.MapDataset.range(count).map(example).batch(batch)
    dataset = dataset.to_iter_dataset(grain.ReadOptions(READ_AHEAD, READ_AHEAD))
    if not workers:
        return dataset
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's workers read flags that absl's main sets
    return dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))


def _training_example(
    examples: Examples, seed: int, used: int, size: int, place: int
) -> Example:
    epoch, place = divmod(place, used)
    epoch += 1
    index = int(_order(seed, epoch, len(examples))[place])
    example = examples[index]
    draw = np.random.default_rng([_IMAGE, seed, epoch, index])
    image = _opened(example["image"])
    image = _resized(image, random_box(draw, *image.size), size)
    if draw.random() < 0.5:
        image = image[:, ::-1]
    return image, np.int32(example["label"])


def _held_out_example(examples: Examples, size: int, place: int) -> Example:
    if place >= len(examples):
        return np.zeros((size, size, 3), np.uint8), np.int32(-1)
    example = examples[place]
    image = _opened(example["image"])
    width, height = image.size
    side = MIDDLE * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = left, top, left + side, top + side
    return _resized(image, box, size), np.int32(example["label"])


# Two, as workers that run ahead ask for the next epoch before the last one is done.
@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([_ORDER, seed, epoch]).permutation(count)


def random_box(
    draw: np.random.Generator, width: int, height: int
) -> tuple[int, int, int, int]:
    """A rectangle in an image, of a random area and aspect within the limits.

    Args:
      draw: where the random numbers come from.
      width, height: of the image.

    Returns:
      Left, top, right and bottom, in pixels. After ten draws that do not fit, the largest
      rectangle in the middle whose aspect is allowed.

    References:
      Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6; the ten draws
      are torchvision's.
    """
    for _ in range(10):
        area = width * height * draw.uniform(*AREA)
        aspect = math.exp(draw.uniform(*map(math.log, ASPECT)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            break
    else:
        w, h = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h
    left, top = (int(draw.integers(0, n + 1)) for n in (width - w, height - h))
    return left, top, left + w, top + h


def _opened(encoded: bytes) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(encoded)).convert("RGB")


def _resized(image: PIL.Image.Image, box: tuple[float, ...], size: int) -> np.ndarray:
    return np.asarray(image.resize((size, size), PIL.Image.Resampling.BILINEAR, box=box))
