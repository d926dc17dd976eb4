"""Images as a network is trained on them: shuffled, moved and scaled, on the device."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8


class Recipe(NamedTuple):
    """What is done to the images of a data set.

    Attributes:
      mean, std: of each channel over the training images, on a scale from 0 to 1.
      padding: black pixels put around a training image before a part of its own size is
        cut out; 0 leaves it where it is.
      flips: whether every second training image, by chance, is mirrored left to right.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int = 0
    flips: bool = False


# The settings of the paper's code. Those of Fashion-MNIST and of the digits, which it does
# not have, are measured over their training images.
_RECIPES = {
    "cifar10": Recipe((0.491, 0.482, 0.447), (0.247, 0.243, 0.262), 4, True),
    "cifar100": Recipe((0.507, 0.487, 0.441), (0.267, 0.256, 0.276), 4, True),
    "tiny_imagenet": Recipe((0.480, 0.448, 0.397), (0.276, 0.269, 0.282), 4, True),
    "imagenet2012": Recipe((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mnist": Recipe((0.1307,), (0.3081,)),
    "fashion_mnist": Recipe((0.2860,), (0.3530,)),
    "digits": Recipe((0.2869,), (0.3538,)),
}

# What a part of a data set is a part of.
_WHOLE = {
    "cifar10_20k": "cifar10",
    "cifar100_10k": "cifar100",
    "tiny_imagenet_10k": "tiny_imagenet",
}

# The key of an epoch is split in two, its children 0 and 1, when it orders the images. This
# child is another one, so that no image uses the random numbers of the order.
_MOVES = 2


def recipe(name: str) -> Recipe:
    """The recipe of a data set; a part of one is treated as the whole is.

    The random cuts and mirrorings of imagenet2012 are made where its images are decoded,
    in `experiments.datasets.stream`; its recipe only scales.

    Raises:
      ValueError: if there is no such data set.

    Example:
      >>> recipe("mnist")
      Recipe(mean=(0.1307,), std=(0.3081,), padding=0, flips=False)
    """
    whole = _WHOLE.get(name, name)
    if whole not in _RECIPES:
        known = ", ".join([*_RECIPES, *_WHOLE])
        raise ValueError(f"`name` is {name!r}; the data sets with a recipe are {known}.")
    return _RECIPES[whole]


def order(seed: int, epoch: int, images: int) -> Int[Array, " images"]:
    """The order of the training images, a function of the seed and the epoch alone.

    Args:
      seed: of the training.
      epoch: which pass over the images.
      images: how many there are.

    Returns:
      Each number from 0 to ``images - 1`` once.
    """
    return jax.random.permutation(_epoch_key(seed, epoch), images)


@functools.partial(jax.jit, static_argnames="recipe")
def augment(
    recipe: Recipe,
    images: UInt8[Array, "batch height width channels"],
    seed: int | Int[Array, ""],
    epoch: int | Int[Array, ""],
    index: Int[Array, " batch"],
) -> UInt8[Array, "batch height width channels"]:
    """Moves and mirrors training images at random.

    What happens to an image is a function of the seed, the epoch and its index: it does not
    depend on its batch. The pixels around an image are black, that is 0 before scaling,
    as in the paper's code.

    Args:
      recipe: how far, and whether to mirror.
      images: 0 to 255.
      seed: of the training.
      epoch: which pass over the images.
      index: the place of each image in the training set.

    Returns:
      Images of the same shape, 0 to 255.
    """
    key = jax.random.fold_in(_epoch_key(seed, epoch), _MOVES)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(index)
    return jax.vmap(functools.partial(_augment_one, recipe))(keys, images)


def _augment_one(
    recipe: Recipe, key: Key[Array, ""], image: UInt8[Array, "height width channels"]
) -> UInt8[Array, "height width channels"]:
    place_key, flip_key = jax.random.split(key)
    if recipe.padding:
        margin = recipe.padding
        padded = jnp.pad(image, ((margin, margin), (margin, margin), (0, 0)))
        top, left = jax.random.randint(place_key, (2,), 0, 2 * margin + 1)
        image = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
    if recipe.flips:
        image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
    return image


@functools.partial(jax.jit, static_argnames="recipe")
def normalise(
    recipe: Recipe, images: UInt8[Array, "batch height width channels"]
) -> Float[Array, "batch height width channels"]:
    """Scales images so that each channel of the training set has mean 0 and deviation 1.

    Args:
      recipe: the mean and the deviation.
      images: 0 to 255.

    Returns:
      float32 images of the same shape.
    """
    mean = 255 * jnp.array(recipe.mean, jnp.float32).reshape(1, 1, 1, -1)
    std = 255 * jnp.array(recipe.std, jnp.float32).reshape(1, 1, 1, -1)
    return (images.astype(jnp.float32) - mean) / std


@functools.partial(jax.jit, static_argnames="recipe")
def batch(
    recipe: Recipe,
    images: UInt8[Array, "n height width channels"],
    seed: int | Int[Array, ""],
    epoch: int | Int[Array, ""],
    index: Int[Array, " batch"],
) -> Float[Array, "batch height width channels"]:
    """The training images that ``index`` names, augmented and scaled.

    Args:
      recipe: how.
      images: the whole training set on the device, 0 to 255.
      seed: of the training.
      epoch: which pass over the images.
      index: places in ``images``.

    Returns:
      float32 images.
    """
    return normalise(recipe, augment(recipe, images[index], seed, epoch, index))


def _epoch_key(seed: int, epoch: int) -> Key[Array, ""]:
    # By name: other generators give each image numbers that depend on its batch.
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), epoch)
