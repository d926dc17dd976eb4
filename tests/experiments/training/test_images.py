"""Images on the device: ordered, moved at random and scaled."""

import doctest
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training import images
from tests.experiments.datasets.made import noise

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
