"""Equal positions computed once, in double precision."""

import jax
import jax.numpy as jnp
import pytest

from tests.transform import test_classes as classes


@pytest.mark.parametrize(
    "name", ["strides", "dilations", "transposed convolutions", "U-Net", "volumes"]
)
def test_scores_are_those_of_the_whole_flow_to_twelve_digits(name):
    shapes, shape, network = classes.NETWORKS[name]
    params = jax.tree.map(lambda x: x.astype(jnp.float64), classes.drawn(shapes))
    classes.agree(network, params, shape, 1e-12)
