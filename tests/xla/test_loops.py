"""Functions with other convolutions in them are the same functions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from synflow_jax.xla.backends import ANYWHERE, Backend
from synflow_jax.xla.loops import fit_for_loops
from tests import nets


class Network(nn.Module):
    """Convolutions with strides, groups and bias, by themselves and inside a scan."""

    @nn.compact
    def __call__(self, x):
        x = jax.nn.relu(nn.Conv(4, (3, 3), strides=2, name="a")(x))
        x = jax.nn.gelu(nn.Conv(4, (3, 3), feature_group_count=2, name="b")(x))
        kernel = self.param("c", nn.initializers.he_normal(), (3, 3, 4, 4))

        def again(x, _):
            numbers = ("NHWC", "HWIO", "NHWC")
            y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", None, None, numbers)
            return jnp.tanh(y), None

        x, _ = lax.scan(again, x, length=2)
        return nn.Dense(3)(x.mean((1, 2)))


CPU = Backend(cpu=True, one_device=True)
NETWORK = Network()
X = jax.random.normal(jax.random.key(0), (4, 8, 8, 2))
PARAMS = NETWORK.init(jax.random.key(1), X)


def loss(params, x):
    return jnp.square(jax.jit(NETWORK.apply)(params, x)).sum()


def products(function):
    """The Hessian times the gradient."""
    gradient = jax.grad(lambda params: function(params, X))
    return jax.jvp(gradient, (PARAMS,), (gradient(PARAMS),))[1]


def test_convolutions_are_replaced_and_those_in_loops_are_not():
    jaxpr = str(jax.make_jaxpr(fit_for_loops(CPU, loss))(PARAMS, X))
    assert jaxpr.count("custom_jvp_call[") >= 3  # two convolutions and relu
    assert jaxpr.count("conv_general_dilated[") == 3


def test_elsewhere_convolutions_stay_as_they_are():
    jaxpr = str(jax.make_jaxpr(fit_for_loops(ANYWHERE, loss))(PARAMS, X))
    assert jaxpr.count("custom_jvp_call[") == 1  # relu
    assert jaxpr.count("conv_general_dilated[") == 3


def test_values_gradients_and_products_with_the_hessian_are_the_same():
    fitted = fit_for_loops(CPU, loss)
    nets.assert_close(fitted(PARAMS, X), loss(PARAMS, X))
    for of in (lambda f: jax.grad(f)(PARAMS, X), products):
        got, want = jax.jit(lambda of=of: (of(fitted), of(loss)))()
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
            assert jnp.allclose(g, w, rtol=1e-4, atol=1e-5 * float(abs(w).max()))


def test_it_can_be_mapped_over_parameters():
    batch = jax.tree.map(lambda p: jnp.stack([p, -p]), PARAMS)
    got = jax.vmap(fit_for_loops(CPU, loss), in_axes=(0, None))(batch, X)
    nets.assert_close(got, jax.vmap(loss, in_axes=(0, None))(batch, X))
