"""The rule of `while`: how many steps there are, if that can be known while tracing."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.custom_derivatives import linear_call
from jax.extend import core

from synflow_jax.transform.control_flow import inside, of_kinds, settled, without_history
from synflow_jax.transform.scaled import Scaled
from synflow_jax.transform.values import (
    Equation,
    Tokens,
    Undecided,
    Value,
    as_array,
    carries_flow,
    must_be_plain,
    plain_or_flow,
)
from synflow_jax.xla.jaxprs import FlowError, bind, evaluate, opened


def while_loop(equation: Equation, *operands: Value):
    """Goes inside at every step. If the number of steps depends on nothing but numbers of
    the model's code, it is a `scan`. If it depends on a parameter, the loop has a flow but
    no scores, since JAX cannot differentiate it in reverse mode."""
    params = equation.params
    values = [without_history(x) for x in operands]
    first, second = params["cond_nconsts"], params["body_nconsts"]
    of_test, of_body = operands[:first], operands[first : first + second]
    init, dtype = values[first + second :], equation.dtype

    def body(carry):
        return inside(equation, params["body_jaxpr"], [*of_body, *carry])

    def test(carry):
        (goes_on,) = inside(equation, params["cond_jaxpr"], [*of_test, *carry])
        must_be_plain([goes_on], "the number of steps")
        return plain_or_flow(goes_on)

    kinds = settled(body, init, dtype)
    carry = of_kinds(kinds, init, dtype)
    jax.eval_shape(test, carry)  # raises if the number of steps depends on the flow
    steps = number_of_steps(equation, of_test, of_body, init)

    def step(carry, _=None):
        return of_kinds(kinds, body(carry), dtype)

    if steps is not None:
        return lax.scan(lambda carry, _: (step(carry), None), carry, None, steps)[0]
    outs = lax.while_loop(test, step, carry)
    return [_forward_only(out, equation.line) for out in outs]


def _forward_only(value: Value, line: str) -> Value:
    """The value; its derivative in reverse mode is an error that names the line."""
    if not isinstance(value, Scaled):
        return value

    def fail(_, cotangent):
        raise FlowError(
            f"flow cannot be differentiated through the primitive `while`, called at "
            f"{line}: the number of its steps depends on a parameter or on an argument of "
            "the compiled function, so it has a flow and no scores. Give the number as a "
            "Python integer, or write the loop as a `lax.scan`."
        )

    @jax.custom_jvp
    def same(x):
        return x

    @same.defjvp
    def _(primals, tangents):
        change = linear_call(lambda _, t: t, fail, (), tangents[0])
        return primals[0], change

    return Scaled(same(value.mantissa), value.exponent)


# --- the number of steps ------------------------------------------------------------------


def number_of_steps(
    equation: Equation,
    of_test: Sequence[Value],
    of_body: Sequence[Value],
    init: Sequence[Value],
) -> int | None:
    """The number of steps of a loop, which is counted by running what the test depends on;
    None if that is not known while tracing."""
    test, test_consts = opened(equation.params["cond_jaxpr"])
    body, body_consts = opened(equation.params["body_jaxpr"])
    constants = [*test_consts, *body_consts]
    first, second = len(of_test), len(of_body)
    tested, at = _needed(test, range(1))
    state = {i - first for i in at if i >= first}
    while True:  # what the state itself depends on
        stepped, of_step = _needed(body, state)
        more = state | {i - second for i in of_step if i >= second}
        if more == state:
            break
        state = more
    read = [of_test[i] for i in at if i < first]
    read += [of_body[i] for i in of_step if i < second] + [init[i] for i in state]
    if not all(map(_concrete, [*read, *constants])):
        return None
    order = sorted(state)

    def run(jaxpr, consts, given, wanted, carry):
        args = [*given, *(carry.get(i) for i in range(len(init)))]

        def step(eqn, operands):
            if id(eqn) not in wanted:
                return [None] * len(eqn.outvars)
            return bind(eqn, operands)

        return evaluate(jaxpr, consts, args, step)

    given = [[plain_or_flow(x) if _concrete(x) else None for x in xs]
             for xs in (of_test, of_body)]  # fmt: skip

    def goes_on(carry):
        _, values = carry
        return run(test, test_consts, given[0], tested, dict(zip(order, values)))[0]

    def count(carry):
        number, values = carry
        outs = run(body, body_consts, given[1], stepped, dict(zip(order, values)))
        return number + 1, [outs[i] for i in order]

    with jax.ensure_compile_time_eval():
        start = [jnp.asarray(as_array(init[i])) for i in order]
        return int(lax.while_loop(goes_on, count, (jnp.int32(0), start))[0])


def _needed(jaxpr: core.Jaxpr, outs) -> tuple[set[int], set[int]]:
    """The equations, and the arguments, on which some of the results depend."""
    wanted = {id(jaxpr.outvars[i]) for i in outs}
    equations = set()
    for eqn in jaxpr.eqns[::-1]:
        if any(id(var) in wanted for var in eqn.outvars):
            equations.add(id(eqn))
            wanted |= {id(atom) for atom in eqn.invars}
    return equations, {i for i, var in enumerate(jaxpr.invars) if id(var) in wanted}


def _concrete(value: Any) -> bool:
    if carries_flow(value) or isinstance(value, Tokens | Undecided):
        return False
    return not isinstance(value, Tracer)
