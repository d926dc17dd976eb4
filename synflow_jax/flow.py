"""The flow of a function: a program transformation, like `jax.grad` or `jax.vmap`.

The flow of a network is the network with every weight replaced by its absolute value,
every nonlinearity by the identity and every shift dropped. It is linear in its input and
positive. Its total on an all-ones input is the paper's R, the sum over all paths from input
to output of the product of the weights' sizes.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array, Float, PyTree

from synflow_jax import scaled
from synflow_jax.equations import Equation, Value
from synflow_jax.rules import RULES
from synflow_jax.scaled import Scaled
from synflow_jax.trees import Params, is_floating, scoring_dtype, widened


class FlowError(ValueError):
    """A network that has no flow: it names the primitive and the line of the model."""


def flow(
    apply_fn: Callable[..., PyTree], *, biases: bool = False
) -> Callable[..., tuple[PyTree, PyTree]]:
    """Transforms a network into its flow.

    The network is traced and interpreted equation by equation. Whatever is computed from
    the parameters alone is computed as written, and its absolute value is taken where it
    meets the flow; so batch normalisation in evaluation mode is one positive factor, and
    weights may be transformed before they are used. The rules are listed in `rules.py`.

    Args:
      apply_fn: ``apply_fn(params, *args) -> y``, traceable by JAX.
      biases: keep added parameters, in their absolute values, instead of dropping them.
        The flow is then affine and the conservation laws do not hold.

    Returns:
      ``f(params, *args) -> (mantissa, exponent)``, two trees like ``y``, the flow being
      ``mantissa * 2**exponent``: mantissas in float32 (float64 if a parameter is) of a
      size near 1, and one int32 exponent for each array, so nothing overflows. Within one
      array, an entry more than 2**100 times smaller than the largest counts as zero. ``f``
      can be differentiated; exponents are constants under differentiation.

    Raises:
      FlowError: while tracing, a ValueError, if the network uses a primitive that has no
        rule, or uses one in a way that no rule covers.

    Example:
      >>> f = flow(lambda params, x: jax.nn.relu(x @ params["w"] - params["b"]))
      >>> params = {"w": jnp.array([[1.0, -2.0], [-3.0, 4.0]]), "b": jnp.ones(2)}
      >>> mantissa, exponent = f(params, jnp.ones(2))
      >>> mantissa * 2.0**exponent
      Array([4., 6.], dtype=float32)

    References:
      Tanaka et al. 2020 (arXiv 2006.05467), the objective of Algorithm 1, there for ReLU
      networks, by overwriting the weights.
    """

    def transformed(params: Params, *args: PyTree) -> tuple[PyTree, PyTree]:
        params, args = jax.tree.map(jnp.asarray, (widened(params), args))
        dtype = scoring_dtype(*jax.tree.leaves(params))
        for path, leaf in jax.tree_util.tree_leaves_with_path(args):
            if not is_floating(leaf):
                raise ValueError(
                    f"the input args{jax.tree_util.keystr(path)} has dtype {leaf.dtype}; "
                    "the flow starts at floating inputs."
                )
        args = jax.tree.map(lambda x: x.astype(dtype), args)
        traced, shape = jax.make_jaxpr(apply_fn, return_shape=True)(params, *args)
        sources = [scaled.normalised(x) for x in jax.tree.leaves(args)]
        outs = _interpret(
            traced.jaxpr, traced.consts, [*jax.tree.leaves(params), *sources], biases
        )
        # An output that does not depend on the input carries none of its flow.
        outs = [
            out if isinstance(out, Scaled) else scaled.nothing(jnp.shape(out), dtype)
            for out in outs
        ]
        tree = jax.tree.structure(shape)
        return (
            jax.tree.unflatten(tree, [out.mantissa for out in outs]),
            jax.tree.unflatten(tree, [out.exponent for out in outs]),
        )

    return transformed


def total_flow(
    apply_fn: Callable[..., PyTree],
    params: Params,
    inputs: PyTree,
    *,
    biases: bool = False,
) -> Scaled:
    """R, the sum of the flow over all outputs.

    Args:
      apply_fn: ``apply_fn(params, x) -> y``.
      params: the parameters.
      inputs: what ``apply_fn`` takes as ``x``; `ones` makes the paper's input.
      biases: as in `flow`.

    Returns:
      A scalar `Scaled`. Differentiable.
    """
    mantissas, exponents = flow(apply_fn, biases=biases)(params, inputs)
    outputs = [
        Scaled(jnp.sum(m), e)
        for m, e in zip(jax.tree.leaves(mantissas), jax.tree.leaves(exponents))
    ]
    if not outputs:
        raise ValueError("`apply_fn` returned no arrays, so nothing carries the flow.")
    terms, exponent = scaled.aligned(outputs)
    return scaled.normalised(sum(terms[1:], terms[0]), exponent)


def log_flow(
    apply_fn: Callable[..., PyTree], params: Params, input_shape: PyTree
) -> Float[Array, ""]:
    """Natural logarithm of R, the network's total flow.

    Finite at any depth, in any precision. As a score of whole architectures it is the
    ``synflow`` proxy of zero-cost architecture search, without its overflows.

    Args:
      apply_fn: ``apply_fn(params, x) -> y``.
      params: the parameters.
      input_shape: as in `synflow_jax.synflow`.

    Returns:
      A scalar; minus infinity where no path is left from input to output.

    Raises:
      ValueError: as `flow` does.

    Example:
      >>> params = {"w": jnp.array([[1.0, -2.0], [-3.0, 4.0]])}
      >>> float(jnp.exp(log_flow(lambda p, x: x @ p["w"], params, (2,)))).__round__(3)
      10.0

    References:
      Tanaka et al. 2020 (arXiv 2006.05467), R_SF; Abdelfattah et al., "Zero-Cost Proxies
      for Lightweight NAS", ICLR 2021, for its use in ranking.
    """
    return scaled.log(total_flow(apply_fn, params, ones(input_shape)))


def ones(input_shape: PyTree) -> PyTree:
    """The all-ones input of SynFlow.

    Args:
      input_shape: the shape of one example, without the batch axis; or a pytree of
        `jax.ShapeDtypeStruct` that describes the whole input, batch axis included.

    Returns:
      An array of shape ``(1, *input_shape)``, or a tree like ``input_shape``.

    Raises:
      ValueError: if ``input_shape`` is neither.

    Example:
      >>> ones((2,))
      Array([[1., 1.]], dtype=float32)
    """
    is_shape = isinstance(input_shape, (tuple, list)) and all(
        isinstance(n, int) or hasattr(n, "__index__") for n in input_shape
    )
    if is_shape:
        if any(n < 0 for n in input_shape):
            raise ValueError(f"`input_shape` has a negative entry: {input_shape}.")
        return jnp.ones((1, *input_shape))
    leaves = jax.tree.leaves(input_shape)
    if not leaves or not all(isinstance(x, jax.ShapeDtypeStruct) for x in leaves):
        raise ValueError(
            "`input_shape` is the shape of one example without the batch axis, such as "
            "(32, 32, 3), or a pytree of jax.ShapeDtypeStruct for the whole input; got "
            f"{input_shape!r}."
        )
    return jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), input_shape)


# --- the interpreter ----------------------------------------------------------------------


def _interpret(
    jaxpr: core.Jaxpr,
    consts: Sequence[Any],
    args: Sequence[Value],
    biases: bool,
    line: str = "an unknown line",
) -> list[Value]:
    """Evaluates a jaxpr with some of its arguments carrying flow.

    ``line`` is where the model calls it: JAX forgets the callers of jitted functions that
    it has traced before.
    """
    values: dict[core.Var, Value] = dict(zip(jaxpr.constvars, map(_as_array, consts)))
    values.update(zip(jaxpr.invars, args))

    def read(atom):
        return _as_array(atom.val) if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        if any(isinstance(operand, Scaled) for operand in operands):
            outs = _apply_rule(eqn, operands, biases, _user_line(eqn) or line)
        else:
            outs = _bind(eqn, operands)
        values.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _as_array(constant: Any) -> Array:
    return constant if isinstance(constant, jax.Array) else jnp.asarray(constant)


def _bind(eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Array]:
    bound = eqn.primitive.get_bind_params(eqn.params)
    # Before JAX 0.9 the functions among the parameters came apart, in a pair.
    functions, params = bound if isinstance(bound, tuple) else ([], bound)
    outs = eqn.primitive.bind(*functions, *operands, **params)
    return outs if eqn.primitive.multiple_results else [outs]


def _apply_rule(
    eqn: core.JaxprEqn, operands: list[Value], biases: bool, line: str
) -> Sequence[Value]:
    name = eqn.primitive.name

    def inside(inner, *operands):
        if not isinstance(inner, core.ClosedJaxpr):
            inner = core.ClosedJaxpr(inner, [])
        return _interpret(inner.jaxpr, inner.consts, operands, biases, line)

    if name not in RULES:
        raise FlowError(
            f"flow has no rule for the primitive `{name}`, called at {line}. "
            "It acts on values that depend on the input, so what it does to the flow must "
            f"be known. Known primitives: {', '.join(sorted(RULES))}."
        )
    equation = Equation(
        name=name,
        params=eqn.params,
        out_shapes=[var.aval.shape for var in eqn.outvars],
        biases=biases,
        inside=inside,
        bind=lambda *arrays: _bind(eqn, arrays),
    )
    try:
        return RULES[name](equation, *operands)
    except FlowError:  # from a jaxpr inside this one: it has its place already
        raise
    except ValueError as error:
        raise FlowError(
            f"flow cannot pass the primitive `{name}`, called at {line}: {error}"
        ) from error


# Code that stands between the user's model and the primitive.
_JAX, _FLAX = (
    os.path.dirname(os.path.abspath(module.__file__)) + os.sep for module in (jax, flax)
)


def _user_line(eqn: core.JaxprEqn) -> str | None:
    """File, line and function of the innermost frame outside JAX, Flax and this package."""
    traceback = eqn.source_info.traceback
    frames = traceback.frames if traceback else []
    # The interpreter traces the model, so its own frames end the search.
    frames = list(itertools.takewhile(lambda f: f.file_name != __file__, frames))
    # A model made of layers alone has no line of its own: then the layer's.
    for libraries in ((_JAX, _FLAX), (_JAX,)):
        for frame in frames:
            if not frame.file_name.startswith(libraries):
                function = frame.function_name.rsplit("<locals>.", 1)[-1]
                return f"{frame.file_name}:{frame.line_num} ({function})"
    return None
