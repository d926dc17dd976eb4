"""Streams of images: shuffled, cut, shared among hosts, and restored."""

import functools
import sys

import jax
import numpy as np
import pytest

from experiments.datasets import stream
from tests.experiments.datasets.made import encoded, noise


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
