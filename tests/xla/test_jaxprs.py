"""Jaxprs are read in the same way whatever the version of JAX."""

import types

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import synflow_jax as sj
from synflow_jax.xla import jaxprs as jaxprs


def scan_equation():
    """A scan with two constants and one carried value."""

    def network(weights, scale, xs):
        return lax.scan(lambda x, y: (scale * x @ weights + y, x), xs[0], xs)

    traced = jax.make_jaxpr(network)(jnp.ones((2, 2)), 2.0, jnp.ones((3, 2)))
    (equation,) = (e for e in traced.jaxpr.eqns if e.primitive.name == "scan")
    return equation


def groups(*lengths):
    return types.SimpleNamespace(unpack=lambda: [(None,) * n for n in lengths])


@pytest.mark.parametrize(
    "form",
    [
        None,  # of the JAX that is installed
        {"num_consts": 2, "num_carry": 1, "length": 3},  # up to 0.10
        {"ft_in": groups(2, 1, 1), "length": 3},  # from 0.11 on
    ],
    ids=["installed", "numbers", "groups"],
)
def test_the_operands_of_a_scan_are_counted_in_every_form(form):
    equation = scan_equation()
    if form is not None:
        equation = equation.replace(params=form)
    params = jaxprs.parameters(equation)
    assert (params["num_consts"], params["num_carry"], params["length"]) == (2, 1, 3)


@pytest.mark.parametrize("form", [{"other": 1}, {"ft_in": (1, 2)}, {"ft_in": groups(1)}])
def test_a_form_that_is_not_known_is_a_flow_error_with_the_version(form):
    params = jaxprs.parameters(scan_equation().replace(params=form))
    message = rf"`scan`, called at .*test_jaxprs.*`num_carry` in JAX {jax.__version__}"
    with pytest.raises(sj.FlowError, match=message):
        params["num_carry"]


def test_a_jaxpr_is_evaluated_as_it_is_written():
    @jax.jit
    def inner(x):
        return jnp.sin(x) * jnp.arange(3.0)

    def function(x, y):
        return inner(x) + y, y, 2.0

    traced = jax.make_jaxpr(function)(jnp.ones(3), jnp.ones(3))
    args = [jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 5.0, 6.0])]

    def step(equation, operands):
        names.append(equation.primitive.name)
        if equation.primitive.name in ("jit", "pjit"):
            inside = jaxprs.opened(jaxprs.called(jaxprs.parameters(equation)))
            return jaxprs.evaluate(*inside, operands, step)
        return jaxprs.bind(equation, operands)

    names = []
    got = jaxprs.evaluate(traced.jaxpr, traced.consts, args, step)
    for value, want in zip(got, function(*args), strict=True):
        assert jnp.array_equal(value, want)
    assert "sin" in names and "add" in names
