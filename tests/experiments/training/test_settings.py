"""How a network is trained: the paper's settings and the learning rate."""

import numpy as np
import pytest

from experiments.training.settings import Settings, learning_rates, paper_settings
from synflow_jax import models


@pytest.mark.parametrize(
    "network, dataset, epochs, learning_rate, drops, factor, weight_decay",
    [
        ("vgg11_cifar", "cifar10", 160, 0.1, (60, 120), 0.1, 1e-4),
        ("vgg16_cifar", "cifar100", 160, 0.1, (60, 120), 0.1, 1e-4),
        ("resnet18", "cifar10", 160, 0.01, (60, 120), 0.2, 5e-4),
        ("wide_resnet18", "cifar100", 160, 0.01, (60, 120), 0.2, 5e-4),
        ("vgg11_tiny", "tiny_imagenet", 100, 0.01, (30, 60, 80), 0.1, 1e-4),
        ("vgg16_tiny", "tiny_imagenet", 100, 0.01, (30, 60, 80), 0.1, 1e-4),
        ("resnet18_tiny", "tiny_imagenet", 100, 0.01, (30, 60, 80), 0.1, 1e-4),
        ("wide_resnet18_tiny", "tiny_imagenet", 100, 0.01, (30, 60, 80), 0.1, 1e-4),
    ],
)
def test_the_settings_of_the_paper(
    network, dataset, epochs, learning_rate, drops, factor, weight_decay
):
    assert network in models.NETWORKS
    assert paper_settings(network, dataset) == Settings(
        epochs=epochs,
        batch=128,
        learning_rate=learning_rate,
        decay="drops",
        drops=drops,
        factor=factor,
        momentum=0.9,
        weight_decay=weight_decay,
        augment=True,
        precision="float32",
    )


@pytest.mark.parametrize(
    "network, dataset",
    [
        ("vgg16_cifar", "mnist"),
        ("vgg16_imagenet", "imagenet2012"),
        ("mlp", "cifar10"),
        ("resnet20", "cifar10"),
        ("vgg19_cifar", "cifar100"),
    ],
)
def test_a_pair_that_the_paper_lacks_is_refused(network, dataset):
    with pytest.raises(ValueError, match=f"the paper does not train {network} on"):
        paper_settings(network, dataset)


def test_the_learning_rate_drops_after_its_epochs():
    settings = Settings(learning_rate=0.5, drops=(2, 3), factor=0.1)
    rates = learning_rates(settings, 5)
    got = [float(rates(step)) for step in range(20)]
    np.testing.assert_allclose(got, [0.5] * 10 + [0.05] * 5 + [0.005] * 5, rtol=1e-6)


@pytest.mark.parametrize("epochs, steps", [(1, 1), (1, 7), (5, 20)])
def test_the_cosine_warms_up_and_neither_end_is_zero(epochs, steps):
    settings = Settings(epochs=epochs, learning_rate=0.5, decay="cosine")
    rates = learning_rates(settings, steps)
    got = np.array([float(rates(step)) for step in range(epochs * steps)])
    warmup = 1 + epochs * steps // 10
    assert np.all(got > 0) and np.all(got <= 0.5)
    assert np.all(np.diff(got[: warmup + 1]) > 0) and np.all(np.diff(got[warmup:]) < 0)
    if len(got) > warmup:
        np.testing.assert_allclose(got[warmup], 0.5)
        assert got[-1] < 0.5 / 2
