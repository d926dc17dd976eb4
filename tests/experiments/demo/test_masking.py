"""What a sweep over methods and densities says of the masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.demo import masking

pytestmark = pytest.mark.usefixtures("standard_promotion")


def linear(params, x):
    return x @ params["one"]["kernel"] @ params["two"]["kernel"]


def test_a_sweep_reports_the_flow_and_the_layers():
    params = {
        "one": {"kernel": jnp.array([[2.0, 3.0], [5.0, 7.0]])},
        "two": {"kernel": jnp.array([[0.1], [0.2]])},
    }
    targets = [masking.Target("magnitude", 0.5, "a"), masking.one_weight_a_layer(params)]
    swept = masking.sweep("net", linear, params, (2,), targets, 4, jax.random.key(0))
    (magnitude, masks), (synflow, _) = swept
    np.testing.assert_allclose(10 ** magnitude["log10_flow_before"], 2.7, rtol=1e-5)
    assert magnitude["layers"] == [["one", 3, 4], ["two", 0, 2]]
    assert magnitude["collapsed"] == ["two"] and magnitude["log10_flow"] is None
    assert magnitude["rounds"] == 1 and magnitude["k"] == 3
    np.testing.assert_array_equal(masks["one"]["kernel"], [[False, True], [True, True]])
    # One weight a layer: the strongest path, 7 times 0.2.
    assert synflow["label"] == "N/L" and synflow["kept"] == 2 and synflow["rounds"] == 4
    np.testing.assert_allclose(10 ** synflow["log10_flow"], 1.4, rtol=1e-5)
