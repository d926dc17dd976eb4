"""Primitives without a rule: the error says why, and what it advises works when typed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import synflow_jax
import synflow_jax as sj
from synflow_jax.transform import Scaled
from tests import nets

W = nets.draw({"w": (4, 6)})["w"]


def integers(y):
    return (y > 0).astype(jnp.int32)


def windows(y):
    return lax.reduce_window(y, 0.0, lambda a, b: a + 2 * b, (1, 2), (1, 2), "VALID")


# A use of each primitive of jax.lax that has no rule.
UNKNOWN = {
    "bitcast_convert_type": lambda y: lax.bitcast_convert_type(y, jnp.int32),
    "clz": lambda y: lax.clz(integers(y)),
    "igamma": lambda y: lax.igamma(jnp.ones_like(y), y),
    "igamma_grad_a": lambda y: lax.igamma_grad_a(y, y),
    "igammac": lambda y: lax.igammac(y, jnp.ones_like(y)),
    "mulhi": lambda y: lax.mulhi(integers(y), integers(y)),
    "polygamma": nets.trigamma,
    "population_count": lambda y: lax.population_count(integers(y)),
    "reduce": lambda y: lax.reduce(y, 0.0, lambda a, b: a + 2 * b, (1,)),
    "reduce_window": windows,
    "reduce_xor": lambda y: lax.reduce_xor(y > 0, axes=(1,)),
    "regularized_incomplete_beta": lambda y: lax.betainc(y, y, jnp.ones_like(y)),
    "rng_uniform": lambda y: lax.rng_uniform(0.0, y[0, 0], (3,)),
    "select_and_gather_add": lambda y: jax.jvp(
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2), (1, 2), "VALID"),
        (y,),
        (y,),
    )[1],
    "select_and_scatter_add": lambda y: jax.grad(
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2), (1, 2), "VALID").sum()
    )(y),
    "shift_left": lambda y: lax.shift_left(integers(y), integers(y)),
    "shift_right_arithmetic": lambda y: lax.shift_right_arithmetic(
        integers(y), integers(y)
    ),
    "shift_right_logical": lambda y: lax.shift_right_logical(integers(y), integers(y)),
    "zeta": lambda y: lax.zeta(1 + y, y),
    # Not of jax.lax: one with several results, and one outside of JAX.
    "svd": lambda y: jnp.linalg.svd(y, full_matrices=False),
    "eigh": lambda y: jnp.linalg.eigh(y.T @ y),
    "pure_callback": lambda y: jax.pure_callback(np.sort, y, y),
}
# Primitives that the lowest version of JAX does not have.
UNKNOWN = {n: use for n, use in UNKNOWN.items() if n != "mulhi" or hasattr(lax, "mulhi")}
# They never meet a flow, or only inside of another primitive.
NEVER = {
    "after_all": "orders side effects",
    "axis_index": "takes no operand",
    "create_token": "takes no operand",
    "iota": "takes no operand",
    "rng_bit_generator": "takes a key",
    "select_and_scatter": "no function of JAX makes it",
    "stage": "no function of JAX makes it",
    "ragged_all_to_all": "communicates between devices, and no CPU has it",
}


def error_of(function):
    with pytest.raises(sj.FlowError) as error:
        sj.log_flow(lambda w, x: function(x @ w), W, (4,))
    return str(error.value)


def test_every_primitive_of_jax_without_a_rule_is_tried_here():
    there = {p.name for p in vars(lax).values() if isinstance(p, jax.extend.core.Primitive)}
    assert there - {*sj.flow_rules} <= {*UNKNOWN, *NEVER}
    assert not {*UNKNOWN, *NEVER} & {*sj.flow_rules}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_the_error_advises_works_when_it_is_typed(name):
    function = UNKNOWN[name]
    message = error_of(function)
    assert f"no rule for the primitive `{name}`" in message and len(message) < 1600
    advised = re.findall(r"rules=(\{.*?\})\.", message)
    assert len(advised) <= 4
    for text in advised:
        rules = eval(text, {"synflow_jax": synflow_jax})
        sj.log_flow(lambda w, x: function(x @ w), W, (4,), rules=rules)
    number, shapes = re.search(
        r"returns (\d+) results? of the shapes (.*?\])\.", message
    ).groups()
    assert f"a list of {number} flow" in message
    shapes = eval(shapes)
    assert len(shapes) == int(number)

    def rule(equation, *operands):
        return [Scaled(jnp.ones(s, equation.dtype), jnp.int32(0)) for s in shapes]

    table = {**sj.flow_rules, name: rule}
    sj.log_flow(lambda w, x: function(x @ w), W, (4,), rules=table)


@pytest.mark.parametrize(
    ("name", "advised", "reason"),
    [
        ("polygamma", ["tanh"], "not known"),
        ("zeta", ["add", "max", "sub", "mul"], "not known"),
        ("svd", [], "factorises a matrix"),
        ("pure_callback", ["tanh"], "does not look into"),
        ("clz", [], "the bits of numbers"),
        ("reduce_xor", [], "parity"),
    ],
)
def test_the_advice_looks_at_operands_and_results(name, advised, reason):
    message = error_of(UNKNOWN[name])
    assert reason in message
    found = re.findall(r"synflow_jax\.flow_rules\['(\w+)'\]\}", message)
    assert [n for n in found if n != "rev"] == advised


# --- what a rule returns ------------------------------------------------------------------


def wrong(result):
    def own_rule(equation, flow):
        return result(flow)

    return own_rule


def raising(equation, flow):
    return flow.nothing


def two_operands(equation, flow, other):
    return [flow]


WRONG = {
    "a flow alone": (wrong(lambda flow: flow), "must return a list .* returned Scaled"),
    "whole numbers": (
        wrong(lambda f: [Scaled(f.mantissa.astype(jnp.int32), f.exponent)]),
        "mantissa is of the type int32, where float32 is wanted",
    ),
    "half precision": (
        wrong(lambda f: [Scaled(f.mantissa.astype(jnp.bfloat16), f.exponent)]),
        "mantissa is of the type bfloat16, where float32 is wanted",
    ),
    "an exponent of floats": (
        wrong(lambda f: [Scaled(f.mantissa, f.exponent.astype(jnp.float32))]),
        "exponent is no single integer: it is of the type float32",
    ),
    "an exponent for each entry": (
        wrong(lambda f: [Scaled(f.mantissa, f.exponent + jnp.zeros((1, 6), jnp.int32))]),
        r"no single integer: .* the shape \(1, 6\)",
    ),
    "an error": (raising, "raised AttributeError: 'Scaled' object has no attribute"),
    "other operands": (two_operands, "raised TypeError: .* missing 1 required"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_rule_is_an_error_with_its_line(name, no_typecheck):
    rule, message = WRONG[name]
    line = rule.__code__.co_firstlineno
    rules = {**sj.flow_rules, "tanh": rule}
    with pytest.raises(sj.FlowError, match=message) as error:
        sj.log_flow(lambda w, x: jnp.tanh(x @ w), W, (4,), rules=rules)
    assert re.search(
        rf"`tanh`, called at .*test_advice\.py:\d+ .*rule `.*{rule.__name__}`",
        str(error.value),
    )
    assert f"test_advice.py:{line})" in str(error.value)
