"""Arrays that a function closes over become its arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synflow_jax.xla.constants import hoisted

DATA = jnp.asarray(np.random.default_rng(0).standard_normal((40, 40)), jnp.float32)


def plain(x):
    return {"y": x @ DATA, "z": DATA.sum()}


@jax.jit
def jitted(x):
    return {"y": jax.jit(lambda x: x @ DATA)(x), "z": jax.jit(jnp.sum)(DATA)}


def twice(x):
    inner = jax.jit(lambda x: x @ DATA)
    return {"y": inner(x), "z": inner(x).sum()}


@jax.jit
def nested(x):
    """Only the inner function holds a constant."""
    y = jax.jit(lambda x: x @ DATA)(x)
    return {"y": y, "z": y.sum()}


@jax.jit
def matmul(x):
    return x @ DATA


def in_scan(x):
    return {"y": jax.lax.scan(lambda _, row: ((), matmul(row)), (), x)[1]}


def in_while(x):
    def grows(carry):
        i, x = carry
        return (i < 1) & (matmul(x).sum() < 1e9)

    def body(carry):
        i, x = carry
        return i + 1, matmul(x)

    return {"y": jax.lax.while_loop(grows, body, (0, x))[1]}


def in_cond(x):
    return {"y": jax.lax.cond(x.sum() > 0, matmul, jnp.negative, x)}


def in_switch(x):
    branches = [jnp.negative, jnp.abs, matmul]
    return {"y": jax.lax.switch(1 + jnp.int32(x.sum() > 0), branches, x)}


def in_checkpoint(x):
    return {"y": jax.checkpoint(lambda x: matmul(x))(x)}


def in_all_of_them(x):
    def step(x, _):
        return jax.checkpoint(lambda x: jax.lax.cond(True, matmul, lambda x: x, x))(x), ()

    return {"y": jax.jit(lambda x: jax.lax.scan(step, x, length=1)[0])(x)}


INSIDE = [in_scan, in_while, in_cond, in_switch, in_checkpoint, in_all_of_them]


@pytest.mark.parametrize("function", [plain, jitted, twice, nested, *INSIDE])
def test_constants_come_out_wherever_they_are(function):
    x = jnp.ones((3, 40))
    pure, constants = hoisted(function, x)
    assert {constant.shape for constant in constants} >= {(40, 40)}
    # In a program's text a large constant is a line of hexadecimal digits.
    assert '"0x' in jax.jit(function).lower(x).as_text()
    assert '"0x' not in jax.jit(pure).lower(constants, x).as_text()
    want = function(x)
    got = pure(constants, x)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5)
    other = pure([2 * c if c.shape == (40, 40) else c for c in constants], x)
    np.testing.assert_allclose(other["y"], 2 * want["y"], rtol=1e-5, atol=1e-5)


def test_functions_are_equal_with_equal_types_only():
    pure, _ = hoisted(plain, jnp.ones((3, 40)))
    assert pure == hoisted(plain, jnp.zeros((3, 40)))[0]
    assert pure != hoisted(plain, jnp.ones((4, 40)))[0]
    assert pure != hoisted(lambda x: plain(x), jnp.ones((3, 40)))[0]


def test_it_is_traced_once():
    traces = []

    def function(x):
        traces.append(1)
        return x @ DATA

    shape = jax.ShapeDtypeStruct((3, 40), jnp.float32)
    for _ in range(3):
        hoisted(function, shape)
    assert len(traces) == 1


def test_under_a_transformation_constants_may_be_traced():
    def of(data, x):
        pure, constants = hoisted(lambda x: x @ data, x)
        return pure(constants, x)

    batch = jnp.stack([DATA, -DATA])
    x = jnp.ones((3, 40))
    got = jax.vmap(of, in_axes=(0, None))(batch, x)
    np.testing.assert_allclose(got, jnp.stack([x @ DATA, -x @ DATA]), rtol=1e-4, atol=1e-5)


def test_other_types_than_those_of_the_trace_are_an_error():
    pure, constants = hoisted(plain, jnp.ones((3, 40)))
    with pytest.raises(ValueError, match="traced for arguments of the types"):
        pure(constants, jnp.ones((3, 40), jnp.bfloat16))


def test_functions_with_one_key_are_equal_while_their_programs_are():
    one, other, third = (
        hoisted(lambda x, c=c: c * x, jnp.ones(3), key="key")[0] for c in (2.0, 2.0, 3.0)
    )
    assert one == other != third
